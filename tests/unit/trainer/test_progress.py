"""What people see while a run trains: plain lines against written-out ones, and what a killed worker leaves behind."""

import io
import json

import pytest
from rich.console import Console

from trainer.log import RunLog
from trainer.progress import Progress
from trainer.runs import RunFolder

STEP = {
    "kind": "step",
    "step": 1,
    "epoch": 0,
    "loss": 2.5,
    "pretext": 1.5,
    "contrast": None,
    "distill": 0.5,
    "pretext_acc": 0.25,
    "seconds": 2.0,
    "teacher_wait_s": 0.5,
    "clips": 48,
    "kd_skipped": 0,
    "teacher": "alpha@1",
}
EPOCH = {
    "kind": "epoch",
    "step": 3,
    "epoch": 0,
    "train_loss": 2.0,
    "train_pretext_acc": 0.3,
    "val_loss": 1.5,
    "val_pretext_acc": 0.4,
    "seconds": 6.25,
}
FIRST_LINE = "step 1/100  eta 3:18  24 clips/s  loss 2.500 (pretext 1.500 kd 0.500)  acc 0.25  teacher alpha@1 wait 25%"


@pytest.fixture
def screen():
    """A console that is no terminal."""
    return Console(file=io.StringIO(), width=300)


def write(path, *records):
    with open(path, "a") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")


def lines(screen):
    return screen.file.getvalue().splitlines()


def test_plain_lines_say_step_eta_speed_losses_and_teacher(tmp_path, screen):
    metrics = tmp_path / "metrics.jsonl"
    with Progress(metrics, 100, screen) as progress:
        progress.update()  # there is no file yet
        write(metrics, STEP)
        progress.update()
        write(metrics, STEP | {"step": 2}, EPOCH)
        progress.update()  # too soon for another step's line; an epoch's always comes
        write(metrics, STEP | {"step": 100, "teacher": None, "distill": None, "seconds": 1.0, "teacher_wait_s": 0.0})
        progress.update()
    assert lines(screen) == [
        FIRST_LINE,
        "epoch 1  train loss 2.000 acc 0.300  validation loss 1.500 acc 0.400  6.2 s",
        "step 100/100  eta 0:00  25 clips/s  loss 2.500 (pretext 1.500)  acc 0.25",
    ]


def test_terms_that_were_turned_on_and_the_test_list_are_shown(tmp_path, screen):
    metrics = tmp_path / "metrics.jsonl"
    progress = Progress(metrics, 100, screen)
    terms = {"contrast": 2.0, "hint": 0.25, "ce": 1.125, "extra": None}
    write(metrics, EPOCH | {"test_loss": 1.25, "test_pretext_acc": 0.5}, STEP | terms)
    progress.update()
    epoch, step = lines(screen)
    assert epoch.endswith("validation loss 1.500 acc 0.400  test loss 1.250 acc 0.500  6.2 s")
    assert "(pretext 1.500 contrast 2.000 kd 0.500 hint 0.250 supervised 1.125)" in step


def test_tuples_without_distillation_are_counted_up(tmp_path, screen):
    metrics = tmp_path / "metrics.jsonl"
    progress = Progress(metrics, 100, screen)
    write(metrics, STEP | {"kd_skipped": 16}, STEP | {"step": 100, "kd_skipped": 8})
    progress.update()
    (line,) = lines(screen)
    assert line.endswith("teacher alpha@1 wait 25%  kd skipped for 24 tuples")


def test_only_what_is_written_after_the_start_is_shown(tmp_path, screen):
    metrics = tmp_path / "metrics.jsonl"
    write(metrics, STEP | {"step": 50}, EPOCH)
    progress = Progress(metrics, 100, screen)
    progress.update()
    assert lines(screen) == []


def test_a_line_that_is_half_written_is_shown_when_it_is_whole(tmp_path, screen):
    metrics = tmp_path / "metrics.jsonl"
    progress = Progress(metrics, 100, screen)
    text = json.dumps(STEP) + "\n"
    metrics.write_text(text[:40])
    progress.update()
    assert lines(screen) == []
    with open(metrics, "a") as file:
        file.write(text[40:])
    progress.update()
    assert lines(screen) == [FIRST_LINE]


def test_a_worker_that_is_killed_in_a_line_and_started_again_disturbs_nothing(tmp_path, screen):
    run = RunFolder(tmp_path)
    progress = Progress(run.metrics, 100, screen)
    run.metrics.write_text('{"kind": "step", "st')
    progress.update()
    log = RunLog(run)
    log.record("step", 1, {name: value for name, value in STEP.items() if name not in ("kind", "step")})
    log.close()
    progress.update()
    assert lines(screen) == [FIRST_LINE]
    torn, whole = run.metrics.read_text().splitlines()
    assert torn == '{"kind": "step", "st'
    assert json.loads(whole).items() >= STEP.items()


def test_on_a_terminal_one_line_moves(tmp_path):
    screen = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    metrics = tmp_path / "metrics.jsonl"
    with Progress(metrics, 100, screen) as progress:
        write(metrics, STEP)
        progress.update()
        progress.say("a line that stays")
    assert FIRST_LINE in screen.file.getvalue()
    assert "a line that stays" in screen.file.getvalue()


def test_the_log_refuses_figures_that_are_not_finite(tmp_path):
    log = RunLog(RunFolder(tmp_path))
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.record("step", 1, {"loss": float("nan")})
    log.close()


def test_every_record_goes_to_the_sink_too(tmp_path):
    seen = []
    log = RunLog(RunFolder(tmp_path), seen.append)
    log.record("step", 3, {"loss": 0.5})
    log.close()
    (record,) = seen
    assert record == json.loads(RunFolder(tmp_path).metrics.read_text())
    assert (record["kind"], record["step"], record["loss"]) == ("step", 3, 0.5)
