"""The claims on whole trainings and on transfer, which are answered from figures per run.

One number per distilled run: KD minus the scratch run of the same student, data and seed. The two runs of a student
that are held against one scratch run are not independent of each other, so the interval draws (student, seed)
together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from trainer.paper.claims import Claim, above, data_claims, verdict_of, within
from trainer.paper.differences import scratch_of
from trainer.paper.load import Grid, LoadedCell
from trainer.paper.milestones import same_seed
from trainer.paper.published import PAIRS, paper_transfer
from trainer.paper.records import Arm, CurvePoint
from trainer.paper.stats import Difference, paired_difference
from trainer.paper.words import in_words, points

SMALL = 0.03
"""A transfer gain is `small` within this; ours: the largest of the paper is 2 points."""
LEAST_RUNS = 6
"""Distilled runs that a claim on runs needs, among at least 2 (student, seed)."""

Figure = Callable[[LoadedCell], float | None]


@dataclass(frozen=True)
class _Run:
    """A distilled cell and its scratch cell."""

    distilled: LoadedCell
    scratch: LoadedCell


def all_claims(grid: Grid) -> tuple[Claim, ...]:
    """Every claim, in the order of the pages."""
    return (*data_claims(grid), differs_on_test(grid), overfits(grid), small_transfer_gain(grid))


def differs_on_test(grid: Grid) -> Claim:
    """KD minus scratch on both lists, each the mean over the epochs that were evaluated on both.

    Validation is the smaller list: that its interval includes 0 may only mean that it is wide, so the two differences
    must differ from each other as well.
    """
    test = _over_runs(grid, _test_mean)
    validation = _over_runs(grid, _validation_mean)
    over = _over_runs(grid, _test_over_validation)
    holds = None
    if test is not None and validation is not None and over is not None:
        holds = _excludes_zero(test) and not _excludes_zero(validation) and _excludes_zero(over)
    return Claim(
        "test-not-validation",
        "paper",
        "KD and scratch differ on test and not on validation.",
        "KD minus scratch, mean over the epochs: the interval excludes 0 on test and includes it on validation, and "
        "that of test minus validation excludes 0.",
        verdict_of(holds),
        f"On test {in_words(test)}, on validation {in_words(validation)}, test minus validation {in_words(over)}.",
    )


def overfits(grid: Grid) -> Claim:
    """The gap between training and test at the end, KD against scratch."""
    gap = _over_runs(grid, _final_gap)
    drop = _over_runs(grid, _drop)
    gaps = {
        name: [value for cell in cells if (value := _final_gap(cell)) is not None]
        for name, cells in (
            ("KD", [run.distilled for run in _runs(grid)]),
            ("scratch", list({id(run.scratch): run.scratch for run in _runs(grid)}.values())),
        )
    }
    words = ", ".join(f"{name} {points(fmean(values))}" for name, values in gaps.items() if values)
    return Claim(
        "overfits",
        "paper",
        "KD overfits.",
        "The gap between training and test accuracy after the last epoch is wider under KD; its interval lies above 0. "
        "Training accuracy is of augmented tuples while they are trained on, test accuracy of plain ones afterwards, "
        "so only the difference of the two arms' gaps means anything, and not where a gap lies.",
        verdict_of(above(gap)),
        f"Gap, in points: {words or 'not measured'}; KD minus scratch {in_words(gap)}. "
        f"Fall from the best test accuracy to the last, KD minus scratch: {in_words(drop)}.",
    )


def small_transfer_gain(grid: Grid) -> Claim:
    """Action accuracy on the second data set at 100 %, only the added layer trained, as in the paper."""
    found = _over_runs(grid, _second_head, fraction=100.0)
    paper = [_paper_transfer(student, teacher) - _paper_transfer(student, None) for student, teacher in PAIRS]
    return Claim(
        "transfer",
        "paper",
        "The transfer gain on the second data set (the paper's HMDB51) is small.",
        "At 100 %, head only: the interval of KD minus scratch lies within ±3 points (our bound).",
        verdict_of(within(found, SMALL)),
        f"KD minus scratch: {in_words(found)}; in the paper {points(fmean(paper))} on average, "
        f"at most {points(max(paper))}.",
    )


def _runs(grid: Grid, fraction: float | None = None) -> Iterator[_Run]:
    for share in grid.fractions if fraction is None else (fraction,):
        for student, teacher in PAIRS:
            arm = Arm(student=student, teacher=teacher, teacher_data="full")
            for distilled, scratch in same_seed(grid.of(arm, share), grid.of(scratch_of(arm), share)):
                yield _Run(distilled, scratch)


def _over_runs(grid: Grid, figure: Figure, fraction: float | None = None) -> Difference | None:
    """The mean over runs of a figure, KD minus scratch; None with too few runs that have it."""
    differences, clusters = [], []
    for run in _runs(grid, fraction):
        ours, base = figure(run.distilled), figure(run.scratch)
        if ours is not None and base is not None:
            cell = run.distilled.result.cell
            differences.append(ours - base)
            clusters.append(f"{cell.arm.student}-s{cell.seed}")
    if len(differences) < LEAST_RUNS or len(set(clusters)) < 2:
        return None
    return paired_difference(np.array([differences]), clusters, seeds=(0,))


def _excludes_zero(found: Difference) -> bool:
    return found.above_zero or found.below_zero


def _test_mean(cell: LoadedCell) -> float | None:
    return _curve_mean(cell, lambda point: point.test_acc)


def _validation_mean(cell: LoadedCell) -> float | None:
    return _curve_mean(cell, lambda point: point.val_acc)


def _test_over_validation(cell: LoadedCell) -> float | None:
    test, validation = _test_mean(cell), _validation_mean(cell)
    return None if test is None or validation is None else test - validation


def _curve_mean(cell: LoadedCell, of: Callable[[CurvePoint], float | None]) -> float | None:
    values = [
        value
        for point in cell.result.curve
        if point.val_acc is not None and point.test_acc is not None and (value := of(point)) is not None
    ]
    return fmean(values) if values else None


def _tested(cell: LoadedCell) -> list[tuple[CurvePoint, float]]:
    return [(point, point.test_acc) for point in cell.result.curve if point.test_acc is not None]


def _final_gap(cell: LoadedCell) -> float | None:
    tested = _tested(cell)
    return tested[-1][0].train_acc - tested[-1][1] if tested else None


def _drop(cell: LoadedCell) -> float | None:
    tested = _tested(cell)
    return max(test for _, test in tested) - tested[-1][1] if tested else None


def _second_head(cell: LoadedCell) -> float | None:
    wanted = (t.accuracy for t in cell.result.transfers if (t.dataset, t.protocol) == ("second", "head"))
    return next(wanted, None)


def _paper_transfer(student: str, teacher: str | None) -> float:
    accuracy = paper_transfer(student, teacher, 100.0)
    assert accuracy is not None  # the nine rows are all in the paper's Table 3
    return accuracy
