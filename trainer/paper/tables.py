"""The tables as data: Tables 3 to 6 (a share of the data each), Table 7 (all shares), and what stands beside them.

Accuracies are in percent. A dash is a cell that is missing. The paper's readings are marked:

    41.2 ± 0.8     mean and deviation over the seeds of the checkpoint that validation chose
    43.0*          the best on the test list so far, with hindsight, as the paper reads it
"""

from __future__ import annotations

from trainer.paper.document import Entry, Table
from trainer.paper.entries import (
    MISSING,
    accuracy_entry,
    columns,
    gain_entry,
    length_entry,
    share_rows,
    table_arms,
    table_name,
    transfer,
)
from trainer.paper.findings import ArmNumbers, Findings
from trainer.paper.published import FRACTIONS, PCL, STUDENTS, TABLE_OF_FRACTION, display, paper_accuracy, paper_transfer
from trainer.paper.records import STAGES, Arm
from trainer.paper.words import DASH, arm_title, percent, span, teacher_data

_HINDSIGHT = (
    "* is the paper's reading: the best test accuracy so far, chosen with hindsight among the epochs that were tested "
    "(evenly spaced ones, and those that validation preferred to all before). The figure before it is of the "
    "checkpoint that validation chose. ± is the deviation over seeds (n - 1)."
)
_PAPER_NOTE = (
    "The paper's columns are its own numbers (UCF101 and HMDB51, one seed, chosen on test), for comparison of the "
    "pattern; on other data or at another width the levels are not comparable."
)


def accuracy_table(findings: Findings, fraction: float) -> Table:
    """Table 3, 4, 5 or 6, or that of a share that the paper does not have."""
    rows, breaks = share_rows(findings, fraction, lambda arm, numbers: _accuracy_row(arm, fraction, numbers))
    number = TABLE_OF_FRACTION.get(fraction)
    title = f"Pretext accuracy on the test list with {fraction:g} % of the training data"
    return Table(
        name=table_name("accuracy", fraction),
        title=f"Table {number}. {title}" if number else title,
        columns=columns(
            "student ← teacher",
            "teacher trained on",
            "seeds",
            "epochs; steps",
            *(name for name, _ in STAGES),
            *(f"{name} gain over scratch" for name, _ in STAGES),
            "paper: early / mid / late",
            "second data set, head only",
            "paper: HMDB51",
        ),
        rows=rows,
        breaks=breaks,
        notes=(_HINDSIGHT, "Gains are in points, in bold where the 95 % interval excludes 0.", _PAPER_NOTE),
    )


def overall_table(findings: Findings) -> Table:
    """Table 7: every row on every share; the late accuracy, and smaller the early and mid one, the late gain over
    scratch and the paper's late accuracy."""
    fractions = tuple(sorted({*FRACTIONS, *findings.fractions}, reverse=True))
    arms = _all_arms(findings, fractions)
    return Table(
        name="overall",
        title="Table 7. Pretext accuracy on every share of the data",
        columns=columns(
            "student ← teacher",
            "teacher trained on",
            *(_share_title(findings, fraction) for fraction in fractions),
            "mean early gain",
            "second data set, head only",
        ),
        rows=tuple(_overall_row(findings, arm, fractions) for arm in arms),
        breaks=frozenset(i for i in range(1, len(arms)) if arms[i].student != arms[i - 1].student),
        notes=(
            "The late accuracy; below it the early and the mid one, the late gain over scratch, and the paper's late "
            "accuracy. The mean early gain is over the shares that were run, those too on which nothing was learned "
            "by then. Gains are in points, with 95 % intervals. The last column is of 100 % of the data.",
            _PAPER_NOTE,
        ),
    )


def literature_table(findings: Findings) -> Table:
    """What PCL reports when the whole network is fine-tuned, beside our scratch runs of the same networks."""
    architectures = {display(name): name for name in STUDENTS} | {"R3D-18": "r3d_18"}
    rows = []
    for published in PCL:
        numbers = findings.of(Arm(student=architectures[published.network]), 100.0)
        kinds = (("same", "full"), ("second", "full"), ("same", "retrieval"))
        found = [transfer(numbers, *kind) for kind in kinds]
        ours = [accuracy_entry(kind.accuracy if kind else None) for kind in found]
        figures = (published.ucf101, published.hmdb51, published.retrieval_top1)
        theirs = [MISSING if value is None else Entry(percent(value)) for value in figures]
        rows.append((Entry(f"{published.network} scratch"), *theirs, *ours))
    return Table(
        name="literature",
        title="Action accuracy, whole network fine-tuned, and retrieval, beside PCL(VCP) as published",
        columns=columns(
            "network",
            "PCL: UCF101",
            "PCL: HMDB51",
            "PCL: retrieval top-1, UCF101",
            "ours: data set of training",
            "ours: second data set",
            "ours: retrieval top-1, data set of training",
        ),
        rows=tuple(rows),
        notes=("PCL's numbers are of UCF101 and HMDB51 at full width: where the method stands elsewhere.",),
    )


def _accuracy_row(arm: Arm, fraction: float, numbers: ArmNumbers | None) -> tuple[Entry, ...]:
    paper, paper_action = _paper_entries(arm, fraction)
    title = (Entry(arm_title(arm)), Entry(teacher_data(arm)))
    if numbers is None:
        return (*title, *([MISSING] * (2 + 2 * len(STAGES))), paper, MISSING, paper_action)
    stages = [numbers.stages[name] for name, _ in STAGES]
    action = transfer(numbers, "second", "head")
    return (
        *title,
        Entry(str(len(numbers.seeds))),
        length_entry(numbers),
        *(accuracy_entry(stage.chosen, f"{percent(stage.best.mean)}*") for stage in stages),
        *(gain_entry(stage.gain) for stage in stages),
        paper,
        accuracy_entry(action.accuracy if action else None),
        paper_action,
    )


def _paper_entries(arm: Arm, fraction: float) -> tuple[Entry, Entry]:
    """The paper's three stages and its HMDB51 column. Its teachers' data is not stated; its rows stand beside both."""
    stages = paper_accuracy(arm.student, arm.teacher, fraction)
    action = paper_transfer(arm.student, arm.teacher, fraction)
    return (
        MISSING if stages is None else Entry(" / ".join(f"{100 * value:.0f}" for value in stages)),
        MISSING if action is None else Entry(f"{100 * action:.0f}"),
    )


def _all_arms(findings: Findings, fractions: tuple[float, ...]) -> list[Arm]:
    """Every arm of any share's table, once, by student; matched-data teachers beside the full-data ones."""
    arms = {arm: None for fraction in fractions for group in table_arms(findings, fraction) for arm in group}
    students = list(dict.fromkeys(arm.student for arm in arms))
    return sorted(arms, key=lambda arm: (students.index(arm.student), arm.teacher is None, arm.name))


def _overall_row(findings: Findings, arm: Arm, fractions: tuple[float, ...]) -> tuple[Entry, ...]:
    found = [findings.of(arm, fraction) for fraction in fractions]
    shares = [_share_entry(arm, fraction, numbers) for fraction, numbers in zip(fractions, found, strict=True)]
    action = transfer(findings.of(arm, 100.0), "second", "head")
    return (
        Entry(arm_title(arm)),
        Entry(teacher_data(arm)),
        *shares,
        gain_entry(findings.mean_early_gains.get(arm.name)),
        accuracy_entry(action.accuracy if action else None),
    )


def _share_title(findings: Findings, fraction: float) -> str:
    """The share, with epochs and steps where it was run."""
    run = [numbers for numbers in findings.numbers if numbers.fraction == fraction]
    if not run:
        return f"{fraction:g} %"
    epochs = span(value for numbers in run for value in numbers.epochs)
    steps = span(value for numbers in run for value in numbers.steps)
    return f"{fraction:g} % ({epochs}; {steps} epochs; steps)"


def _share_entry(arm: Arm, fraction: float, numbers: ArmNumbers | None) -> Entry:
    paper = paper_accuracy(arm.student, arm.teacher, fraction)
    remarks = [f"paper {100 * paper[2]:.0f}"] if paper else []
    if numbers is None:
        return Entry(DASH, "; ".join(remarks))
    early, mid, late = (numbers.stages[name] for name, _ in STAGES)
    gain = gain_entry(late.gain)
    remarks = [
        f"{percent(early.chosen.mean)}, {percent(mid.chosen.mean)}",
        *([f"{gain.text} {gain.small}"] if late.gain else []),
        *remarks,
    ]
    return accuracy_entry(late.chosen, "; ".join(remarks))
