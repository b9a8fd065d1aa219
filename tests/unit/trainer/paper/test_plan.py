"""Which cells there are, in which order, and who teaches them."""

from collections import Counter

import pytest

from trainer.config import ConfigError
from trainer.paper.controls import control_kind
from trainer.paper.plan import GridRequest, control_fraction, make_jobs, scratch_of, teacher_of
from trainer.paper.published import ROWS
from trainer.paper.records import Arm, Cell, TeacherKey
from trainer.paper.scale import DEMO


def cells_of(jobs):
    return [job.cell for job in jobs if job.cell is not None]


def rows_of(cells):
    return {(cell.arm.student, cell.arm.teacher) for cell in cells if control_kind(cell.arm) is None}


def test_every_fraction_and_seed_has_the_nine_rows_of_table_2():
    cells = cells_of(make_jobs(DEMO, GridRequest()))
    for fraction in (100.0, 50.0, 25.0, 2.0):
        for seed in (0, 1, 2):
            part = [cell for cell in cells if (cell.fraction, cell.seed) == (fraction, seed)]
            assert rows_of(part) == set(ROWS)


def test_the_whole_grid_has_so_many_cells_of_each_kind():
    """4 fractions x 3 seeds of scratch (3) and full teachers (6), 3 fractions x 3 seeds of matched ones (6), and the
    controls on one fraction: three kinds of 6 pairs, and 3 of same architecture, 3 without contrast, for 3 seeds."""
    jobs = make_jobs(DEMO, GridRequest())
    cells = cells_of(jobs)
    plain = [cell for cell in cells if control_kind(cell.arm) is None]
    assert Counter(cell.arm.teacher_data for cell in plain) == {"none": 36, "full": 72, "matched": 54}
    controls = Counter(control_kind(cell.arm) for cell in cells if control_kind(cell.arm) is not None)
    assert controls == {
        "untrained teacher": 18,
        "label smoothing": 18,
        "shuffled answers": 18,
        "same architecture": 9,
        "contrast off": 9,
    }
    assert {cell.fraction for cell in cells if control_kind(cell.arm) is not None} == {100.0}
    assert len(jobs) - len(cells) == 3


def test_ids_are_unique_and_every_job_comes_after_those_that_it_needs():
    jobs = make_jobs(DEMO, GridRequest())
    seen = set()
    for job in jobs:
        assert job.id not in seen
        assert seen.issuperset(job.needs)
        seen.add(job.id)
    assert [job.teacher.arch for job in jobs if job.teacher is not None] == [job.student for job in jobs[:3]]


def test_a_matched_teacher_is_the_scratch_student_of_that_fraction_and_seed():
    arm = Arm(student="r3d", teacher="c3d", teacher_data="matched")
    key = teacher_of(Cell(arm=arm, fraction=2.0, seed=1))
    assert key == TeacherKey(arch="c3d", data="matched", fraction=2.0, seed=1)
    assert scratch_of(key).id == "c3d-scratch-f2-s1"
    jobs = {job.id: job for job in make_jobs(DEMO, GridRequest())}
    assert jobs["r3d-from-c3d-matched-f2-s1"].needs == ("c3d-scratch-f2-s1",)
    assert jobs["r3d-from-c3d-full-f2-s1"].needs == ("teacher-c3d-full",)
    assert jobs["r3d-from-c3d-untrained-f100-s1"].needs == ()


def test_all_seeds_and_fractions_share_the_teacher_on_all_the_data():
    arm = Arm(student="r3d", teacher="c3d", teacher_data="full")
    keys = {teacher_of(Cell(arm=arm, fraction=f, seed=s)) for f in (100.0, 2.0) for s in (0, 1)}
    (key,) = keys
    assert (key.fraction, key.id) == (100.0, "c3d-full")
    assert key.seed not in GridRequest().seeds


def test_controls_go_to_the_fraction_that_is_nearest_to_the_scales():
    assert control_fraction(DEMO, (100.0, 50.0, 25.0, 2.0)) == 100.0
    assert control_fraction(DEMO, (50.0, 2.0)) == 50.0
    cells = cells_of(make_jobs(DEMO, GridRequest(fractions=(100.0, 2.0), controls=())))
    assert all(control_kind(cell.arm) is None for cell in cells)


@pytest.mark.parametrize(
    "wrong", [{"fractions": ()}, {"fractions": (0.0,)}, {"fractions": (101.0,)}, {"seeds": (1, 1)}, {"seeds": (100,)}]
)
def test_a_grid_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError):
        GridRequest(**wrong)
