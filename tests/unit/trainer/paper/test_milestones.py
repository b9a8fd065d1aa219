"""Milestones on a written-out curve, and the three accounts of cost on written-out seconds."""

import pytest

from trainer.paper.cost import Accounts, cost_numbers, students_of_teachers
from trainer.paper.load import read_grid
from trainer.paper.milestones import milestones
from trainer.paper.records import Arm, Cost

SCRATCH = Arm(student="r3d")
TAUGHT = Arm(student="r3d", teacher="c3d", teacher_data="full")


def curve(*tests):
    return [(0.9, 0.5, test) for test in tests]


def cells(made_up, folder, *written):
    """written: (arm, seed, test accuracies)."""
    for arm, seed, tests in written:
        made_up.write_cell(folder, made_up.cell_result(arm, seed=seed, curve=curve(*tests), steps=10 * len(tests)))
    grid = read_grid(folder)
    return grid, grid.of(TAUGHT, 100.0), grid.of(SCRATCH, 100.0)


def test_a_milestone_is_the_first_tested_epoch_at_or_above_its_share(made_up, tmp_path):
    # Scratch ends at .4, so the lines are .2, .3, .36 and .4.
    scratch = (0.1, 0.2, 0.3, 0.4)
    taught = (0.25, None, 0.38, 0.39)
    _, ours, base = cells(made_up, tmp_path, (SCRATCH, 0, scratch), (TAUGHT, 0, taught))
    found = milestones(ours, base)
    assert [milestone.epochs and milestone.epochs.mean for milestone in found] == [1, 3, 3, None]
    assert [milestone.steps and milestone.steps.mean for milestone in found] == [10, 30, 30, None]
    assert [(milestone.reached, milestone.compared) for milestone in found] == [(1, 1), (1, 1), (1, 1), (0, 1)]
    assert [milestone.epochs.mean for milestone in milestones(base, base)] == [2, 3, 4, 4]


def test_each_seed_is_held_against_scratch_of_its_own_seed(made_up, tmp_path):
    written = [(SCRATCH, 0, (0.2, 0.4)), (SCRATCH, 1, (0.4, 0.8)), (TAUGHT, 0, (0.4, 0.4)), (TAUGHT, 1, (0.4, 0.8))]
    _, ours, base = cells(made_up, tmp_path, *written)
    last = milestones(ours, base)[-1]
    assert last.epochs.values == (1, 2)


def test_a_seed_without_scratch_is_not_compared(made_up, tmp_path):
    _, ours, base = cells(made_up, tmp_path, (SCRATCH, 0, (0.4,)), (TAUGHT, 0, (0.4,)), (TAUGHT, 1, (0.4,)))
    assert milestones(ours, base)[0].compared == 1


def test_the_accounts_add_answers_and_then_the_teachers_training_spread_over_its_students(made_up, tmp_path):
    cost = Cost(
        student_s=10.0,
        evaluation_s=1.0,
        teacher_inference_s=4.0,
        teacher_training_s=30.0,
        asked_items=7,
        replayed_items=3,
    )
    other = Arm(student="r2plus1d", teacher="c3d", teacher_data="full")
    for arm in (TAUGHT, other):
        made_up.write_cell(tmp_path, made_up.cell_result(arm, cost=cost))
    made_up.write_cell(tmp_path, made_up.cell_result(SCRATCH))
    grid = read_grid(tmp_path)
    found = cost_numbers(grid.of(TAUGHT, 100.0), grid.of(SCRATCH, 100.0), students_of_teachers(grid))
    assert found.whole == Accounts(10.0, 14.0, 29.0)
    assert (found.asked_items, found.replayed_items, found.evaluation_s) == (7, 3, 1.0)


def test_up_to_scratchs_final_accuracy_steps_count_in_part_and_the_teachers_training_whole(made_up, tmp_path):
    # Half of the steps bring the taught student to scratch's .4.
    written = [(SCRATCH, 0, (0.1, 0.2, 0.3, 0.4)), (TAUGHT, 0, (0.3, 0.4, 0.5, 0.6))]
    grid, ours, base = cells(made_up, tmp_path, *written)
    found = cost_numbers(ours, base, students_of_teachers(grid))
    assert found.to_final == Accounts(pytest.approx(8.0), pytest.approx(10.0), pytest.approx(40.0))


def test_a_student_that_never_comes_there_has_no_such_account(made_up, tmp_path):
    grid, ours, base = cells(made_up, tmp_path, (SCRATCH, 0, (0.4,)), (TAUGHT, 0, (0.3,)))
    found = cost_numbers(ours, base, students_of_teachers(grid))
    assert found.to_final is None
    assert (found.reached, found.compared) == (0, 1)
