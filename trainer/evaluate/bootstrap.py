"""How far an accuracy would move with other test videos.

Videos of one group show the same actor before the same background, so they are not independent: groups are drawn,
not videos.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def bootstrap_interval(
    correct: NDArray[np.bool_],
    groups: Sequence[str],
    *,
    seed: int,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Percentile interval of the mean of `correct` [I], resampling whole groups with replacement.

    groups: for each answer the group of its video. None with fewer than 2 groups: nothing to resample.
    """
    if len(correct) != len(groups):
        raise ValueError(f"{len(correct)} answers need as many group names, got {len(groups)}")
    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if len(names) < 2:
        return None
    hits = np.bincount(index, weights=correct.astype(np.float64))
    sizes = np.bincount(index)
    drawn = np.random.default_rng(seed).integers(0, len(names), (num_resamples, len(names)))
    means = hits[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
