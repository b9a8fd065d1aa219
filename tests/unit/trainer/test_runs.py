"""Which run a new start goes on with, and what a run's folder promises."""

import dataclasses
import fcntl
import json
import os

import pytest

from trainer.config import ConfigError, RunConfig
from trainer.runs import RunFolder, choose_run


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


def make(runs, config, *, age_s=0, finished=False):
    """A run that was started `age_s` seconds ago."""
    run = choose_run(runs, dataclasses.replace(config, resume="never"))
    os.utime(run.config, (1_000_000 - age_s,) * 2)
    if finished:
        run.write_json(run.result, {})
    return run


def test_a_new_run_holds_its_settings_and_their_identity(runs):
    config = RunConfig(seed=3)
    run = choose_run(runs, config)
    saved = json.loads(run.config.read_bytes())
    assert saved == {**config.to_json(), "run_id": run.run_id, "identity": config.identity()}


def test_auto_goes_on_with_the_newest_unfinished_run_of_the_same_settings(runs):
    make(runs, RunConfig(), age_s=30)
    wanted = make(runs, RunConfig(), age_s=20)
    make(runs, RunConfig(seed=1), age_s=10)
    make(runs, RunConfig(), age_s=5, finished=True)
    assert choose_run(runs, RunConfig()) == wanted
    assert choose_run(runs, RunConfig(log_views=True)) == wanted


def test_auto_starts_a_new_run_when_none_fits(runs):
    old = [make(runs, RunConfig(), finished=True), make(runs, RunConfig(lr=0.5))]
    new = choose_run(runs, RunConfig())
    assert new not in old
    assert new.config.is_file()


def test_auto_leaves_a_run_alone_that_another_process_trains(runs):
    older, newer = make(runs, RunConfig(), age_s=20), make(runs, RunConfig(), age_s=10)
    with newer.locked():
        assert choose_run(runs, RunConfig()) == older
    assert choose_run(runs, RunConfig()) == newer


def test_auto_passes_over_a_folder_with_damaged_settings(runs):
    run = make(runs, RunConfig(), age_s=10)
    (runs / "odd").mkdir()
    (runs / "odd" / "config.json").write_text("{")
    assert choose_run(runs, RunConfig()) == run


def test_never_starts_a_new_run(runs):
    old = make(runs, RunConfig())
    assert choose_run(runs, RunConfig(resume="never")) != old


def test_two_starts_within_a_second_get_different_folders(runs):
    made = {choose_run(runs, RunConfig(resume="never")).run_id for _ in range(20)}
    assert len(made) == 20


def test_a_named_run_is_made_and_gone_on_with(runs):
    config = RunConfig(run_id="mine")
    run = choose_run(runs, config)
    assert run == RunFolder(runs / "mine")
    assert choose_run(runs, config) == run


@pytest.mark.parametrize(
    ("second", "finished", "message"),
    [
        (RunConfig(run_id="mine", seed=1), False, "run mine was started with other settings"),
        (RunConfig(run_id="mine", resume="never"), False, "run mine exists"),
        (RunConfig(run_id="mine"), True, "run mine is finished"),
    ],
)
def test_a_named_run_that_does_not_fit_is_refused(runs, second, finished, message):
    run = choose_run(runs, RunConfig(run_id="mine"))
    before = run.config.read_bytes()
    if finished:
        run.write_json(run.result, {})
    with pytest.raises(ConfigError, match=f"^{message}.*another --run-id") as caught:
        choose_run(runs, second)
    assert "\n" not in str(caught.value)
    assert run.config.read_bytes() == before


@pytest.mark.parametrize("run_id", ["../mine", "a/b", ".hidden", "-x", "a b", "a\n", "ä", "x" * 101])
def test_a_name_that_is_not_a_plain_one_is_refused(runs, run_id):
    with pytest.raises(ConfigError, match="expected letters, digits, dots, - and _"):
        choose_run(runs, RunConfig(run_id=run_id))
    assert list(runs.iterdir()) == []


@pytest.mark.parametrize(("teacher", "part"), [("none", "r3d-scratch-"), ("c3d@2", "r3d-c3d-v2-"), ("c3d", "r3d-c3d-")])
def test_made_up_names_say_student_and_teacher_and_can_be_named_again(runs, teacher, part):
    run = choose_run(runs, RunConfig(teacher=teacher))
    assert run.run_id.startswith(part)
    assert choose_run(runs, RunConfig(teacher=teacher, run_id=run.run_id)) == run


def test_the_lock_is_held_against_other_processes_and_freed(runs):
    run = make(runs, RunConfig())
    with open(run.path / "run.lock", "a") as file:  # another open file is, to flock, another process
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run.is_locked()
        with pytest.raises(ConfigError, match="is being trained by another process"), run.locked():
            pass
    assert not run.is_locked()
    with run.locked():
        assert run.is_locked()


def test_json_files_are_strict_and_whole(runs):
    run = make(runs, RunConfig())
    run.write_json(run.outcome, {"status": "stopped", "step": 3})
    assert run.read_outcome() == {"status": "stopped", "step": 3}
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write_json(run.outcome, {"loss": float("nan")})
    assert run.read_outcome() == {"status": "stopped", "step": 3}


def test_there_is_no_outcome_while_an_attempt_is_under_way(runs):
    assert make(runs, RunConfig()).read_outcome() is None
