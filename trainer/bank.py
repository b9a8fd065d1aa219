"""The memory bank of PCL's contrast: for each training video, features of its first and of its third clip.

    step ── z1, z2 ──► contrast against the rows of this video and of K others ──► after the update of the weights:
                                                                    row <- normalise(momentum * row + (1-momentum) * z)

Which others is drawn by a counter: the seed of the views, the step and the video's position fix it, so neither a
resume nor the number of workers changes it. All workers make the same update from the rows of all of them, so all hold
the same bank. Source: PCL (Tao et al., arXiv 2010.15464); the update is that of CMC (Tian et al., arXiv 1906.05849).

Axis letters: B tuples of this worker, G of the global batch, N training videos, K negatives, D features.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from data.philox import Slot, uniform


class MemoryBank(nn.Module):
    """Two banks [N,D] as buffers, rows of L2 norm 1; first drawn from torch's global generator.

    num_negatives: at most so many, and never more than there are other videos. Raises ValueError for fewer than two
    videos.
    """

    first_ND: Tensor
    third_ND: Tensor

    def __init__(self, num_videos: int, size: int, *, num_negatives: int, momentum: float, seed: int) -> None:
        super().__init__()
        if num_videos < 2:
            raise ValueError(f"a memory bank needs at least 2 training videos (its negatives), got {num_videos}")
        self.num_negatives = min(num_negatives, num_videos - 1)
        self.momentum = momentum
        self._seed = seed
        for name in ("first_ND", "third_ND"):
            self.register_buffer(name, F.normalize(torch.randn(num_videos, size), dim=1))

    def rows(self, step: int, positions_B: Tensor) -> Tensor:
        """int64 [B,1+K]: each video's own row, then those of its negatives; the same rows serve both banks."""
        positions = positions_B.cpu().numpy()
        others_BK = draw_others(
            positions, len(self.first_ND), count=self.num_negatives, view_seed=self._seed, step=step
        )
        return torch.from_numpy(np.concatenate([positions[:, None], others_BK], axis=1)).to(positions_B.device)

    @torch.no_grad()
    def update(self, positions_G: Tensor, z1_GD: Tensor, z2_GD: Tensor) -> None:
        """Moves the rows of the videos of a global batch towards their new features. No video may be there twice."""
        for bank_ND, z_GD in ((self.first_ND, z1_GD), (self.third_ND, z2_GD)):
            mixed_GD = self.momentum * bank_ND[positions_G] + (1 - self.momentum) * z_GD.to(bank_ND.dtype)
            bank_ND[positions_G] = F.normalize(mixed_GD, dim=1)


def draw_others(
    positions_B: NDArray[np.int64], num_videos: int, *, count: int, view_seed: int, step: int
) -> NDArray[np.int64]:
    """int64 [B, count], videos from 0 to num_videos-1, in no row the one at its position.

    Drawn evenly and with replacement, as PCL does; all others, once each, where so many are asked for.
    """
    if count == num_videos - 1:
        others_BK = np.broadcast_to(np.arange(count), (len(positions_B), count))
    else:
        streams_BK = (positions_B[:, None].astype(np.uint64) << np.uint64(32)) | np.arange(count, dtype=np.uint64)
        u_BK = uniform(view_seed, streams_BK.reshape(-1), step, Slot.NEGATIVE, 0).reshape(len(positions_B), count)
        others_BK = np.floor(u_BK * (num_videos - 1)).astype(np.int64)
    return others_BK + (others_BK >= positions_B[:, None])  # the video itself is stepped over
