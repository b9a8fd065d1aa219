"""What a paper folder remembers between starts."""

import dataclasses
import json

import pytest

from trainer.config import ConfigError
from trainer.paper import folder
from trainer.paper.folder import locked, program, write_run_file
from trainer.paper.plan import GridRequest, make_jobs
from trainer.paper.scale import DEMO, Choices, StepTime


def jobs(*seeds):
    return make_jobs(DEMO, GridRequest((2.0,), seeds, controls=()))


def test_a_later_start_keeps_the_name_and_adds_its_cells(tmp_path):
    name = write_run_file(tmp_path, DEMO, Choices(), jobs(0))
    assert write_run_file(tmp_path, DEMO, Choices(), jobs(1)) == name
    content = json.loads((tmp_path / "run.json").read_bytes())
    assert content["cells"] == [job.id for seed in (0, 1) for job in jobs(seed) if job.cell is not None]
    assert (content["scale"], content["settings"]["lr"]) == ("demo", DEMO.lr)


def test_a_folder_that_another_state_of_the_program_goes_on_with_says_so(tmp_path, monkeypatch):
    said = []
    write_run_file(tmp_path, DEMO, Choices(), jobs(0), said.append)
    write_run_file(tmp_path, DEMO, Choices(), jobs(0), said.append)
    assert said == []
    before = program()
    monkeypatch.setattr(folder, "program", lambda: "commit 0123456789ab+")
    write_run_file(tmp_path, DEMO, Choices(), jobs(0), said.append)
    assert json.loads((tmp_path / "run.json").read_bytes())["programs"] == [before, "commit 0123456789ab+"]
    (note,) = said
    assert f"are of more than one state of the program: {before}, commit 0123456789ab+" in note


def test_two_folders_have_different_names(tmp_path):
    names = set()
    for path in (tmp_path / "a", tmp_path / "b"):
        path.mkdir()
        names.add(write_run_file(path, DEMO, Choices(), jobs(0)))
    assert len(names) == 2


@pytest.mark.parametrize("changes", [{"lr": 0.5}, {"store": "another"}])
def test_a_folder_that_was_begun_with_other_settings_is_refused(tmp_path, changes):
    write_run_file(tmp_path, DEMO, Choices(), jobs(0))
    with pytest.raises(ConfigError, match="was begun with other settings"):
        write_run_file(tmp_path, dataclasses.replace(DEMO, **changes), Choices(), jobs(0))
    with pytest.raises(ConfigError, match="was begun with other settings"):
        write_run_file(tmp_path, DEMO, Choices(equal_steps=True), jobs(0))


def test_other_estimates_and_another_place_for_the_teachers_are_no_other_settings(tmp_path):
    write_run_file(tmp_path, DEMO, Choices(), jobs(0))
    faster = dataclasses.replace(DEMO, step_times={"r3d": StepTime(0.1, 0.1)}, measured_on="another machine")
    write_run_file(tmp_path, faster, Choices("in_process"), jobs(0))


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    with locked(tmp_path), pytest.raises(ConfigError, match="another process runs the experiments"), locked(tmp_path):
        pass


def test_settings_that_no_scale_names_are_settings_too(tmp_path, monkeypatch):
    write_run_file(tmp_path, DEMO, Choices(), jobs(0))
    make = folder.student_config
    monkeypatch.setattr(folder, "student_config", lambda *args: dataclasses.replace(make(*args), kd_weight=0.5))
    with pytest.raises(ConfigError, match="was begun with other settings"):
        write_run_file(tmp_path, DEMO, Choices(), jobs(0))


def test_every_machine_that_worked_on_a_folder_is_on_record(tmp_path, monkeypatch):
    for _ in range(2):
        write_run_file(tmp_path, DEMO, Choices(), jobs(0))
    monkeypatch.setattr(folder.os, "cpu_count", lambda: 77)
    write_run_file(tmp_path, DEMO, Choices(), jobs(0))
    first, second = json.loads((tmp_path / "run.json").read_bytes())["machines"]
    assert " cores, " in first
    assert " 77 cores, " in second
