"""Starts a run: cluster, teacher service, Ray Train workers; watches it, and ends it cleanly.

    main thread: ray.init -> teachers -> [fit() in a thread] -> follow metrics.jsonl until outcome.json -> fit() returns
    Ctrl-C / SIGTERM: the file `stop` appears in the run's folder; the workers save after their step and end.

The only module that imports ray.train.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray._private.state
import ray._private.worker
import ray.train
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from teacher_server.clients.http import HttpRunControl
from teacher_server.clients.serve import app_key_of
from teacher_server.errors import TeacherError
from teacher_server.library import TeacherLibrary
from teacher_server.roster.roster import Roster
from teacher_server.serve.deployment import DeployOptions, TeacherService
from trainer.checkpoint import newest_step
from trainer.cluster import Cluster, check_free, connected
from trainer.collective import Collective
from trainer.config import RunConfig
from trainer.errors import TrainingFailed
from trainer.lease import TeacherLease
from trainer.loop import Outcome, Trainer
from trainer.metrics import StudentMetrics
from trainer.plan import Plan
from trainer.progress import Progress
from trainer.runs import RunFolder
from trainer.signals import SignalMaker, token_from_environment
from trainer.stopping import stop_on_signals
from trainer.teaching import InputKind

_POLL_S = 0.2
_STOP_LIMIT_S = 120.0  # after a stop was asked for: longer than any step and checkpoint; a second Ctrl-C ends at once
_FIT_RETURN_S = 15.0  # measured: 1 to 4.5 s after the last worker's function
_WORKER_RESTARTS = 3


@dataclass(frozen=True)
class _Job:
    """What each worker is told; crosses to the Ray Train workers. token: of the gateway, kept out of every log."""

    plan: Plan
    run_path: Path
    input_kind: InputKind
    token: str | None = dataclasses.field(default=None, repr=False)


def launch(plan: Plan, run: RunFolder, progress: Progress) -> Outcome:
    """Trains until the run is finished, stopped or out of teachers. The caller holds the run's lock."""
    run.outcome.unlink(missing_ok=True)
    run.stop_request.unlink(missing_ok=True)
    config = plan.config
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(_cluster(plan)) if config.num_workers > 0 or config.may_deploy else None
        stack.enter_context(stop_on_signals(run.stop_request))
        input_kind, check = stack.enter_context(_teachers(plan, run, cluster))
        job = _Job(plan, run.path, input_kind, token_from_environment())
        if config.num_workers == 0:
            return _in_this_process(job, progress)
        gpus = config.num_workers if plan.device == "cuda" else 0
        cpus = config.num_workers * config.threads
        check_free(f"a run of {config.num_workers} worker(s)", "--num-workers", CPU=cpus, GPU=gpus)
        return _fit_and_follow(job, run, progress, check)


@contextlib.contextmanager
def _cluster(plan: Plan) -> Iterator[Cluster]:
    """As cluster.connected; takes out of the roster file what a private cluster with teachers leaves in it."""
    private: list[Cluster] = []
    try:
        with connected(plan.config) as cluster:
            private += [cluster] if cluster.private and plan.config.may_deploy else []
            yield cluster
    finally:
        for ended in private:
            _forget_cluster(plan.library_root, ended)


def _forget_cluster(library_root: Path, ended: Cluster) -> None:
    """The app of a cluster that has ended, and its leases: until they run out, a promotion beside another live run
    would find two clusters that serve the library. Fails in silence, because then they run out."""
    app = app_key_of(ended.node_id)  # this process is on the head node of a private cluster
    with contextlib.suppress(TeacherError, OSError):
        roster = Roster(TeacherLibrary(library_root))
        for run_id in roster.leases(app):
            roster.release(run_id)
        roster.forget_app(app)


@contextlib.contextmanager
def _teachers(plan: Plan, run: RunFolder, cluster: Cluster | None) -> Iterator[tuple[InputKind, Callable[[], None]]]:
    """The teacher service for the time of the run, deployed or adopted. Yields what a question carries, and a check
    that raises when the teachers could not be had. cluster: None where the run needs none.

    On a cluster of its own, where nobody else takes the CPUs, teachers and students start at the same time.
    """
    config = plan.config
    if not config.asks_service:
        yield _input_kind(config, all_here=config.ledger != "replay"), lambda: None
        return
    if cluster is None or not config.may_deploy:
        with _gateway_lease(plan, run) as remote:
            remote.wait()
            try:
                yield _input_kind(config, all_here=False), remote.check
            finally:
                remote.release()
        return
    with _service_lease(plan, run) as lease:
        if cluster.private:  # it ends with everything on it, and then its leases are forgotten
            yield _input_kind(config, all_here=config.teacher_gpus == 0), lease.check
            return
        replicas = lease.wait().describe()
        here = bool(replicas) and all(r.node_id == cluster.node_id and r.device == "cpu" for r in replicas)
        try:
            yield _input_kind(config, all_here=here), lease.check
        finally:
            lease.release()


def _service_lease(plan: Plan, run: RunFolder) -> TeacherLease[TeacherService]:
    """On the teachers of this cluster, which are deployed if nobody did so before."""
    config = plan.config
    options = DeployOptions(
        num_replicas=config.teacher_replicas,
        num_cpus=config.teacher_cpus,
        num_gpus=config.teacher_gpus,
        max_replicas=config.teacher_max_replicas,
        memory_budget_mb=config.teacher_memory_mb,
    )
    ref = plan.lease_ref
    return TeacherLease(
        lambda: TeacherService.connect(plan.library_root),
        run.run_id,
        ref,
        lambda service: service.acquire(run.run_id, ref, options),
    )


def _gateway_lease(plan: Plan, run: RunFolder) -> TeacherLease[HttpRunControl]:
    """On the teachers behind the gateway; whether it deploys any is its business."""
    url, token = plan.config.gateway, token_from_environment()
    return TeacherLease(lambda: HttpRunControl(url, token), run.run_id, plan.lease_ref)


def _input_kind(config: RunConfig, *, all_here: bool) -> InputKind:
    """Views, unless all replicas render on this machine's CPUs: then pixels are rendered once and shared."""
    if config.teacher_input != "auto":
        return config.teacher_input
    return "pixels" if all_here else "views"


def _fit_and_follow(job: _Job, run: RunFolder, progress: Progress, check_teachers: Callable[[], None]) -> Outcome:
    """fit() runs in a thread, because under Ctrl-C it would end the workers before they have saved.

    It must have returned before Ray is shut down: a Ray call after that ends the process.
    """
    errors: list[Exception] = []
    fit = threading.Thread(target=_fit, args=(job, errors), name="fit", daemon=True)
    fit.start()
    try:
        outcome = _follow(run, progress, fit, errors, check_teachers)
        if outcome.status != "stopped" or progress.has_steps:
            fit.join(timeout=_FIT_RETURN_S)
        return outcome
    finally:
        _end_fit(fit)


def _follow(
    run: RunFolder,
    progress: Progress,
    fit: threading.Thread,
    errors: list[Exception],
    check_teachers: Callable[[], None],
) -> Outcome:
    """Shows progress until the workers leave an outcome. Raises TrainingFailed when they end without one."""
    asked_at = 0.0
    while True:
        progress.update()
        check_teachers()
        outcome = run.read_outcome()
        if outcome is not None:
            progress.update()
            return Outcome(**outcome)
        if not fit.is_alive():
            reason = _last_line(errors[0]) if errors else "the workers ended without a result"
            raise TrainingFailed(reason)
        if run.stop_request.exists():
            if not progress.has_steps:  # the workers are only starting: there is nothing to save
                return Outcome("stopped", newest_step(run.checkpoints), "stopped before a step was done")
            if not asked_at:
                asked_at = time.monotonic()
                progress.say("stopping after this step; Ctrl-C again ends at once")
            if time.monotonic() - asked_at > _STOP_LIMIT_S:
                raise TrainingFailed("the workers did not save in time; the newest checkpoint is kept")
        fit.join(timeout=_POLL_S)


def _end_fit(fit: threading.Thread) -> None:
    """Ends a fit() that still runs: its controller actor is killed, and fit() raises.

    Ray must not be shut down before. ray.train offers no way to end it from another thread; what is used instead are
    internals of the Ray version that we pin.
    """
    if not fit.is_alive():
        return
    job = ray.get_runtime_context().get_job_id()
    for actor_id, actor in ray._private.state.actors().items():
        if actor["ActorClassName"].endswith("TrainController") and actor["JobID"] == job:
            core_worker = ray._private.worker.global_worker.core_worker
            core_worker.kill_actor(ray.ActorID(bytes.fromhex(actor_id)), True)
    fit.join(timeout=_FIT_RETURN_S)


def _fit(job: _Job, errors: list[Exception]) -> None:
    """The thread's body; the main thread reads `errors`."""
    config = job.plan.config
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=job.plan.device == "cuda",
            resources_per_worker={"CPU": config.threads},
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(job.run_path),
            failure_config=FailureConfig(max_failures=_WORKER_RESTARTS),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # handed to the main thread, which raises
        errors.append(error)


def _train_worker(settings: dict[str, Any]) -> None:
    """The body of one Ray Train worker."""
    job: _Job = settings["job"]
    config = job.plan.config
    context = ray.train.get_context()
    collective = Collective(context.get_world_rank(), context.get_world_size())
    run = RunFolder(job.run_path)
    metrics = StudentMetrics(run.run_id, config.student, config.teacher)
    _train(job, collective, metrics)


def _in_this_process(job: _Job, progress: Progress) -> Outcome:
    """num_workers = 0: the loop in the driver, for debugging and for small jobs without a cluster."""
    return _train(job, Collective(), lambda _record: progress.update())


def _train(job: _Job, collective: Collective, sink: Callable[[Any], None]) -> Outcome:
    """The training loop with its teacher. Rank 0 leaves outcome.json, which the driver waits for."""
    run = RunFolder(job.run_path)
    teacher = SignalMaker(job.plan, run.run_id, job.input_kind, job.token).make()
    try:
        outcome = Trainer(
            job.plan,
            run,
            collective=collective,
            teacher=teacher,
            should_stop=run.stop_request.exists,
            sink=sink,
        ).run()
    finally:
        if teacher is not None:
            teacher.close()
    if collective.rank == 0:
        run.write_json(run.outcome, dataclasses.asdict(outcome))
    return outcome


def _last_line(error: Exception) -> str:
    """The last non-empty line of Ray's long messages is the one that names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
