"""The controls, which tell knowledge from regularisation: what an arm would gain without a teacher that knows anything.

| control | what is left | if it gains as much as the teacher |
| --- | --- | --- |
| untrained | answers of random weights | any fixed target would have done |
| label smoothing | the entropy of each of the teacher's answers | softness would have done |
| uniform smoothing | the mean entropy of the batch's answers | softness without knowing which tuples are hard would |
| shuffled | the answers, given to other tuples of the same label | knowing the label would have done |
| same architecture | a teacher of the student's own kind | the other architecture does not matter |
| contrast off | the arm without its contrastive term | that term does not matter under distillation |
"""

from __future__ import annotations

from trainer.paper.differences import Term
from trainer.paper.load import Grid
from trainer.paper.records import Arm

UNTRAINED = "untrained teacher"
SMOOTHED = "label smoothing"
UNIFORM = "uniform smoothing"
SHUFFLED = "shuffled answers"
SAME = "same architecture"
CONTRAST_OFF = "contrast off"


def control_kind(arm: Arm) -> str | None:
    """Which control an arm is, several joined by a comma; None for a row of the paper's own grid."""
    kinds = [
        kind
        for kind, applies in (
            (UNTRAINED, arm.teacher_data == "untrained"),
            (SMOOTHED, arm.target == "smoothed"),
            (UNIFORM, arm.target == "smoothed_mean"),
            (SHUFFLED, arm.target == "shuffled"),
            (SAME, arm.teacher == arm.student),
            (CONTRAST_OFF, not arm.contrast),
        )
        if applies
    ]
    return ", ".join(kinds) or None


def counterparts(grid: Grid, arm: Arm, fraction: float) -> tuple[Arm, ...]:
    """The arms that a control is held against: the same arm without what makes it a control; for a teacher of the
    student's own architecture, the student's other teachers. Of those, the ones with cells."""
    data = "full" if arm.teacher_data == "untrained" else arm.teacher_data
    teachers: set[str | None] = {arm.teacher}
    if arm.teacher == arm.student:
        teachers = {other.teacher for other in grid.arms if other.student == arm.student} - {None, arm.student}
    real = (Arm(student=arm.student, teacher=teacher, teacher_data=data) for teacher in teachers)
    return tuple(sorted((other for other in real if grid.of(other, fraction)), key=lambda other: other.name))


def counterpart_terms(grid: Grid, arm: Arm, fraction: float) -> tuple[Term, ...]:
    """The real arms' mean minus the control; empty for an arm that is no control or has nothing to be held against."""
    real = counterparts(grid, arm, fraction) if control_kind(arm) else ()
    if not real:
        return ()
    return (*(Term(1 / len(real), other, fraction) for other in real), Term(-1.0, arm, fraction))
