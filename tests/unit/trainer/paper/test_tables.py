"""The tables' figures against the made-up cells that they are of."""

import numpy as np
import pytest

from trainer.paper.controls import control_kind
from trainer.paper.entries import table_arms
from trainer.paper.findings import find
from trainer.paper.load import read_grid
from trainer.paper.published import PAIRS, ROWS, paper_accuracy
from trainer.paper.records import Arm
from trainer.paper.side_tables import controls_table, cost_table, milestone_table, teachers_table, transfer_table
from trainer.paper.tables import accuracy_table, literature_table, overall_table


def row_of(table, title, data=None):
    """The entries of a row by column title."""
    found = [row for row in table.rows if row[0].text == title and data in (None, row[1].text)]
    assert len(found) == 1
    return dict(zip((column.title for column in table.columns), found[0], strict=True))


def found_in(folder):
    return find(read_grid(folder))


@pytest.fixture
def two_seeds(made_up, tmp_path):
    """R3D from scratch and under a full and a matched C3D, on 25 %, two seeds."""
    full = made_up.full_arm("r3d", "c3d")
    matched = Arm(student="r3d", teacher="c3d", teacher_data="matched")
    for arm, by_seed in (
        (Arm(student="r3d"), ((0.4, 0.5, 0.6), (0.4, 0.5, 0.6))),
        (full, ((0.5, 0.6, 0.7), (0.6, 0.7, 0.8))),
        (matched, ((0.4, 0.6, 0.7), (0.4, 0.6, 0.7))),
    ):
        for seed, stages in enumerate(by_seed):
            best = tuple(value + 0.1 for value in stages)
            made_up.write_cell(tmp_path, made_up.cell_result(arm, 25.0, seed, stages=stages, best=best))
    return tmp_path


def test_a_row_shows_mean_deviation_and_beside_them_the_marked_best_on_test(two_seeds):
    row = row_of(accuracy_table(found_in(two_seeds), 25.0), "R3D ← C3D", "all data")
    assert (row["early"].text, row["early"].small) == ("55.0 ± 7.1", "65.0*")
    assert (row["late"].text, row["late"].small) == ("75.0 ± 7.1", "85.0*")
    assert (row["seeds"].text, row["epochs; steps"].text) == ("2", "8; 80")


def test_the_early_gain_stands_with_its_interval_and_is_bold_where_that_excludes_zero(two_seeds):
    table = accuracy_table(found_in(two_seeds), 25.0)
    good = row_of(table, "R3D ← C3D", "all data")["early gain over scratch"]
    none = row_of(table, "R3D ← C3D", "same share")["early gain over scratch"]
    # Two seeds with +10 and +20, each alike in all groups: the resamples' means are 15 and 15 ± 5 √2.
    assert (good.text, good.small, good.strong) == ("+15.0", "[+7.9, +22.1]", True)
    assert (none.text, none.small, none.strong) == ("0.0", "[0.0, 0.0]", False)


def test_full_and_matched_teachers_have_rows_apart(two_seeds):
    table = accuracy_table(found_in(two_seeds), 25.0)
    data = [row[1].text for row in table.rows if row[0].text == "R3D ← C3D"]
    assert data == ["all data", "same share"]


def test_rows_without_cells_are_dashes_beside_the_papers_numbers(two_seeds):
    row = row_of(accuracy_table(found_in(two_seeds), 25.0), "C3D scratch")
    assert [row[name].text for name in ("seeds", "early", "late", "early gain over scratch")] == ["–"] * 4
    assert row["paper: early / mid / late"].text == "48 / 49 / 51"


def test_without_matched_teachers_a_table_has_the_papers_nine_rows(made_up, tmp_path):
    made_up.write_cell(tmp_path, made_up.cell_result(Arm(student="c3d")))
    arms = [arm for group in table_arms(found_in(tmp_path), 100.0) for arm in group]
    assert [(arm.student, arm.teacher) for arm in arms] == list(ROWS)


@pytest.mark.parametrize(("fraction", "title"), [(100.0, "Table 3."), (50.0, "Table 4."), (25.0, "Table 5.")])
def test_shares_of_the_data_have_the_papers_table_numbers(two_seeds, fraction, title):
    assert accuracy_table(found_in(two_seeds), fraction).title.startswith(title)


def test_the_papers_hmdb51_column_stands_beside_the_second_data_set_at_100_percent_only(made_up, tmp_path):
    transfers = (made_up.action("second", "head", 0.5), made_up.action("same", "head", 0.9))
    for fraction in (100.0, 2.0):
        made_up.write_cell(tmp_path, made_up.cell_result(Arm(student="r3d"), fraction, transfers=transfers))
    rows = [row_of(accuracy_table(found_in(tmp_path), fraction), "R3D scratch") for fraction in (100.0, 2.0)]
    assert [row["second data set, head only"].text for row in rows] == ["50.0", "50.0"]
    assert [row["paper: HMDB51"].text for row in rows] == ["60", "–"]


def test_table_7_has_every_share_with_the_papers_figure_below(two_seeds):
    row = row_of(overall_table(found_in(two_seeds)), "R3D ← C3D", "all data")
    share = row["25 % (8; 80 epochs; steps)"]
    assert share.text == "75.0 ± 7.1"
    assert share.small == "55.0, 65.0; +15.0 [+7.9, +22.1]; paper 46"
    assert (row["100 %"].text, row["100 %"].small) == ("–", "paper 45")
    mean = row["mean early gain"]
    assert (mean.text, mean.small, mean.strong) == ("+15.0", "[+7.9, +22.1]", True)
    assert row_of(overall_table(found_in(two_seeds)), "R3D scratch")["mean early gain"].text == "–"


def test_the_mean_early_gain_is_paired_by_seed_over_the_shares(made_up, tmp_path):
    """+10 on one share and +20 on the other with every seed: nothing of it varies."""
    made_up.write_grid(tmp_path, lambda _s, _t, fraction: 0.1 if fraction == 100.0 else 0.2, fractions=(100.0, 25.0))
    (gain,) = {found_in(tmp_path).mean_early_gains[made_up.full_arm(*pair).name].interval for pair in PAIRS}
    assert gain == pytest.approx((0.15, 0.15))


def test_whole_network_fine_tuning_stands_beside_pcl(made_up, tmp_path):
    transfers = (made_up.action("same", "full", 0.5),)
    made_up.write_cell(tmp_path, made_up.cell_result(Arm(student="r3d"), transfers=transfers))
    row = row_of(literature_table(found_in(tmp_path)), "R3D scratch")
    assert [entry.text for entry in row.values()] == ["R3D scratch", "81.1", "45.0", "–", "50.0", "–", "–"]
    row = row_of(literature_table(found_in(tmp_path)), "R3D-18 scratch")
    assert row["PCL: retrieval top-1, UCF101"].text == "55.1"


def test_a_transfer_is_shown_with_its_gain_over_scratch(made_up, tmp_path):
    for arm, accuracy in ((Arm(student="r3d"), 0.5), (made_up.full_arm("r3d", "c3d"), 0.54)):
        for seed in (0, 1):
            result = made_up.cell_result(arm, seed=seed, transfers=(made_up.action("second", "head", accuracy),))
            made_up.write_cell(tmp_path, result)
    table = transfer_table(found_in(tmp_path), 100.0)
    name = "second data set, head only (chance 10.0)"
    taught, scratch = row_of(table, "R3D ← C3D")[name], row_of(table, "R3D scratch")[name]
    assert (taught.text, taught.small, taught.strong) == ("54.0 ± 0.0", "+4.0 [+4.0, +4.0]", True)
    assert (scratch.text, scratch.small, scratch.strong) == ("50.0 ± 0.0", "", False)


def test_a_gain_of_a_transfer_is_paired_by_test_video_and_resampled_by_its_group(made_up, tmp_path):
    """One arm is right on other videos than the other: equally good, but not surely so."""
    arms = Arm(student="r3d"), made_up.full_arm("r3d", "c3d")
    for arm, right in zip(arms, (np.arange(made_up.NUM_ITEMS) < 500, np.arange(made_up.NUM_ITEMS) >= 500), strict=True):
        result = made_up.cell_result(arm, transfers=(made_up.action("second", "head", 0.5),))
        made_up.write_cell(tmp_path, result, more_answers={"correct_second_head": right})
    (found,) = find(read_grid(tmp_path)).of(arms[1], 100.0).transfers
    assert found.gain.mean == 0.0
    low, high = found.gain.interval
    assert -0.6 < low < -0.3
    assert 0.3 < high < 0.6


def test_milestones_are_shown_in_epochs_and_steps(two_seeds):
    row = row_of(milestone_table(found_in(two_seeds), 25.0), "R3D scratch")
    # Scratch is at .4 by epoch 2, at .5 by 6 and at .6 by 8: half of .6 from the start, .9 of it at epoch 7.
    assert [(entry.text, entry.small) for entry in list(row.values())[2:]] == [
        ("1.0 ± 0.0", "10 steps"),
        ("4.0 ± 0.0", "40 steps"),
        ("7.0 ± 0.0", "70 steps"),
        ("8.0 ± 0.0", "80 steps"),
    ]


def test_the_three_accounts_stand_side_by_side(two_seeds):
    row = row_of(cost_table(found_in(two_seeds), 25.0), "R3D ← C3D", "all data")
    texts = [row[name].text for name in ("student alone", "+ the teacher's answers", "+ its training, spread")]
    assert texts == ["16.0 s", "20.0 s", "35.0 s"]  # 30 s of training for two students


def test_teachers_are_listed_with_the_number_of_their_students(two_seeds):
    rows = teachers_table(found_in(two_seeds)).rows
    assert [(row[0].text, row[2].text, row[-1].text) for row in rows] == [
        ("c3d@1", "100 %", "2"),
        ("c3d@1", "25 %", "2"),
    ]


def test_a_control_stands_with_its_gain_and_what_the_real_teacher_gives_beyond(made_up, tmp_path):
    made_up.write_grid(tmp_path, lambda *_row: 0.1, fractions=(100.0,))
    made_up.write_controls(tmp_path, 0.04, kinds=("shuffled",))
    rows = controls_table(found_in(tmp_path)).rows
    assert len(rows) == len(PAIRS)
    assert {(row[0].text, row[5].text, row[7].text) for row in rows} == {("shuffled answers", "+4.0", "+6.0")}


@pytest.mark.parametrize(
    ("arm", "kind"),
    [
        (Arm(student="r3d"), None),
        (Arm(student="r3d", teacher="c3d", teacher_data="matched"), None),
        (Arm(student="r3d", teacher="c3d", teacher_data="untrained"), "untrained teacher"),
        (Arm(student="r3d", teacher="c3d", teacher_data="full", target="smoothed"), "label smoothing"),
        (Arm(student="r3d", teacher="r3d", teacher_data="full"), "same architecture"),
        (Arm(student="r3d", contrast=False), "contrast off"),
    ],
)
def test_each_control_is_told_from_the_rows_of_the_paper(arm, kind):
    assert control_kind(arm) == kind


def test_missing_cells_are_counted_against_the_list_in_run_json(made_up, tmp_path):
    made_up.write_cell(tmp_path, made_up.cell_result(Arm(student="r3d")))
    made_up.write_run(tmp_path, cells=["r3d-scratch-f100-s0", "r3d-scratch-f100-s1"])
    found = found_in(tmp_path)
    assert (found.num_cells, found.num_expected, found.missing) == (1, 2, ("r3d-scratch-f100-s1",))


def test_without_that_list_the_nine_rows_of_every_share_and_seed_are_expected(made_up, tmp_path):
    for seed in (0, 1):
        made_up.write_cell(tmp_path, made_up.cell_result(Arm(student="r3d"), seed=seed))
    found = found_in(tmp_path)
    assert (found.num_expected, len(found.missing)) == (18, 16)


def test_the_papers_numbers_are_those_of_its_tables():
    assert paper_accuracy("c3d", "r3d", 50.0) == (0.55, 0.56, 0.56)
    assert paper_accuracy("r2plus1d", None, 2.0) == (0.24, 0.38, 0.38)
    assert paper_accuracy("r3d", "r3d", 100.0) is None
    assert paper_accuracy("r3d", None, 10.0) is None
