"""The test list during a cell's training: its answers epoch by epoch, and what each stage takes of them.

    end of an epoch ──► on the grid of the curve, or the best on validation so far? ──► test ──► test/epoch-000004.npz
                                                                                                      │
    early, mid, late: the last `best so far` of its epochs ◄──────────────────────────────────────────┘

The epoch that validation prefers is always tested when it ends, so that no stage needs a checkpoint of its own.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.atomic import write_atomic
from trainer.evaluate.pretext import pretext_accuracy
from trainer.loop import Trainer
from trainer.paper.records import STAGES, CurvePoint, Stage
from trainer.plan import student_input
from trainer.report_data import Metrics


@dataclass(frozen=True, eq=False)
class EpochAnswers:
    """The answers after an epoch (counted from 1). correct: bool [I]; rows: int64 [I], the videos that they are about.

    is_best: whether validation preferred this epoch to all before it. seconds: that the evaluation took.
    """

    epoch: int
    step: int
    correct: NDArray[np.bool_]
    rows: NDArray[np.int64]
    is_best: bool
    seconds: float

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.correct.mean())


def stage_ends(num_epochs: int) -> tuple[int, ...]:
    """The epoch that each stage ends after: its share of the epochs, rounded half up, at least 1.

    >>> stage_ends(200)
    (50, 150, 200)
    """
    return tuple(max(1, math.floor(share * num_epochs + 0.5)) for _, share in STAGES)


def curve_epochs(validated: Sequence[int], num_points: int) -> frozenset[int]:
    """The epochs that are tested whatever validation says: evenly spaced among those that are validated, and the last
    of each stage.

    >>> sorted(curve_epochs(range(1, 17), 8))
    [2, 4, 6, 8, 10, 12, 14, 16]
    """
    every = max(1, math.ceil(len(validated) / num_points))
    last = {max((epoch for epoch in validated if epoch <= end), default=end) for end in stage_ends(validated[-1])}
    return frozenset(validated[every - 1 :: every]) | last


class AnswerRecorder:
    """A sink of the run's log: at the end of an epoch it tries the network on the test list and keeps the answers.

    A run that is resumed repeats epochs. Its file of an epoch is then written again, or dropped where validation, on
    a GPU with other bits, does not prefer the epoch any more.
    """

    def __init__(self, folder: Path, num_points: int) -> None:
        self._folder = folder
        self._num_points = num_points
        self._trainer: Trainer | None = None
        self._epochs: frozenset[int] = frozenset()

    def watch(self, trainer: Trainer) -> None:
        """Before the training begins."""
        self._trainer = trainer
        self._epochs = curve_epochs(trainer.sampler.validated_epochs, self._num_points)
        self._folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, record: Mapping[str, Any]) -> None:
        """One record of metrics.jsonl."""
        if record["kind"] != "epoch" or self._trainer is None:
            return
        epoch, step = record["epoch"] + 1, record["step"]
        is_best = self._trainer.state.selection.best_step == step
        if is_best or epoch in self._epochs:
            save_point(self._folder, _test(self._trainer, epoch, step, is_best=is_best))
        else:
            _point_path(self._folder, epoch).unlink(missing_ok=True)


def _test(trainer: Trainer, epoch: int, step: int, *, is_best: bool) -> EpochAnswers:
    began = time.perf_counter()
    config = trainer.config
    result = pretext_accuracy(
        trainer.state.network,
        trainer.store,
        trainer.test_rows,
        config.clip_spec,
        student_input(config),
        view_seed=config.view_seed,
        tuples_per_video=config.eval_tuples,
        any_swap=config.any_swap,
        shuffle=config.shuffle_variant,
        operation=config.pretext_operation,
    )
    return EpochAnswers(epoch, step, result.correct, result.rows, is_best, time.perf_counter() - began)


def save_point(folder: Path, point: EpochAnswers) -> None:
    """Writes one epoch's answers, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        epoch=np.int64(point.epoch),
        step=np.int64(point.step),
        correct=point.correct,
        rows=point.rows,
        is_best=np.bool_(point.is_best),
        seconds=np.float64(point.seconds),
    )
    write_atomic(_point_path(folder, point.epoch), buffer.getvalue())


def _point_path(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:06d}.npz"


def read_points(folder: Path) -> tuple[EpochAnswers, ...]:
    """All epochs that were tested, in their order."""
    points = []
    for path in sorted(folder.glob("epoch-*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            points.append(
                EpochAnswers(
                    epoch=int(arrays["epoch"]),
                    step=int(arrays["step"]),
                    correct=arrays["correct"],
                    rows=arrays["rows"],
                    is_best=bool(arrays["is_best"]),
                    seconds=float(arrays["seconds"]),
                )
            )
    return tuple(points)


def chosen_points(points: Sequence[EpochAnswers], num_epochs: int) -> tuple[EpochAnswers, ...]:
    """For each stage the epoch that validation preferred within it. Raises ValueError when a stage has none."""
    chosen = []
    for (name, _), end in zip(STAGES, stage_ends(num_epochs), strict=True):
        within = [point for point in points if point.is_best and point.epoch <= end]
        if not within:
            raise ValueError(f"stage {name} has no epoch up to {end} that validation preferred and that was tested")
        chosen.append(within[-1])
    return tuple(chosen)


def make_stages(points: Sequence[EpochAnswers], num_epochs: int) -> tuple[Stage, ...]:
    """Each stage by validation, and beside it the best on the test list, of the epochs that were tested."""
    stages = []
    ends = stage_ends(num_epochs)
    for (name, _), end, chosen in zip(STAGES, ends, chosen_points(points, num_epochs), strict=True):
        best = max((point for point in points if point.epoch <= end), key=lambda point: point.accuracy)
        stages.append(
            Stage(
                name=name,
                until_epoch=end,
                epoch=chosen.epoch,
                step=chosen.step,
                test_acc=chosen.accuracy,
                best_test_acc=best.accuracy,
                best_test_epoch=best.epoch,
            )
        )
    return tuple(stages)


def step_seconds(metrics: Metrics) -> float:
    """Seconds of a training step without waiting for the teacher, the median over the run: other work on the machine
    disturbs some steps, and a mean would charge the student for it. Raises ValueError for a run without steps."""
    if not metrics.steps:
        raise ValueError("the run has no steps")
    return median(float(line["seconds"]) - float(line["teacher_wait_s"]) for line in metrics.steps)


def make_curve(metrics: Metrics, points: Sequence[EpochAnswers], num_points: int) -> tuple[CurvePoint, ...]:
    """Every epoch that was validated. Test accuracies stand on the evenly spaced epochs only: those that validation
    prefers lie otherwise in each arm, and would show one arm's milestones earlier than another's."""
    epochs = metrics.epochs
    grid = curve_epochs([line["epoch"] + 1 for line in epochs], num_points)
    tested = {point.epoch: point.accuracy for point in points if point.epoch in grid}
    step_s = step_seconds(metrics)
    return tuple(
        CurvePoint(
            epoch=line["epoch"] + 1,
            step=line["step"],
            seconds=round(line["step"] * step_s, 3),
            train_acc=line["train_pretext_acc"],
            val_acc=line["val_pretext_acc"],
            val_loss=line["val_loss"],
            test_acc=tested.get(line["epoch"] + 1),
        )
        for line in epochs
    )
