"""What the workers of a run must agree on: the step that they go on from, and the version that a step learns from.

    rank 0   alpha@1 ──┐                    learns from alpha@1, which the timeline of the checkpoint names
    rank 1   alpha@2 ──┴─ gather ─ differ ─► its tuples take no part in the distillation term of this step

Ranks differ when the roster is away for one of them, which then keeps its last version, and not for another.
Every function here is called by all workers at the same step.
"""

from __future__ import annotations

import dataclasses

import torch

from trainer.collective import Collective
from trainer.errors import CheckpointError
from trainer.loader import LoadedStep, TeacherSignal

_MARK_DIGITS = 15  # of a digest; 60 bits fit into one number


def check_same_start(step: int, collective: Collective) -> None:
    """Raises CheckpointError unless all workers have loaded the checkpoint of the same step."""
    steps = collective.gather_number(step)
    for rank, other in enumerate(steps):
        if other != steps[0]:
            raise CheckpointError(
                f"worker 0 found a checkpoint of step {steps[0]}, worker {rank} one of step {other} (0: none): "
                "put PRECEPTOR_HOME on storage that all workers share"
            )


class OneVersion:
    """Keeps a step from learning from two versions. teacher: this worker's signal."""

    def __init__(self, teacher: TeacherSignal | None, collective: Collective) -> None:
        self._teacher = teacher
        self._collective = collective
        self._differed = False

    def __call__(self, loaded: LoadedStep) -> LoadedStep:
        """The step, masked for distillation where it is bound to another version than rank 0's.

        When the workers begin to differ, somebody has reached the roster: all ask it again at their next block.
        """
        if self._teacher is None or loaded.binding is None:
            return loaded
        marks = self._collective.gather_number(int(loaded.binding.digest[:_MARK_DIGITS], 16))
        differ = len(set(marks)) > 1
        if differ and not self._differed:
            self._teacher.ask_roster_again()
        self._differed = differ
        if marks[self._collective.rank] == marks[0]:
            return loaded
        nobody = torch.zeros_like(loaded.batch.pretext_labels, dtype=torch.bool)
        return dataclasses.replace(loaded, batch=dataclasses.replace(loaded.batch, teacher_mask=nobody))
