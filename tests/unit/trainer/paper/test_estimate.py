"""What a grid is said to take, against counts written out."""

import dataclasses

import pytest

from trainer.config import ConfigError, RunConfig
from trainer.paper.estimate import estimate, measure_step_times, steps_of
from trainer.paper.plan import GridRequest, make_jobs
from trainer.paper.scale import DEMO, Choices, Network, StepTime, TransferRecipe
from trainer.paper.stores import missing_stores
from trainer.plan import make_plan

pytestmark = pytest.mark.usefixtures("home")

TIMES = {arch: StepTime(step_s=2.0, clip_s=0.0) for arch in ("c3d", "r3d", "r2plus1d")}


@pytest.fixture
def scale(store):
    return dataclasses.replace(
        DEMO,
        store=str(store.path),
        second_store=str(store.path),
        frame_size=store.frame_size,
        student=Network(width=0.125, epochs=4),
        teacher=Network(width=0.25, epochs=6),
        clip_len=8,
        interval=2,
        crop=32,
        batch_size=4,
        transfer=TransferRecipe(1, 1, 0.01, 1, 0.01, 8, augment=False),
    )


@pytest.mark.parametrize("equal_steps", [False, True])
@pytest.mark.parametrize(("fraction", "videos"), [(100.0, 12), (50.0, 6), (2.0, 2)])
def test_steps_are_those_that_the_run_will_take(config, equal_steps, fraction, videos):
    config = dataclasses.replace(config, fraction=fraction, equal_steps=equal_steps, epochs=3)
    plan = make_plan(config)
    assert plan.num_train == videos
    steps, epochs = steps_of(videos, 12, config)
    assert (steps, epochs) == (plan.total_steps, -(-plan.total_steps // plan.steps_per_epoch))


def test_a_last_video_alone_makes_no_batch():
    assert steps_of(33, 33, RunConfig(batch_size=16, epochs=2)) == (4, 2)


def test_steps_and_hours_are_those_of_teachers_and_cells_together(scale):
    """12 training videos at the scale's own hold-out: 3 teachers of 6 x 3 steps and 9 cells of 4 x 3, 2 s each and a
    quarter more."""
    costs = estimate(scale, Choices(), make_jobs(scale, GridRequest((100.0,), (0,), controls=())), 2, TIMES)
    assert costs.steps == 3 * 6 * 3 + 9 * 4 * 3
    assert costs.hours == pytest.approx(costs.steps * 2.0 * 1.25 / 2 / 3600)
    assert costs.jobs["r3d-from-c3d-full-f100-s0"].items == 4 * 12
    assert costs.jobs["r3d-scratch-f100-s0"].items == 0
    assert costs.disk_bytes > 0


def test_only_the_paper_rows_are_charged_for_transfers_and_evaluations_cost_clips(scale):
    times = {arch: StepTime(step_s=0.0, clip_s=1.0) for arch in TIMES}
    jobs = make_jobs(scale, GridRequest((100.0,), (0,)))
    costs = estimate(scale, Choices(), jobs, 1, times).jobs
    row, control = costs["r3d-from-c3d-full-f100-s0"], costs["r3d-from-c3d-full-shuffled-f100-s0"]
    videos_train, videos_test = 16 + 17, 8 + 8  # of both data sets: the short one is long enough for a clip
    transfers = videos_train + 2 * videos_test + 3 * videos_train
    assert row.seconds - control.seconds == pytest.approx(1.1 * transfers)
    # 4 epochs, all tested (7 clips for each of 8 videos), one more that validation prefers, and 4 of validation.
    expected = 7 * 8 * 5 + 7 * 4 * 4 + 0.5 * 4 * 12 * 3
    assert control.seconds == pytest.approx(1.1 * expected)


def test_counts_are_the_expected_ones_before_the_stores_are_there():
    jobs = make_jobs(DEMO, GridRequest((50.0,), (0,), controls=()))
    costs = estimate(DEMO, Choices(), jobs, 1, TIMES)
    assert costs.jobs["r3d-scratch-f50-s0"].steps == DEMO.student.epochs * 17  # 266 videos in batches of 16


def test_step_times_are_measured_for_each_architecture(scale):
    times = measure_step_times(scale, ["r3d"])
    assert set(times) == {"r3d"}
    assert times["r3d"].step_s > times["r3d"].clip_s > 0


def test_a_store_with_frames_of_another_size_than_the_scales_is_refused(scale):
    assert missing_stores(scale) == ()
    with pytest.raises(ConfigError, match=r"has frames of 40x54, scale demo needs 36x48: ingest the videos again with"):
        missing_stores(dataclasses.replace(scale, frame_size=(36, 48)))
