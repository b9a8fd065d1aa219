"""What a student can do: the pretext task on unseen videos, retrieval, a linear probe, fine-tuning.

Two kinds of accuracy, never mixed: `pretext_*` asks which operation was done to a clip and needs no action label; the
others ask which action a video shows.

    extract, feature_files     network and videos -> features, kept on disk where wanted
    pretext, probe, retrieval  arithmetic on features
    finetune                   a new linear layer, alone or with the backbone; resumable
    final                      what a run does at its end
    protocols, cached          `preceptor eval`: every split of a store, one question at a time, asked once
    predict                    `preceptor predict`: video files
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
