"""What a student costs, in three accounts, each adding to the one before:

    student alone  ->  + the teacher's answers  ->  + the teacher's own training, spread over its students

A distilled student is cheap in the first account and may be dear in the last; which one counts depends on whether the
teacher was there anyway. The answers are charged as if each had been asked for, also where the ledger gave them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from trainer.paper.load import Grid, LoadedCell
from trainer.paper.milestones import crossing, same_seed


@dataclass(frozen=True)
class Accounts:
    """Seconds, each account with all that the one before has."""

    student_s: float
    with_answers_s: float
    with_training_s: float


@dataclass(frozen=True)
class CostNumbers:
    """Means over the seeds. whole: of the whole training. to_final: up to where the scratch run of the same seed ends
    (milestone 1.0), over the `reached` of `compared` seeds that came there; None when none did. evaluation_s is in no
    account. asked_items, replayed_items: over all seeds."""

    whole: Accounts
    to_final: Accounts | None
    reached: int
    compared: int
    evaluation_s: float
    asked_items: int
    replayed_items: int


def students_of_teachers(grid: Grid) -> Counter[str]:
    """How many cells each teacher answered, by its digest."""
    return Counter(name for cell in grid.cells.values() if (name := _teacher(cell)) is not None)


def accounts(cell: LoadedCell, students: Counter[str], share: float = 1.0) -> Accounts:
    """The accounts of a cell after a share of its steps. The teacher's training is due whole from the first step."""
    cost = cell.result.cost
    name = _teacher(cell)
    training_s = 0.0 if name is None else cost.teacher_training_s / students[name]
    student_s = share * cost.student_s
    with_answers_s = student_s + share * cost.teacher_inference_s
    return Accounts(student_s, with_answers_s, with_answers_s + training_s)


def cost_numbers(cells: Sequence[LoadedCell], scratch: Sequence[LoadedCell], students: Counter[str]) -> CostNumbers:
    """Of an arm's cells (at least one) beside the scratch cells of the same student and data."""
    pairs = same_seed(cells, scratch)
    crossings = [(cell, crossing(cell, base, 1.0)) for cell, base in pairs]
    reached = [
        accounts(cell, students, point.step / cell.result.steps) for cell, point in crossings if point is not None
    ]
    costs = [cell.result.cost for cell in cells]
    return CostNumbers(
        whole=_mean([accounts(cell, students) for cell in cells]),
        to_final=_mean(reached) if reached else None,
        reached=len(reached),
        compared=len(pairs),
        evaluation_s=fmean(cost.evaluation_s for cost in costs),
        asked_items=sum(cost.asked_items for cost in costs),
        replayed_items=sum(cost.replayed_items for cost in costs),
    )


def _teacher(cell: LoadedCell) -> str | None:
    return cell.result.teacher_digest or cell.result.teacher


def _mean(parts: Sequence[Accounts]) -> Accounts:
    return Accounts(
        fmean(part.student_s for part in parts),
        fmean(part.with_answers_s for part in parts),
        fmean(part.with_training_s for part in parts),
    )
