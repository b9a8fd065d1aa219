"""Which videos of a store a student was trained on, and which splits may therefore be asked of it.

A store's splits overlap: most test videos of UCF101's second split stand in the training list of the first. A student
of train01 is new to test01 alone; one that was fine-tuned on train02 as well is new to neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.store import ClipStore
from trainer.errors import EvaluationError
from trainer.evaluate.records import ProtocolName
from trainer.evaluate.splits import split_names
from trainer.lessons import Lesson, rows_met


@dataclass(frozen=True)
class _Seen:
    """How many test videos of a split a lesson had."""

    lesson: Lesson
    count: int


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
    met = [(lesson, rows) for lesson in lessons if (rows := rows_met(lesson, store)) is not None]
    seen = {name: _seen(met, store.subset(f"test{name}")) for name in known}
    # By which lessons the student learned the very answers to a split's test videos.
    learned = {name: [s for s in seen[name] if protocol == "pretext" or s.lesson.used_labels] for name in known}
    new = tuple(name for name in known if not seen[name])
    if names:
        refused = next((name for name in names if learned.get(name)), None)
        if refused is not None:
            found = learned[refused][0]
            instead = f"new to it are {', '.join(new)}" if new else "no split of this store is new to it"
            raise EvaluationError(
                f"{found.count} of the test videos of split {refused} are in {found.lesson.name}, on which this "
                f"student learned the answers; {instead}"
            )
        return tuple(names)
    if known and not new:
        lists = " and ".join(sorted({found.lesson.name for name in known for found in seen[name]}))
        askable = [name for name in known if not learned[name]]
        instead = (
            f"name those to ask all the same with --splits; they are {', '.join(askable)}"
            if askable
            else "it learned the answers to all of them, and there is nothing here to ask it"
        )
        raise EvaluationError(
            f"the student was trained on {lists}, with test videos of every split of this store: {instead}"
        )
    return new


def _seen(met: Sequence[tuple[Lesson, NDArray[np.int64]]], test_rows: NDArray[np.int64]) -> list[_Seen]:
    """The lessons that are known to have had some of these videos. met: lessons with their rows of the store."""
    counts = ((lesson, len(np.intersect1d(test_rows, rows))) for lesson, rows in met)
    return [_Seen(lesson, count) for lesson, count in counts if count]
