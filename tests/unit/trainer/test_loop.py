"""Whole runs of a few steps: a run that was stopped and resumed ends as one that was not, bit for bit."""

import dataclasses
import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId
from teacher_server.roster.roster import Roster
from trainer.checkpoint import CheckpointError
from trainer.collective import Collective
from trainer.evaluate.pretext import pretext_accuracy
from trainer.loop import Outcome, Trainer
from trainer.plan import student_input
from trainer.report_data import read_metrics
from trainer.sampler import Sampler, split_rows
from trainer.start import cosine_lr

TIMES = ("elapsed_s", "seconds", "data_s", "teacher_wait_s", "compute_s")
RATES = ("run", "seconds", "clips_per_second", "teacher_wait_s", "teacher_wait_share")


def end_of(run, step):
    """Everything that a finished run leaves, without times."""
    folder = run.checkpoints / f"step-{step:09d}"
    state = json.loads((folder / "state.json").read_bytes())
    for name in ("seconds", "teacher_wait_s"):
        del state["totals"][name]
    metrics = read_metrics(run.metrics)
    lines = [{k: v for k, v in line.items() if k not in TIMES} for line in (*metrics.steps, *metrics.epochs)]
    result = {name: value for name, value in run.read_result().items() if name not in RATES}
    return SimpleNamespace(tensors=(folder / "state.safetensors").read_bytes(), state=state, lines=lines, result=result)


@pytest.fixture
def kd(config):
    """5 tuples a batch: 2 full ones and a rest of 2 an epoch; 6 steps."""
    return dataclasses.replace(config, teacher="alpha", batch_size=5, plateau_patience=0, plateau_factor=0.5)


@pytest.mark.parametrize("schedule", ["plateau", "cosine"])
def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_bytes(bench, kd, schedule):
    kd = dataclasses.replace(kd, schedule=schedule)
    undisturbed, stopped = bench.folder("undisturbed"), bench.folder("stopped")
    assert bench.attempt(kd, undisturbed)[0] == Outcome("finished", 6)
    done = 0
    for steps in (1, 1, 2):  # after steps 1, 2 and 4: within an epoch, before its end, and in the next one
        done += steps
        assert bench.attempt(kd, stopped, steps=steps)[0] == Outcome("stopped", done, "stopped on request")
    assert bench.attempt(kd, stopped)[0] == Outcome("finished", 6)

    expected, got = end_of(undisturbed, 6), end_of(stopped, 6)
    assert got.tensors == expected.tensors
    assert got.state == expected.state
    assert got.lines == expected.lines
    assert got.result == expected.result
    assert [line["step"] for line in got.lines] == [1, 2, 3, 4, 5, 6, 3, 6]
    assert len({line["lr"] for line in got.lines}) == 6 or schedule == "plateau"


def test_a_run_that_was_killed_repeats_its_lost_steps_and_ends_the_same(bench, kd):
    """Killed after step 5, in the middle of a line, when the newest checkpoint is of step 4."""
    kd = dataclasses.replace(kd, checkpoint_every=2)
    undisturbed, killed = bench.folder("undisturbed"), bench.folder("killed")
    bench.attempt(kd, undisturbed)
    bench.attempt(kd, killed, steps=5)
    for path in killed.checkpoints.glob("step-000000005/*"):
        path.unlink()
    with open(killed.metrics, "a") as file:
        file.write('{"kind": "step", "st')
    with pytest.warns(UserWarning, match="step-000000005 is damaged"):
        assert bench.attempt(kd, killed)[0].status == "finished"
    expected, got = end_of(undisturbed, 6), end_of(killed, 6)
    assert (got.tensors, got.lines, got.result) == (expected.tensors, expected.lines, expected.result)
    assert read_metrics(killed.metrics).torn_lines == 1


def test_a_stop_after_the_last_step_only_leaves_out_the_evaluation(bench, config):
    config = dataclasses.replace(config, epochs=1, evaluate=True, eval_clips=1)
    run = bench.folder("run")
    calls = itertools.count(1)
    plan = bench.plan(config)
    trainer = Trainer(plan, run, collective=Collective(), teacher=None, should_stop=lambda: next(calls) > 3)
    assert trainer.run() == Outcome("stopped", 3, "stopped in the final evaluation")
    assert not run.is_finished
    assert bench.attempt(config, run)[0] == Outcome("finished", 3)
    assert run.read_result()["steps"] == 3


def test_the_same_seed_gives_the_same_run_and_another_seed_another(bench, config):
    config = dataclasses.replace(config, max_steps=2)
    ends = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run = bench.folder(name)
        bench.attempt(dataclasses.replace(config, seed=seed), run)
        ends.append(end_of(run, 2).tensors)
    assert ends[0] == ends[1] != ends[2]


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"threads": 2}, "threads"), ({"lr": 0.5}, "settings"), ({"seed": 1}, "settings")],
)
def test_a_run_is_not_resumed_with_other_settings(bench, config, changes, name):
    run = bench.folder("run")
    bench.attempt(config, run, steps=1)
    with pytest.raises(CheckpointError, match=f"was made with {name} = "):
        bench.attempt(dataclasses.replace(config, **changes), run)


def test_the_timeline_names_the_versions_that_answered_from_which_step_on(bench, kd):
    """alpha is pointed at its second version after 3 steps; the block of 8 steps that they are in keeps the first."""
    kd = dataclasses.replace(kd, batch_size=2, epochs=2, max_steps=10)
    run = bench.folder("run")
    library = TeacherLibrary(bench.home / "teachers")
    bench.attempt(kd, run, steps=3)
    Roster(library).promote("alpha", 2, "test")
    bench.attempt(kd, run)
    assert run.read_result()["teacher_timeline"] == [
        {"first_step": 0, "teacher": "alpha@1", "digest": library.entry(TeacherId("alpha", 1)).digest},
        {"first_step": 8, "teacher": "alpha@2", "digest": library.entry(TeacherId("alpha", 2)).digest},
    ]
    teachers = [line["teacher"] for line in read_metrics(run.metrics).steps]
    assert teachers == ["alpha@1"] * 8 + ["alpha@2"] * 2


def test_the_log_of_the_views_is_that_of_the_sampler(bench, config, store):
    config = dataclasses.replace(config, log_views=True, max_steps=4)
    run = bench.folder("run")
    bench.attempt(config, run, steps=2)
    bench.attempt(config, run)
    sampler = Sampler(store.videos, split_rows(store, config)[0], config)
    lines = [json.loads(line) for line in (run.path / "views-rank0.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    for line in lines:
        assert line["items"] == [digest.hex() for digest in sampler.views(line["step"]).item_digests(store.videos)]


def test_an_epoch_is_recorded_with_the_means_of_its_steps_and_the_validation(bench, config, store):
    config = dataclasses.replace(config, epochs=1)
    run = bench.folder("run")
    _, trainer = bench.attempt(config, run)
    metrics = read_metrics(run.metrics)
    (epoch,) = metrics.epochs
    assert epoch["train_loss"] == pytest.approx(np.mean([line["loss"] for line in metrics.steps]), abs=2e-6)
    assert epoch["train_pretext_acc"] == pytest.approx(
        np.mean([line["pretext_acc"] for line in metrics.steps]), abs=2e-6
    )
    validation = pretext_accuracy(
        trainer.state.network,
        store,
        split_rows(store, config)[1],
        config.clip_spec,
        student_input(config),
        view_seed=0,
        tuples_per_video=1,
    )
    assert (epoch["val_loss"], epoch["val_pretext_acc"]) == (round(validation.loss, 6), round(validation.accuracy, 6))


def test_the_seconds_of_a_step_are_made_up_of_its_phases(bench, kd):
    run = bench.folder("run")
    bench.attempt(dataclasses.replace(kd, max_steps=3), run)
    metrics = read_metrics(run.metrics)
    for line in metrics.steps:
        phases = (line["data_s"], line["teacher_wait_s"], line["compute_s"])
        assert sum(phases) == pytest.approx(line["seconds"], abs=3e-6)
        assert min(phases) >= 0
    result = run.read_result()
    total = sum(line["seconds"] for line in metrics.steps)
    assert result["seconds"] == pytest.approx(total, abs=1e-3)
    waited = sum(line["teacher_wait_s"] for line in metrics.steps)
    assert result["teacher_wait_share"] == pytest.approx(waited / total, abs=1e-4)


def test_the_cosine_schedule_at_its_written_out_points(config):
    config = dataclasses.replace(config, lr=0.1, min_lr=0.02)
    expected = {0: 0.1, 2: 0.02 + 0.08 * (1 + math.sqrt(0.5)) / 2, 4: 0.06, 8: 0.02}
    for step, lr in expected.items():
        assert cosine_lr(config, step, 8) == pytest.approx(lr, abs=1e-15)


def test_validation_loss_that_does_not_fall_lowers_the_learning_rate(bench, config, monkeypatch):
    losses = iter([1.0, 2.0, 3.0])
    figures = SimpleNamespace(accuracy=0.2, balanced_accuracy=0.2)

    def validation(*_args, **_options):
        figures.loss = next(losses)
        return figures

    monkeypatch.setattr("trainer.loop.pretext_accuracy", validation)
    run = bench.folder("run")
    config = dataclasses.replace(
        config, epochs=3, batch_size=16, lr=0.1, schedule="plateau", plateau_patience=0, plateau_factor=0.5, min_lr=0.04
    )
    bench.attempt(config, run)
    assert [line["lr"] for line in read_metrics(run.metrics).epochs] == [0.1, 0.05, 0.04]
