"""The tables that stand beside the paper's: claims, transfer, milestones, cost, controls, teachers."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.paper.claims import Claim
from trainer.paper.cost import CostNumbers
from trainer.paper.document import Column, Entry, Table
from trainer.paper.entries import MISSING, columns, gain_entry, length_entry, share_rows, table_name, transfer
from trainer.paper.findings import ArmNumbers, Findings, TransferNumbers
from trainer.paper.milestones import SHARES, Milestone
from trainer.paper.records import Arm
from trainer.paper.words import DASH, arm_title, mean_and_std, percent, teacher_data
from trainer.report_data import duration

_VERDICTS = {"supported": "✓ supported", "not supported": "✗ not supported", "not testable here": "○ not testable here"}
_DATASETS = {"same": "data set of training", "second": "second data set"}
_PROTOCOLS = {"head": "head only", "full": "whole network", "probe": "linear probe", "retrieval": "retrieval top-1"}


def claims_table(claims: Sequence[Claim]) -> Table:
    """The verdicts."""
    rows = tuple(
        (
            Entry(claim.statement),
            Entry("the paper" if claim.source == "paper" else "this project"),
            Entry(_VERDICTS[claim.verdict], strong=True),
            Entry(claim.figures),
            Entry(claim.rule),
        )
        for claim in claims
    )
    columns = (
        Column("claim", wrap=True),
        Column("made by"),
        Column("verdict"),
        Column("measured", wrap=True),
        Column("counts as supported if", wrap=True),
    )
    return Table("claims", "The claims, one by one", columns, rows)


def transfer_table(findings: Findings, fraction: float) -> Table | None:
    """Action accuracies of a share's rows; None when nothing was evaluated."""
    found = [transfer for n in findings.numbers if n.fraction == fraction for transfer in n.transfers]
    chances = {(kind.dataset, kind.protocol): kind.chance for kind in found}
    if not chances:
        return None
    titles = (f"{_DATASETS[d]}, {_PROTOCOLS[p]} (chance {percent(chances[d, p])})" for d, p in sorted(chances))

    def row(arm: Arm, numbers: ArmNumbers | None) -> tuple[Entry, ...]:
        cells = (_action(transfer(numbers, *kind)) for kind in sorted(chances))
        return Entry(arm_title(arm)), Entry(teacher_data(arm)), length_entry(numbers), *cells

    rows, breaks = share_rows(findings, fraction, row)
    return Table(
        name=table_name("transfer", fraction),
        title=f"Action accuracy of the late checkpoint, pretrained on {fraction:g} % of the data",
        columns=columns("student ← teacher", "teacher trained on", "epochs; steps", *titles),
        rows=rows,
        breaks=breaks,
        notes=(
            "Mean ± deviation over seeds in percent; below it the gain over scratch of the same seeds and test videos, "
            "in points, with its 95 % interval; in bold where that excludes 0.",
        ),
    )


def milestone_table(findings: Findings, fraction: float) -> Table:
    """Epochs, and steps below them, to shares of the scratch run's final accuracy."""

    def row(arm: Arm, numbers: ArmNumbers | None) -> tuple[Entry, ...]:
        cells = [_milestone(found) for found in numbers.milestones] if numbers else [MISSING] * len(SHARES)
        return Entry(arm_title(arm)), Entry(teacher_data(arm)), *cells

    rows, breaks = share_rows(findings, fraction, row)
    return Table(
        name=table_name("milestones", fraction),
        title=f"Epochs to milestones with {fraction:g} % of the data",
        columns=columns("student ← teacher", "teacher trained on", *(f"{share:g} × scratch" for share in SHARES)),
        rows=rows,
        breaks=breaks,
        notes=(
            "A milestone is a share of the final test accuracy of the scratch run of the same student, data and seed; "
            "counted is the first epoch at or above it, mean over the seeds that came there (k of n where not all "
            "did). Guessing gives 20 %, so low milestones come soon for everybody.",
        ),
    )


def cost_table(findings: Findings, fraction: float) -> Table:
    """The three accounts, of the whole training and up to the scratch run's final accuracy."""

    def row(arm: Arm, numbers: ArmNumbers | None) -> tuple[Entry, ...]:
        cells = _cost(numbers.cost) if numbers else [MISSING] * 6
        return Entry(arm_title(arm)), Entry(teacher_data(arm)), length_entry(numbers), *cells

    rows, breaks = share_rows(findings, fraction, row)
    return Table(
        name=table_name("cost", fraction),
        title=f"Compute with {fraction:g} % of the data, in three accounts",
        columns=columns(
            "student ← teacher",
            "teacher trained on",
            "epochs; steps",
            "student alone",
            "+ the teacher's answers",
            "+ its training, spread",
            "until scratch's final accuracy",
            "answers: asked; replayed",
            "evaluation",
        ),
        rows=rows,
        breaks=breaks,
        notes=(
            "Seconds of compute, mean over the seeds; each account has all of the one before. A replayed answer is "
            "charged as if it had been asked for. A teacher's training is spread over the cells that it taught. The "
            "fourth column gives the three accounts up to milestone 1.0, with the teacher's training due whole, over "
            "the seeds that came there (k of n where not all did). Where teachers compute on the students' own cores, "
            "as on a machine without GPUs, they slow the students' steps as well: answers asked live are then in the "
            "student's account in part, and charged again in the second.",
        ),
    )


def controls_table(findings: Findings) -> Table | None:
    """What each control gains early and late, and how much more the real teacher does; None without controls."""
    found = [numbers for numbers in findings.numbers if numbers.control]
    found.sort(key=lambda numbers: (numbers.control or "", -numbers.fraction, numbers.arm.name))
    if not found:
        return None
    starts = (i for i in range(1, len(found)) if found[i].control != found[i - 1].control)
    return Table(
        name="controls",
        title="Controls: early and late gain over scratch, and what the real teacher gives beyond",
        columns=columns(
            "control",
            "student ← teacher",
            "data",
            "seeds",
            "epochs; steps",
            "early gain",
            "late gain",
            "real teacher beyond it, early",
            "real teacher beyond it, late",
        ),
        rows=tuple(_control(numbers) for numbers in found),
        breaks=frozenset(starts),
        notes=(
            "Points, in bold where the 95 % interval excludes 0. Untrained: a teacher with random weights. Label "
            "smoothing: of the entropy of the teacher's answers, each its own; uniform: of the batch's mean. Shuffled: "
            "the teacher's answers, among the tuples of one label. Same architecture: beyond it stands the mean of the "
            "student's other teachers. Contrast off: beyond it stands the same arm with the contrastive term on.",
        ),
    )


def teachers_table(findings: Findings) -> Table | None:
    """Who taught; None when nobody did."""
    if not findings.teachers:
        return None
    rows = tuple(
        (
            Entry(teacher.name),
            Entry((teacher.digest or DASH)[:12]),
            Entry(teacher.data),
            Entry(DASH if teacher.test_acc is None else percent(teacher.test_acc)),
            Entry(duration(teacher.training_s)),
            Entry(str(teacher.students)),
        )
        for teacher in findings.teachers
    )
    titles = ("teacher", "digest", "trained on", "own test accuracy", "training", "students taught")
    return Table("teachers", "The teachers", columns(*titles), rows)


def _action(found: TransferNumbers | None) -> Entry:
    if found is None:
        return MISSING
    if found.gain is None:
        return Entry(mean_and_std(found.accuracy))
    gain = gain_entry(found.gain)
    return Entry(mean_and_std(found.accuracy), f"{gain.text} {gain.small}", strong=gain.strong)


def _milestone(found: Milestone) -> Entry:
    if found.epochs is None or found.steps is None:
        return Entry(DASH, f"0 of {found.compared}" if found.compared else "")
    return Entry(f"{mean_and_std(found.epochs, 1)}{_some(found)}", f"{found.steps.mean:.0f} steps")


def _some(found: Milestone | CostNumbers) -> str:
    """How many of the seeds came there, unless all did."""
    return f" ({found.reached} of {found.compared})" if found.reached < found.compared else ""


def _cost(found: CostNumbers) -> list[Entry]:
    whole, until = found.whole, found.to_final
    accounts = "" if until is None else f"{duration(until.with_answers_s)}; {duration(until.with_training_s)}"
    return [
        Entry(duration(whole.student_s)),
        Entry(duration(whole.with_answers_s)),
        Entry(duration(whole.with_training_s)),
        MISSING if until is None else Entry(f"{duration(until.student_s)}{_some(found)}", accounts),
        Entry(f"{found.asked_items}; {found.replayed_items}"),
        Entry(duration(found.evaluation_s)),
    ]


def _control(numbers: ArmNumbers) -> tuple[Entry, ...]:
    return (
        Entry(numbers.control or ""),
        Entry(arm_title(numbers.arm)),
        Entry(f"{numbers.fraction:g} %"),
        Entry(str(len(numbers.seeds))),
        length_entry(numbers),
        gain_entry(numbers.stages["early"].gain),
        gain_entry(numbers.stages["late"].gain),
        gain_entry(numbers.over_control.get("early")),
        gain_entry(numbers.over_control.get("late")),
    )
