"""What a student can do: the pretext task on unseen videos, nearest-neighbour retrieval, a linear probe.

Two kinds of accuracy, never mixed: `pretext_*` asks which operation was done to a clip and needs no action label;
retrieval and probe ask which action a video shows. Everything but `extract` is arithmetic on arrays.
"""

from trainer.evaluate.bootstrap import bootstrap_interval
from trainer.evaluate.extract import clip_features, view_features
from trainer.evaluate.final import EvalOptions, EvalResult, evaluate_student
from trainer.evaluate.pretext import PretextResult, pretext_accuracy
from trainer.evaluate.probe import ProbeResult, linear_probe
from trainer.evaluate.retrieval import first_hit_ranks, retrieval

__all__ = [
    "EvalOptions",
    "EvalResult",
    "PretextResult",
    "ProbeResult",
    "bootstrap_interval",
    "clip_features",
    "evaluate_student",
    "first_hit_ranks",
    "linear_probe",
    "pretext_accuracy",
    "retrieval",
    "view_features",
]
