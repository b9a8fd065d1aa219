"""What a run can refuse or end with, besides the errors of the packages below. One sentence each; all of them pickle.

TrainingError(RuntimeError)
├── CheckpointError      a checkpoint is missing or damaged, or was made by another run
├── Diverged             the loss is not finite any more
├── EvaluationError      a student, a store and a protocol that do not go together; a ValueError too
│   └── NotFinite        the network's features are not finite
└── TrainingFailed       the workers ended without an outcome

ConfigError(ValueError)   settings, or a name among them, that cannot be
"""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting that cannot be. One sentence: what was given, what is expected."""


class TrainingError(RuntimeError):
    """Base of the errors of a run."""


class CheckpointError(TrainingError):
    """A checkpoint cannot be used for this run."""


class Diverged(TrainingError):
    """The loss is not finite, in a step or in an evaluation after it. Argument: the step, counted from 1."""

    def __init__(self, step: int) -> None:
        super().__init__(step)

    def __str__(self) -> str:
        return f"the loss is not finite at step {self.args[0]}: choose a smaller --lr and --resume never"


class EvaluationError(TrainingError, ValueError):
    """This student cannot be evaluated in this way on these videos."""


class NotFinite(EvaluationError):
    """The network's features are not finite: its training diverged."""


class TrainingFailed(TrainingError):
    """The workers ended without an outcome. Argument: the reason."""
