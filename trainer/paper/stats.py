"""Mean and deviation over seeds, and the interval of a paired difference.

Two arms are compared on the same views: d[s, i] is what one arm's answer to item i with seed s is worth (1 right,
0 wrong) minus what the other's is. Both the seeds and the people in the test videos could have been others, so both
are drawn again, together:

              group g01      group g02   ...          a resample: G groups and S seeds, each with replacement;
    seed 0   d d d d d d | d d d d d d |              a group brings all its items, a seed both its arms;
    seed 1   d d d d d d | d d d d d d |              its figure is the mean of the items drawn, over the seeds drawn

The interval is the middle 95 % of the resamples' figures: how far the mean difference would move with other groups of
test videos and other seeds of the same kind. The variance of S seeds drawn with replacement is (S-1)/S of what seeds
vary by, a third too little for three, and that of G groups (G-1)/G; deviations between seeds are stretched by
sqrt(S/(S-1)) and those that groups make by sqrt(G/(G-1)) to make up for that (the narrowness bias of Hesterberg 2015,
What Teachers Should Know About the Bootstrap). Needs numpy only.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]

NUM_RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Summary:
    """Of one figure over the seeds. std: of the sample (n - 1), None for a single seed. values: in seed order."""

    mean: float
    std: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Raises statistics.StatisticsError for no value."""
        # stdev works in exact fractions, so equal values deviate by exactly 0.
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), std, tuple(values))


def summary(values: Sequence[float]) -> Summary | None:
    """None for no value."""
    return Summary.of(values) if values else None


@dataclass(frozen=True)
class Difference:
    """A mean paired difference, in [-1, 1] for a gain. interval: 95 %, over groups and seeds together; None with fewer
    than 2 groups. per_seed: in the order of `seeds`."""

    mean: float
    interval: Interval | None
    seeds: tuple[int, ...]
    per_seed: tuple[float, ...]
    num_groups: int
    num_items: int

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.interval is not None and self.interval[0] > 0

    @property
    def below_zero(self) -> bool:
        """Whether the whole interval lies below 0."""
        return self.interval is not None and self.interval[1] < 0


def paired_difference(differences: NDArray[np.float64], groups: Sequence[str], seeds: Sequence[int]) -> Difference:
    """differences: [S, I], a row per seed of `seeds`; groups: [I], the group of each item's video.

    Raises ValueError when the shapes do not fit or when there is no seed or no item.
    """
    if differences.ndim != 2 or differences.shape != (len(seeds), len(groups)) or not differences.size:
        raise ValueError(
            f"differences must be [seeds, items] = [{len(seeds)}, {len(groups)}] and not empty, "
            f"got shape {differences.shape}"
        )
    per_seed = tuple(float(row.mean()) for row in differences)
    return Difference(
        mean=float(np.mean(per_seed)),
        interval=joint_bootstrap(differences, groups),
        seeds=tuple(seeds),
        per_seed=per_seed,
        num_groups=len(set(groups)),
        num_items=len(groups),
    )


def joint_bootstrap(
    differences: NDArray[np.float64],
    groups: Sequence[str],
    *,
    num_resamples: int = NUM_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval | None:
    """Percentile interval of the mean of `differences` [S, I] when groups and seeds are drawn anew together, the
    deviations of both stretched.

    None with fewer than 2 groups. The draws depend on `seed` alone, so that a rerun gives the same interval.
    """
    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if len(names) < 2:
        return None
    num_seeds, num_groups = len(differences), len(names)
    sums = np.stack([np.bincount(index, weights=row, minlength=num_groups) for row in differences])  # [S, G]
    sizes = np.bincount(index, minlength=num_groups)  # [G]
    rng = np.random.default_rng(seed)
    group_counts = rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), num_resamples)  # [R, G]
    seed_counts = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), num_resamples)  # [R, S]
    by_seed = group_counts @ sums.T / (group_counts @ sizes)[:, None]  # [R, S]
    own = differences.mean(axis=1)
    by_seed = own + np.sqrt(num_groups / (num_groups - 1)) * (by_seed - own) + _stretch(differences)
    means = (by_seed * seed_counts).sum(axis=1) / num_seeds
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _stretch(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """[S]: what each seed's mean moves by, so that a resample of the seeds has the variance that S seeds tell of."""
    num_seeds = len(differences)
    if num_seeds < 2:
        return np.zeros(num_seeds)
    means = differences.mean(axis=1)
    return (np.sqrt(num_seeds / (num_seeds - 1)) - 1) * (means - means.mean())
