"""Checkpoints of the whole state: safetensors for what is tensors, JSON for the rest; no pickle.

    <run>/checkpoints/step-000000120/{state.safetensors, state.json}

A checkpoint is a folder that is renamed into place when whole. The newest whole one is found by reading: state.json
holds the digest of the tensors, and one that does not fit is passed over, with a warning, for the one before.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from data.atomic import sync_folder, write_atomic
from teacher_server.zoo.network import VideoNetwork
from trainer.errors import CheckpointError
from trainer.timeline import TimelineEntry

_FORMAT = 1
_TENSORS = "state.safetensors"
_STATE = "state.json"
_MOMENTUM = "momentum_buffer"
KEEP = 2


@dataclass
class Totals:
    """Sums over the run so far, which a resumed run goes on with; `epoch_*` over the epoch that it is in. Seconds are
    those of its steps.

    teacher_retries, teacher_dropped: questions asked again and tries given up on. replayed_items: answers that a ledger
    gave. kd_skipped: tuples that were trained on without an answer. The four are of all workers.
    """

    seconds: float = 0.0
    teacher_wait_s: float = 0.0
    teacher_retries: int = 0
    teacher_dropped: int = 0
    replayed_items: int = 0
    kd_skipped: int = 0
    clips: int = 0
    epoch_steps: int = 0
    epoch_loss: float = 0.0
    epoch_pretext_acc: float = 0.0


@dataclass(frozen=True)
class TrainingState:
    """Everything that the next step depends on, besides the settings and the store, and what the result reports."""

    network: VideoNetwork
    optimizer: SGD
    schedule: ReduceLROnPlateau
    totals: Totals
    timeline: list[TimelineEntry]


def save_checkpoint(folder: Path, step: int, state: TrainingState, fixed: dict[str, Any]) -> Path:
    """Writes the state after `step` steps and drops all but the newest KEEP. fixed: what a resume must find equal."""
    target = folder / f"step-{step:09d}"
    if _read(target) is not None:
        return target
    # What killed attempts left behind: half-written folders, and damaged checkpoints that the run went back from.
    for stale in [*folder.glob(".step-*.tmp"), *(path for path in _checkpoints(folder) if path.name >= target.name)]:
        shutil.rmtree(stale, ignore_errors=True)
    staging = folder / f".step-{step:09d}.{os.getpid()}.tmp"
    staging.mkdir(parents=True)
    blob = save_safetensors({**_network_tensors(state.network), **_momentum_tensors(state)})
    write_atomic(staging / _TENSORS, blob)
    content = {
        "format": _FORMAT,
        "step": step,
        "tensors_xxh3_128": xxhash.xxh3_128_hexdigest(blob),
        "fixed": fixed,
        "schedule": state.schedule.state_dict(),
        "lr": [group["lr"] for group in state.optimizer.param_groups],
        "totals": dataclasses.asdict(state.totals),
        "timeline": [dataclasses.asdict(entry) for entry in state.timeline],
    }
    write_atomic(staging / _STATE, json.dumps(content, indent=1).encode())
    os.rename(staging, target)
    sync_folder(folder)
    for old in _checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return target


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


def newest_step(folder: Path) -> int:
    """Steps of the newest checkpoint by name, 0 when there is none; nothing is read."""
    paths = _checkpoints(folder)
    return int(paths[-1].name.removeprefix("step-")) if paths else 0


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


def _network_tensors(network: VideoNetwork) -> dict[str, Tensor]:
    return {f"network.{name}": tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}


def _momentum_tensors(state: TrainingState) -> dict[str, Tensor]:
    buffers = {}
    for name, parameter in state.network.named_parameters():
        buffer = state.optimizer.state.get(parameter, {}).get(_MOMENTUM)
        if buffer is not None:
            buffers[f"momentum.{name}"] = buffer.detach().cpu().contiguous()
    return buffers


def _restore(state: TrainingState, content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    prefix = "network."
    state.network.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    for name, parameter in state.network.named_parameters():
        buffer = tensors.get(f"momentum.{name}")
        if buffer is not None:
            state.optimizer.state[parameter][_MOMENTUM] = buffer.to(parameter.device, copy=True)
    for group, lr in zip(state.optimizer.param_groups, content["lr"], strict=True):
        group["lr"] = lr
    state.schedule.load_state_dict(content["schedule"])
    for field in dataclasses.fields(Totals):
        setattr(state.totals, field.name, content["totals"].get(field.name, field.default))
    state.timeline[:] = [TimelineEntry(**entry) for entry in content["timeline"]]


def _check_fixed(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if saved.get(name) != value:
            raise CheckpointError(
                f"checkpoint {path} was made with {name} = {saved.get(name)}, this run has {value}: "
                "resume with the old value, or start afresh with --resume never"
            )


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
    """The only random numbers of training are the initial weights; cuDNN is held to its repeatable algorithms."""
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
