"""Places and rows that several tables share."""

from __future__ import annotations

from collections.abc import Callable

from trainer.paper.document import Column, Entry
from trainer.paper.findings import ArmNumbers, Findings, TransferNumbers, paper_arms
from trainer.paper.published import ROWS
from trainer.paper.records import Arm
from trainer.paper.stats import Difference, Summary
from trainer.paper.words import DASH, mean_and_std, points, span

MISSING = Entry(DASH)
Rows = tuple[tuple[Entry, ...], ...]


def table_arms(findings: Findings, fraction: float) -> tuple[tuple[Arm, ...], ...]:
    """The arms of a share's table, by student: the nine rows, whether or not they were run, with matched-data teachers
    where there are any; then other students' arms that are no controls."""
    present = {numbers.arm for numbers in findings.numbers if numbers.fraction == fraction}
    with_matched = any(arm.teacher_data == "matched" and arm.target == "teacher" for arm in present)
    by_student: dict[str, list[Arm]] = {}
    for student, teacher in ROWS:
        arms = (arm for arm in paper_arms(student, teacher) if with_matched or arm.teacher_data != "matched")
        by_student.setdefault(student, []).extend(arms)
    listed = {arm for arms in by_student.values() for arm in arms}
    for numbers in findings.numbers:
        if numbers.fraction == fraction and numbers.control is None and numbers.arm not in listed:
            by_student.setdefault(numbers.arm.student, []).append(numbers.arm)
    return tuple(tuple(arms) for arms in by_student.values())


def share_rows(
    findings: Findings, fraction: float, row: Callable[[Arm, ArmNumbers | None], tuple[Entry, ...]]
) -> tuple[Rows, frozenset[int]]:
    """A row per arm of a share's table, and the rows with which a new student begins."""
    groups = table_arms(findings, fraction)
    rows = tuple(row(arm, findings.of(arm, fraction)) for group in groups for arm in group)
    starts = [sum(len(group) for group in groups[:i]) for i in range(1, len(groups))]
    return rows, frozenset(starts)


def columns(*titles: str) -> tuple[Column, ...]:
    """Columns that do not wrap."""
    return tuple(map(Column, titles))


def table_name(what: str, fraction: float) -> str:
    """accuracy-25, accuracy-12-5."""
    return f"{what}-{fraction:g}".replace(".", "-")


def accuracy_entry(found: Summary | None, small: str = "") -> Entry:
    """41.2 ± 0.8, or a dash."""
    return MISSING if found is None else Entry(mean_and_std(found), small)


def gain_entry(found: Difference | None) -> Entry:
    """+2.1 with [+0.8, +3.3] below, bold where the interval excludes 0."""
    if found is None:
        return MISSING
    interval = found.interval
    bounds = "no interval" if interval is None else f"[{points(interval[0])}, {points(interval[1])}]"
    return Entry(points(found.mean), bounds, strong=found.above_zero or found.below_zero)


def length_entry(numbers: ArmNumbers | None) -> Entry:
    """Epochs; steps: at equal epochs, shares of the data differ in their steps."""
    return MISSING if numbers is None else Entry(f"{span(numbers.epochs)}; {span(numbers.steps)}")


def transfer(numbers: ArmNumbers | None, dataset: str, protocol: str) -> TransferNumbers | None:
    """One action accuracy of an arm; None where it was not evaluated."""
    kinds = () if numbers is None else numbers.transfers
    return next((found for found in kinds if (found.dataset, found.protocol) == (dataset, protocol)), None)
