"""The pretext term: which operation was done to the middle clip."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def pretext_loss(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Cross entropy of the pretext head, mean over the batch: -(1/B) sum_i log softmax(logits_i)[label_i].

    logits [B,K], labels [B] int64 in 0 .. K-1. Source: VCP (Luo et al. 2020). Raises ValueError for other shapes.
    """
    if logits_BK.ndim != 2 or labels_B.shape != logits_BK.shape[:1]:
        raise ValueError(f"want logits [B,K] and labels [B], got {list(logits_BK.shape)} and {list(labels_B.shape)}")
    return F.cross_entropy(logits_BK, labels_B)
