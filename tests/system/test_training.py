"""The training command as a user runs it: real processes, a private Ray cluster, the bundled teachers, video files."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

RESULT_KEYS = {
    "teacher", "student", "pretext_acc", "retrieval_top1", "probe_acc", "steps", "seconds", "teacher_wait_share",
    "teacher_timeline", "store_fingerprint", "seed",
}  # fmt: skip

IN_ONE_PROCESS = ("--num-workers", "0", "--teacher-transport", "in_process")


@pytest.fixture(scope="module")
def trained(sandbox: ModuleType) -> Iterator[Any]:
    """The surroundings after one training command under a served teacher, run `first`."""
    with sandbox.Sandbox() as box:
        # A cluster file that names a cluster which is long gone must not matter.
        box.ray_folder.mkdir(parents=True, exist_ok=True)
        (box.ray_folder / "ray_current_cluster").write_text("127.0.0.1:1")
        code, output = box.train("--teacher", "r2plus1d", "--epochs", "2", "--log-views", "--run-id", "first")
        assert code == 0, output
        box.assert_no_process_left()
        yield box


def test_one_command_trains_under_a_served_teacher(trained: Any) -> None:
    box = trained
    run = box.run_folder("first")
    result = json.loads((run / "result.json").read_text())
    assert result.keys() >= RESULT_KEYS
    assert result["steps"] == len(box.steps("first"))
    (entry,) = result["teacher_timeline"]
    assert (entry["first_step"], entry["teacher"]) == (0, "r2plus1d@1")
    assert all(step["teacher"] == "r2plus1d@1" and step["distill"] > 0 for step in box.steps("first"))
    assert "<svg" in (run / "report.html").read_text() or "data:image" in (run / "report.html").read_text()
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((run / "tensorboard").glob("events.*"))
    assert json.loads((run / "config.json").read_text())["teacher"] == "r2plus1d"


@pytest.mark.long
def test_views_are_the_same_for_one_worker_and_for_two_with_and_without_a_teacher(trained: Any) -> None:
    box = trained
    settings = ("--teacher", "none", "--epochs", "2", "--log-views", "--no-evaluate")
    code, output = box.train(*settings, "--num-workers", "2", "--run-id", "two")
    assert code == 0, output
    assert len(list(box.run_folder("two").glob("views-rank*.jsonl"))) == 2
    one, two = box.logged_views("first"), box.logged_views("two")
    assert len(one) == len(box.steps("first")) > 2
    assert one == two
    assert len({tuple(items) for items in one.values()}) == len(one)  # no step repeats another's


def test_ctrl_c_saves_and_the_same_command_goes_on_to_the_same_bytes(sandbox: ModuleType) -> None:
    with sandbox.Sandbox() as box:
        settings = ("--teacher", "r3d", "--epochs", "4", "--no-evaluate", "--log-views", "--checkpoint-every", "100")
        # The undisturbed run needs no service: a teacher in the process gives the same bytes, which this shows too.
        code, output = box.train(*settings, *IN_ONE_PROCESS, "--run-id", "undisturbed")
        assert code == 0, output

        process = box.start_training(*settings, "--run-id", "stopped")
        box.wait_for_steps("stopped", 4, process)
        asked = time.monotonic()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        print(f"Ctrl-C to the end: {time.monotonic() - asked:.1f} s")
        assert process.returncode == 130, output
        assert "saved" in output
        box.assert_no_process_left()
        done = box.newest_checkpoint("stopped")
        total = len(box.steps("undisturbed"))
        assert 4 <= int(done.name.removeprefix("step-")) < total

        code, output = box.train(*settings, "--run-id", "stopped")
        assert code == 0, output
        assert "going on after step" in output
        for run_id in ("undisturbed", "stopped"):
            assert box.newest_checkpoint(run_id).name == f"step-{total:09d}"
        assert box.weights("stopped") == box.weights("undisturbed")
        assert box.losses("stopped") == box.losses("undisturbed")
        assert box.logged_views("stopped") == box.logged_views("undisturbed")


@pytest.mark.long
def test_ctrl_c_before_the_first_step_ends_at_once_and_cleanly(sandbox: ModuleType) -> None:
    with sandbox.Sandbox() as box:
        process = box.start_training("--teacher", "r3d", "--run-id", "early")
        box.wait_for_process("TrainController", process)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)  # `timeout` sends it to the child and to its group
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130, output
        assert "stopped before a step was done" in output
        box.assert_no_process_left()


@pytest.mark.long
@pytest.mark.parametrize(
    ("settings", "undisturbed"),
    [(("--teacher", "none"), IN_ONE_PROCESS), (("--teacher", "r3d", "--num-workers", "2"), ())],
    ids=["one alone", "one of two under a served teacher"],
)
def test_a_killed_worker_is_restarted_and_ends_with_the_same_bytes(
    sandbox: ModuleType, settings: tuple[str, ...], undisturbed: tuple[str, ...]
) -> None:
    with sandbox.Sandbox() as box:
        settings = (*settings, "--epochs", "4", "--no-evaluate", "--checkpoint-every", "2")
        code, output = box.train(*settings, *undisturbed, "--run-id", "undisturbed")
        assert code == 0, output
        process = box.start_training(*settings, "--run-id", "killed")
        box.wait_for_steps("killed", 5, process)
        box.kill_training_worker()
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
        assert box.weights("killed") == box.weights("undisturbed")
        assert box.losses("killed") == box.losses("undisturbed")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--teacher", "resnet"), "no teacher 'resnet': known are c3d, r2plus1d, r3d"),
        (("--student", "resnet"), "student must be one of c3d, r3d, r2plus1d"),
        (("--store", "/nowhere/at/all"), "clip store /nowhere/at/all"),
        (("--clip-len", "30"), "frames that a tuple needs"),
        (("--crop", "48"), "it takes 56x56 pixels, the run crops 48x48"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_starts(
    sandbox: ModuleType, flags: tuple[str, ...], sentence: str
) -> None:
    with sandbox.Sandbox() as box:
        code, output = box.train(*flags)
        assert code == 2
        assert sentence in " ".join(output.split())
        assert "Traceback" not in output
        assert not (box.home / "runs").exists()
        assert not box.ray_folder.exists()


def test_a_damaged_store_is_refused_before_anything_starts(sandbox: ModuleType, tmp_path: Path) -> None:
    with sandbox.Sandbox() as box:
        damaged = tmp_path / "damaged"
        shutil.copytree((box.home / "stores" / "demo").resolve(), damaged)
        segment = next((damaged / "segments").glob("*.arrow"))
        segment.write_bytes(segment.read_bytes()[:-1000])
        code, output = box.train("--store", str(damaged))
        assert code == 2
        assert str(damaged) in "".join(output.split())
        assert "Traceback" not in output
        assert not box.ray_folder.exists()
