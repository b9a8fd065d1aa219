"""What one step needs, as tensors on the student's device: made by the loader, used by the step and its losses.

Axis letters: B tuples of this worker, C channels, T frames, H, W, K classes, D features of the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StudentBatch:
    """One worker's share of a step.

    clips: three float32 [B, C, T, H, W]. pretext_labels: int64 [B]. teacher_logits: softened float32 [B, K], or None
    for scratch. teacher_mask: bool [B], False where no teacher answered: these tuples take no part in the terms of the
    teacher and their logits and features mean nothing. None when all were answered. teacher_features: float32 [B, D],
    None unless the run asks for them. step: of the run, from 0; with positions, int64 [B], where each video stands in
    the training list, it fixes what the losses draw. action_labels: int64 [B], None unless the run uses labels.
    """

    clips: tuple[Tensor, Tensor, Tensor]
    pretext_labels: Tensor
    teacher_logits: Tensor | None
    teacher_mask: Tensor | None = None
    teacher_features: Tensor | None = None
    step: int = 0
    positions: Tensor | None = None
    action_labels: Tensor | None = None

    @property
    def num_answered(self) -> int:
        """Tuples with an answer of the teacher."""
        if self.teacher_logits is None:
            return 0
        return len(self.teacher_logits) if self.teacher_mask is None else int(self.teacher_mask.sum())

    def answered(self) -> Tensor:
        """bool [B], True where a teacher answered."""
        if self.teacher_logits is None:
            return torch.zeros_like(self.pretext_labels, dtype=torch.bool)
        if self.teacher_mask is None:
            return torch.ones_like(self.pretext_labels, dtype=torch.bool)
        return self.teacher_mask
