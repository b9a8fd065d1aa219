"""Whole runs of a few steps: a run that was stopped and resumed ends as one that was not, bit for bit."""

import dataclasses
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.views import REMOTE, SEGMENT_COPY
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId
from teacher_server.roster.roster import Roster
from trainer.checkpoint import CheckpointError, seed_step
from trainer.collective import Collective
from trainer.epochs import EpochEnd
from trainer.errors import Diverged, NotFinite
from trainer.evaluate.pretext import pretext_accuracy
from trainer.fingerprint import weights_digest
from trainer.loop import Outcome, Trainer
from trainer.plan import student_input
from trainer.report_data import read_metrics
from trainer.sampler import Sampler, split_rows

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


DROPPING = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.feature_size = 8
        self.conv = nn.Conv3d(3, 8, 3, stride=4, bias=False)
        self.dropout = nn.Dropout(0.5)

    def forward(self, clip):
        return self.dropout(self.conv(clip).relu().mean(dim=(2, 3, 4)))
"""


def test_a_network_that_draws_at_random_draws_the_same_after_a_resume(bench, config, tmp_path, monkeypatch):
    (tmp_path / "dropping_net.py").write_text(DROPPING)
    monkeypatch.syspath_prepend(tmp_path)
    config = dataclasses.replace(config, student="dropping_net:Net")
    undisturbed, stopped = bench.folder("undisturbed"), bench.folder("stopped")
    assert bench.attempt(config, undisturbed)[0] == Outcome("finished", 6)
    assert bench.attempt(config, stopped, steps=2)[0] == Outcome("stopped", 2, "stopped on request")
    assert bench.attempt(config, stopped)[0] == Outcome("finished", 6)
    assert end_of(stopped, 6).tensors == end_of(undisturbed, 6).tensors
    losses = [line["loss"] for line in end_of(undisturbed, 6).lines if "loss" in line]
    assert len(set(losses)) == len(losses)


def test_each_step_and_each_worker_has_random_numbers_of_its_own():
    def draw(*key):
        seed_step(*key)
        return torch.rand(4).tolist()

    keys = [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1)]
    draws = [draw(*key) for key in keys]
    assert draw(*keys[0]) == draws[0]
    assert len({tuple(each) for each in draws}) == 4


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


def test_a_run_that_diverges_in_the_last_step_of_an_epoch_ends_as_diverged(bench, config):
    """One step an epoch: its own loss is finite, and validation is the first to see the weights."""
    config = dataclasses.replace(config, batch_size=12, lr=1e38)
    outcome, _ = bench.attempt(config, bench.folder("diverging"))
    reason = "the loss is not finite at step 1: choose a smaller --lr and --resume never"
    assert outcome == Outcome("diverged", 0, reason)


def test_all_workers_hear_that_validation_was_not_finite(config, monkeypatch):
    """Rank 0 alone validates: the others see its figures in the sum, and would wait for it otherwise."""
    monkeypatch.setattr(Collective, "sum", lambda _self, tensor: torch.full_like(tensor, torch.nan))
    state = SimpleNamespace(network=torch.nn.Identity())
    end = EpochEnd(config, None, None, None, Collective(), None)
    with pytest.raises(Diverged):
        end(state, epoch=0, count=1, num_steps=3)


def test_a_run_whose_test_videos_alone_show_that_it_diverged_ends_so_too(bench, config, monkeypatch):
    def evaluate_student(*_args, **_options):
        raise NotFinite("the features are not finite")

    monkeypatch.setattr("trainer.finish.evaluate_student", evaluate_student)
    config, run = dataclasses.replace(config, max_steps=1, evaluate=True), bench.folder("diverging")
    assert bench.attempt(config, run)[0] == Outcome("diverged", 1, "the features are not finite")
    assert not run.is_finished


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


@pytest.fixture
def validation(monkeypatch):
    """Stands in for the evaluations of the epochs: validation(losses, accuracies) sets what they give in turn."""

    def plant(losses, accuracies=None):
        turns = zip(losses, accuracies or [0.2] * len(losses), strict=True)

        def evaluated(*_args, **_options):
            loss, acc = next(turns)
            return SimpleNamespace(loss=loss, accuracy=acc, balanced_accuracy=acc, label_histogram=(1, 1, 1, 1, 1))

        monkeypatch.setattr("trainer.epochs.pretext_accuracy", evaluated)

    return plant


def test_validation_loss_that_does_not_fall_lowers_the_learning_rate(bench, config, validation):
    validation([1.0, 2.0, 3.0])
    run = bench.folder("run")
    config = dataclasses.replace(
        config, epochs=3, batch_size=16, lr=0.1, schedule="plateau", plateau_patience=0, plateau_factor=0.5, min_lr=0.04
    )
    bench.attempt(config, run)
    assert [line["lr"] for line in read_metrics(run.metrics).epochs] == [0.1, 0.05, 0.04]


def test_the_step_schedule_falls_between_epochs(bench, config):
    run = bench.folder("run")
    config = dataclasses.replace(
        config, epochs=3, batch_size=6, lr=0.4, schedule="step", step_epochs=2, step_factor=0.5
    )
    bench.attempt(config, run)
    assert [line["lr"] for line in read_metrics(run.metrics).steps] == [0.4, 0.4, 0.4, 0.4, 0.2, 0.2]


def best_of(run):
    """The step that checkpoints/best names, and those that are kept."""
    return (run.checkpoints / "best").resolve().name, sorted(path.name for path in run.checkpoints.glob("step-*"))


def test_the_best_epoch_on_validation_is_kept_beside_the_last_ones(bench, config, validation):
    validation([2.0, 3.0, 1.0, 1.0, 1.0], [0.2, 0.5, 0.5, 0.4, 0.3])
    run = bench.folder("run")
    bench.attempt(dataclasses.replace(config, epochs=5, batch_size=16, keep_checkpoints=1), run)
    assert best_of(run) == ("step-000000003", ["step-000000003", "step-000000005"])
    result = run.read_result()
    assert (result["best_step"], result["best_val_balanced_acc"], result["best_val_loss"]) == (3, 0.5, 1.0)


def test_a_run_ends_after_so_many_epochs_without_a_lower_loss_and_a_resume_counts_on(bench, config, validation):
    """The lowest loss is that of epoch 2; a stop comes between the two epochs of patience."""
    config = dataclasses.replace(config, epochs=9, batch_size=16, early_stop=2, evaluate=True, eval_clips=1)
    run = bench.folder("run")
    validation([3.0, 1.0, 2.0, 1.0])
    assert bench.attempt(config, run, steps=3)[0] == Outcome("stopped", 3, "stopped on request")
    calls = itertools.count(1)  # a stop in the final evaluation: the next attempt must not train on
    trainer = Trainer(
        bench.plan(config), run, collective=Collective(), teacher=None, should_stop=lambda: next(calls) > 1
    )
    assert trainer.run() == Outcome("stopped", 4, "stopped in the final evaluation")
    assert bench.attempt(config, run)[0] == Outcome("finished", 4)
    result = run.read_result()
    assert (result["steps"], result["epochs"], result["stopped_early"]) == (4, 4, True)


def test_best_and_early_stop_come_back_with_a_resume(bench, config):
    """Everything is real here: a run in pieces chooses and ends as one in one piece."""
    config = dataclasses.replace(config, epochs=4, early_stop=1, lr=0.2, batch_size=6)
    undisturbed, stopped = bench.folder("undisturbed"), bench.folder("stopped")
    outcome = bench.attempt(config, undisturbed)[0]
    while bench.attempt(config, stopped, steps=1)[0].status != "finished":
        pass
    assert stopped.read_result()["steps"] == outcome.step
    expected, got = end_of(undisturbed, outcome.step), end_of(stopped, outcome.step)
    assert (got.tensors, got.state, got.result) == (expected.tensors, expected.state, expected.result)
    assert best_of(stopped)[0] == best_of(undisturbed)[0]


def test_the_test_list_is_evaluated_every_so_many_epochs_and_changes_no_weight(bench, config, store):
    config = dataclasses.replace(config, epochs=3, batch_size=6)
    plain, curves = bench.folder("plain"), bench.folder("curves")
    bench.attempt(config, plain)
    _, trainer = bench.attempt(dataclasses.replace(config, eval_every=2), curves)
    assert end_of(curves, 6).tensors == end_of(plain, 6).tensors
    epochs = read_metrics(curves.metrics).epochs
    assert ["test_pretext_acc" in line for line in epochs] == [False, True, False]
    bench.attempt(dataclasses.replace(config, eval_every=3), third := bench.folder("third"))
    test = pretext_accuracy(
        trainer.state.network,
        store,
        split_rows(store, config)[2],
        config.clip_spec,
        student_input(config),
        view_seed=0,
        tuples_per_video=1,
    )
    last = read_metrics(third.metrics).epochs[-1]
    assert (last["test_loss"], last["test_pretext_acc"]) == (round(test.loss, 6), round(test.accuracy, 6))
    assert last["test_label_histogram"] == [8, 8, 8, 8, 8]


def test_an_epoch_counts_its_labels_and_balances_its_accuracy(bench, config, store):
    run = bench.folder("run")
    bench.attempt(dataclasses.replace(config, epochs=1), run, steps=2)
    bench.attempt(dataclasses.replace(config, epochs=1), run)  # the counts of the first attempt are not lost
    sampler = Sampler(store.videos, split_rows(store, config)[0], config)
    labels = np.concatenate([sampler.views(step).pretext_labels for step in range(3)])
    metrics = read_metrics(run.metrics)
    (epoch,) = metrics.epochs
    assert epoch["train_label_histogram"] == np.bincount(labels, minlength=5).tolist()
    hits = np.sum([line["label_hits"] for line in metrics.steps], axis=0)
    counts = np.bincount(labels, minlength=5)
    expected = np.mean([hit / count for hit, count in zip(hits, counts, strict=True) if count])
    assert epoch["train_balanced_acc"] == pytest.approx(expected, abs=1e-6)
    assert epoch["train_pretext_acc"] == pytest.approx(hits.sum() / 12, abs=1e-6)


def test_a_step_records_all_bits_of_its_loss_and_a_digest_of_the_weights(bench, config):
    run = bench.folder("run")
    _, trainer = bench.attempt(dataclasses.replace(config, max_steps=2), run)
    first, last = read_metrics(run.metrics).steps
    assert float.fromhex(last["loss_bits"]) == pytest.approx(last["loss"], abs=1e-6)
    assert first["weights"] != last["weights"] == weights_digest(trainer.state.network, trainer.state.objective)
    with torch.no_grad():
        bias = trainer.state.network.pretext_head.linear.bias
        bias[0] = torch.nextafter(bias[0], torch.tensor(2.0))
    assert weights_digest(trainer.state.network, trainer.state.objective) != last["weights"]


def test_validation_asks_about_the_shuffle_that_the_run_trains_on(bench, config, store):
    config = dataclasses.replace(config, epochs=1, shuffle="remote")
    run = bench.folder("run")
    _, trainer = bench.attempt(config, run)
    losses = [
        pretext_accuracy(
            trainer.state.network,
            store,
            split_rows(store, config)[1],
            config.clip_spec,
            student_input(config),
            view_seed=0,
            tuples_per_video=1,
            shuffle=shuffle,
        ).loss
        for shuffle in (REMOTE, SEGMENT_COPY)
    ]
    (epoch,) = read_metrics(run.metrics).epochs
    assert epoch["val_loss"] == round(losses[0], 6) != round(losses[1], 6)
