"""Which trainings the paper's experiments are made of, in the order in which they are best done.

    teachers on all the data ──► cells with a full teacher, controls
    scratch cells ─────────────► cells with a matched teacher: the scratch student of that fraction and seed

A job waits for the jobs in `needs` only. Seeds come one after the other, so that an interrupted grid is whole for its
first seeds, and neighbours in the order ask different teachers, so that an answer is rarely paid for twice at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from teacher_server.zoo.names import PAPER_ARCHITECTURES
from trainer.config import ConfigError
from trainer.paper.published import PAIRS, ROWS
from trainer.paper.records import Arm, Cell, TeacherKey
from trainer.paper.scale import FULL_TEACHER_SEED, Scale

_WHOLE = 100.0  # percent

CONTROLS = ("untrained", "smoothed", "smoothed_mean", "shuffled", "same", "no_contrast")
"""All that there are, in the order in which they are run; trainer.paper.controls says what each leaves of a teacher."""
DEFAULT_CONTROLS = tuple(name for name in CONTROLS if name != "smoothed_mean")
"""Those of method.md, section 8, and the ablation of the contrast."""


@dataclass(frozen=True)
class Job:
    """One training: of a teacher on all the data, or of a cell. needs: ids of the jobs that must be done before."""

    id: str
    needs: tuple[str, ...] = ()
    teacher: TeacherKey | None = None
    cell: Cell | None = None

    @property
    def student(self) -> str:
        """The architecture that is trained."""
        if self.cell is not None:
            return self.cell.arm.student
        assert self.teacher is not None
        return self.teacher.arch

    @property
    def fraction(self) -> float:
        """Of the training videos, in percent."""
        return _WHOLE if self.cell is None else self.cell.fraction


@dataclass(frozen=True)
class GridRequest:
    """What a user asks for. fractions: in percent. controls: names of CONTROLS."""

    fractions: tuple[float, ...] = (100.0, 50.0, 25.0, 2.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    controls: tuple[str, ...] = DEFAULT_CONTROLS

    def __post_init__(self) -> None:
        for name, values in (("fractions", self.fractions), ("seeds", self.seeds)):
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"{name} must be one or more different numbers, got {list(values)}")
        if not all(0 < fraction <= _WHOLE for fraction in self.fractions):
            raise ConfigError(f"fractions are percentages above 0 and at most 100, got {list(self.fractions)}")
        unknown = [name for name in self.controls if name not in CONTROLS]
        if unknown or len(set(self.controls)) != len(self.controls):
            raise ConfigError(f"controls are different ones of {', '.join(CONTROLS)}, got {', '.join(self.controls)}")
        if not all(0 <= seed != FULL_TEACHER_SEED for seed in self.seeds):
            raise ConfigError(f"seeds are at least 0 and not {FULL_TEACHER_SEED}, the teachers' own, got {self.seeds}")


def make_jobs(scale: Scale, grid: GridRequest) -> tuple[Job, ...]:
    """All jobs, each after those that it needs; ids are unique."""
    cells = _cells(scale, grid)
    keys = dict.fromkeys(key for cell in cells if (key := teacher_of(cell)) is not None and key.data == "full")
    teachers = [Job(_job_id(key), teacher=key) for key in keys]
    return (*teachers, *(Job(cell.id, _needs(cell), cell=cell) for cell in cells))


def teacher_of(cell: Cell) -> TeacherKey | None:
    """Who teaches a cell; None for scratch."""
    arm = cell.arm
    if arm.teacher is None or arm.teacher_data == "none":
        return None
    if arm.teacher_data == "matched":
        return TeacherKey(arch=arm.teacher, data="matched", fraction=cell.fraction, seed=cell.seed)
    fraction = _WHOLE if arm.teacher_data == "full" else 0.0
    return TeacherKey(arch=arm.teacher, data=arm.teacher_data, fraction=fraction, seed=FULL_TEACHER_SEED)


def scratch_of(key: TeacherKey) -> Cell:
    """The cell whose student a matched teacher is."""
    return Cell(arm=Arm(student=key.arch), fraction=key.fraction, seed=key.seed)


def control_arms(names: Sequence[str]) -> tuple[Arm, ...]:
    """These of the controls. same, no_contrast: one for each student; all others for all six pairs."""
    pairs = [Arm(student=student, teacher=teacher, teacher_data="full") for student, teacher in PAIRS]
    first = {arm.student: arm for arm in reversed(pairs)}
    arms = {
        "untrained": [arm.model_copy(update={"teacher_data": "untrained"}) for arm in pairs],
        "same": [Arm(student=arch, teacher=arch, teacher_data="full") for arch in PAPER_ARCHITECTURES],
        "no_contrast": [arm.model_copy(update={"contrast": False}) for arm in first.values()],
    }
    for target in ("smoothed", "smoothed_mean", "shuffled"):
        arms[target] = [arm.model_copy(update={"target": target}) for arm in pairs]
    return tuple(arm for name in CONTROLS if name in names for arm in arms[name])


def control_fraction(scale: Scale, fractions: Sequence[float]) -> float:
    """The fraction that the controls are run on: the scale's, or the one of these that is nearest to it."""
    return min(fractions, key=lambda fraction: abs(fraction - scale.control_fraction))


def _cells(scale: Scale, grid: GridRequest) -> list[Cell]:
    """At 100 % full and matched are the same data, and the full teacher alone is run."""
    controls = control_arms(grid.controls)
    controlled = control_fraction(scale, grid.fractions)
    cells = []
    for seed in grid.seeds:
        for fraction in sorted(grid.fractions, reverse=True):
            arms = [Arm(student=student) for student, teacher in ROWS if teacher is None]
            arms += [Arm(student=student, teacher=teacher, teacher_data="full") for student, teacher in PAIRS]
            if fraction < _WHOLE:
                arms += [Arm(student=student, teacher=teacher, teacher_data="matched") for student, teacher in PAIRS]
            arms += controls if fraction == controlled else ()
            cells += [Cell(arm=arm, fraction=fraction, seed=seed) for arm in arms]
    return cells


def _needs(cell: Cell) -> tuple[str, ...]:
    key = teacher_of(cell)
    if key is None or key.data == "untrained":
        return ()
    return (scratch_of(key).id,) if key.data == "matched" else (_job_id(key),)


def _job_id(key: TeacherKey) -> str:
    """Teachers' jobs and cells share a folder of runs."""
    return f"teacher-{key.id}"
