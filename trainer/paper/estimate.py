"""What a grid will take, before anything starts: runs, steps, hours, disk.

steps of each job x seconds of a step, stated by the scale or measured now on noise
+ evaluations on the test list and on validation, transfers, the teachers' answers
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.home import store_path
from data.store import ClipStore
from data.subsets import FULL
from data.views import NUM_PRETEXT, VIEWS_PER_TUPLE
from trainer.config import RunConfig
from trainer.evaluate.splits import splits_of
from trainer.paper.controls import control_kind
from trainer.paper.plan import Job
from trainer.paper.records import Arm, Cell
from trainer.paper.scale import Choices, Expected, Scale, StepTime, student_config
from trainer.paper.stages import curve_epochs
from trainer.paper.stores import missing_stores
from trainer.sampler import split_rows, validated_epochs

_CLIPS_PER_TEST_VIDEO = 2 + NUM_PRETEXT  # the five tuples of a place share their first and last clip
_PREFERRED_SHARE = 0.25  # of the epochs, tested beside the curve's because validation prefers them
_STEP_OVERHEAD = 1.25  # rendering, losses, logs: r3d took 1.22 times its network's own time on the built-in set
_CLIP_OVERHEAD = 1.1  # rendering without augmentation
_BACKWARD = 3  # a training step takes about three forward passes
_STEP_BYTES, _ITEM_BYTES, _BYTES_PER_WEIGHT = 1500, 260, 8  # weights and momentum of the checkpoint that is kept
_WEIGHTS_AT_WIDTH_1 = 2.8e7  # of the largest network; they grow with the square of the width
_TIMED_STEPS = 2


@dataclass(frozen=True)
class JobCost:
    """steps: of training. items: tuples that a teacher is asked about. seconds: of one worker, all included."""

    steps: int
    items: int
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """jobs: by id. weight_bytes: that one job leaves in weights."""

    jobs: Mapping[str, JobCost]
    workers: int
    weight_bytes: float

    def of(self, jobs: Sequence[Job]) -> Estimate:
        """The same of these jobs only."""
        return dataclasses.replace(self, jobs={job.id: self.jobs[job.id] for job in jobs})

    @property
    def steps(self) -> int:
        """Of all jobs."""
        return sum(cost.steps for cost in self.jobs.values())

    @property
    def disk_bytes(self) -> int:
        """Of runs and ledgers."""
        items = sum(cost.items for cost in self.jobs.values())
        return int(_STEP_BYTES * self.steps + _ITEM_BYTES * items + self.weight_bytes * len(self.jobs))

    @property
    def hours(self) -> float:
        """With all workers busy to the end."""
        return sum(cost.seconds for cost in self.jobs.values()) / self.workers / 3600


def estimate(
    scale: Scale, choices: Choices, jobs: Sequence[Job], workers: int, times: Mapping[str, StepTime]
) -> Estimate:
    """times: seconds by architecture. Counts videos in the stores where they are there, else as the scale expects."""
    sizes, expected = _sizes(scale, choices, {job.fraction for job in jobs})
    costs = {job.id: _job_cost(scale, choices, job, sizes, expected, times[job.student], times) for job in jobs}
    weights = _WEIGHTS_AT_WIDTH_1 * scale.student.width**2
    return Estimate(costs, workers, _BYTES_PER_WEIGHT * weights)


def measure_step_times(scale: Scale, architectures: Sequence[str]) -> dict[str, StepTime]:
    """Seconds of a training step and of a clip's forward pass, the least of two tries on noise, on the device that
    students of this scale get. What drawing and decoding clips takes beside it is not in it."""
    return {arch: _measure(scale, arch) for arch in architectures}


def teacher_mb(scale: Scale) -> int:
    """MiB of weights of the largest teacher, with something to spare."""
    return math.ceil(1.1 * 4 * _WEIGHTS_AT_WIDTH_1 * max(scale.teacher.width, scale.student.width) ** 2 / 2**20)


def steps_of(num_videos: int, num_whole: int, config: RunConfig) -> tuple[int, int]:
    """(steps, epochs) of a run on so many of the num_whole videos, as trainer.sampler counts them."""
    per_epoch, whole = (_batches(count, config.batch_size) for count in (num_videos, num_whole))
    steps = config.epochs * (whole if config.equal_steps else per_epoch)
    return steps, -(-steps // per_epoch)


def _batches(num_videos: int, batch_size: int) -> int:
    full, rest = divmod(num_videos, batch_size)
    return max(1, full + (rest >= 2))


def _sizes(scale: Scale, choices: Choices, fractions: set[float]) -> tuple[dict[float, int], Expected]:
    """Training videos by fraction, and the other counts."""
    expected = scale.expected
    if missing_stores(scale):
        return {fraction: max(2, round(expected.train * fraction / FULL)) for fraction in fractions}, expected
    store, second = (ClipStore.open(store_path(name)) for name in (scale.store, scale.second_store))
    sizes = {}
    for fraction in fractions:
        cell = Cell(arm=Arm(student="r3d"), fraction=fraction, seed=0)
        train, validation, test, _ = split_rows(store, student_config(scale, cell, "none", choices))
        sizes[fraction] = len(train)
    (split,) = splits_of(second, ("01",), scale.clip_len)
    counts = (len(validation), len(test), len(split.train_rows), len(split.test_rows))
    return sizes, Expected(max(sizes.values()), *counts)


def _job_cost(
    scale: Scale,
    choices: Choices,
    job: Job,
    sizes: Mapping[float, int],
    expected: Expected,
    time_of: StepTime,
    times: Mapping[str, StepTime],
) -> JobCost:
    network = scale.student if job.cell is not None else scale.teacher
    config = RunConfig(epochs=network.epochs, batch_size=scale.batch_size, equal_steps=choices.equal_steps)
    steps, epochs = steps_of(sizes[job.fraction], expected.train, config)
    validated = sorted(validated_epochs(epochs, config))
    tested = len(curve_epochs(validated, scale.curve_points)) + round(_PREFERRED_SHARE * len(validated))
    eval_clips = _CLIPS_PER_TEST_VIDEO * scale.eval_tuples * (tested * expected.test)
    eval_clips += _CLIPS_PER_TEST_VIDEO * len(validated) * expected.validation
    seconds = _STEP_OVERHEAD * steps * time_of.step_s + _CLIP_OVERHEAD * eval_clips * time_of.clip_s
    items = 0
    if job.cell is not None:
        arm = job.cell.arm
        if arm.teacher is not None:
            items = min(epochs, scale.views_per_video or epochs) * sizes[job.fraction]
            # About half of the answers are in the ledger already: each teacher has two students.
            seconds += 0.5 * items * VIEWS_PER_TUPLE * _CLIP_OVERHEAD * times[arm.teacher].clip_s
        if control_kind(arm) is None:
            seconds += _transfer_seconds(scale, expected, time_of)
    return JobCost(steps, items, seconds)


def _transfer_seconds(scale: Scale, expected: Expected, time_of: StepTime) -> float:
    recipe = scale.transfer
    train, test = expected.train + expected.validation + expected.second_train, expected.test + expected.second_test
    clips = recipe.clips * (train + 2 * test) + _BACKWARD * recipe.full_epochs * train
    if recipe.augment:  # then the head's clips are new ones in each epoch, too
        clips += recipe.head_epochs * train + recipe.clips * test
    return _CLIP_OVERHEAD * clips * time_of.clip_s


def _measure(scale: Scale, arch: str) -> StepTime:
    import torch  # heavy, and --no-measure needs none of it

    from teacher_server.zoo.network import VideoNetwork

    cuda = scale.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    torch.set_num_threads(scale.threads)
    network = VideoNetwork(arch, scale.student.width).to(device=device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    shape = (scale.batch_size, 3, scale.clip_len, scale.crop, scale.crop)
    clip = torch.rand(shape, device=device).to(memory_format=torch.channels_last_3d)

    def train() -> None:
        output = network.forward_tuple((clip, clip, clip))
        loss = output.pretext_logits.square().mean()
        if output.z1 is not None and output.z2 is not None:
            loss = loss + output.z1.mean() + output.z2.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def infer() -> None:
        with torch.inference_mode():
            network.features(clip)

    def seconds(call: object) -> float:
        assert callable(call)
        began = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    train()  # the first step allocates
    step_s = min(seconds(train) for _ in range(_TIMED_STEPS))
    network.eval()
    return StepTime(step_s, min(seconds(infer) for _ in range(_TIMED_STEPS)) / scale.batch_size)
