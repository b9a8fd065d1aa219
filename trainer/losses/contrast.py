"""The contrastive term: two clips of one video attract, clips of different videos repel.

in batch      negatives are the other videos of the global batch
memory bank   negatives are what other videos looked like when they were last seen: see trainer.bank
"""

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
    if len(z1_BD) < 2:
        raise ValueError(f"the contrast needs at least 2 videos in the global batch (its negatives), got {len(z1_BD)}")
    anchors = torch.arange(len(z1_BD), device=z1_BD.device)
    same_BB = z1_BD @ z1_BD.T / temperature
    cross_BB = z1_BD @ z2_BD.T / temperature
    # An anchor is no negative of itself: its place in the row of the same view is taken by the positive pair.
    same_BB = same_BB.diagonal_scatter(cross_BB.diagonal())
    return F.cross_entropy(same_BB, anchors) + F.cross_entropy(cross_BB, anchors)


def contrast_with_bank(
    z1_BD: Tensor, z2_BD: Tensor, remembered1_BMD: Tensor, remembered2_BMD: Tensor, temperature: float = 0.07
) -> Tensor:
    """Mean over the videos i of L1_i + L2_i, a softmax across the views, with D(a,b) = exp(cos(a,b) / temperature):

        L1_i = -log( D(z1_i, m2_i0) / sum over k of D(z1_i, m2_ik) )    the first clip finds its video's third clip
        L2_i = -log( D(z2_i, m1_i0) / sum over k of D(z2_i, m1_ik) )    and the other way round

    z1, z2: [B,D], rows of L2 norm 1. remembered1, remembered2: [B,M,D], what the banks hold of first and third clips,
    rows of L2 norm 1: of video i itself at index 0, of M-1 other videos after it. They get no gradient.
    Source: PCL (Tao et al., arXiv 2010.15464), whose banks are those of CMC (Tian et al., arXiv 1906.05849).
    Raises ValueError for shapes that do not go together, for M < 2 (no negatives), for a temperature <= 0.
    """
    _check(z1_BD, z2_BD, temperature)
    for remembered in (remembered1_BMD, remembered2_BMD):
        if remembered.ndim != 3 or remembered.shape[::2] != z1_BD.shape or remembered.shape[1] < 2:
            raise ValueError(
                f"want [B,M,D] of the banks with M >= 2 for features {list(z1_BD.shape)}, got {list(remembered.shape)}"
            )
    positives = torch.zeros(len(z1_BD), dtype=torch.int64, device=z1_BD.device)
    logits1_BM = torch.einsum("bd,bmd->bm", z1_BD, remembered2_BMD.detach()) / temperature
    logits2_BM = torch.einsum("bd,bmd->bm", z2_BD, remembered1_BMD.detach()) / temperature
    return F.cross_entropy(logits1_BM, positives) + F.cross_entropy(logits2_BM, positives)


def _check(z1: Tensor, z2: Tensor, temperature: float) -> None:
    if z1.ndim != 2 or z1.shape != z2.shape:
        raise ValueError(f"z1 and z2 must both be [B,D], got {list(z1.shape)} and {list(z2.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
