"""How far an accuracy would move with other test videos.

Videos of one group show the same actor before the same background, so they are not independent: groups are drawn,
not videos. The variance of G groups drawn with replacement is (G-1)/G of what groups vary by; the deviations are
stretched by sqrt(G/(G-1)) to make up for that (the narrowness bias of Hesterberg 2015, What Teachers Should Know About
the Bootstrap).
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
    return bootstrap_mean_interval([correct], [groups], seed=seed, num_resamples=num_resamples, level=level)


def bootstrap_mean_interval(
    correct: Sequence[NDArray[np.bool_]],
    groups: Sequence[Sequence[str]],
    *,
    seed: int,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Percentile interval of the mean over several lists of the mean of each, as of the splits of a data set.

    correct: a bool array [I] per list; groups: beside it. A group that stands in several lists is drawn for all of them
    at once. A list none of whose groups is drawn does not count in that draw. None with fewer than 2 groups in all.
    """
    for hits, names in zip(correct, groups, strict=True):
        if len(hits) != len(names):
            raise ValueError(f"{len(hits)} answers need as many group names, got {len(names)}")
    everyone = np.unique(np.concatenate([np.asarray(names, dtype=str) for names in groups]))
    if len(everyone) < 2:
        return None
    drawn = np.random.default_rng(seed).integers(0, len(everyone), (num_resamples, len(everyone)))
    totals, counts = np.zeros(num_resamples), np.zeros(num_resamples)
    for hits, names in zip(correct, groups, strict=True):
        index = np.searchsorted(everyone, np.asarray(names, dtype=str))
        rights = np.bincount(index, weights=hits.astype(np.float64), minlength=len(everyone))[drawn].sum(axis=1)
        sizes = np.bincount(index, minlength=len(everyone))[drawn].sum(axis=1)
        totals += rights / np.maximum(sizes, 1)
        counts += sizes > 0
    mean = np.mean([hits.mean() for hits in correct])
    wider = np.sqrt(len(everyone) / (len(everyone) - 1))
    means = mean + wider * (totals[counts > 0] / counts[counts > 0] - mean)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2]).clip(0, 1)
    return float(low), float(high)
