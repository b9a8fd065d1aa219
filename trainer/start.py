"""The state that a run starts from, and the learning rate of its steps."""

from __future__ import annotations

import math

import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from teacher_server.zoo.network import VideoNetwork
from trainer.checkpoint import Totals, TrainingState
from trainer.config import RunConfig


def new_state(config: RunConfig, device: torch.device) -> TrainingState:
    """Before the first step; the weights are drawn from torch's global generator, which the caller has seeded."""
    network = VideoNetwork(config.student, config.width, projector=config.contrast).train()
    network.to(device=device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = SGD(network.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    schedule = ReduceLROnPlateau(
        optimizer, factor=config.plateau_factor, patience=config.plateau_patience, min_lr=config.min_lr
    )
    return TrainingState(network, optimizer, schedule, Totals(), [])


def cosine_lr(config: RunConfig, step: int, total_steps: int) -> float:
    """The learning rate of a step (from 0): half a cosine from lr to min_lr (Loshchilov and Hutter 2017)."""
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * step / total_steps)) / 2


def set_lr(optimizer: SGD, lr: float) -> None:
    """Of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr
