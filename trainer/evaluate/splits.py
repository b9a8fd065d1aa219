"""Which videos an evaluation is about: the official splits of a store, and the videos in them that are long enough."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.draw import long_enough
from data.store import ClipStore
from data.views import ClipSpec
from trainer.config import SMALLEST_SHARE
from trainer.errors import EvaluationError

_TRAIN_LIST = re.compile(r"train([A-Za-z0-9_-]{1,40})")


@dataclass(frozen=True, eq=False)
class Split:
    """One official split without the videos that are too short; `*_left_out` counts those.

    name: its number as in the store's lists, such as 01. train_rows, test_rows: int64, in the order of the lists.
    """

    name: str
    train_rows: NDArray[np.int64]
    test_rows: NDArray[np.int64]
    train_left_out: int
    test_left_out: int

    def num_seen(self, trained_on: NDArray[np.int64] | None) -> int | None:
        """Test videos among these rows of the store; None when nobody knows the rows."""
        return None if trained_on is None else int(np.isin(self.test_rows, trained_on).sum())


def split_names(store: ClipStore) -> tuple[str, ...]:
    """The NN for which the store has both lists trainNN and testNN, sorted. They name folders and parts of pages, so
    lists whose names hold more than letters, digits, - and _ are no splits."""
    found = (_TRAIN_LIST.fullmatch(name) for name in store.subsets)
    return tuple(sorted(match[1] for match in found if match and f"test{match[1]}" in store.subsets))


def splits_of(store: ClipStore, names: Sequence[str], needed: int) -> tuple[Split, ...]:
    """The named splits (none named: all of the store), of the videos with at least `needed` frames.

    Raises EvaluationError for a split that the store lacks, one with videos in both of its lists, or a list without a
    video that is long enough.
    """
    known = split_names(store)
    wanted = tuple(names) or known
    missing = [name for name in wanted if name not in known]
    if missing or not wanted:
        raise EvaluationError(
            f"clip store {store.path} has no lists train{missing[0] if missing else '01'} and "
            f"test{missing[0] if missing else '01'}; its splits are: {', '.join(known) or 'none'}"
        )
    return tuple(_split(store, name, needed) for name in wanted)


def _split(store: ClipStore, name: str, needed: int) -> Split:
    train, test = store.subset(f"train{name}"), store.subset(f"test{name}")
    num_shared = len(np.intersect1d(train, test))
    if num_shared:
        raise EvaluationError(
            f"{num_shared} of the {len(test)} videos of test{name} are in train{name}, too: nothing would be told by a "
            "test on them; mend the lists and ingest again, or leave this split out (--splits)"
        )
    train_fits, test_fits = (
        fitting(store, train, needed, f"list train{name}"),
        fitting(store, test, needed, f"list test{name}"),
    )
    return Split(name, train_fits, test_fits, len(train) - len(train_fits), len(test) - len(test_fits))


def fitting(store: ClipStore, rows: NDArray[np.int64], needed: int, what: str) -> NDArray[np.int64]:
    """The rows with enough frames. Raises EvaluationError when none has."""
    kept = rows[long_enough(store.videos, rows, needed)]
    if len(kept) == 0:
        raise EvaluationError(
            f"the {what} has {len(rows)} videos and none has the {needed} frames that are needed: "
            "choose a smaller clip_len or interval, or another list"
        )
    return kept


def groups_of(store: ClipStore, rows: NDArray[np.int64]) -> list[str]:
    """The group of each of these videos, for intervals."""
    return [store.groups[row] for row in rows]


def check_frames(frame_size: tuple[int, int], spec: ClipSpec, what: str) -> None:
    """Raises EvaluationError unless the student's crop shows most of frames of this size (height, width).

    A crop of 56 pixels from frames of 64 is nearly the whole picture; from frames of 128 it would be a detail, which
    the student has never learned to read.
    """
    side = min(frame_size)
    if not SMALLEST_SHARE * side <= spec.crop <= side:
        raise EvaluationError(
            f"{what} has frames of {frame_size[0]}x{frame_size[1]}, this student was trained on crops of "
            f"{spec.crop}x{spec.crop}: ingest the videos again with a --size whose height is {spec.crop} to "
            f"{round(spec.crop / SMALLEST_SHARE)}, about {round(spec.crop / 0.875)}"
        )
