"""Figures and arms in words, for people. Shares are in [0, 1] and shown in percent or points."""

from __future__ import annotations

from collections.abc import Iterable

from trainer.paper.published import display
from trainer.paper.records import Arm
from trainer.paper.stats import Difference, Summary

DASH = "–"


def points(share: float) -> str:
    """A difference of accuracies in points: +2.1, −0.4, 0.0."""
    rounded = round(100 * share, 1)
    return "0.0" if rounded == 0 else f"{rounded:+.1f}".replace("-", "−")


def in_words(found: Difference | None) -> str:
    """+2.1 points [+0.8, +3.3]."""
    if found is None:
        return "not measured"
    if found.interval is None:
        return f"{points(found.mean)} points (no interval)"
    return f"{points(found.mean)} points [{points(found.interval[0])}, {points(found.interval[1])}]"


def percent(share: float) -> str:
    """41.2, without its sign: the tables say it once."""
    return f"{100 * share:.1f}"


def mean_and_std(found: Summary, scale: float = 100.0) -> str:
    """41.2 ± 0.8; the mean alone for a single seed."""
    mean = f"{scale * found.mean:.1f}"
    return mean if found.std is None else f"{mean} ± {scale * found.std:.1f}"


def arm_title(arm: Arm) -> str:
    """R3D ← C3D, or R3D scratch."""
    return (
        f"{display(arm.student)} scratch" if arm.teacher is None else f"{display(arm.student)} ← {display(arm.teacher)}"
    )


def teacher_data(arm: Arm) -> str:
    """What the teacher was trained on, in words."""
    words = {"none": DASH, "full": "all data", "matched": "same share", "untrained": "nothing"}
    return words[arm.teacher_data]


def span(values: Iterable[int]) -> str:
    """200, or 190 to 200 where the seeds differ."""
    known = sorted(set(values))
    return DASH if not known else f"{known[0]}" if len(known) == 1 else f"{known[0]} to {known[-1]}"
