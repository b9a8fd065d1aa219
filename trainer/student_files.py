"""Trained students as files: finding one by the name that a user types, and reading it whole.

    run id, RUN:best, run folder     ->  checkpoints/<newest or best>/{state.safetensors, state.json}  + config.json
    checkpoint folder                ->  the same, of that checkpoint
    folder of a fine-tuned student   ->  {model.safetensors, student.json}

Which heads a student has is read from the names and shapes of its tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from data.atomic import write_atomic
from data.errors import DataError
from data.home import runs_folder, store_path
from data.store import ClipStore
from teacher_server.zoo.layers import to_channels_last
from teacher_server.zoo.names import ARCH_VERSION
from teacher_server.zoo.network import VideoNetwork
from trainer.checkpoint import BEST, load_network_tensors, newest_checkpoint
from trainer.config import ConfigError, RunConfig, from_json
from trainer.errors import CheckpointError
from trainer.lessons import Lesson, lesson_of_run
from trainer.runs import RunFolder
from trainer.teacher_facts import action_class_names

MODEL = "model.safetensors"
CARD = "student.json"
_CHECKPOINT_STATE = "state.json"
_FORMAT: Literal[2] = 2  # of CARD
_ACTION_WEIGHT = "action_head.linear.weight"


@dataclass(frozen=True)
class LoadedStudent:
    """A student to evaluate or to ask: `network` in evaluation mode, on the CPU.

    config: of the run that trained it; read from a file, so that a plug-in that it names needs somebody's permission
    here (data.plugins). digest: of its weights, 64 hex digits. source: the folder that was read.
    classes: names of the action head's classes, in order; numbers where the names are not on record any more, empty
    without such a head. frame_size: (height, width) of the stored frames that a student with such a head was trained
    on; None where that is not on record. lessons: what it was trained on, one after the other.
    """

    network: VideoNetwork
    config: RunConfig
    digest: str
    source: Path
    classes: tuple[str, ...] = ()
    frame_size: tuple[int, int] | None = None
    lessons: tuple[Lesson, ...] = ()

    @property
    def key(self) -> str:
        """64 hex digits that change with the weights and with what computes with them: the same tensors are another
        student in another architecture, or in another version of ours."""
        facts = [self.digest, self.config.student, ARCH_VERSION]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


class _StudentCard(BaseModel):
    """student.json of a fine-tuned student. config: RunConfig's fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal[2] = _FORMAT
    config: dict[str, object]
    classes: tuple[str, ...]
    frame_size: tuple[int, int]
    lessons: tuple[Lesson, ...]
    weights_digest: str


def load_student(reference: str | Path) -> LoadedStudent:
    """The student that a run id, RUN:best, a run's folder, a checkpoint's folder or a fine-tuned student's names.

    Raises ConfigError when nothing of the kind is there, CheckpointError when it is damaged.
    """
    folder = _resolve(reference)
    if (folder / CARD).is_file():
        return _load_fine_tuned(folder)
    run = RunFolder(folder.parent.parent)
    if not run.config.is_file():
        raise ConfigError(f"{folder} is a checkpoint, but {run.config} is missing: its settings are not known")
    tensors, config = load_network_tensors(folder), run.read_config()
    num_classes = _num_rows(tensors, _ACTION_WEIGHT)
    lessons = (lesson_of_run(run, config, has_action_head=num_classes > 0),)
    if not num_classes:
        return _loaded(tensors, config, folder, lessons)
    return _loaded(tensors, config, folder, lessons, action_class_names(config, num_classes), _stored_size(config))


def save_student(
    folder: Path,
    network: VideoNetwork,
    config: RunConfig,
    classes: tuple[str, ...],
    frame_size: tuple[int, int],
    lessons: tuple[Lesson, ...],
) -> None:
    """Writes a fine-tuned student as a folder that `load_student` reads; replaces the one that is there.

    The arguments are LoadedStudent's.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    card = _StudentCard(
        config=config.to_json(),
        classes=classes,
        frame_size=frame_size,
        lessons=lessons,
        weights_digest=tensors_digest(tensors),
    )
    folder.mkdir(parents=True, exist_ok=True)
    # The card goes last: a folder without one, or with that of other weights, is not taken for whole.
    write_atomic(folder / MODEL, save_safetensors(tensors))
    write_atomic(folder / CARD, card.model_dump_json(indent=1).encode() + b"\n")


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """64 hex digits: sha256 over the names, types, shapes and values of the tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().numpy().tobytes())
    return digest.hexdigest()


def network_from(tensors: Mapping[str, Tensor], arch: str, width: float) -> VideoNetwork:
    """The network that holds exactly these tensors, in evaluation mode. Raises CheckpointError when none does."""
    try:
        network = VideoNetwork(
            arch,
            width,
            pretext_classes=_num_rows(tensors, "pretext_head.linear.weight"),
            action_classes=_num_rows(tensors, _ACTION_WEIGHT),
            projector=any(name.startswith("projector.") for name in tensors),
        )
        network.load_state_dict(dict(tensors))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"the weights are not those of a {arch} of width {width:g}: {reason}") from None
    to_channels_last(network)  # as in training; forward passes on a CPU take up to half the time
    return network.eval()


def _resolve(reference: str | Path) -> Path:
    """The folder to read: a checkpoint's or a fine-tuned student's."""
    path = Path(reference).expanduser()
    if path.is_dir() and ((path / CARD).is_file() or (path / _CHECKPOINT_STATE).is_file()):
        return path.resolve()
    name, colon, which = str(reference).rpartition(":")
    if not colon:
        name, which = str(reference), ""
    run = RunFolder(Path(name).resolve() if (Path(name) / "config.json").is_file() else runs_folder() / name)
    if which not in ("", BEST) or not run.config.is_file():
        raise ConfigError(
            f"no student {str(reference)!r}: expected the id of a run under {runs_folder()}, RUN:{BEST}, "
            "or the folder of a run, of a checkpoint or of a fine-tuned student"
        )
    return best_checkpoint(run) if which == BEST else newest_checkpoint(run.checkpoints)


def best_checkpoint(run: RunFolder) -> Path:
    """The one that validation chose. Raises ConfigError when the run has kept none."""
    if not (run.checkpoints / BEST).is_dir():
        raise ConfigError(f"run {run.run_id} has kept no best checkpoint: use {run.run_id} for its newest one")
    return (run.checkpoints / BEST).resolve()


def _load_fine_tuned(folder: Path) -> LoadedStudent:
    try:
        content = (folder / CARD).read_bytes()
        if _format_of(content) < _FORMAT:
            raise CheckpointError(
                f"student {folder} was kept by an earlier version, without what it was trained on: fine-tune it again "
                "with preceptor eval"
            )
        card = _StudentCard.model_validate_json(content)
        tensors = load_safetensors((folder / MODEL).read_bytes())
    except (OSError, ValidationError, SafetensorError) as error:
        raise CheckpointError(f"student {folder} is damaged: {str(error).splitlines()[0]}") from None
    if tensors_digest(tensors) != card.weights_digest:
        raise CheckpointError(f"student {folder} is damaged: its weights are not those that its card names")
    num_classes = _num_rows(tensors, _ACTION_WEIGHT)
    if num_classes != len(card.classes):
        raise CheckpointError(
            f"student {folder} is damaged: its card names {len(card.classes)} classes, its head has {num_classes}"
        )
    config = from_json(dict(card.config))
    return _loaded(tensors, config, folder, card.lessons, card.classes, card.frame_size)


def _format_of(content: bytes) -> int:
    """That of a card; ours for what is no card at all, which then says more."""
    try:
        found = json.loads(content).get("format")
    except (ValueError, AttributeError):
        return _FORMAT
    return found if isinstance(found, int) else _FORMAT


def _loaded(
    tensors: Mapping[str, Tensor],
    config: RunConfig,
    source: Path,
    lessons: tuple[Lesson, ...],
    classes: tuple[str, ...] = (),
    frame_size: tuple[int, int] | None = None,
) -> LoadedStudent:
    network = network_from(tensors, config.student, config.width)
    return LoadedStudent(network, config, tensors_digest(tensors), source, classes, frame_size, lessons)


def _stored_size(config: RunConfig) -> tuple[int, int] | None:
    """Of the run's clip store, if that is still here."""
    try:
        return ClipStore.open(store_path(config.store)).frame_size
    except DataError:
        return None


def _num_rows(tensors: Mapping[str, Tensor], name: str) -> int:
    """0 for a tensor that is missing, or is no layer's weight: the network then says what does not fit."""
    return tensors[name].shape[0] if name in tensors and tensors[name].ndim == 2 else 0
