"""The training loop of one worker. Needs no Ray: launch.py calls it in each Ray Train worker, or in this process.

load newest checkpoint -> steps -> (end of epoch: epochs.EpochEnd, checkpoint) -> finish.write_result
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
from trainer.checkpoint import load_newest, newest_step, point_to_best, save_checkpoint, seed_everything, seed_step
from trainer.collective import Collective
from trainer.config import RunConfig
from trainer.epochs import EpochEnd
from trainer.errors import Diverged, NotFinite
from trainer.fingerprint import weights_digest
from trainer.finish import Stopped, write_result
from trainer.loader import LoadedStep, Loader, TeacherSignal
from trainer.log import MetricSink, RunLog
from trainer.objective import lambda_at
from trainer.plan import Plan, student_input
from trainer.records import step_record
from trainer.runs import RunFolder
from trainer.sampler import Sampler, count_whole, split_rows, write_train_list
from trainer.schedule import scheduled_lr, set_lr
from trainer.start import new_state
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
        num_whole = count_whole(self.store, self.config)
        self.sampler = Sampler(self.store.videos, self.train_rows, self.config, num_whole, trusted=plan.trusted)
        self.device = torch.device(plan.device)
        self.state = new_state(
            self.config,
            self.device,
            num_train=len(self.train_rows),
            teacher=plan.teacher,
            classes=self.store.classes,
            trusted=plan.trusted,
        )
        self.log = RunLog(run, sink) if collective.rank == 0 else None
        self._end_epoch = EpochEnd(self.config, self.store, self.val_rows, self.test_rows, collective, self.log)
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
        if self.collective.rank == 0:
            write_train_list(self.run_folder.train_list, self.store, self.train_rows)
            point_to_best(self.run_folder.checkpoints, self.state.selection)  # a kill may have come before it
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
            write_result(
                self.run_folder, self.plan, self.store, self.sampler, self.state, outcome.step, self.should_stop
            )
        except Stopped:
            return Outcome("stopped", outcome.step, "stopped in the final evaluation")
        except NotFinite as error:  # on videos of the test list, where those of validation were still finite
            return Outcome("diverged", outcome.step, str(error))
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
        stop = first if self._is_spent() else self.sampler.total_steps
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
            labels=self.store.labels if self.config.uses_labels else None,
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
                if self.sampler.is_validated(step):
                    epoch = self.sampler.epoch_of(step)
                    count = self.sampler.validated_epochs.index(epoch + 1) + 1
                    self._end_epoch(self.state, epoch=epoch, count=count, num_steps=step + 1)
                if self._is_checkpoint(step) or stopping:
                    unwritten = self._save(step + 1)
                    if unwritten:
                        return Outcome("teacher_unavailable", step + 1, unwritten)
                if self._is_spent():
                    return Outcome("finished", step + 1)
                if stopping and step + 1 < stop:
                    return Outcome("stopped", step + 1, "stopped on request")
        return Outcome("finished", stop)

    def _is_spent(self) -> bool:
        """Whether config.early_stop ends the run here; true on all workers, and again after a resume."""
        return self.state.selection.is_spent(self.config.early_stop)

    def _one_step(self, loaded: LoadedStep, began: float) -> None:
        epoch, total_steps = self.sampler.epoch_of(loaded.step), self.sampler.total_steps
        lr = scheduled_lr(self.config, loaded.step, epoch=epoch, total_steps=total_steps)
        if lr is not None:
            set_lr(self.state.optimizer, lr)
        lambda_kd = lambda_at(self.config, loaded.step, total_steps)
        seed_step(self.config.seed, loaded.step, self.collective.rank)
        numbers = train_step(self.state, loaded.batch, self.config, self.collective, lambda_kd)
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
            epoch=epoch,
            lr=self.state.optimizer.param_groups[0]["lr"],
            seconds=seconds,
            clips=clips,
            weights=self._digest(),
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
        totals.add_labels(numbers.label_counts, numbers.label_hits)
        return 3 * num_items

    def _digest(self) -> str | None:
        """Of the student after the step; None on a GPU, where a rerun has other bits anyway."""
        return weights_digest(self.state.network, self.state.objective) if self.device.type == "cpu" else None

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

    def _is_checkpoint(self, step: int) -> bool:
        every = self.config.checkpoint_every
        return self.sampler.is_validated(step) or (every > 0 and (step + 1) % every == 0)

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
            folder, keep = self.run_folder.checkpoints, self.config.keep_checkpoints
            save_checkpoint(folder, num_steps, self.state, self._fixed(), keep=keep)
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


def _next_step(steps: Any) -> tuple[LoadedStep | None, TeacherError | None]:
    """The next batch, or why no teacher and no ledger answers any more."""
    try:
        return next(steps), None
    except TeacherError as error:
        return None, error
