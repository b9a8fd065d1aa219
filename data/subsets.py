"""Fractions of a training list: nested, class by class, the same for everyone who names the same seed.

    every video draws one place from (seed, its key)          ->  an order of each class
    a fraction of p percent takes the first max(1, p * n_c)   ->  2 % lies inside 25 %, inside 50 %, inside 100 %

p * n_c is rounded half up. A place depends on nothing but seed and key, so neither the other videos of the list nor
the order of its rows moves a video between fractions. A list file says which keys were chosen, one in each line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.atomic import write_atomic
from data.errors import DataError
from data.philox import Slot, uniform
from data.views import key_hash

FULL = 100.0  # percent


def take_fraction(keys: Sequence[str], labels: NDArray[np.int64], percent: float, seed: int) -> NDArray[np.int64]:
    """Positions of the videos of the fraction, ascending. keys: [V] names; labels: [V] classes; percent in (0, 100].

    >>> take_fraction(["a", "b", "c", "d"], np.array([0, 0, 0, 1]), 100.0, seed=0).tolist()
    [0, 1, 2, 3]

    Raises DataError for a percentage outside that range, or for keys and labels of different length.
    """
    if not 0 < percent <= FULL:
        raise DataError(f"a fraction must be above 0 and at most 100 percent, got {percent}")
    if len(keys) != len(labels):
        raise DataError(f"every video needs a label, got {len(keys)} keys and {len(labels)} labels")
    hashes = np.array([key_hash(key) for key in keys], dtype=np.uint64)
    place = uniform(seed, hashes, 0, Slot.FRACTION, 0)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        drawn = members[np.lexsort((hashes[members], place[members]))]
        chosen.append(drawn[: count_of(len(members), percent)])
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)


def count_of(num_videos: int, percent: float) -> int:
    """How many videos of a class a fraction takes: percent of them rounded half up, and at least one.

    The percentage counts as it is written in decimals: 2.5 percent of 20 is .5 and gives 1, whatever floats say.

    >>> [count_of(42, percent) for percent in (100.0, 50.0, 25.0, 2.0)]
    [42, 21, 11, 1]
    """
    return max(1, math.floor(Fraction(str(percent)) * num_videos / 100 + Fraction(1, 2)))


def write_list(path: Path, keys: Iterable[str]) -> None:
    """A list file: a key in each line, in the order given, as the bytes of file names. It is whole or absent.

    Raises DataError for a key that takes more than a line, OSError.
    """
    lines = list(keys)
    broken = next((key for key in lines if "\n" in key or not key), None)
    if broken is not None:
        raise DataError(f"a list file has a key in each line, which {broken!r} does not allow")
    write_atomic(path, "".join(f"{key}\n" for key in lines).encode("utf-8", "surrogateescape"))
