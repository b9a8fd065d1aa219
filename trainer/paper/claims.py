"""The paper's claims, and this project's own, answered one by one from the numbers.

Each claim has a rule that was fixed before the numbers were there; the verdict follows from it and from nothing else:

    supported             the rule holds
    not supported         it does not, be it that the numbers say otherwise or that they are too uncertain to say
    not testable here     cells are missing that the rule needs

The claims on curves, which no item's answer stands behind, are in curve_claims.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from data.views import NUM_PRETEXT
from trainer.paper.controls import SMOOTHED, UNTRAINED, control_kind, counterpart_terms
from trainer.paper.differences import Term, difference, gain_terms, seeds_of_all
from trainer.paper.findings import measured_pairs
from trainer.paper.load import Grid
from trainer.paper.published import PAIRS, ROWS, STUDENTS, display, paper_accuracy
from trainer.paper.records import Arm
from trainer.paper.stats import Difference
from trainer.paper.words import in_words, points

Verdict = Literal["supported", "not supported", "not testable here"]

EARLY_GAIN = 0.02
"""The least paired early gain that the project's claim counts."""
PAIRS_NEEDED = 4
"""Of the six pairs, in both claims on early gains."""
CHANCE = 1 / NUM_PRETEXT
"""Pretext accuracy of guessing, and of a network that always gives the same answer."""
HARDLY = 0.05
"""Accuracy `hardly` depends on the amount of data if it changes by less than this; ours, the paper names no figure."""

_IDLE_RULE = "A share on which the rows' mean early accuracy is not above guessing decides nothing."


@dataclass(frozen=True)
class Claim:
    """source: the paper, or this project. rule: when it counts as supported. figures: what was measured, in words."""

    key: str
    source: Literal["paper", "project"]
    statement: str
    rule: str
    verdict: Verdict
    figures: str


def data_claims(grid: Grid) -> tuple[Claim, ...]:
    """The claims that are answered from the test answers, in the order of the pages; the project's own is first."""
    return (
        project_claim(grid),
        early_gains(grid),
        largest_at_least_data(grid),
        *(better_teacher(grid, student) for student in STUDENTS),
        hardly_depends_on_data(grid),
    )


def project_claim(grid: Grid) -> Claim:
    """The claim of this project: gains at 100 % of the data, controls on the largest share on which each was run."""
    gains = _pairs(grid, 100.0)
    controls = {kind: _control_share(grid, kind) for kind in (UNTRAINED, SMOOTHED)}
    beyond = {kind: None if share is None else over_control(grid, kind, share) for kind, share in controls.items()}
    counts = "; ".join(_project_count(grid, fraction) for fraction in grid.fractions)
    figures = [f"Pairs with such a gain: {counts or 'no data'}."]
    figures += [
        f"Mean early gain beyond the control {kind}{f' at {controls[kind]:g} %' if over else ''}: {in_words(over)}."
        for kind, over in beyond.items()
    ]
    return Claim(
        "project",
        "project",
        "Distillation gives a paired early gain of at least 2 points in at least 4 of the 6 pairs, and more than an "
        "untrained teacher and label smoothing give.",
        "With full-data teachers: at 100 % of the data, a mean gain of at least 2 points with an interval above 0 in "
        "4 pairs; on the share with controls, the interval of the mean gain beyond each of the two lies above 0.",
        _all([_enough(_num_good(gains), len(gains)), *(above(over) for over in beyond.values())]),
        " ".join(figures),
    )


def early_gains(grid: Grid) -> Claim:
    """The paper's headline."""
    by_fraction = {fraction: _pairs(grid, fraction) for fraction in grid.fractions}
    measured = {fraction: gains for fraction, gains in by_fraction.items() if gains}
    idle = [fraction for fraction in measured if not learned_early(grid, fraction)]
    parts = [
        None if fraction in idle else _enough(sum(gain.above_zero for gain in gains), len(gains))
        for fraction, gains in measured.items()
    ]
    every = [gain for gains in measured.values() for gain in gains]
    means = "; ".join(f"{fraction:g} %: {points(_mean(gains))}" for fraction, gains in measured.items())
    return Claim(
        "early-gains",
        "paper",
        "Knowledge distillation gives early gains.",
        "On every share of the data that was run, at least 4 of the 6 pairs have an early gain whose interval lies "
        f"above 0. {_IDLE_RULE}",
        _all(parts),
        f"Of {len(every)} measured gains {sum(gain.above_zero for gain in every)} have an interval above 0 and "
        f"{sum(gain.below_zero for gain in every)} one below 0. Means: {means or 'none'}.{_idle_words(idle)}",
    )


def largest_at_least_data(grid: Grid) -> Claim:
    """The mean early gain at 2 % against that at every other share."""
    others = [fraction for fraction in grid.fractions if fraction != 2.0]
    found = {fraction: _gain_beyond(grid, 2.0, fraction) for fraction in others}
    idle = [2.0] if 2.0 in grid.fractions and not learned_early(grid, 2.0) else []
    known = [None if idle else above(over) for over in found.values()]
    words = "; ".join(f"than at {fraction:g} %: {in_words(over)}" for fraction, over in found.items())
    return Claim(
        "largest-at-2",
        "paper",
        "The gains are largest with 2 % of the data.",
        "The mean early gain of the pairs at 2 % is greater than at every other share, each with an interval above 0. "
        f"{_IDLE_RULE}",
        _all(known) if 2.0 in grid.fractions else "not testable here",
        f"Gain at 2 % greater {words}.{_idle_words(idle)}"
        if others and 2.0 in grid.fractions
        else "One share of the data is not enough.",
    )


def better_teacher(grid: Grid, student: str) -> Claim:
    """Whether the teacher that serves a student best in the paper's Table 3 does so here."""
    teachers = [teacher for pupil, teacher in PAIRS if pupil == student]
    best, other = sorted(teachers, key=lambda teacher: -_paper_late(student, teacher))
    arms = [Arm(student=student, teacher=teacher, teacher_data="full") for teacher in (best, other)]
    found = difference(grid, (Term(1.0, arms[0], 100.0), Term(-1.0, arms[1], 100.0)), "late")
    return Claim(
        f"teacher-of-{student}",
        "paper",
        f"{display(student)} learns more from {display(best)} than from {display(other)}.",
        "At 100 % of the data, late, the paired difference of the two has an interval above 0. One network of each "
        "architecture taught: another might teach otherwise.",
        verdict_of(above(found)),
        f"{display(best)} minus {display(other)}: {in_words(found)}; in the paper "
        f"{points(_paper_late(student, best) - _paper_late(student, other))}.",
    )


def hardly_depends_on_data(grid: Grid) -> Claim:
    """Late accuracy of the nine rows at 100 % against that at 25 %; 2 % is told beside it."""
    quarter, least = (_mean_change(grid, 100.0, fraction) for fraction in (25.0, 2.0))
    return Claim(
        "amount-of-data",
        "paper",
        "Accuracy hardly depends on the amount of data.",
        "Late accuracy, mean of the rows: the interval of 100 % minus 25 % lies within ±5 points (our bound).",
        verdict_of(within(quarter, HARDLY)),
        f"100 % minus 25 %: {in_words(quarter)}; 100 % minus 2 %: {in_words(least)}.",
    )


def over_control(grid: Grid, kind: str, fraction: float) -> Difference | None:
    """How much more the real teachers give early than a control of theirs, mean of the arms with that control."""
    arms = [arm for arm in grid.arms if control_kind(arm) == kind and counterpart_terms(grid, arm, fraction)]
    arms = [arm for arm in arms if grid.of(arm, fraction)]
    terms = [
        Term(term.weight / len(arms), term.arm, fraction)
        for arm in arms
        for term in counterpart_terms(grid, arm, fraction)
    ]
    return difference(grid, terms, "early")


def learned_early(grid: Grid, fraction: float) -> bool:
    """Whether the early accuracy of the rows of Table 2, their mean, lies above guessing, interval and all.

    Where it does not, too few steps were done for any of them to learn, and equal accuracies say nothing of teachers.
    """
    arms = [arm for arm in map(_arm_of_row, ROWS) if grid.of(arm, fraction)]
    found = difference(grid, [Term(1 / len(arms), arm, fraction) for arm in arms], "early") if arms else None
    return found is not None and (found.mean if found.interval is None else found.interval[0]) > CHANCE


def verdict_of(holds: bool | None) -> Verdict:
    """None: what the rule needs was not measured."""
    return "not testable here" if holds is None else "supported" if holds else "not supported"


def above(found: Difference | None) -> bool | None:
    """Whether a difference's interval lies above 0; None without an interval."""
    return None if found is None or found.interval is None else found.above_zero


def within(found: Difference | None, bound: float) -> bool | None:
    """Whether a difference's interval lies between -bound and bound; None without an interval."""
    if found is None or found.interval is None:
        return None
    return -bound < found.interval[0] and found.interval[1] < bound


def _enough(good: int, measured: int) -> bool | None:
    """Whether 4 of the 6 pairs are good; None while the pairs that are missing could still decide it."""
    if good >= PAIRS_NEEDED:
        return True
    return False if good + len(PAIRS) - measured < PAIRS_NEEDED else None


def _all(parts: Sequence[bool | None]) -> Verdict:
    """One part that fails decides; otherwise one that is unknown does."""
    if any(part is False for part in parts):
        return "not supported"
    return verdict_of(None if not parts or None in parts else True)


def _pairs(grid: Grid, fraction: float) -> list[Difference]:
    """The early gains of the six pairs, of those that have an interval."""
    return [gain for gain in measured_pairs(grid, fraction, "early").values() if gain.interval is not None]


def _num_good(gains: Sequence[Difference]) -> int:
    return sum(gain.mean >= EARLY_GAIN and gain.above_zero for gain in gains)


def _project_count(grid: Grid, fraction: float) -> str:
    gains = _pairs(grid, fraction)
    return f"{_num_good(gains)} of {len(gains)} at {fraction:g} %"


def _control_share(grid: Grid, kind: str) -> float | None:
    """The largest share of the data on which a control was run beside what it is held against."""
    return next((fraction for fraction in grid.fractions if over_control(grid, kind, fraction)), None)


def _mean(gains: Sequence[Difference]) -> float:
    return sum(gain.mean for gain in gains) / len(gains)


def _gain_beyond(grid: Grid, fraction: float, other: float) -> Difference | None:
    """The mean early gain at one share minus that at another, over the pairs that have both; at least 4 of them."""
    both = [arm for arm in measured_pairs(grid, fraction, "early") if arm in measured_pairs(grid, other, "early")]
    if len(both) < PAIRS_NEEDED:
        return None
    weight = 1 / len(both)
    terms = [t for arm in both for t in (*gain_terms(arm, fraction, weight), *gain_terms(arm, other, -weight))]
    return difference(grid, terms, "early")


def _mean_change(grid: Grid, fraction: float, other: float) -> Difference | None:
    """Late accuracy at one share minus that at another, mean of the rows that have both; at least 6 of the 9."""
    arms = list(map(_arm_of_row, ROWS))
    both = [arm for arm in arms if seeds_of_all(grid, (Term(1, arm, fraction), Term(1, arm, other)))]
    if 3 * len(both) < 2 * len(ROWS):
        return None
    weight = 1 / len(both)
    return difference(
        grid, [t for arm in both for t in (Term(weight, arm, fraction), Term(-weight, arm, other))], "late"
    )


def _arm_of_row(row: tuple[str, str | None]) -> Arm:
    student, teacher = row
    return Arm(student=student, teacher=teacher, teacher_data="full" if teacher else "none")


def _idle_words(idle: Sequence[float]) -> str:
    shares = ", ".join(f"{fraction:g} %" for fraction in idle)
    return f" By the early stage nothing was learned at {shares}." if idle else ""


def _paper_late(student: str, teacher: str) -> float:
    numbers = paper_accuracy(student, teacher, 100.0)
    assert numbers is not None  # the six pairs are all in the paper's Table 3
    return numbers[2]
