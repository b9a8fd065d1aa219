"""Learning rates at written-out points."""

import dataclasses
import math

import pytest

from trainer.schedule import cosine_lr, scheduled_lr, stepped_lr


def test_the_cosine_schedule_at_its_written_out_points(config):
    config = dataclasses.replace(config, lr=0.1, min_lr=0.02)
    expected = {0: 0.1, 2: 0.02 + 0.08 * (1 + math.sqrt(0.5)) / 2, 4: 0.06, 8: 0.02}
    for step, lr in expected.items():
        assert cosine_lr(config, step, 8) == pytest.approx(lr, abs=1e-15)


def test_the_step_schedule_falls_after_every_so_many_epochs_down_to_its_floor(config):
    config = dataclasses.replace(config, lr=0.8, step_epochs=3, step_factor=0.5, min_lr=0.15)
    expected = [0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2, 0.2, 0.2, 0.15, 0.15]
    assert [stepped_lr(config, epoch) for epoch in range(11)] == pytest.approx(expected, abs=1e-15)


def test_cosine_goes_by_steps_step_by_epochs_and_plateau_is_left_to_validation(config):
    config = dataclasses.replace(config, lr=0.1, min_lr=0.0, step_epochs=1, step_factor=0.5)
    of = {
        name: scheduled_lr(dataclasses.replace(config, schedule=name), 4, epoch=1, total_steps=8)
        for name in ("cosine", "step", "plateau")
    }
    assert of == {"cosine": pytest.approx(0.05), "step": pytest.approx(0.05), "plateau": None}
    assert scheduled_lr(dataclasses.replace(config, schedule="step"), 5, epoch=1, total_steps=8) == pytest.approx(0.05)
    assert scheduled_lr(dataclasses.replace(config, schedule="cosine"), 6, epoch=1, total_steps=8) < 0.05
