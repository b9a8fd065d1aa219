"""The training loop of one worker. Needs no Ray: launch.py calls it in each Ray Train worker, or in this process.

load newest checkpoint -> steps -> (end of epoch: validation, schedule, checkpoint) -> evaluation -> result.json
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from data.store import ClipStore
from teacher_server.errors import TeacherUnavailable
from teacher_server.zoo.network import VideoNetwork
from trainer.checkpoint import (
    TimelineEntry,
    Totals,
    TrainingState,
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
from trainer.log import MetricSink, RunLog, rounded
from trainer.plan import Plan, student_input
from trainer.runs import RunFolder
from trainer.sampler import Sampler, split_rows
from trainer.step import train_step


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

    teacher: makes the signal for steps from `first` on, or None for scratch. should_stop: polled after each step.
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
        self.state = _new_state(self.config, self.device)
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

    def _train(self, first: int) -> Outcome:
        stop = self.sampler.total_steps
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
                    return Outcome("teacher_unavailable", step, str(unavailable or "another worker's teacher is away"))
                assert loaded is not None
                self._one_step(loaded, began)
                stopping = self.collective.any(self.should_stop())
                if self.sampler.ends_epoch(step):
                    self._end_epoch(step)
                if self._is_checkpoint(step) or stopping:
                    self._save(step + 1)
                if stopping and step + 1 < stop:
                    return Outcome("stopped", step + 1, "stopped on request")
        return Outcome("finished", stop)

    def _one_step(self, loaded: LoadedStep, began: float) -> None:
        if self.config.schedule == "cosine":
            _set_lr(self.state.optimizer, cosine_lr(self.config, loaded.step, self.sampler.total_steps))
        numbers = train_step(self.state.network, self.state.optimizer, loaded.batch, self.config, self.collective)
        if not math.isfinite(numbers.loss):  # of the global batch: all workers see it
            raise Diverged(loaded.step + 1)
        seconds = time.perf_counter() - began
        clips = 3 * int(self.collective.sum(torch.tensor([loaded.views.num_items]))[0])
        totals = self.state.totals
        totals.seconds += seconds
        totals.teacher_wait_s += loaded.teacher_wait_s
        totals.clips += clips
        totals.epoch_steps += 1
        totals.epoch_loss += numbers.loss
        totals.epoch_pretext_acc += numbers.pretext_acc
        self._note_binding(loaded)
        self._log_views(loaded)
        if self.log is None:
            return
        binding = loaded.binding
        self.log.record(
            "step",
            loaded.step + 1,
            {
                "epoch": self.sampler.epoch_of(loaded.step),
                "lr": self.state.optimizer.param_groups[0]["lr"],
                **rounded(numbers),
                "seconds": round(seconds, 6),
                "data_s": round(loaded.data_s, 6),
                "teacher_wait_s": round(loaded.teacher_wait_s, 6),
                "compute_s": round(seconds - loaded.data_s - loaded.teacher_wait_s, 6),
                "clips": clips,
                "teacher": None if binding is None else str(binding.teacher),
            },
        )

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

    def _save(self, num_steps: int) -> None:
        self.collective.same_buffers(self.state.network)
        if self.collective.rank == 0:
            save_checkpoint(self.run_folder.checkpoints, num_steps, self.state, self._fixed())

    def _fixed(self) -> dict[str, Any]:
        """What a resume must find equal for its numbers to be the same."""
        return {
            "workers": self.collective.world,
            "threads": self.config.threads,
            "device": self.device.type,
            "store_fingerprint": self.store.fingerprint,
            "settings": self.config.identity(),
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
            for name in ("pretext_acc", "pretext_balanced_acc", "retrieval_top1", "retrieval_top5", "probe_acc"):
                result[name] = getattr(evaluation, name)
        self.run_folder.write_json(self.run_folder.result, result)

    def _poll_stop(self, _phase: str, _done: int, _total: int) -> None:
        if self.should_stop():
            raise Stopped

    def _summary(self, num_steps: int) -> dict[str, Any]:
        totals = self.state.totals
        return {
            "run": self.run_folder.run_id,
            "teacher": self.config.teacher,
            "student": self.config.student,
            "pretext_acc": None,
            "pretext_balanced_acc": None,
            "retrieval_top1": None,
            "retrieval_top5": None,
            "probe_acc": None,
            "steps": num_steps,
            "epochs": self.sampler.total_epochs,
            "seconds": round(totals.seconds, 3),
            "clips_per_second": round(totals.clips / totals.seconds, 3) if totals.seconds else 0.0,
            "teacher_wait_share": round(totals.teacher_wait_s / totals.seconds, 6) if totals.seconds else 0.0,
            "teacher_timeline": [dataclasses.asdict(entry) for entry in self.state.timeline],
            "store_fingerprint": self.store.fingerprint,
            "seed": self.config.seed,
            "view_seed": self.config.view_seed,
            "num_videos": {
                "train": len(self.train_rows),
                "validation": len(self.val_rows),
                "test": len(self.test_rows),
                "left_out": self.left_out,
            },
        }


def _new_state(config: RunConfig, device: torch.device) -> TrainingState:
    network = VideoNetwork(config.student, config.width, projector=config.contrast).train()
    network.to(device=device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = SGD(network.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    schedule = ReduceLROnPlateau(
        optimizer, factor=config.plateau_factor, patience=config.plateau_patience, min_lr=config.min_lr
    )
    return TrainingState(network, optimizer, schedule, Totals(), [])


def cosine_lr(config: RunConfig, step: int, total_steps: int) -> float:
    """The learning rate of a step (from 0): half a cosine from lr to min_lr (Loshchilov and Hutter 2017)."""
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * step / total_steps)) / 2


def _set_lr(optimizer: SGD, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def _next_step(steps: Any) -> tuple[LoadedStep | None, TeacherUnavailable | None]:
    """The next batch, or the error that says that no teacher came back in time."""
    try:
        return next(steps), None
    except TeacherUnavailable as error:
        return None, error
