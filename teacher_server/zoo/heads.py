"""Heads on the features of a backbone. B samples, D features, K classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLIPS_PER_TUPLE = 3
PROJECTION_SIZE = 128


class PretextHead(nn.Module):
    """Which operation was done to the middle clip: Linear(3*D -> K) on the concatenated features of the three clips."""

    def __init__(self, feature_size: int, num_classes: int = 5) -> None:
        super().__init__()
        self.linear = nn.Linear(CLIPS_PER_TUPLE * feature_size, num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Three tensors [B,D], in the order of the clips -> logits [B,K]."""
        return self.linear(torch.cat(tuple(features), dim=1))


class ActionHead(nn.Module):
    """Which action a clip shows: Linear(D -> K)."""

    def __init__(self, feature_size: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(feature_size, num_classes)

    def forward(self, features_BD: Tensor) -> Tensor:
        """[B,D] -> logits [B,K]."""
        return self.linear(features_BD)


class Projector(nn.Module):
    """Features for the contrastive loss: D -> D -> 128 with ReLU between, scaled to length 1."""

    def __init__(self, feature_size: int, projection_size: int = PROJECTION_SIZE) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(feature_size, feature_size), nn.ReLU(inplace=True), nn.Linear(feature_size, projection_size)
        )

    def forward(self, features_BD: Tensor) -> Tensor:
        """[B,D] -> [B,128], every row of L2 norm 1."""
        return F.normalize(self.mlp(features_BD), dim=1)
