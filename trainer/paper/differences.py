"""Differences between arms, paired by view and by seed.

Every comparison of the pages is a weighted sum of arms: KD minus scratch, the mean of six of those, a gain at one share
of the data minus the gain at another. The sum is taken answer by answer, so that what the arms share (hard views, a
lucky seed) cancels before the interval is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.paper.load import Grid
from trainer.paper.records import Arm, DatasetName, StageName, TransferProtocol
from trainer.paper.stats import Difference, paired_difference


@dataclass(frozen=True)
class Term:
    """An arm on a share of the data (in percent), and its weight in the sum."""

    weight: float
    arm: Arm
    fraction: float


def scratch_of(arm: Arm) -> Arm:
    """What an arm's gain is counted from: the same student without a teacher, with every term of its own loss on."""
    return Arm(student=arm.student)


def gain_terms(arm: Arm, fraction: float, weight: float = 1.0) -> tuple[Term, Term]:
    """The gain of an arm over scratch on the same data."""
    return Term(weight, arm, fraction), Term(-weight, scratch_of(arm), fraction)


def seeds_of_all(grid: Grid, terms: Sequence[Term]) -> tuple[int, ...]:
    """The seeds with which every term has a cell."""
    seeds = [{cell.result.cell.seed for cell in grid.of(term.arm, term.fraction)} for term in terms]
    return tuple(sorted(set.intersection(*seeds))) if seeds else ()


def difference(grid: Grid, terms: Sequence[Term], stage: StageName) -> Difference | None:
    """The weighted sum of the terms' test answers by a stage, chosen on validation; None when no seed has them all."""
    seeds = seeds_of_all(grid, terms)
    if not seeds:
        return None
    total = np.zeros((len(seeds), len(grid.groups)))
    for term in terms:
        for cell in grid.of(term.arm, term.fraction):
            if cell.result.cell.seed in seeds:
                total[seeds.index(cell.result.cell.seed)] += term.weight * cell.answers.correct[stage]
    return paired_difference(total, grid.groups, seeds)


def gain(grid: Grid, arm: Arm, fraction: float, stage: StageName) -> Difference | None:
    """An arm's gain over scratch on the same data by a stage."""
    return difference(grid, gain_terms(arm, fraction), stage)


def transfer_gain(
    grid: Grid, arm: Arm, fraction: float, dataset: DatasetName, protocol: TransferProtocol
) -> Difference | None:
    """An arm's gain over scratch in action accuracy; None when no seed has both."""
    kind = dataset, protocol
    ours, base = (
        {
            cell.result.cell.seed: cell.answers.transfers
            for cell in grid.of(one, fraction)
            if kind in cell.answers.transfers.correct
        }
        for one in (arm, scratch_of(arm))
    )
    seeds = sorted(ours.keys() & base.keys())
    if not seeds:
        return None
    right = [np.stack([found[seed].correct[kind].astype(np.float64) for seed in seeds]) for found in (ours, base)]
    return paired_difference(right[0] - right[1], ours[seeds[0]].groups[dataset], seeds)
