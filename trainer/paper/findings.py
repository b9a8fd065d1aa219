"""All numbers of a paper folder, arm by arm: what the tables, pictures and results.json are made of.

cells --(seeds together)--> ArmNumbers per arm and share of the data --> tables, figures
  '------(paired by view)--> gains and intervals                     --> claims
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from trainer.paper.controls import control_kind, counterpart_terms
from trainer.paper.cost import CostNumbers, cost_numbers, students_of_teachers
from trainer.paper.differences import difference, gain, gain_terms, scratch_of, transfer_gain
from trainer.paper.load import Grid, Refusal
from trainer.paper.milestones import Milestone, milestones
from trainer.paper.published import PAIRS, ROWS
from trainer.paper.records import STAGES, Arm, Cell, DatasetName, Stage, StageName, Transfer, TransferProtocol
from trainer.paper.stats import Difference, Summary, summary


@dataclass(frozen=True)
class StageNumbers:
    """Pretext accuracy on the test list by a stage. chosen: of the checkpoint that validation chose; best: the best
    so far, chosen with hindsight, as the paper reads it. gain, best_gain: over scratch, of the one and the other."""

    chosen: Summary
    best: Summary
    gain: Difference | None
    best_gain: float | None


@dataclass(frozen=True)
class TransferNumbers:
    """Action accuracy of the late checkpoint. gain: over scratch, paired by test video; None for scratch."""

    dataset: DatasetName
    protocol: TransferProtocol
    accuracy: Summary
    chance: float
    gain: Difference | None


@dataclass(frozen=True)
class ArmNumbers:
    """One arm on one share of the data (percent), over its seeds. control: which control it is, None for a row of the
    paper. over_control: for a control, how much more the real teacher gives by each stage."""

    arm: Arm
    fraction: float
    seeds: tuple[int, ...]
    epochs: tuple[int, ...]
    steps: tuple[int, ...]
    num_train: tuple[int, ...]
    stages: Mapping[StageName, StageNumbers]
    transfers: tuple[TransferNumbers, ...]
    teacher_test_acc: Summary | None
    milestones: tuple[Milestone, ...]
    cost: CostNumbers
    control: str | None = None
    over_control: Mapping[StageName, Difference | None] = field(default_factory=dict)


@dataclass(frozen=True)
class TeacherNumbers:
    """A teacher that answered: its version and digest, its own pretext accuracy, and how many cells it taught."""

    name: str
    digest: str | None
    data: str
    test_acc: float | None
    training_s: float
    students: int


@dataclass(frozen=True)
class Findings:
    """The whole. fractions in percent, largest first. mean_early_gains: by name of the arm, over the shares on which it
    was run. missing: ids of the cells that were to be there and are not."""

    numbers: tuple[ArmNumbers, ...]
    fractions: tuple[float, ...]
    seeds: tuple[int, ...]
    mean_early_gains: Mapping[str, Difference]
    teachers: tuple[TeacherNumbers, ...]
    num_cells: int
    num_expected: int
    missing: tuple[str, ...]
    refused: tuple[Refusal, ...]
    num_items: int
    num_groups: int

    def of(self, arm: Arm, fraction: float) -> ArmNumbers | None:
        """An arm's numbers on a share of the data; None when it has no cell there."""
        return next((n for n in self.numbers if n.arm == arm and n.fraction == fraction), None)


def paper_arms(student: str, teacher: str | None) -> tuple[Arm, ...]:
    """The arms of one row: scratch, or the teachers trained on all data and on the student's own share."""
    if teacher is None:
        return (Arm(student=student),)
    return tuple(Arm(student=student, teacher=teacher, teacher_data=data) for data in ("full", "matched"))


def find(grid: Grid) -> Findings:
    """All numbers of a grid, whole or partial."""
    students = students_of_teachers(grid)
    numbers = [
        _arm_numbers(grid, arm, fraction, students)
        for arm in grid.arms
        for fraction in grid.fractions
        if grid.of(arm, fraction)
    ]
    expected = expected_cells(grid)
    present = {cell.id for cell in grid.cells}
    return Findings(
        numbers=tuple(numbers),
        fractions=grid.fractions,
        seeds=grid.seeds,
        mean_early_gains={arm.name: found for arm in grid.arms if (found := _mean_early_gain(grid, arm)) is not None},
        teachers=_teachers(grid, students),
        num_cells=len(present),
        num_expected=len(present | set(expected)),
        missing=tuple(name for name in expected if name not in present),
        refused=grid.refused,
        num_items=len(grid.groups),
        num_groups=len(set(grid.groups)),
    )


def expected_cells(grid: Grid) -> tuple[str, ...]:
    """The ids of the cells that were to be there: the list in run.json, or the nine rows on every share of the data
    and every seed that has any cell, with matched teachers below 100 % once there is one."""
    listed = grid.run.get("cells")
    if isinstance(listed, list) and all(isinstance(name, str) for name in listed):
        return tuple(listed)
    arms = [arm for row in ROWS for arm in paper_arms(*row)]
    with_matched = any(arm.teacher_data == "matched" for arm in grid.arms)
    return tuple(
        Cell(arm=arm, fraction=fraction, seed=seed).id
        for fraction in grid.fractions
        for arm in arms
        if arm.teacher_data != "matched" or (with_matched and fraction < 100)
        for seed in grid.seeds
    )


def measured_pairs(grid: Grid, fraction: float, stage: StageName) -> dict[Arm, Difference]:
    """The gains of the six distillations from full-data teachers, of those that were measured."""
    arms = (Arm(student=student, teacher=teacher, teacher_data="full") for student, teacher in PAIRS)
    return {arm: found for arm in arms if (found := gain(grid, arm, fraction, stage)) is not None}


def _mean_early_gain(grid: Grid, arm: Arm) -> Difference | None:
    if arm == scratch_of(arm):
        return None
    shares = [fraction for fraction in grid.fractions if grid.of(arm, fraction)]
    terms = [term for fraction in shares for term in gain_terms(arm, fraction, 1 / len(shares))]
    return difference(grid, terms, "early")


def _arm_numbers(grid: Grid, arm: Arm, fraction: float, students: Counter[str]) -> ArmNumbers:
    cells, scratch = grid.of(arm, fraction), grid.of(scratch_of(arm), fraction)
    results = [cell.result for cell in cells]
    terms = counterpart_terms(grid, arm, fraction)
    return ArmNumbers(
        arm=arm,
        fraction=fraction,
        seeds=tuple(result.cell.seed for result in results),
        epochs=tuple(sorted({result.epochs for result in results})),
        steps=tuple(sorted({result.steps for result in results})),
        num_train=tuple(sorted({result.num_train for result in results})),
        stages={name: _stage(grid, arm, fraction, name) for name, _ in STAGES},
        transfers=_transfers(grid, arm, fraction),
        teacher_test_acc=summary([r.teacher_test_acc for r in results if r.teacher_test_acc is not None]),
        milestones=milestones(cells, scratch),
        cost=cost_numbers(cells, scratch, students),
        control=control_kind(arm),
        over_control={name: difference(grid, terms, name) for name, _ in STAGES} if terms else {},
    )


def _stage(grid: Grid, arm: Arm, fraction: float, name: StageName) -> StageNumbers:
    ours, base = _stage_by_seed(grid, arm, fraction, name), _stage_by_seed(grid, scratch_of(arm), fraction, name)
    chosen = Summary.of([stage.test_acc for stage in ours.values()])
    best = Summary.of([stage.best_test_acc for stage in ours.values()])
    if arm == scratch_of(arm):
        return StageNumbers(chosen, best, None, None)
    gains = summary([ours[seed].best_test_acc - base[seed].best_test_acc for seed in ours if seed in base])
    return StageNumbers(chosen, best, gain(grid, arm, fraction, name), gains.mean if gains else None)


def _stage_by_seed(grid: Grid, arm: Arm, fraction: float, name: StageName) -> dict[int, Stage]:
    cells = (cell.result for cell in grid.of(arm, fraction))
    return {result.cell.seed: stage for result in cells for stage in result.stages if stage.name == name}


def _transfers(grid: Grid, arm: Arm, fraction: float) -> tuple[TransferNumbers, ...]:
    found: dict[tuple[DatasetName, TransferProtocol], list[Transfer]] = {}
    for cell in grid.of(arm, fraction):
        for transfer in cell.result.transfers:
            found.setdefault((transfer.dataset, transfer.protocol), []).append(transfer)
    return tuple(
        TransferNumbers(
            dataset=dataset,
            protocol=protocol,
            accuracy=Summary.of([transfer.accuracy for transfer in transfers]),
            chance=transfers[0].chance,
            gain=None if arm.teacher is None else transfer_gain(grid, arm, fraction, dataset, protocol),
        )
        for (dataset, protocol), transfers in sorted(found.items())
    )


def _teachers(grid: Grid, students: Counter[str]) -> tuple[TeacherNumbers, ...]:
    found: dict[str, TeacherNumbers] = {}
    for cell in grid.cells.values():
        result = cell.result
        key = result.teacher_digest or result.teacher
        if key is None or key in found:
            continue
        found[key] = TeacherNumbers(
            name=result.teacher or "?",
            digest=result.teacher_digest,
            data=_teacher_data(result.cell),
            test_acc=result.teacher_test_acc,
            training_s=result.cost.teacher_training_s,
            students=students[key],
        )
    return tuple(sorted(found.values(), key=lambda teacher: teacher.name))


def _teacher_data(cell: Cell) -> str:
    """What a teacher was trained on, in words."""
    if cell.arm.teacher_data == "untrained":
        return "nothing (untrained)"
    return f"{cell.fraction:g} %" if cell.arm.teacher_data == "matched" else "100 %"
