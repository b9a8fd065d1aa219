"""Which videos of a store a student was trained on, and which splits may therefore be asked of it.

A store's splits overlap: most test videos of UCF101's second split stand in the training list of the first. A student
of train01 is new to test01 alone; one that was fine-tuned on train02 as well is new to neither.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.store import ClipStore
from trainer.errors import EvaluationError
from trainer.evaluate.records import ProtocolName
from trainer.evaluate.splits import split_names
from trainer.lessons import Lesson, rows_met


def training_rows(lessons: Sequence[Lesson], store: ClipStore) -> NDArray[np.int64] | None:
    """Rows of all videos that the student was trained on, ascending; None when that is not known of all its lessons."""
    met = [rows_met(lesson, store) for lesson in lessons]
    known = [rows for rows in met if rows is not None]
    if len(known) < len(met):
        return None
    return np.unique(np.concatenate([np.zeros(0, np.int64), *known]))


def splits_to_ask(
    lessons: Sequence[Lesson], store: ClipStore, names: Sequence[str], protocol: ProtocolName
) -> tuple[str, ...]:
    """The splits named, or else those whose test videos are all new to the student, as far as is known.

    Raises EvaluationError when there is none; and for a split named whose test videos the student has met under the
    very labels that it would be asked for: by `pretext`, or by any protocol if a lesson used action labels.
    """
    known = split_names(store)
    if not names:
        new = tuple(name for name in known if not any(_num_seen(lesson, store, name) for lesson in lessons))
        if known and not new:
            lists = " and ".join(lesson.list_name for lesson in lessons)
            raise EvaluationError(
                f"the student was trained on {lists}, with test videos of all splits of this store: "
                f"name those to ask with --splits; they are {', '.join(known)}"
            )
        return new
    for lesson in lessons:
        if protocol != "pretext" and not lesson.used_labels:
            continue
        for name in (name for name in names if name in known):
            num_seen = _num_seen(lesson, store, name)
            if num_seen:
                raise EvaluationError(
                    f"{num_seen} of the test videos of split {name} are in {lesson.list_name}, on which this "
                    "student learned the answers: leave --splits out for the splits that are new to it"
                )
    return tuple(names)


def _num_seen(lesson: Lesson, store: ClipStore, split: str) -> int:
    met = rows_met(lesson, store)
    return 0 if met is None else len(np.intersect1d(store.subset(f"test{split}"), met))
