"""The learning rate of each step.

plateau   falls when the validation loss has not for a while: torch's ReduceLROnPlateau, moved at the end of an epoch
cosine    half a cosine from lr to min_lr over the whole run, step by step (Loshchilov and Hutter 2017)
step      lr, then times step_factor after every step_epochs epochs, never below min_lr
"""

from __future__ import annotations

import math

from torch.optim import SGD

from trainer.config import RunConfig


def scheduled_lr(config: RunConfig, step: int, *, epoch: int, total_steps: int) -> float | None:
    """The learning rate of a step (from 0) in an epoch (from 0); None where validation decides it."""
    if config.schedule == "cosine":
        return cosine_lr(config, step, total_steps)
    return stepped_lr(config, epoch) if config.schedule == "step" else None


def cosine_lr(config: RunConfig, step: int, total_steps: int) -> float:
    """Half a cosine from lr to min_lr."""
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * step / total_steps)) / 2


def stepped_lr(config: RunConfig, epoch: int) -> float:
    """lr * step_factor ** (epoch // step_epochs), at least min_lr."""
    return max(config.min_lr, config.lr * config.step_factor ** (epoch // config.step_epochs))


def set_lr(optimizer: SGD, lr: float) -> None:
    """Of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr
