"""What the settings of a run may be, each alone and together: `check` refuses the rest when a RunConfig is built."""

from __future__ import annotations

import functools
import math
import re
from typing import TYPE_CHECKING, Literal, get_args, get_origin, get_type_hints

from data.plugins import is_plugin_name
from teacher_server.protocol import MAX_TEMPERATURE, MAX_TIMEOUT_S, MAX_WEIGHT, MIN_TEMPERATURE
from teacher_server.zoo.names import ARCHITECTURES, is_architecture_name
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from trainer.config import RunConfig

NO_BFLOAT16_ON_CPU = (
    "--student-precision bfloat16 needs a GPU: on the CPU its backward pass differs between identical runs"
)
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SMALLEST_CROP = 32
_LARGEST_WIDTH = 4.0
_POSITIVE = (
    "width", "clip_len", "crop", "epochs", "lr", "contrast_temperature", "temperature", "threads", "bank_negatives",
    "teacher_replicas", "prefetch", "teacher_timeout_s", "teacher_budget_s", "eval_tuples", "eval_clips",
    "teacher_memory_mb", "teacher_weight", "step_epochs", "keep_checkpoints",
)  # fmt: skip
_NOT_NEGATIVE = (
    "interval", "max_steps", "momentum", "weight_decay", "alpha", "kd_weight", "num_workers", "hint_weight",
    "ce_weight", "extra_loss_weight", "teacher_classes", "teacher_feature_size", "bank_momentum", "checkpoint_every",
    "teacher_cpus", "teacher_gpus", "min_lr", "plateau_patience", "views_per_video", "teacher_max_replicas",
    "grad_clip", "early_stop", "eval_every",
)  # fmt: skip
_BETWEEN_0_AND_1 = ("val_fraction", "plateau_factor", "step_factor")
_SEEDS = ("seed", "view_seed", "subset_seed")


def check(config: RunConfig) -> None:
    """Raises ConfigError for the first setting that cannot be."""
    _check_numbers(config)
    _check_training(config)
    _check_plugins(config)
    _check_teacher(config)


@functools.cache
def _choices() -> dict[str, tuple[str, ...]]:
    """The values of the settings that have a few, by name."""
    from trainer.config import RunConfig  # late: that module imports this one

    return {name: get_args(hint) for name, hint in get_type_hints(RunConfig).items() if get_origin(hint) is Literal}


def _check_numbers(config: RunConfig) -> None:
    for name, choices in _choices().items():
        if getattr(config, name) not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {getattr(config, name)!r}")
    for name in _POSITIVE:
        if not (math.isfinite(getattr(config, name)) and getattr(config, name) > 0):
            raise ConfigError(f"{name} must be a finite number > 0, got {getattr(config, name)}")
    for name in _NOT_NEGATIVE:
        if not (math.isfinite(getattr(config, name)) and getattr(config, name) >= 0):
            raise ConfigError(f"{name} must be a finite number >= 0, got {getattr(config, name)}")
    for name in _BETWEEN_0_AND_1:
        if not 0 < getattr(config, name) < 1:
            raise ConfigError(f"{name} must lie between 0 and 1, got {getattr(config, name)}")
    for name in _SEEDS:
        if not 0 <= getattr(config, name) < 2**63:
            raise ConfigError(f"{name} must lie between 0 and 2**63, got {getattr(config, name)}")


def _check_training(config: RunConfig) -> None:
    if config.run_id and not _RUN_ID.fullmatch(config.run_id):
        raise ConfigError(f"run id {config.run_id!r}: expected letters, digits, dots, - and _")
    if config.bank_momentum >= 1:
        raise ConfigError(f"bank_momentum must be below 1, or the bank never changes, got {config.bank_momentum}")
    if not 0 < config.fraction <= 100:
        raise ConfigError(f"fraction must be a percentage above 0 and at most 100, got {config.fraction}")
    if config.crop < _SMALLEST_CROP or config.crop % 2:  # the networks' pooling; a permutation of quadrants
        raise ConfigError(f"crop must be even and at least {_SMALLEST_CROP}, got {config.crop}")
    if config.width > _LARGEST_WIDTH:
        raise ConfigError(f"width must be at most {_LARGEST_WIDTH:g}, as on a teacher's card, got {config.width}")
    if config.batch_size < max(2, config.num_workers):
        raise ConfigError(f"batch_size must be at least 2 and at least a tuple per worker, got {config.batch_size}")
    if config.schedule == "step" and config.equal_steps:
        raise ConfigError("--schedule step counts epochs, which --equal-steps makes shorter: use cosine or plateau")
    if config.student_precision == "bfloat16" and config.device == "cpu":
        raise ConfigError(NO_BFLOAT16_ON_CPU)


def _check_plugins(config: RunConfig) -> None:
    """Only the names: nothing of a plug-in is imported."""
    if not is_architecture_name(config.student):
        raise ConfigError(
            f"student must be one of {', '.join(ARCHITECTURES)}, or your own as module:function, got {config.student!r}"
        )
    if config.extra_loss and not is_plugin_name("losses", config.extra_loss):
        raise ConfigError(f"extra_loss must be written as module:function, got {config.extra_loss!r}")
    if not config.pretext_operation:
        return
    if not is_plugin_name("pretext", config.pretext_operation):
        raise ConfigError(f"pretext_operation must be written as module:function, got {config.pretext_operation!r}")
    if config.shuffle != "segment_copy":
        raise ConfigError("--pretext-operation takes the place of the temporal shuffle: leave out --shuffle")
    if config.ledger != "off":
        raise ConfigError("a ledger renders its views again, without --pretext-operation: use --ledger off")


def _check_teacher(config: RunConfig) -> None:
    if (config.teacher_transport == "http") != bool(config.gateway):
        raise ConfigError("--teacher-transport http and --gateway URL belong together")
    if not MIN_TEMPERATURE <= config.temperature <= MAX_TEMPERATURE:
        raise ConfigError(
            f"temperature must lie between {MIN_TEMPERATURE:g} and {MAX_TEMPERATURE:g}, got {config.temperature}"
        )
    if config.teacher_timeout_s > MAX_TIMEOUT_S:
        raise ConfigError(f"teacher_timeout_s must be at most {MAX_TIMEOUT_S:g}, got {config.teacher_timeout_s}")
    if config.teacher_weight > MAX_WEIGHT:
        raise ConfigError(f"teacher_weight must be at most {MAX_WEIGHT:g}, got {config.teacher_weight}")
    if config.teacher_max_replicas and config.teacher_max_replicas < config.teacher_replicas:
        raise ConfigError(
            f"teacher_max_replicas must be at least teacher_replicas, "
            f"got {config.teacher_max_replicas} < {config.teacher_replicas}"
        )
    if config.on_teacher_loss == "replay" and config.ledger == "off":
        raise ConfigError("--on-teacher-loss replay goes on with a ledger: add --ledger auto or record")
