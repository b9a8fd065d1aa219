"""What each stage takes of the epochs that were tested, and what stands on the curve."""

from types import SimpleNamespace

import numpy as np
import pytest

from data.views import REMOTE
from trainer.config import RunConfig
from trainer.paper import stages
from trainer.paper.stages import (
    EpochAnswers,
    chosen_points,
    curve_epochs,
    make_curve,
    make_stages,
    read_points,
    save_point,
    stage_ends,
    step_seconds,
)
from trainer.report_data import Metrics

ROWS = np.arange(10)


def point(epoch, right, *, is_best):
    correct = np.zeros(10, dtype=np.bool_)
    correct[:right] = True
    return EpochAnswers(epoch, 5 * epoch, correct, ROWS, is_best, 0.5)


# Validation prefers epochs 1, 2 and 5; the test list would prefer 4 and 6.
POINTS = (
    point(1, 2, is_best=True),
    point(2, 4, is_best=True),
    point(4, 7, is_best=False),
    point(5, 6, is_best=True),
    point(6, 9, is_best=False),
    point(8, 5, is_best=False),
)


def test_stages_end_after_the_papers_shares_of_the_epochs():
    assert stage_ends(200) == (50, 150, 200)
    assert stage_ends(16) == (4, 12, 16)
    assert stage_ends(1) == (1, 1, 1)


def test_the_curve_has_its_points_evenly_and_at_the_ends_of_the_stages():
    assert sorted(curve_epochs(range(1, 9), 2)) == [2, 4, 6, 8]
    assert sorted(curve_epochs(range(1, 17), 4)) == [4, 8, 12, 16]
    assert sorted(curve_epochs(range(1, 4), 40)) == [1, 2, 3]
    assert sorted(curve_epochs([8, 16, 24, 32, 40, 48, 56, 64], 4)) == [16, 32, 48, 64]


def test_a_stage_is_the_epoch_that_validation_preferred_within_it():
    early, mid, late = make_stages(POINTS, 8)
    assert [(stage.until_epoch, stage.epoch, stage.test_acc) for stage in (early, mid, late)] == [
        (2, 2, 0.4),
        (6, 5, 0.6),
        (8, 5, 0.6),
    ]
    assert [(stage.best_test_epoch, stage.best_test_acc) for stage in (early, mid, late)] == [
        (2, 0.4),
        (6, 0.9),
        (6, 0.9),
    ]
    assert mid.step == 25


def test_a_stage_without_an_epoch_that_validation_preferred_is_an_error():
    with pytest.raises(ValueError, match="stage early has no epoch up to 2"):
        chosen_points(POINTS[2:], 8)


def test_points_come_back_from_their_files(tmp_path):
    for one in reversed(POINTS):
        save_point(tmp_path, one)
    for found, expected in zip(read_points(tmp_path), POINTS, strict=True):
        assert (found.epoch, found.step, found.is_best, found.seconds) == (
            expected.epoch,
            expected.step,
            expected.is_best,
            expected.seconds,
        )
        assert np.array_equal(found.correct, expected.correct)
        assert np.array_equal(found.rows, expected.rows)


def metrics(num_epochs):
    steps = [{"step": n, "seconds": 0.25, "teacher_wait_s": 0.05, "clips": 6} for n in range(1, 5 * num_epochs + 1)]
    steps[0] |= {"seconds": 9.0}
    epochs = [
        {"epoch": n, "step": 5 * n + 5, "train_pretext_acc": 0.1 * n, "val_pretext_acc": 0.2, "val_loss": 1.0}
        for n in range(num_epochs)
    ]
    return Metrics(tuple(steps), tuple(epochs))


def test_a_slow_step_and_waiting_for_the_teacher_are_not_charged_to_the_student():
    assert step_seconds(metrics(2)) == pytest.approx(0.2)


def test_only_evenly_spaced_epochs_show_a_test_accuracy():
    curve = make_curve(metrics(8), POINTS, num_points=4)
    assert {one.epoch: one.test_acc for one in curve if one.test_acc is not None} == {2: 0.4, 4: 0.7, 6: 0.9, 8: 0.5}
    assert [one.epoch for one in curve] == list(range(1, 9))
    assert curve[3].seconds == pytest.approx(20 * 0.2)


def test_the_test_list_is_tried_with_the_operations_that_the_student_was_trained_on(tmp_path, monkeypatch):
    asked = {}

    def answers(*_args, **more):
        asked.update(more)
        return SimpleNamespace(correct=np.ones(2, dtype=np.bool_), rows=np.arange(2))

    monkeypatch.setattr(stages, "pretext_accuracy", answers)
    config = RunConfig(any_swap=True, shuffle="remote", view_seed=4, eval_tuples=2)
    state = SimpleNamespace(network=None, selection=SimpleNamespace(best_step=3))
    recorder = stages.AnswerRecorder(tmp_path, 1)
    sampler = SimpleNamespace(validated_epochs=(1,))
    recorder.watch(SimpleNamespace(config=config, state=state, store=None, test_rows=None, sampler=sampler))
    recorder({"kind": "epoch", "epoch": 0, "step": 3})
    wanted = {"view_seed": 4, "tuples_per_video": 2, "any_swap": True, "shuffle": REMOTE, "operation": ""}
    assert {name: asked[name] for name in wanted} == wanted
    (point,) = read_points(tmp_path)
    assert (point.is_best, point.step) == (True, 3)


def test_an_epoch_that_validation_prefers_no_longer_after_a_resume_is_forgotten(tmp_path, monkeypatch):
    """Epochs 1 to 4 end at steps 3, 6, 9 and 12. Before the resume validation preferred epochs 1 and 3, after it 2."""
    monkeypatch.setattr(
        stages, "pretext_accuracy", lambda *_args, **_more: SimpleNamespace(correct=np.ones(2, bool), rows=np.arange(2))
    )

    def record(best_steps):
        recorder = stages.AnswerRecorder(tmp_path, 1)
        selection = SimpleNamespace(best_step=0)
        state = SimpleNamespace(network=None, selection=selection)
        recorder.watch(
            SimpleNamespace(
                config=RunConfig(),
                state=state,
                store=None,
                test_rows=None,
                sampler=SimpleNamespace(validated_epochs=tuple(range(1, 9))),
            )
        )
        for epoch, selection.best_step in enumerate(best_steps):
            recorder({"kind": "epoch", "epoch": epoch, "step": 3 * (epoch + 1)})

    record([3, 3, 9])
    assert [point.epoch for point in read_points(tmp_path) if point.is_best] == [1, 3]
    record([3, 6, 6, 6])
    assert [point.epoch for point in read_points(tmp_path) if point.is_best] == [1, 2]
