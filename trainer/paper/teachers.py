"""The teachers of the paper's experiments in the teacher library.

    full       trained on all the data by a job of its own; its checkpoint that validation prefers
    matched    the scratch student of the same fraction and seed, likewise; it was trained on its students' own views
    untrained  random weights

Each is added once; teachers/<id>.json remembers under which name, version and digest. Several workers may want the
same one at the same time: one of them adds it, under a lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from data.atomic import write_atomic
from data.home import store_path
from data.store import ClipStore
from teacher_server.card import PRETEXT_CLASSES, Provenance, TeacherCard
from teacher_server.engine.ensemble import load_teacher
from teacher_server.errors import TeacherError
from teacher_server.library import TeacherEntry, TeacherLibrary
from teacher_server.protocol import TeacherId
from teacher_server.zoo.names import ARCH_VERSION
from teacher_server.zoo.network import VideoNetwork
from trainer.config import RunConfig
from trainer.errors import TrainingFailed
from trainer.evaluate.pretext import pretext_accuracy
from trainer.paper.records import TeacherKey, TeacherResult
from trainer.plan import student_input
from trainer.sampler import split_rows
from trainer.student_files import LoadedStudent

_TIMED_CHUNKS = 3


@dataclass(frozen=True)
class Training:
    """What is on record of a trained teacher. Accuracy: pretext, of the test list. seconds: of its steps."""

    test_acc: float
    seconds: float
    epochs: int
    steps: int
    num_train: int


@dataclass(frozen=True)
class PaperTeachers:
    """The teachers of one paper folder. device: where they will answer, `cpu` or `cuda`."""

    folder: Path
    library: TeacherLibrary
    device: str

    def find(self, key: TeacherKey) -> TeacherResult | None:
        """A teacher that is in the library; None for one that is not on record yet.

        Raises TrainingFailed when the library has another network under its name, or none: the cells of one folder
        must not learn from different networks.
        """
        known = self.read(key)
        if known is None:
            return None
        try:
            found = self.library.entry(TeacherId.parse(known.teacher)).digest
        except TeacherError as error:
            found = str(error)
        if found != known.digest:
            raise TrainingFailed(
                f"{self._record(key)} says that {known.teacher} has digest {known.digest}, the library says: {found}; "
                "go on with the PRECEPTOR_HOME that this folder was begun with, or use another --out"
            )
        return known

    def read(self, key: TeacherKey) -> TeacherResult | None:
        """What is on record of a teacher, whether or not the library still has it."""
        try:
            return TeacherResult.model_validate_json(self._record(key).read_bytes())
        except (OSError, ValidationError):
            return None

    def add_trained(
        self, key: TeacherKey, config: RunConfig, make: Callable[[], tuple[LoadedStudent, Training]]
    ) -> TeacherResult:
        """The teacher, added now if it is not there. make: its network and how that was trained."""
        with self._adding(key) as known:
            if known is not None:
                return known
            student, training = make()
            return self._add(key, student.network, config, training)

    def add_untrained(self, key: TeacherKey, config: RunConfig) -> TeacherResult:
        """A network as it is before training, added now if it is not there. config: of a student that learns from it;
        the teacher is as wide."""
        with self._adding(key) as known:
            if known is not None:
                return known
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(key.seed)
                network = VideoNetwork(key.arch, config.width, projector=False)
            accuracy = _test_accuracy(network.to(self.device), config, key.seed)
            return self._add(key, network, config, Training(accuracy, 0.0, 0, 0, 0))

    @contextlib.contextmanager
    def _adding(self, key: TeacherKey) -> Iterator[TeacherResult | None]:
        """While one worker adds a teacher, the others wait here and then find it."""
        path = self._record(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield self.find(key)

    def _add(self, key: TeacherKey, network: VideoNetwork, config: RunConfig, training: Training) -> TeacherResult:
        """The record is written last: a worker that is killed before adds the teacher again, as another version."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
        served = {name: tensor for name, tensor in tensors.items() if name.startswith(("backbone.", "pretext_head."))}
        card = _card(key, network.feature_size, config, training)
        with tempfile.TemporaryDirectory() as temporary:
            weights = Path(temporary) / "model.safetensors"
            save_file(served, weights)
            # A name in the library has no dots, a fraction may have one.
            entry = self.library.entry(self.library.add(f"paper-{key.id}".replace(".", "_"), card, weights))
        result = TeacherResult(
            key=key,
            teacher=str(entry.teacher),
            digest=entry.digest,
            width=config.width,
            epochs=training.epochs,
            steps=training.steps,
            num_train=training.num_train,
            test_acc=training.test_acc,
            training_s=training.seconds,
            item_s=_item_seconds(entry, config, self.device),
        )
        write_atomic(self._record(key), result.model_dump_json(indent=1).encode() + b"\n")
        return result

    def _record(self, key: TeacherKey) -> Path:
        return self.folder / "teachers" / f"{key.id}.json"


def _test_accuracy(network: VideoNetwork, config: RunConfig, view_seed: int) -> float:
    store = ClipStore.open(store_path(config.store))
    _, _, test_rows, _ = split_rows(store, config)
    result = pretext_accuracy(
        network,
        store,
        test_rows,
        config.clip_spec,
        student_input(config),
        view_seed=view_seed,
        tuples_per_video=config.eval_tuples,
        any_swap=config.any_swap,
        shuffle=config.shuffle_variant,
        operation=config.pretext_operation,
    )
    return result.accuracy


def _card(key: TeacherKey, feature_size: int, config: RunConfig, training: Training) -> TeacherCard:
    return TeacherCard(
        arch=key.arch,
        arch_version=ARCH_VERSION,
        width=config.width,
        head="pretext",
        classes=PRETEXT_CLASSES,
        clip_len=config.clip_len,
        crop=config.crop,
        modality=config.modality,
        feature_size=feature_size,
        provenance=Provenance(
            command=f"preceptor paper: {key.id}",
            store_fingerprint=ClipStore.open(store_path(config.store)).fingerprint,
            steps=training.steps,
            metrics={"pretext_acc": training.test_acc},
        ),
    )


def _item_seconds(entry: TeacherEntry, config: RunConfig, device: str) -> float:
    """Seconds for the answer to one tuple, in full chunks: the least of a few, because others use the machine too."""
    teacher = load_teacher(entry, device)
    clips = entry.card.chunk_items * entry.card.views_per_item
    pixels = np.zeros((clips, config.clip_len, config.crop, config.crop, 3), dtype=np.uint8)
    seconds = []
    for _ in range(_TIMED_CHUNKS):
        began = time.perf_counter()
        teacher.answer(pixels)
        seconds.append(time.perf_counter() - began)
    return min(seconds) / entry.card.chunk_items
