"""Reading cells: what counts, what is left out and why."""

import re

import numpy as np
import pytest

from trainer.paper.load import PROGRESS_NAME, PaperFolderError, read_grid
from trainer.paper.records import Arm

SCRATCH = Arm(student="r3d")


def refusal(folder):
    (only,) = read_grid(folder).refused
    return only.reason


def test_cells_come_back_as_they_were_written(made_up, tmp_path):
    results = [made_up.cell_result(SCRATCH, seed=seed) for seed in (1, 0)]
    for result in results:
        made_up.write_cell(tmp_path, result)
    made_up.write_run(tmp_path, scale="demo")
    grid = read_grid(tmp_path)
    assert [cell.result for cell in grid.of(SCRATCH, 100.0)] == results[::-1]
    assert grid.seeds == (0, 1)
    assert grid.groups == made_up.GROUPS
    assert grid.run == {"scale": "demo"}
    assert grid.refused == ()
    (tmp_path / PROGRESS_NAME).write_text('{"spent_s": 5400.0}')
    assert read_grid(tmp_path).run == {"scale": "demo", "hours": 1.5}


def test_a_folder_without_a_result_is_a_cell_that_is_not_finished(made_up, tmp_path):
    made_up.write_cell(tmp_path, made_up.cell_result(SCRATCH))
    (tmp_path / "cells" / "r3d-scratch-f100-s1").mkdir()
    grid = read_grid(tmp_path)
    assert len(grid.cells) == 1
    assert grid.refused == ()


def test_answers_that_contradict_the_result_are_refused(made_up, tmp_path):
    answers = {name: made_up.correct(share) for name, share in (("early", 0.4), ("mid", 0.5), ("late", 0.8))}
    made_up.write_cell(tmp_path, made_up.cell_result(SCRATCH), answers)
    assert "gives 0.8000 for stage late" in refusal(tmp_path)


def test_answers_that_are_pickled_objects_are_not_loaded(made_up, tmp_path):
    path = made_up.write_cell(tmp_path, made_up.cell_result(SCRATCH))
    np.savez(path / "answers.npz", groups=np.array([print], dtype=object), allow_pickle=True)
    assert "answers.npz cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["result.json", "answers.npz"])
def test_a_torn_file_is_refused_and_hides_no_other_cell(made_up, tmp_path, name):
    made_up.write_cell(tmp_path, made_up.cell_result(SCRATCH, seed=1))
    path = made_up.write_cell(tmp_path, made_up.cell_result(SCRATCH)) / name
    path.write_bytes(path.read_bytes()[:40])
    assert f"{name} cannot be read" in refusal(tmp_path)
    assert len(read_grid(tmp_path).cells) == 1


def test_a_result_in_another_cells_folder_is_refused(made_up, tmp_path):
    path = made_up.write_cell(tmp_path, made_up.cell_result(SCRATCH))
    path.rename(path.with_name("r3d-scratch-f100-s9"))
    assert "is of cell r3d-scratch-f100-s0" in refusal(tmp_path)


def test_a_cell_of_another_store_than_most_is_refused(made_up, tmp_path):
    for seed in (0, 1):
        made_up.write_cell(tmp_path, made_up.cell_result(SCRATCH, seed=seed))
    made_up.write_cell(tmp_path, made_up.cell_result(SCRATCH, seed=2, store_fingerprint="e" * 32))
    assert "another store" in refusal(tmp_path)


def test_a_cell_tested_on_other_items_than_most_is_refused(made_up, tmp_path):
    for seed in (0, 1):
        made_up.write_cell(tmp_path, made_up.cell_result(SCRATCH, seed=seed))
    made_up.write_cell(tmp_path, made_up.cell_result(SCRATCH, seed=2), keys=made_up.GROUPS)
    assert "other items" in refusal(tmp_path)


def test_transfers_come_back_with_the_answer_to_each_video(made_up, tmp_path):
    transfers = (made_up.action("second", "head", 0.5), made_up.action("same", "probe", 0.9))
    made_up.write_cell(tmp_path, made_up.cell_result(SCRATCH, transfers=transfers))
    ((cell,), answers) = (read_grid(tmp_path).of(SCRATCH, 100.0), made_up.correct)
    assert set(cell.answers.transfers.correct) == {("second", "head"), ("same", "probe")}
    np.testing.assert_array_equal(cell.answers.transfers.correct["second", "head"], answers(0.5))
    assert cell.answers.transfers.groups == {"second": made_up.GROUPS, "same": made_up.GROUPS}


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"correct_second_head": np.arange(1000) < 400}, "gives 0.4000 for head on the second data set"),
        ({"correct_second_head": np.ones(7, bool)}, "have shape \\(7,\\), what stands beside them \\(1000,\\)"),
        ({"groups_second": np.array(["g"] * 7)}, "what stands beside them \\(7,\\)"),
    ],
)
def test_answers_that_contradict_a_transfer_are_refused(made_up, tmp_path, arrays, reason):
    result = made_up.cell_result(SCRATCH, transfers=(made_up.action("second", "head", 0.5),))
    made_up.write_cell(tmp_path, result, more_answers=arrays)
    assert re.search(reason, refusal(tmp_path))


def test_a_cell_whose_second_data_set_is_another_than_most_is_refused(made_up, tmp_path):
    transfers = (made_up.action("second", "head", 0.5),)
    for seed in (0, 1):
        made_up.write_cell(tmp_path, made_up.cell_result(SCRATCH, seed=seed, transfers=transfers))
    made_up.write_cell(tmp_path, made_up.cell_result(SCRATCH, seed=3))  # a cell without transfers is no other
    other = made_up.cell_result(SCRATCH, seed=2, transfers=transfers, second_store_fingerprint="d" * 32)
    made_up.write_cell(tmp_path, other)
    assert refusal(tmp_path) == "its transfers were tested on other videos than most"
    assert read_grid(tmp_path).seeds == (0, 1, 3)


def test_a_folder_that_is_no_paper_folder_is_named(tmp_path):
    with pytest.raises(PaperFolderError, match="no folder `cells`"):
        read_grid(tmp_path)


def test_a_run_file_that_is_no_object_is_named(made_up, tmp_path):
    made_up.write_cell(tmp_path, made_up.cell_result(SCRATCH))
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(PaperFolderError, match="must hold a JSON object"):
        read_grid(tmp_path)
