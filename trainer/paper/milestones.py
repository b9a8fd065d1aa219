"""How soon a student comes as far as its scratch run came in the end.

    accuracy                         ____ distilled
      1.0 x final  - - - - - -x- - -/- - - - - - - -_ scratch
      0.9 x final  - - - - -x- - - - - - - - _x
                              |               '------ the milestone of scratch itself
                              '--- the first evaluated epoch at or above the line

The curve is the one on the test list, and a first crossing is seen only with hindsight: milestones tell how curves lie
to each other, nobody could stop a training by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.paper.load import LoadedCell
from trainer.paper.records import CurvePoint
from trainer.paper.stats import Summary, summary

SHARES = (0.5, 0.75, 0.9, 1.0)
_ROUNDING = 1e-9  # .9 times an accuracy is no exact number


@dataclass(frozen=True)
class Milestone:
    """share: of the scratch run's final accuracy. epochs, steps: over the seeds that came there, None if none did;
    reached of `compared` seeds did."""

    share: float
    epochs: Summary | None
    steps: Summary | None
    reached: int
    compared: int


def final_accuracy(curve: Sequence[CurvePoint]) -> float | None:
    """The test accuracy of the last epoch that was tested."""
    return next((point.test_acc for point in reversed(curve) if point.test_acc is not None), None)


def first_at(curve: Sequence[CurvePoint], accuracy: float) -> CurvePoint | None:
    """The first epoch whose test accuracy is at least `accuracy`; None if there is none."""
    tested = (point for point in curve if point.test_acc is not None and point.test_acc >= accuracy - _ROUNDING)
    return next(tested, None)


def crossing(cell: LoadedCell, scratch: LoadedCell, share: float) -> CurvePoint | None:
    """Where a cell first has `share` of the final accuracy of the scratch cell; None if it never has."""
    final = final_accuracy(scratch.result.curve)
    return None if final is None else first_at(cell.result.curve, share * final)


def same_seed(cells: Sequence[LoadedCell], scratch: Sequence[LoadedCell]) -> tuple[tuple[LoadedCell, LoadedCell], ...]:
    """Each cell with the scratch cell of its seed; cells without one are left out."""
    by_seed = {cell.result.cell.seed: cell for cell in scratch}
    return tuple((cell, by_seed[cell.result.cell.seed]) for cell in cells if cell.result.cell.seed in by_seed)


def milestones(cells: Sequence[LoadedCell], scratch: Sequence[LoadedCell]) -> tuple[Milestone, ...]:
    """Of an arm's cells against the scratch cells of the same student, data and seeds."""
    pairs = same_seed(cells, scratch)
    found = []
    for share in SHARES:
        points = [point for cell, base in pairs if (point := crossing(cell, base, share)) is not None]
        epochs, steps = summary([point.epoch for point in points]), summary([point.step for point in points])
        found.append(Milestone(share, epochs, steps, len(points), len(pairs)))
    return tuple(found)
