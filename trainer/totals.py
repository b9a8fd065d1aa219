"""What a run remembers besides weights and momentum: sums over its steps, and what validation has chosen so far.

Both are in every checkpoint, so that a resumed run goes on with them. Needs no torch.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

_Record = TypeVar("_Record", "Totals", "Selection")


@dataclass
class Totals:
    """Sums over the run so far; `epoch_*` over the epoch that it is in. Seconds are those of its steps.

    teacher_retries, teacher_dropped: questions asked again; tries given up on, whose late replies are not used.
    replayed_items: answers that a ledger gave. kd_skipped: tuples that were trained on without an answer. The four are
    of all workers. epoch_label_counts, epoch_label_correct: per pretext label, how many tuples had it and how many of
    these were named right.
    """

    seconds: float = 0.0
    teacher_wait_s: float = 0.0
    teacher_retries: int = 0
    teacher_dropped: int = 0
    replayed_items: int = 0
    kd_skipped: int = 0
    clips: int = 0
    epoch_steps: int = 0
    epoch_loss: float = 0.0
    epoch_pretext_acc: float = 0.0
    epoch_label_counts: list[int] = field(default_factory=list)
    epoch_label_correct: list[int] = field(default_factory=list)

    @property
    def epoch_balanced_acc(self) -> float | None:
        """Mean over the labels that occurred of the share named right; None before the first step."""
        pairs = zip(self.epoch_label_correct, self.epoch_label_counts, strict=True)
        recalls = [correct / count for correct, count in pairs if count]
        return sum(recalls) / len(recalls) if recalls else None

    def add_labels(self, counts: Sequence[int], correct: Sequence[int]) -> None:
        """One step's tuples and right answers per label."""
        self.epoch_label_counts = _added(self.epoch_label_counts, counts)
        self.epoch_label_correct = _added(self.epoch_label_correct, correct)

    def begin_epoch(self) -> None:
        """Forgets the sums over the epoch before."""
        for name, value in to_json(Totals()).items():
            if name.startswith("epoch_"):
                setattr(self, name, value)


@dataclass
class Selection:
    """What the validation list has chosen so far. Steps are numbers of steps done; 0: no epoch has ended yet.

    best_*: the epoch with the highest balanced accuracy, of equal ones the one with the lower loss, then the earlier.
    lowest_loss, epochs_without: the lowest loss of any epoch, and the epochs since then (config.early_stop).
    """

    best_step: int = 0
    best_balanced_acc: float = 0.0
    best_loss: float = 0.0
    lowest_loss: float | None = None
    epochs_without: int = 0

    def note(self, step: int, balanced_acc: float, loss: float) -> None:
        """The figures of one more epoch."""
        if not self.best_step or (balanced_acc, -loss) > (self.best_balanced_acc, -self.best_loss):
            self.best_step, self.best_balanced_acc, self.best_loss = step, balanced_acc, loss
        if self.lowest_loss is None or loss < self.lowest_loss:
            self.lowest_loss, self.epochs_without = loss, 0
        else:
            self.epochs_without += 1

    def is_spent(self, patience: int) -> bool:
        """Whether so many epochs have brought no lower loss; never with patience 0."""
        return 0 < patience <= self.epochs_without


def to_json(record: Totals | Selection) -> dict[str, Any]:
    """As in a checkpoint."""
    return dataclasses.asdict(record)


def restore(record: _Record, fields: dict[str, Any]) -> None:
    """Puts a checkpoint's fields into `record`; what an older program did not write is as at the start of a run."""
    fresh = to_json(type(record)())
    for name, value in fresh.items():
        setattr(record, name, fields.get(name, value))


def _added(sums: Sequence[int], more: Sequence[int]) -> list[int]:
    return [a + b for a, b in itertools.zip_longest(sums, more, fillvalue=0)]
