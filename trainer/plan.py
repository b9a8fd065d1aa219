"""What a run will do, worked out and checked before anything is started."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from data.home import ledgers_folder, store_path, teachers_folder
from data.input_spec import InputSpec
from data.store import ClipStore
from teacher_server.ledger.store import ledger_folders
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherRef
from teacher_server.zoo.names import ARCHITECTURES
from trainer.config import SMALLEST_SHARE, ConfigError, RunConfig
from trainer.config_checks import NO_BFLOAT16_ON_CPU
from trainer.sampler import Sampler, count_whole, split_rows
from trainer.teacher_facts import TeacherFacts, student_action_classes, teacher_facts
from trainer.timeline import TimelineEntry, recorded_timeline


@dataclass(frozen=True)
class Plan:
    """A checked run. Paths are absolute, because workers run in other folders.

    timeline: what --teacher-timeline names, read here because its file may lie on this machine only; empty without it.
    teacher: what the run must know of its teacher beforehand; None for scratch. trusted: whether the user typed the
    names of plug-ins among the settings; those that were read back from a run's folder bring no code along.
    """

    config: RunConfig
    store_path: Path
    store_fingerprint: str
    library_root: Path
    ledger_root: Path
    timeline: tuple[TimelineEntry, ...]
    device: str
    num_train: int
    num_validation: int
    num_test: int
    num_left_out: int
    steps_per_epoch: int
    total_steps: int
    teacher: TeacherFacts | None = None
    trusted: bool = False

    @property
    def identity(self) -> str:
        """12 hex digits; equal for two runs that mean the same training. A recorded timeline takes part by its content,
        because it changes what is learned, wherever its file lies."""
        if not self.timeline:
            return self.config.identity()
        entries = [dataclasses.asdict(entry) for entry in self.timeline]
        return hashlib.sha256(json.dumps([self.config.identity(), entries]).encode()).hexdigest()[:12]

    @property
    def lease_ref(self) -> TeacherRef:
        """What a lease names: the teacher of the settings, or the version that a recorded timeline begins with.

        Raises ConfigError for scratch."""
        ref = self.config.teacher_ref
        if ref is None:
            raise ConfigError("a run without a teacher takes no lease")
        return TeacherRef.parse(self.timeline[0].teacher) if self.timeline else ref


def check_teacher(config: RunConfig) -> None:
    """Reads the teacher's card. Raises TeacherError or ConfigError, a sentence, unless the run can learn from it.

    The library behind a gateway is not to be seen from here: there the service refuses what does not fit.
    """
    teacher_facts(config)


def make_plan(config: RunConfig, *, trusted: bool = False) -> Plan:
    """Opens the store and counts steps. Raises one of the packages' errors, each a sentence.

    trusted: whether the user typed the settings; see Plan.
    """
    timeline = recorded_timeline(config, TeacherLibrary(teachers_folder()) if config.needs_library else None)
    path = store_path(config.store)
    store = ClipStore.open(path)
    height, width = store.frame_size
    if config.crop > min(height, width):
        raise ConfigError(
            f"--crop {config.crop} does not fit into the store's frames of {height}x{width}: "
            "choose a smaller crop, or ingest with a larger --size"
        )
    if config.crop < SMALLEST_SHARE * min(height, width):
        raise ConfigError(
            f"--crop {config.crop} shows less than half of the store's frames of {height}x{width}, and `preceptor "
            f"eval` would refuse such a student: choose --crop {round(0.875 * min(height, width))}, or ingest with a "
            "smaller --size"
        )
    teacher = teacher_facts(config)
    if config.ledger == "replay" and not timeline:
        _check_recorded(config)
    student_action_classes(config, teacher, store.classes)
    if config.extra_loss:
        from trainer.objective import load_extra_loss  # torch is heavy, and most runs have no such loss

        load_extra_loss(config.extra_loss, trusted=trusted)
    if config.student not in ARCHITECTURES:
        from teacher_server.zoo.registry import build_backbone  # the same: a plug-in is tried before anything starts

        build_backbone(config.student, config.width, trusted=trusted)
    train, validation, test, left_out = split_rows(store, config)
    sampler = Sampler(store.videos, train, config, count_whole(store, config), trusted=trusted)
    return Plan(
        config=config,
        store_path=path,
        store_fingerprint=store.fingerprint,
        library_root=teachers_folder(),
        ledger_root=ledgers_folder(),
        timeline=timeline,
        device=_device(config),
        num_train=len(train),
        num_validation=len(validation),
        num_test=len(test),
        num_left_out=left_out,
        steps_per_epoch=sampler.steps_per_epoch,
        total_steps=sampler.total_steps,
        teacher=teacher,
        trusted=trusted,
    )


def _check_recorded(config: RunConfig) -> None:
    """Raises ConfigError when a replay would find nothing at all of its teacher."""
    ref, root = config.teacher_ref, ledgers_folder()
    if ref is not None and not any(path.name.startswith(f"{ref.name}@") for path in ledger_folders(root)):
        raise ConfigError(
            f"--ledger replay: no answers of teacher {ref.name} are recorded in {root}; a run with --ledger record or "
            "auto records them"
        )


def student_input(config: RunConfig) -> InputSpec:
    """The one normalisation that a student uses everywhere."""
    return InputSpec(modality=config.modality, crop=config.crop)


def _device(config: RunConfig) -> str:
    if config.device == "cpu":
        return config.device
    device = _usable_device(config)
    if device == "cpu" and config.student_precision == "bfloat16":
        raise ConfigError(NO_BFLOAT16_ON_CPU)
    return device


def _usable_device(config: RunConfig) -> str:
    import torch  # heavy, and needed for this one question

    here = torch.cuda.is_available()
    # On a cluster the workers may have what this machine lacks.
    if config.device == "cuda" and not here and (config.num_workers == 0 or not os.environ.get("RAY_ADDRESS")):
        raise ConfigError("--device cuda, but torch finds no usable GPU on this machine: use --device cpu or auto")
    return "cuda" if here or config.device == "cuda" else "cpu"
