"""The training of one job in this process: begun, gone on with from its newest checkpoint, or read back when finished.

RunConfig ──► run folder ──► Trainer, with the teacher's signal and an AnswerRecorder ──► Trained
                                        └── in mode serve under a lease on the one service
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from teacher_server.serve.deployment import DeployOptions, TeacherService
from trainer.checkpoint import BEST
from trainer.collective import Collective
from trainer.config import ConfigError, RunConfig
from trainer.errors import TrainingFailed
from trainer.lease import TeacherLease
from trainer.loop import Outcome, Trainer
from trainer.paper.stages import AnswerRecorder, EpochAnswers, chosen_points, read_points, step_seconds
from trainer.paper.teachers import Training
from trainer.paper.work import Workshop
from trainer.plan import Plan, make_plan
from trainer.report_data import Metrics, read_metrics
from trainer.runs import RunFolder, choose_run, identity_of
from trainer.signals import SignalMaker
from trainer.student_files import LoadedStudent, load_student
from trainer.teaching import BoundTeacher

_ANSWERS = "test"


class Stopped(Exception):
    """The user asked for an end; what was done is saved."""


@dataclass(frozen=True)
class Trained:
    """A finished run, read back."""

    run: RunFolder
    plan: Plan
    metrics: Metrics
    points: tuple[EpochAnswers, ...]

    @property
    def num_epochs(self) -> int:
        """Epochs that were trained."""
        return int(self.metrics.epochs[-1]["epoch"]) + 1

    def student(self) -> LoadedStudent:
        """The network that validation prefers: the one of stage late."""
        return load_student(self.run.checkpoints / BEST)

    @property
    def num_steps(self) -> int:
        """Steps that were trained."""
        return int(self.metrics.steps[-1]["step"])

    def as_teacher(self) -> tuple[LoadedStudent, Training]:
        """What the library and the record of a teacher need."""
        training = Training(
            test_acc=chosen_points(self.points, self.num_epochs)[-1].accuracy,
            seconds=self.num_steps * step_seconds(self.metrics),
            epochs=self.num_epochs,
            steps=self.num_steps,
            num_train=self.plan.num_train,
        )
        return self.student(), training


def train(shop: Workshop, config: RunConfig, job_id: str) -> Trained:
    """Trains what is left of a run. Raises Stopped, TrainingFailed, ConfigError for a run of other settings."""
    plan = make_plan(dataclasses.replace(config, run_id=job_id))
    run = RunFolder(shop.runs / job_id)
    if run.is_finished:
        if identity_of(run) != plan.identity:
            raise ConfigError(f"run {run.path} was trained with other settings: remove that folder to train it again")
    else:
        shop.runs.mkdir(parents=True, exist_ok=True)
        if run.path.is_dir() and not run.config.is_file():  # killed between the two
            shutil.rmtree(run.path)
        run = choose_run(shop.runs, plan.config, plan.identity)
        with run.locked():
            outcome = _attempt(shop, plan, run)
        if outcome.status == "stopped":
            raise Stopped
        if outcome.status != "finished":
            raise TrainingFailed(f"{outcome.status.replace('_', ' ')}: {outcome.reason}")
    return Trained(run, plan, read_metrics(run.metrics), read_points(run.path / _ANSWERS))


def _attempt(shop: Workshop, plan: Plan, run: RunFolder) -> Outcome:
    recorder = AnswerRecorder(run.path / _ANSWERS, shop.scale.curve_points)
    with teacher_signal(shop, plan, run) as signal:
        trainer = Trainer(
            plan,
            run,
            collective=Collective(),
            teacher=signal,
            should_stop=shop.stop_request.exists,
            sink=recorder,
        )
        recorder.watch(trainer)
        return trainer.run()


def deploy_options(shop: Workshop) -> DeployOptions:
    """Of the one teacher service."""
    return DeployOptions(num_gpus=shop.teacher_gpus, memory_budget_mb=shop.teacher_memory_mb)


@contextlib.contextmanager
def teacher_signal(shop: Workshop, plan: Plan, run: RunFolder) -> Iterator[BoundTeacher | None]:
    """The teacher for the time of a run, with a lease on it where it is served; None for scratch."""
    run_id = f"{shop.name}-{run.run_id}"
    with contextlib.ExitStack() as stack:
        if plan.config.asks_service:
            ref, options = plan.lease_ref, deploy_options(shop)
            lease = TeacherLease(
                lambda: TeacherService.connect(plan.library_root),
                run_id,
                ref,
                lambda service: service.acquire(run_id, ref, options),
            )
            stack.enter_context(lease)
            lease.wait()
            stack.callback(lease.release)
        signal = SignalMaker(plan, run_id, shop.input_kind, token=None).make()
        if signal is not None:
            stack.callback(signal.close)
        yield signal
