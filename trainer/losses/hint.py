"""The hint term: the student's features, projected, follow the teacher's; and how alike two sets of features are.

Axis letters: B items (tuples, or first clips for an action teacher), D features of the teacher, E of the student.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def hint_loss(projected_BD: Tensor, teacher_BD: Tensor, mask_B: Tensor | None = None) -> Tensor:
    """|| p / |p| - t / |t| ||^2, mean over the items that have an answer; from 0 (same direction) to 4 (opposite).

    The squared error over the D features of a unit vector, summed and not averaged over D, so that the term's size
    does not depend on the width of the teacher. The teacher's features get no gradient. mask: [B] bool, True where the
    teacher answered; the others' rows may hold anything, and a batch without answers gives 0 with zero gradient.
    Source: the hints of FitNets (Romero et al. 2015). Raises ValueError for shapes that differ.
    """
    if projected_BD.ndim != 2 or projected_BD.shape != teacher_BD.shape:
        raise ValueError(
            f"projected and teacher's features must both be [B,D], got {list(projected_BD.shape)} and "
            f"{list(teacher_BD.shape)}"
        )
    teacher = teacher_BD.detach().to(projected_BD.dtype)
    if mask_B is not None:
        teacher = teacher.masked_fill(~mask_B.unsqueeze(1), 0.0)
    error_B = (F.normalize(projected_BD, dim=1) - F.normalize(teacher, dim=1)).square().sum(dim=1)
    if mask_B is None:
        return error_B.mean()
    return error_B.masked_fill(~mask_B, 0.0).sum() / mask_B.sum().clamp(min=1)


def linear_cka(student_BE: Tensor, teacher_BD: Tensor) -> float | None:
    """Linear centred kernel alignment, from 0 to 1: 1 for features that are equal up to rotation and scale.

    || Y^T X ||_F^2 / (|| X^T X ||_F * || Y^T Y ||_F) of the centred X and Y, taken over the B x B Gram matrices. With
    few items it is biased upwards: compare only values of the same B. None for fewer than 2 items, and where one side
    does not vary. Source: Kornblith et al. 2019 (arXiv 1905.00414).
    """
    if len(student_BE) < 2:
        return None
    x, y = (z.double() - z.double().mean(dim=0) for z in (student_BE, teacher_BD))
    gram_x, gram_y = x @ x.T, y @ y.T
    norms = float(torch.linalg.norm(gram_x) * torch.linalg.norm(gram_y))
    return float((gram_x * gram_y).sum()) / norms if norms > 0 else None
