"""The end of an epoch: validation, now and then the test list, the learning rate, what validation chooses, the record.

    rank 0      validation list ── balanced accuracy, loss ──┐
    all ranks                     summed (the others add 0) ─┴─► plateau schedule, Selection (best, early stop)

The test list is only written down: nothing is chosen by it.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.store import ClipStore
from teacher_server.zoo.network import VideoNetwork
from trainer.checkpoint import TrainingState
from trainer.collective import Collective
from trainer.config import RunConfig
from trainer.errors import Diverged, NotFinite
from trainer.evaluate.pretext import PretextResult, pretext_accuracy
from trainer.log import RunLog
from trainer.plan import student_input
from trainer.totals import Totals


class EpochEnd:
    """Called by all workers after the last step of each validated epoch. log: of rank 0, None on the others."""

    def __init__(
        self,
        config: RunConfig,
        store: ClipStore,
        val_rows: NDArray[np.int64],
        test_rows: NDArray[np.int64],
        collective: Collective,
        log: RunLog | None,
    ) -> None:
        self._config = config
        self._store = store
        self._val_rows = val_rows
        self._test_rows = test_rows
        self._collective = collective
        self._log = log
        self._began = time.perf_counter()

    def __call__(self, state: TrainingState, *, epoch: int, count: int, num_steps: int) -> None:
        """epoch: from 0; count: validated epochs, num_steps: steps so far. Changes schedule, selection and totals of
        the state. Raises Diverged, on all workers, when the student's answers are not finite any more."""
        self._collective.same_buffers(state.network)
        figures = torch.zeros(2, dtype=torch.float64)
        values: dict[str, Any] = {}
        if self._log is not None:
            try:
                validation = self._pretext(state.network, self._val_rows, tuples_per_video=1)
                figures = torch.tensor([validation.balanced_accuracy, validation.loss], dtype=torch.float64)
                values |= _named("val", validation)
                if self._config.eval_every and count % self._config.eval_every == 0:
                    values |= _named("test", self._pretext(state.network, self._test_rows, self._config.eval_tuples))
            except NotFinite:  # the other workers must hear of it, or they would wait for this one
                figures = torch.full((2,), math.nan, dtype=torch.float64)
        balanced_acc, loss = self._collective.sum(figures).tolist()  # rank 0's: the others add 0
        if not math.isfinite(loss):
            raise Diverged(num_steps)
        if self._config.schedule == "plateau":
            state.schedule.step(loss)
        state.selection.note(num_steps, balanced_acc, loss)
        if self._log is not None:
            seconds = {"seconds": round(time.perf_counter() - self._began, 3)}
            lr = state.optimizer.param_groups[0]["lr"]
            record = {"epoch": epoch, "lr": lr, **_of_training(state.totals), **values, **seconds}
            self._log.record("epoch", num_steps, record)
        state.totals.begin_epoch()
        self._began = time.perf_counter()

    def _pretext(self, network: VideoNetwork, rows: NDArray[np.int64], tuples_per_video: int) -> PretextResult:
        return pretext_accuracy(
            network,
            self._store,
            rows,
            self._config.clip_spec,
            student_input(self._config),
            view_seed=self._config.view_seed,
            tuples_per_video=tuples_per_video,
            any_swap=self._config.any_swap,
            shuffle=self._config.shuffle_variant,
            operation=self._config.pretext_operation,
        )


def _of_training(totals: Totals) -> dict[str, Any]:
    """Means over the epoch's steps, as they were trained: on augmented views and before each step's update."""
    balanced_acc = totals.epoch_balanced_acc
    return {
        "train_loss": round(totals.epoch_loss / totals.epoch_steps, 6),
        "train_pretext_acc": round(totals.epoch_pretext_acc / totals.epoch_steps, 6),
        "train_balanced_acc": None if balanced_acc is None else round(balanced_acc, 6),
        "train_label_histogram": list(totals.epoch_label_counts),
    }


def _named(which: str, result: PretextResult) -> dict[str, Any]:
    return {
        f"{which}_loss": round(result.loss, 6),
        f"{which}_pretext_acc": round(result.accuracy, 6),
        f"{which}_balanced_acc": round(result.balanced_accuracy, 6),
        f"{which}_label_histogram": list(result.label_histogram),
    }
