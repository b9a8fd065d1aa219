"""The contrastive term within a batch: two clips of one video attract, clips of different videos repel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def contrast_in_batch(z1_BD: Tensor, z2_BD: Tensor, temperature: float = 0.07) -> Tensor:
    """Mean over the anchors i of L1_i + L2_i, with D(a,b) = exp(cos(a,b) / temperature):

        L1_i = -log( D(z1_i,z2_i) / (D(z1_i,z2_i) + sum over j != i of D(z1_i,z1_j)) )    negatives of the same view
        L2_i = -log( D(z1_i,z2_i) / (D(z1_i,z2_i) + sum over j != i of D(z1_i,z2_j)) )    negatives of the other view

    Source: Camarena et al. 2024, Eq. 2-4, after PCL (Tao et al., arXiv 2010.15464). Taken as log-softmax, so a small
    temperature overflows nothing.

    z1, z2: [B,D], rows of L2 norm 1, of the first and third clip of each video of the GLOBAL batch (callers gather).
    Raises ValueError for shapes that differ, for B < 2 (no negatives), for a temperature <= 0.
    """
    _check(z1_BD, z2_BD, temperature)
    anchors = torch.arange(len(z1_BD), device=z1_BD.device)
    same_BB = z1_BD @ z1_BD.T / temperature
    cross_BB = z1_BD @ z2_BD.T / temperature
    # An anchor is no negative of itself: its place in the row of the same view is taken by the positive pair.
    same_BB = same_BB.diagonal_scatter(cross_BB.diagonal())
    return F.cross_entropy(same_BB, anchors) + F.cross_entropy(cross_BB, anchors)


def _check(z1: Tensor, z2: Tensor, temperature: float) -> None:
    if z1.ndim != 2 or z1.shape != z2.shape:
        raise ValueError(f"z1 and z2 must both be [B,D], got {list(z1.shape)} and {list(z2.shape)}")
    if len(z1) < 2:
        raise ValueError(f"the contrast needs at least 2 videos in the global batch (its negatives), got {len(z1)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
