"""The training loop of one worker. Needs no Ray: launch.py calls it in each Ray Train worker, or in this process.

load newest checkpoint -> steps -> (end of epoch: validation, schedule, checkpoint) -> evaluation -> result.json
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from data.store import ClipStore
from teacher_server.errors import LedgerError, TeacherError, TeacherUnavailable
from trainer.agreement import OneVersion, check_same_start
from trainer.checkpoint import (
    load_newest,
    newest_step,
    save_checkpoint,
    seed_everything,
)
from trainer.collective import Collective
from trainer.config import RunConfig
from trainer.errors import Diverged
from trainer.evaluate.final import EvalOptions, evaluate_student
from trainer.evaluate.pretext import pretext_accuracy
from trainer.loader import LoadedStep, Loader, TeacherSignal
from trainer.log import MetricSink, RunLog
from trainer.plan import Plan, student_input
from trainer.records import EVALUATION_FIGURES, step_record, summary
from trainer.runs import RunFolder
from trainer.sampler import Sampler, split_rows
from trainer.start import cosine_lr, new_state, set_lr
from trainer.step import StepNumbers, train_step
from trainer.timeline import TimelineEntry

_ANOTHER_WORKER = "another worker's teacher is away"
_ANOTHER_LEDGER = "another worker's ledger cannot be written"


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. `reason` is a sentence for people."""

    status: Literal["finished", "stopped", "teacher_unavailable", "diverged"]
    step: int
    reason: str = ""


class Stopped(Exception):
    """Raised inside the evaluation when a stop is asked for."""


class Trainer:
    """One worker's side of a run. Build it, then `run()` once.

    teacher: its signal, or None for scratch; the caller closes it. should_stop: polled after each step.
    """

    def __init__(
        self,
        plan: Plan,
        run: RunFolder,
        *,
        collective: Collective,
        teacher: TeacherSignal | None,
        should_stop: Callable[[], bool],
        sink: MetricSink | None = None,
    ) -> None:
        self.plan = plan
        self.config: RunConfig = plan.config
        self.run_folder = run
        self.collective = collective
        self.teacher = teacher
        self.should_stop = should_stop
        torch.set_num_threads(self.config.threads)
        seed_everything(self.config.seed)
        self.store = ClipStore.open(plan.store_path)
        self.train_rows, self.val_rows, self.test_rows, self.left_out = split_rows(self.store, self.config)
        self.sampler = Sampler(self.store.videos, self.train_rows, self.config)
        self.device = torch.device(plan.device)
        self.state = new_state(self.config, self.device)
        self.log = RunLog(run, sink) if collective.rank == 0 else None
        self._epoch_began = time.perf_counter()
        self._views_log = (
            open(run.path / f"views-rank{collective.rank}.jsonl", "a") if self.config.log_views else None  # noqa: SIM115
        )

    def run(self) -> Outcome:
        """Trains from the newest checkpoint to the end, or to a stop. Files are closed whatever happens."""
        try:
            return self._run()
        finally:
            if self.log is not None:
                self.log.close()
            if self._views_log is not None:
                self._views_log.close()

    def _run(self) -> Outcome:
        first = load_newest(self.run_folder.checkpoints, self.state, self._fixed())
        check_same_start(first, self.collective)
        unavailable = self._restore_timeline(first)
        if unavailable:
            return Outcome("teacher_unavailable", first, unavailable)
        try:
            outcome = self._train(first)
        except Diverged as error:
            return Outcome("diverged", newest_step(self.run_folder.checkpoints), str(error))
        if outcome.status != "finished" or self.collective.rank != 0:
            return outcome
        try:
            self._finish(outcome.step)
        except Stopped:
            return Outcome("stopped", outcome.step, "stopped in the final evaluation")
        return outcome

    def _restore_timeline(self, steps_done: int) -> str:
        """Tells the roster what the steps before were bound to; why it could not be told, or nothing."""
        reason = ""
        try:
            if self.teacher is not None:
                self.teacher.restore(self.state.timeline, steps_done)
        except TeacherUnavailable as error:
            reason = str(error)
        return (reason or _ANOTHER_WORKER) if self.collective.any(bool(reason)) else ""

    def _train(self, first: int) -> Outcome:
        stop = self.sampler.total_steps
        of_one_version = OneVersion(self.teacher, self.collective)
        with Loader(
            self.sampler,
            self.store,
            student_input(self.config),
            self.teacher,
            first=first,
            stop=stop,
            rank=self.collective.rank,
            world=self.collective.world,
            prefetch=self.config.prefetch,
            device=self.device,
        ) as loader:
            steps = iter(loader)
            for step in range(first, stop):
                began = time.perf_counter()
                loaded, unavailable = _next_step(steps)
                if self.collective.any(unavailable is not None):
                    self._save(step)
                    return Outcome("teacher_unavailable", step, str(unavailable or _ANOTHER_WORKER))
                assert loaded is not None
                self._one_step(of_one_version(loaded), began)
                stopping = self.collective.any(self.should_stop())
                if self.sampler.ends_epoch(step):
                    self._end_epoch(step)
                if self._is_checkpoint(step) or stopping:
                    unwritten = self._save(step + 1)
                    if unwritten:
                        return Outcome("teacher_unavailable", step + 1, unwritten)
                if stopping and step + 1 < stop:
                    return Outcome("stopped", step + 1, "stopped on request")
        return Outcome("finished", stop)

    def _one_step(self, loaded: LoadedStep, began: float) -> None:
        if self.config.schedule == "cosine":
            set_lr(self.state.optimizer, cosine_lr(self.config, loaded.step, self.sampler.total_steps))
        numbers = train_step(self.state.network, self.state.optimizer, loaded.batch, self.config, self.collective)
        if not math.isfinite(numbers.loss):  # of the global batch: all workers see it
            raise Diverged(loaded.step + 1)
        seconds = time.perf_counter() - began
        clips = self._add_to_totals(loaded, numbers, seconds)
        self._note_binding(loaded)
        self._log_views(loaded)
        if self.log is None:
            return
        record = step_record(
            loaded,
            numbers,
            self.state.totals,
            epoch=self.sampler.epoch_of(loaded.step),
            lr=self.state.optimizer.param_groups[0]["lr"],
            seconds=seconds,
            clips=clips,
        )
        self.log.record("step", loaded.step + 1, record)

    def _add_to_totals(self, loaded: LoadedStep, numbers: StepNumbers, seconds: float) -> int:
        """Returns the clips of the global batch."""
        asking = loaded.asking
        counts = torch.tensor([loaded.views.num_items, asking.retries, asking.dropped, asking.replayed])
        num_items, retries, dropped, replayed = self.collective.sum(counts).tolist()
        totals = self.state.totals
        totals.seconds += seconds
        totals.teacher_wait_s += loaded.teacher_wait_s
        totals.teacher_retries += retries
        totals.teacher_dropped += dropped
        totals.replayed_items += replayed
        totals.kd_skipped += numbers.kd_skipped
        totals.clips += 3 * num_items
        totals.epoch_steps += 1
        totals.epoch_loss += numbers.loss
        totals.epoch_pretext_acc += numbers.pretext_acc
        return 3 * num_items

    def _note_binding(self, loaded: LoadedStep) -> None:
        if loaded.binding is None:
            return
        entry = TimelineEntry(loaded.step, str(loaded.binding.teacher), loaded.binding.digest)
        timeline = self.state.timeline
        if not timeline or (timeline[-1].teacher, timeline[-1].digest) != (entry.teacher, entry.digest):
            timeline.append(entry)

    def _log_views(self, loaded: LoadedStep) -> None:
        if self._views_log is None:
            return
        digests = [digest.hex() for digest in loaded.views.item_digests(self.store.videos)]
        self._views_log.write(json.dumps({"step": loaded.step, "items": digests}) + "\n")
        self._views_log.flush()

    def _end_epoch(self, step: int) -> None:
        """Validation on rank 0, the schedule on all ranks."""
        self.collective.same_buffers(self.state.network)
        val_loss = torch.zeros(1, dtype=torch.float64)
        values: dict[str, Any] = {}
        if self.log is not None:
            result = pretext_accuracy(
                self.state.network,
                self.store,
                self.val_rows,
                self.config.clip_spec,
                student_input(self.config),
                view_seed=self.config.view_seed,
                tuples_per_video=1,
                any_swap=self.config.any_swap,
            )
            val_loss[0] = result.loss
            values = {
                "val_loss": round(result.loss, 6),
                "val_pretext_acc": round(result.accuracy, 6),
                "val_balanced_acc": round(result.balanced_accuracy, 6),
            }
        mean_loss = float(self.collective.sum(val_loss)[0])  # rank 0's: the others add 0
        if self.config.schedule == "plateau":
            self.state.schedule.step(mean_loss)
        totals = self.state.totals
        if self.log is not None:
            self.log.record(
                "epoch",
                step + 1,
                {
                    "epoch": self.sampler.epoch_of(step),
                    "lr": self.state.optimizer.param_groups[0]["lr"],
                    "train_loss": round(totals.epoch_loss / totals.epoch_steps, 6),
                    "train_pretext_acc": round(totals.epoch_pretext_acc / totals.epoch_steps, 6),
                    **values,
                    "seconds": round(time.perf_counter() - self._epoch_began, 3),
                },
            )
        totals.epoch_steps, totals.epoch_loss, totals.epoch_pretext_acc = 0, 0.0, 0.0
        self._epoch_began = time.perf_counter()

    def _is_checkpoint(self, step: int) -> bool:
        every = self.config.checkpoint_every
        return self.sampler.ends_epoch(step) or (every > 0 and (step + 1) % every == 0)

    def _save(self, num_steps: int) -> str:
        """A checkpoint; before it the answers that its steps have paid for, on every worker.

        A ledger that refuses them costs no checkpoint; why it does, on any worker, or nothing."""
        reason = ""
        try:
            if self.teacher is not None:
                self.teacher.flush()
        except LedgerError as error:
            reason = str(error)
        unwritten = (reason or _ANOTHER_LEDGER) if self.collective.any(bool(reason)) else ""
        self.collective.same_buffers(self.state.network)
        if self.collective.rank == 0:
            save_checkpoint(self.run_folder.checkpoints, num_steps, self.state, self._fixed())
        return unwritten

    def _fixed(self) -> dict[str, Any]:
        """What a resume must find equal for its numbers to be the same."""
        return {
            "workers": self.collective.world,
            "threads": self.config.threads,
            "device": self.device.type,
            "store_fingerprint": self.store.fingerprint,
            "settings": self.plan.identity,
        }

    def _finish(self, num_steps: int) -> None:
        """Evaluation and result.json."""
        result = self._summary(num_steps)
        if self.config.evaluate:
            evaluation = evaluate_student(
                self.state.network,
                self.store,
                train_rows=self.train_rows,
                test_rows=self.test_rows,
                spec=self.config.clip_spec,
                input_spec=student_input(self.config),
                options=EvalOptions(
                    tuples_per_video=self.config.eval_tuples,
                    clips_per_video=self.config.eval_clips,
                    view_seed=self.config.view_seed,
                    seed=self.config.seed,
                    any_swap=self.config.any_swap,
                ),
                progress=self._poll_stop,
            )
            result["evaluation"] = evaluation.to_json()
            for name in EVALUATION_FIGURES:
                result[name] = getattr(evaluation, name)
        self.run_folder.write_json(self.run_folder.result, result)

    def _poll_stop(self, _phase: str, _done: int, _total: int) -> None:
        if self.should_stop():
            raise Stopped

    def _summary(self, num_steps: int) -> dict[str, Any]:
        run_id, num_epochs = self.run_folder.run_id, self.sampler.total_epochs
        return {
            **summary(self.state, self.config, run_id=run_id, num_steps=num_steps, num_epochs=num_epochs),
            "store_fingerprint": self.store.fingerprint,
            "num_videos": {
                "train": len(self.train_rows),
                "validation": len(self.val_rows),
                "test": len(self.test_rows),
                "left_out": self.left_out,
            },
        }


def _next_step(steps: Any) -> tuple[LoadedStep | None, TeacherError | None]:
    """The next batch, or why no teacher and no ledger answers any more."""
    try:
        return next(steps), None
    except TeacherError as error:
        return None, error
