"""Every verdict in both directions, on made-up grids where the answer is known."""

import pytest

from trainer.paper.curve_claims import all_claims
from trainer.paper.load import read_grid
from trainer.paper.published import PAIRS, ROWS, STUDENTS, paper_accuracy
from trainer.paper.records import Arm

FRACTIONS = (100.0, 25.0, 2.0)


def always(value):
    return lambda *_row: value


def claim(folder, key):
    (found,) = [claim for claim in all_claims(read_grid(folder)) if claim.key == key]
    return found


def verdict(folder, key):
    return claim(folder, key).verdict


@pytest.mark.parametrize(
    ("good_pairs", "control_gain", "expected"),
    [(6, 0.0, "supported"), (4, 0.0, "supported"), (3, 0.0, "not supported"), (6, 0.1, "not supported")],
)
def test_the_projects_claim_wants_four_pairs_and_more_than_the_controls(
    made_up, tmp_path, good_pairs, control_gain, expected
):
    good = PAIRS[:good_pairs]
    made_up.write_grid(tmp_path, lambda s, t, _: 0.1 if (s, t) in good else 0.0, fractions=(100.0,))
    made_up.write_controls(tmp_path, control_gain)
    found = claim(tmp_path, "project")
    assert found.verdict == expected
    assert f"{good_pairs} of 6 at 100 %" in found.figures


def test_without_one_of_its_controls_the_projects_claim_cannot_be_supported(made_up, tmp_path):
    made_up.write_grid(tmp_path, always(0.1), fractions=(100.0,))
    made_up.write_controls(tmp_path, 0.0, kinds=("untrained",))
    assert verdict(tmp_path, "project") == "not testable here"


def test_a_gain_below_two_points_does_not_count_for_the_projects_claim_but_is_an_early_gain(made_up, tmp_path):
    taught = made_up.correct(0.4)
    taught[made_up.ITEMS_PER_GROUP - 1 :: 2 * made_up.ITEMS_PER_GROUP] = True  # an answer more in every other group
    answers = {"early": taught, "mid": made_up.correct(0.5), "late": made_up.correct(0.6)}
    for student in STUDENTS:
        made_up.write_cell(tmp_path, made_up.cell_result(Arm(student=student)))
    for student, teacher in PAIRS:
        result = made_up.cell_result(made_up.full_arm(student, teacher), stages=(0.41, 0.5, 0.6))
        made_up.write_cell(tmp_path, result, answers)
    assert "0 of 6 at 100 %" in claim(tmp_path, "project").figures
    assert verdict(tmp_path, "early-gains") == "supported"


@pytest.mark.parametrize(("gain", "expected"), [(0.1, "supported"), (0.0, "not supported"), (-0.1, "not supported")])
def test_early_gains_follow_the_sign_of_the_gains(made_up, tmp_path, gain, expected):
    made_up.write_grid(tmp_path, always(gain), fractions=FRACTIONS)
    assert verdict(tmp_path, "early-gains") == expected


def test_early_gains_on_one_share_only_are_not_enough(made_up, tmp_path):
    made_up.write_grid(tmp_path, lambda *row: 0.1 if row[2] == 2.0 else 0.0, fractions=FRACTIONS)
    assert verdict(tmp_path, "early-gains") == "not supported"


def test_pairs_that_are_missing_leave_a_claim_open_only_while_they_could_decide_it(made_up, tmp_path):
    made_up.write_grid(tmp_path, always(0.1), fractions=(100.0,), seeds=(0,))
    for student, teacher in PAIRS[:3]:
        (tmp_path / "cells" / f"{student}-from-{teacher}-full-f100-s0" / "result.json").unlink()
    assert verdict(tmp_path, "early-gains") == "not testable here"
    assert "Of 3 measured gains 3" in claim(tmp_path, "early-gains").figures


@pytest.mark.parametrize(("least", "most", "expected"), [(0.2, 0.1, "supported"), (0.1, 0.2, "not supported")])
def test_gains_are_largest_at_2_percent_only_if_they_are(made_up, tmp_path, least, most, expected):
    made_up.write_grid(tmp_path, lambda *row: least if row[2] == 2.0 else most, fractions=FRACTIONS)
    assert verdict(tmp_path, "largest-at-2") == expected


@pytest.mark.parametrize("key", ["early-gains", "largest-at-2"])
@pytest.mark.parametrize(("early", "expected"), [(0.18, "not testable here"), (0.3, "not supported")])
def test_a_share_on_which_nothing_was_learned_decides_nothing(made_up, tmp_path, key, early, expected):
    """At 2 % all nine rows are equal: where they only guess, that says nothing of their teachers."""
    made_up.write_grid(tmp_path, always(0.1), fractions=(100.0,))
    for seed in (0, 1):
        for student, teacher in ROWS:
            arm = Arm(student=student) if teacher is None else made_up.full_arm(student, teacher)
            made_up.write_cell(tmp_path, made_up.cell_result(arm, 2.0, seed, stages=(early, early, early)))
    found = claim(tmp_path, key)
    assert found.verdict == expected
    assert ("nothing was learned at 2 %" in found.figures) == (early < 0.2)


def test_without_2_percent_it_is_not_known_where_gains_are_largest(made_up, tmp_path):
    made_up.write_grid(tmp_path, always(0.1), fractions=(100.0, 50.0))
    assert verdict(tmp_path, "largest-at-2") == "not testable here"


@pytest.mark.parametrize("student", STUDENTS)
def test_which_teacher_is_better_is_read_from_the_cells(made_up, tmp_path, student):
    paper = {(s, t): paper_accuracy(s, t, 100.0)[2] for s, t in PAIRS}
    made_up.write_grid(tmp_path / "as", lambda s, t, _: _rank(paper, s, t), fractions=(100.0,))
    made_up.write_grid(tmp_path / "not", lambda s, t, _: 0.2 - _rank(paper, s, t), fractions=(100.0,))
    assert verdict(tmp_path / "as", f"teacher-of-{student}") == "supported"
    assert verdict(tmp_path / "not", f"teacher-of-{student}") == "not supported"


def _rank(paper, student, teacher):
    """.2 for the paper's better teacher of a student, 0 for the other."""
    return 0.2 if paper[student, teacher] == max(paper[s, t] for s, t in PAIRS if s == student) else 0.0


@pytest.mark.parametrize(("at_25", "expected"), [(0.6, "supported"), (0.58, "supported"), (0.5, "not supported")])
def test_accuracy_hardly_depends_on_data_within_five_points(made_up, tmp_path, at_25, expected):
    made_up.write_grid(tmp_path, always(0.0), fractions=(100.0, 25.0), late_at={25.0: at_25})
    assert verdict(tmp_path, "amount-of-data") == expected


def _curves(scratch, taught):
    """Three equal epochs of (train, validation, test) each."""
    return lambda arm: {"curve": [scratch if arm.teacher is None else taught] * 3}


@pytest.mark.parametrize(
    ("taught", "expected"),
    [
        ((0.5, 0.4, 0.5), "supported"),
        ((0.5, 0.4, 0.3), "supported"),
        ((0.5, 0.5, 0.5), "not supported"),
        ((0.5, 0.4, 0.4), "not supported"),
        ((0.5, None, 0.5), "not testable here"),
    ],
)
def test_differing_on_test_and_not_on_validation_needs_both_halves(made_up, tmp_path, taught, expected):
    made_up.write_grid(tmp_path, always(0.0), fractions=(100.0,), more_of=_curves((0.5, 0.4, 0.4), taught))
    assert verdict(tmp_path, "test-not-validation") == expected


def test_a_validation_list_that_is_only_too_noisy_to_differ_is_no_difference_between_the_lists(made_up, tmp_path):
    """On test every pair gains 2 points; on validation 30 points, 4 or -20, which is 4 or 5 on average."""
    gains = dict(zip(STUDENTS, (0.3, 0.04, -0.2), strict=True))

    def curves(arm):
        gain = (0.0, 0.0) if arm.teacher is None else (gains[arm.student], 0.02)
        return {"curve": [(0.5, 0.4 + gain[0], 0.4 + gain[1])] * 3}

    made_up.write_grid(tmp_path, always(0.0), fractions=(100.0,), more_of=curves)
    found = claim(tmp_path, "test-not-validation")
    assert found.figures.startswith("On test +2.0 points [+2.0, +2.0], on validation +4.7 points [−")
    assert found.verdict == "not supported"


@pytest.mark.parametrize(("train", "expected"), [(0.7, "supported"), (0.5, "not supported"), (0.45, "not supported")])
def test_overfitting_is_a_wider_gap_between_training_and_test(made_up, tmp_path, train, expected):
    made_up.write_grid(tmp_path, always(0.0), fractions=(100.0,), more_of=_curves((0.5, 0.4, 0.4), (train, 0.4, 0.4)))
    assert verdict(tmp_path, "overfits") == expected


@pytest.mark.parametrize(("taught", "expected"), [(0.62, "supported"), (0.7, "not supported"), (0.5, "not supported")])
def test_a_transfer_gain_is_small_within_three_points_either_way(made_up, tmp_path, taught, expected):
    def transfers(arm):
        return {"transfers": (made_up.action("second", "head", 0.6 if arm.teacher is None else taught),)}

    made_up.write_grid(tmp_path, always(0.0), fractions=(100.0,), more_of=transfers)
    assert verdict(tmp_path, "transfer") == expected


def test_without_transfer_nothing_is_said_of_it(made_up, tmp_path):
    made_up.write_grid(tmp_path, always(0.0), fractions=(100.0,))
    assert verdict(tmp_path, "transfer") == "not testable here"


def test_an_empty_grid_leaves_every_claim_open(tmp_path):
    (tmp_path / "cells").mkdir()
    assert {claim.verdict for claim in all_claims(read_grid(tmp_path))} == {"not testable here"}
