"""What a run will do, worked out and checked before anything is started."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from data.home import store_path, teachers_folder
from data.input_spec import InputSpec
from data.store import ClipStore
from teacher_server.library import TeacherLibrary
from trainer.config import ConfigError, RunConfig
from trainer.sampler import Sampler, split_rows


@dataclass(frozen=True)
class Plan:
    """A checked run. Paths are absolute, because workers run in other folders."""

    config: RunConfig
    store_path: Path
    store_fingerprint: str
    library_root: Path
    device: str
    num_train: int
    num_validation: int
    num_test: int
    num_left_out: int
    steps_per_epoch: int
    total_steps: int


def check_teacher(config: RunConfig) -> None:
    """Reads the teacher's card. Raises TeacherError or ConfigError, a sentence, unless the run can learn from it.

    Any version of an alias will do: all of them have one signature.
    """
    ref = config.teacher_ref
    if ref is None:
        return
    library = TeacherLibrary(teachers_folder())
    card = library.entry(library.first(ref)).card
    if card.head != "pretext":
        raise ConfigError(f"teacher {config.teacher} has an {card.head} head, students learn from pretext heads")
    card.check_fits(config.teacher, config.clip_spec)


def make_plan(config: RunConfig) -> Plan:
    """Opens the store and counts steps. Raises one of the packages' errors, each a sentence."""
    path = store_path(config.store)
    store = ClipStore.open(path)
    height, width = store.frame_size
    if config.crop > min(height, width):
        raise ConfigError(
            f"--crop {config.crop} does not fit into the store's frames of {height}x{width}: "
            "choose a smaller crop, or ingest with a larger --size"
        )
    train, validation, test, left_out = split_rows(store, config)
    sampler = Sampler(store.videos, train, config)
    return Plan(
        config=config,
        store_path=path,
        store_fingerprint=store.fingerprint,
        library_root=teachers_folder(),
        device=_device(config),
        num_train=len(train),
        num_validation=len(validation),
        num_test=len(test),
        num_left_out=left_out,
        steps_per_epoch=sampler.steps_per_epoch,
        total_steps=sampler.total_steps,
    )


def student_input(config: RunConfig) -> InputSpec:
    """The one normalisation that a student uses everywhere."""
    return InputSpec(modality=config.modality, crop=config.crop)


def _device(config: RunConfig) -> str:
    if config.device == "cpu":
        return config.device
    import torch  # heavy, and needed for this one question

    here = torch.cuda.is_available()
    # On a cluster the workers may have what this machine lacks.
    if config.device == "cuda" and not here and (config.num_workers == 0 or not os.environ.get("RAY_ADDRESS")):
        raise ConfigError("--device cuda, but torch finds no usable GPU on this machine: use --device cpu or auto")
    return "cuda" if here or config.device == "cuda" else "cpu"
