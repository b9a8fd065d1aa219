"""The distillation term: the student's softened distribution follows the teacher's (Hinton et al. 2015)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def distill_loss(
    student_logits_BK: Tensor, teacher_softened_BK: Tensor, temperature: float, mask_B: Tensor | None = None
) -> Tensor:
    """tau^2 * KL(softmax(t / tau) || softmax(s / tau)), mean over the rows that have an answer.

    student_logits: [B,K] raw. teacher_softened: [B,K], ALREADY raw / tau, as replies hold them: only the student's
    are divided here. The teacher's get no gradient. mask: [B] bool, True where the teacher answered; the others' rows
    may hold anything, and a batch without answers gives 0 with zero gradient.
    The gradient with respect to s_i is tau * (softmax(s_i / tau) - softmax(t_i / tau)) / rows that count.
    Source: Hinton et al. 2015; Camarena et al. 2024, Eq. 6 (cross entropy there: the same gradient).
    Raises ValueError for shapes that differ and for a temperature <= 0.
    """
    kl_B = kl_per_row(student_logits_BK, teacher_softened_BK, temperature, mask_B)
    if mask_B is None:
        return temperature**2 * kl_B.mean()
    return temperature**2 * kl_B.sum() / mask_B.sum().clamp(min=1)


def kl_per_row(
    student_logits_BK: Tensor, teacher_softened_BK: Tensor, temperature: float, mask_B: Tensor | None = None
) -> Tensor:
    """[B] KL(softmax(t / tau) || softmax(s / tau)) in nats, 0 in rows without an answer; arguments as distill_loss."""
    _check(student_logits_BK, teacher_softened_BK, temperature, mask_B)
    teacher = teacher_softened_BK.detach().to(student_logits_BK.dtype)
    if mask_B is not None:
        # Before the softmax: a NaN multiplied by zero later would still be a NaN.
        teacher = teacher.masked_fill(~mask_B.unsqueeze(1), 0.0)
    log_p = F.log_softmax(teacher, dim=1)
    log_q = F.log_softmax(student_logits_BK / temperature, dim=1)
    kl_B = (log_p.exp() * (log_p - log_q)).sum(dim=1)
    return kl_B if mask_B is None else kl_B.masked_fill(~mask_B, 0.0)


def _check(student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None) -> None:
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"logits of student and teacher must both be [B,K], got {list(student.shape)} and {list(teacher.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if mask is not None and (mask.shape != student.shape[:1] or mask.dtype != torch.bool):
        raise ValueError(f"mask must be [{len(student)}] of bool, got {list(mask.shape)} of {mask.dtype}")
