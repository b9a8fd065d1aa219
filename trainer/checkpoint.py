"""Checkpoints of the whole state: safetensors for what is tensors, JSON for the rest; no pickle.

    <run>/checkpoints/step-000000120/{state.safetensors, state.json}
    <run>/checkpoints/best -> step-000000080      the best on validation so far

A checkpoint is a folder that is renamed into place when whole. The newest whole one is found by reading: state.json
holds the digest of the tensors, and one that does not fit is passed over, with a warning, for the one before. `best` is
a link, which is replaced in one piece; what it points to, or would after going back to an older one, is kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from data.atomic import sync_folder, temporary_beside, write_atomic
from teacher_server.zoo.network import VideoNetwork
from trainer.errors import CheckpointError
from trainer.fingerprint import Machine, this_machine
from trainer.objective import Objective
from trainer.timeline import TimelineEntry
from trainer.totals import Selection, Totals, restore, to_json

_FORMAT = 1
_TENSORS = "state.safetensors"
_STATE = "state.json"
_MOMENTUM = "momentum_buffer"
BEST = "best"


@dataclass(frozen=True)
class TrainingState:
    """Everything that the next step depends on, besides the settings and the store, and what the result reports."""

    network: VideoNetwork
    objective: Objective
    optimizer: SGD
    schedule: ReduceLROnPlateau
    totals: Totals
    timeline: list[TimelineEntry]
    selection: Selection = field(default_factory=Selection)


@dataclass(frozen=True)
class CheckpointFacts:
    """What a whole checkpoint says besides its tensors. fixed: what a resume must find equal. machine: its maker."""

    path: Path
    step: int
    fixed: dict[str, Any]
    machine: Machine
    timeline: tuple[TimelineEntry, ...]


def save_checkpoint(folder: Path, step: int, state: TrainingState, fixed: dict[str, Any], *, keep: int = 2) -> Path:
    """Writes the state after `step` steps and drops all but the newest `keep` and what is best to one of these.

    fixed: what a resume must find equal."""
    target = _named(folder, step)
    if _read(target) is None:
        _write(folder, target, step, state, fixed)
    point_to_best(folder, state.selection)
    _drop_old(folder, keep)
    return target


def point_to_best(folder: Path, selection: Selection) -> None:
    """Lets `best` name the checkpoint that validation has chosen; no name where there is none."""
    link, best = folder / BEST, _named(folder, selection.best_step)
    if not selection.best_step or not best.is_dir():  # step 0 may have a checkpoint, if no teacher answered at all
        link.unlink(missing_ok=True)
    elif not (link.is_symlink() and os.readlink(link) == best.name):
        temporary = temporary_beside(link)
        temporary.symlink_to(best.name)
        os.replace(temporary, link)
        sync_folder(folder)


def _write(folder: Path, target: Path, step: int, state: TrainingState, fixed: dict[str, Any]) -> None:
    # What killed attempts left behind: half-written folders, and damaged checkpoints that the run went back from.
    for stale in [*folder.glob(".step-*.tmp"), *(path for path in _checkpoints(folder) if path.name >= target.name)]:
        shutil.rmtree(stale, ignore_errors=True)
    staging = folder / f".step-{step:09d}.{os.getpid()}.tmp"
    staging.mkdir(parents=True)
    blob = save_safetensors(
        {**_tensors("network", state.network), **_tensors("objective", state.objective), **_momentum_tensors(state)}
    )
    write_atomic(staging / _TENSORS, blob)
    content = {
        "format": _FORMAT,
        "step": step,
        "tensors_xxh3_128": xxhash.xxh3_128_hexdigest(blob),
        "fixed": fixed,
        "schedule": state.schedule.state_dict(),
        "lr": [group["lr"] for group in state.optimizer.param_groups],
        "totals": to_json(state.totals),
        "selection": to_json(state.selection),
        "machine": dataclasses.asdict(this_machine()),
        "timeline": [dataclasses.asdict(entry) for entry in state.timeline],
    }
    write_atomic(staging / _STATE, json.dumps(content, indent=1).encode())
    os.rename(staging, target)
    sync_folder(folder)


def _drop_old(folder: Path, keep: int) -> None:
    checkpoints = _checkpoints(folder)
    needed = {name for path in checkpoints[-keep:] for name in (path.name, _best_name(path))}
    for path in checkpoints:
        if path.name not in needed:
            shutil.rmtree(path, ignore_errors=True)


def load_newest(folder: Path, state: TrainingState, fixed: dict[str, Any]) -> int:
    """Puts the newest whole checkpoint into `state`; returns its step, 0 when there is none.

    Raises CheckpointError when the run that wrote it differs in what must be equal.
    """
    for path in reversed(_checkpoints(folder)):
        read = _read(path)
        if read is None:
            warnings.warn(f"checkpoint {path} is damaged: going back to the one before", stacklevel=2)
            continue
        content, tensors = read
        _check_fixed(path, content["fixed"], fixed)
        _restore(state, content, tensors)
        return int(content["step"])
    return 0


def whole_checkpoints(folder: Path) -> list[CheckpointFacts]:
    """Of every checkpoint that is whole, oldest first."""
    return [_facts(path, read[0]) for path in _checkpoints(folder) if (read := _read(path)) is not None]


def newest_step(folder: Path) -> int:
    """Steps of the newest checkpoint by name, 0 when there is none; nothing is read."""
    paths = _checkpoints(folder)
    return step_of(paths[-1]) if paths else 0


def step_of(checkpoint: Path) -> int:
    """Steps that a checkpoint's folder is named after."""
    return int(checkpoint.name.removeprefix("step-"))


def load_network_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """The student's state dict of one checkpoint folder. Raises CheckpointError when it is damaged."""
    read = _read(checkpoint)
    if read is None:
        raise CheckpointError(f"checkpoint {checkpoint} is missing or damaged")
    return {name.removeprefix("network."): tensor for name, tensor in read[1].items() if name.startswith("network.")}


def newest_checkpoint(folder: Path) -> Path:
    """The newest checkpoint's folder. Raises CheckpointError when there is none."""
    paths = _checkpoints(folder)
    if not paths:
        raise CheckpointError(f"no checkpoint under {folder}")
    return paths[-1]


def _tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}


def _parameters(state: TrainingState) -> Iterator[tuple[str, nn.Parameter]]:
    """All that is trained, by the name that its momentum has in the file."""
    yield from state.network.named_parameters()
    yield from state.objective.named_parameters(prefix="objective")


def _momentum_tensors(state: TrainingState) -> dict[str, Tensor]:
    buffers = {}
    for name, parameter in _parameters(state):
        buffer = state.optimizer.state.get(parameter, {}).get(_MOMENTUM)
        if buffer is not None:
            buffers[f"momentum.{name}"] = buffer.detach().cpu().contiguous()
    return buffers


def _restore(state: TrainingState, content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    for prefix, module in (("network.", state.network), ("objective.", state.objective)):
        module.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    for name, parameter in _parameters(state):
        buffer = tensors.get(f"momentum.{name}")
        if buffer is not None:
            # Laid out in memory as the weights, as it was before: other strides would take other loops in each update.
            state.optimizer.state[parameter][_MOMENTUM] = torch.empty_like(parameter).copy_(buffer)
    for group, lr in zip(state.optimizer.param_groups, content["lr"], strict=True):
        group["lr"] = lr
    state.schedule.load_state_dict(content["schedule"])
    restore(state.totals, content["totals"])
    restore(state.selection, content.get("selection", {}))
    state.timeline[:] = [TimelineEntry(**entry) for entry in content["timeline"]]


def _check_fixed(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if saved.get(name) != value:
            raise CheckpointError(
                f"checkpoint {path} was made with {name} = {saved.get(name)}, this run has {value}: "
                "resume with the old value, or start afresh with --resume never"
            )


def _facts(path: Path, content: dict[str, Any]) -> CheckpointFacts:
    timeline = tuple(TimelineEntry(**entry) for entry in content["timeline"])
    machine = content.get("machine") or {"cpu": "an unknown CPU", "torch": "of an unknown version"}
    return CheckpointFacts(path, int(content["step"]), content["fixed"], Machine(**machine), timeline)


def _named(folder: Path, step: int) -> Path:
    return folder / f"step-{step:09d}"


def _best_name(path: Path) -> str:
    """The checkpoint that was the best when this one was written; its own name where it does not say."""
    try:
        return _named(path.parent, json.loads((path / _STATE).read_bytes())["selection"]["best_step"]).name
    except (OSError, ValueError, LookupError, TypeError):
        return path.name


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Both files of a checkpoint, or None when they are not what was written."""
    try:
        content = json.loads((path / _STATE).read_bytes())
        blob = (path / _TENSORS).read_bytes()
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        return None
    if xxhash.xxh3_128_hexdigest(blob) != content.get("tensors_xxh3_128"):
        return None
    return content, load_safetensors(blob)


def seed_everything(seed: int) -> None:
    """Before the weights are drawn; cuDNN is held to its repeatable algorithms."""
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Before each step: what a layer such as dropout draws depends on these alone, not on the steps that this process
    did before, so a resumed run draws the same. Ours draw nothing."""
    digest = hashlib.sha256(f"step {seed} {step} {rank}".encode()).digest()
    number = int.from_bytes(digest[:8], "big")
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():  # torch.manual_seed notes a stack trace for each kind of device that nobody uses
        torch.cuda.manual_seed_all(number)
