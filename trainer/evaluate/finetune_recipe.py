"""How a student is fine-tuned: the numbers of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from trainer.errors import EvaluationError

FineTuneMode = Literal["head", "full"]


@dataclass(frozen=True)
class FinetuneRecipe:
    """mode, epochs, lr and batch_size as method.md gives them; momentum and weight decay are those of training.

    augment: training clips start anywhere, with random crop, colours, blur and flip; off: one of the even clips.
    clips_per_video: even clips of a test video, and of a training video with augment off. seed: of the new layer's
    weights. view_seed: of the training clips and their order.
    """

    mode: FineTuneMode = "head"
    epochs: int = 150
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 8
    augment: bool = True
    clips_per_video: int = 10
    seed: int = 0
    view_seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("head", "full"):
            raise EvaluationError(f"mode must be head or full, got {self.mode!r}")
        if min(self.epochs, self.batch_size, self.clips_per_video) < 1 or not 0 < self.lr < math.inf:
            raise EvaluationError(
                "epochs, batch size and clips per video must be at least 1 and lr positive, got "
                f"{self.epochs}, {self.batch_size}, {self.clips_per_video} and {self.lr:g}"
            )
        for name in ("seed", "view_seed"):
            if not 0 <= getattr(self, name) < 2**63:
                raise EvaluationError(f"{name} must lie between 0 and 2**63, got {getattr(self, name)}")
