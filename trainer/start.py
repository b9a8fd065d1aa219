"""The state that a run starts from."""

from __future__ import annotations

import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from teacher_server.zoo.layers import to_channels_last
from teacher_server.zoo.network import VideoNetwork
from trainer.checkpoint import TrainingState
from trainer.config import RunConfig
from trainer.objective import Objective
from trainer.teacher_facts import TeacherFacts, student_action_classes
from trainer.totals import Totals


def new_state(
    config: RunConfig,
    device: torch.device,
    *,
    num_train: int,
    teacher: TeacherFacts | None,
    classes: tuple[str, ...] = (),
    trusted: bool = False,
) -> TrainingState:
    """Before the first step; the weights are drawn from torch's global generator, which the caller has seeded.

    num_train: videos to train on. teacher: None for scratch. classes: of the store. trusted: whether the user typed the
    names of plug-ins among the settings. Raises ConfigError, PluginError.
    """
    action_classes = student_action_classes(config, teacher, classes)
    projector = config.contrast and config.projector
    network = VideoNetwork(
        config.student, config.width, action_classes=action_classes, projector=projector, trusted=trusted
    ).train()
    network.to(device)
    to_channels_last(network)
    # After the network, whose weights are then the same whatever the objective draws.
    objective = Objective(
        config, student_features=network.feature_size, teacher=teacher, num_train=num_train, trusted=trusted
    )
    objective.to(device)
    parameters = [*network.parameters(), *objective.parameters()]
    optimizer = SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    schedule = ReduceLROnPlateau(
        optimizer, factor=config.plateau_factor, patience=config.plateau_patience, min_lr=config.min_lr
    )
    return TrainingState(network, objective, optimizer, schedule, Totals(), [])
