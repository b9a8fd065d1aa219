"""The teacher app on Ray Serve: is it there, is there room for it, deploy it, delete it. Called by the roster only."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.schema import ApplicationStatus

from data.errors import DataError
from teacher_server.clients.serve import APP_NAME, app_key_of
from teacher_server.contract import MAX_QUEUED_CLIPS
from teacher_server.errors import BadQuery, NoCapacity, TeacherError, TeacherUnavailable
from teacher_server.promotion import GateReport
from teacher_server.protocol import TeacherId, TeacherQuery, TeacherReply
from teacher_server.serve.replica_state import ReplicaState
from teacher_server.serve.scaling import QUEUED_CLIPS

POLL_S = 0.1
CAPACITY_TIMEOUT_S = 10.0  # what another job has just given back shows after some seconds
_UPSCALE_DELAY_S = 5.0
_DOWNSCALE_DELAY_S = 120.0  # a replica takes seconds to start, so it is not given up for a short lull
_LOOK_BACK_S = 15.0  # longer than the 10 s after which replicas report


@dataclass(frozen=True)
class DeployOptions:
    """What one replica gets, and how many there are.

    max_queued_clips: clips that one replica accepts at a time. memory_budget_mb: MiB of weights that it may hold.
    max_replicas: 0 for a fixed number; otherwise Serve starts and ends replicas so that about target_queued_clips wait
    at each, never fewer than num_replicas. A replica that is ended answers what it has accepted first.
    """

    num_replicas: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    max_queued_clips: int = MAX_QUEUED_CLIPS
    max_replicas: int = 0
    target_queued_clips: int = 192
    memory_budget_mb: int = 2048

    def __post_init__(self) -> None:
        if self.max_replicas and not 1 <= self.num_replicas <= self.max_replicas:
            raise BadQuery(f"between {self.num_replicas} and {self.max_replicas} replicas there is no number to choose")
        if self.target_queued_clips < 1 or self.memory_budget_mb < 1:
            raise BadQuery(
                f"target_queued_clips and memory_budget_mb must be at least 1, got {self.target_queued_clips} and "
                f"{self.memory_budget_mb}"
            )


class TeacherReplica:
    """What Serve runs: teacher_server.serve.replica.Replica, imported only there. The roster deploys this class and
    needs no torch for it, which saves seconds at every start of a run."""

    def __init__(self, library_root: str, options: DeployOptions) -> None:
        from teacher_server.serve.replica import Replica
        from teacher_server.serve.roster_actor import roster_handle

        # A config file deploys this without a roster. It notes in the library that an app runs here, which is how
        # operators' commands find it.
        roster_handle(Path(library_root).resolve())
        self._replica = Replica(
            library_root,
            app_key=app_key(),
            num_threads=max(1, int(options.num_cpus)),
            device="cuda" if options.num_gpus > 0 else "cpu",
            max_queued_clips=options.max_queued_clips,
            budget_bytes=options.memory_budget_mb * 2**20,
        )
        # What was imported stays. Walking over it, as Python does now and then, takes a tenth of a second and more, in
        # which no question is answered. A teacher that is evicted needs no collection to be gone.
        gc.collect()
        gc.freeze()

    async def reconfigure(self, user_config: object) -> None:
        """`user_config` of a Serve config file: {aliases: [name@version, ...]}, the initial state only. Serve calls
        this before the replica is ready, and again when the file is deployed with another one."""
        await self._replica.begin_with(initial_aliases(user_config))

    async def infer(self, query: TeacherQuery) -> TeacherReply | TeacherError | DataError:
        """As Replica.infer."""
        return await self._replica.infer(query)

    async def prepare(self, teacher: TeacherId) -> str:
        """As Replica.prepare."""
        return await self._replica.prepare(teacher)

    async def evict(self, teacher: TeacherId, *, keep_out: bool) -> bool:
        """As Replica.evict."""
        return await self._replica.evict(teacher, keep_out=keep_out)

    async def compare(self, old: TeacherId, new: TeacherId, items: int, limit_s: float) -> GateReport:
        """As Replica.compare."""
        return await self._replica.compare(old, new, items, limit_s)

    async def describe(self) -> ReplicaState:
        """As Replica.describe."""
        return await self._replica.describe()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve asks for this again and again; see teacher_server.serve.scaling."""
        return {QUEUED_CLIPS: float(self._replica.queued_clips)}

    def check_health(self) -> None:
        """As Replica.check_health."""
        self._replica.check_health()


def initial_aliases(user_config: object) -> list[TeacherId]:
    """The teachers of {aliases: [name@version, ...]}. Raises BadQuery for anything else."""
    expected = "user_config takes {aliases: [name@version, ...]}, no name twice"
    if not isinstance(user_config, dict) or set(user_config) != {"aliases"}:
        raise BadQuery(f"{expected}, got {user_config!r}")
    if not isinstance(aliases := user_config["aliases"], list) or not all(isinstance(each, str) for each in aliases):
        raise BadQuery(f"{expected}, got {aliases!r}")
    teachers = [TeacherId.parse(each) for each in aliases]
    if len({teacher.name for teacher in teachers}) < len(teachers):
        raise BadQuery(f"{expected}, got {aliases!r}")
    return teachers


def app_status() -> ApplicationStatus:
    """NOT_STARTED when Serve does not run or knows no teacher app."""
    app = serve.status().applications.get(APP_NAME)
    return ApplicationStatus.NOT_STARTED if app is None else app.status


def app_key() -> str:
    """As clients.serve.app_key_of, for this cluster. Raises TeacherUnavailable."""
    for node in ray.nodes():
        if "node:__internal_head__" in node["Resources"]:
            return app_key_of(node["NodeID"])
    raise TeacherUnavailable("roster", 0.0, "this cluster lists no head node")


def is_deployed(status: ApplicationStatus) -> bool:
    """Whether there is an app to adopt: one that serves, starts, or replaces a replica that died."""
    return status in (ApplicationStatus.RUNNING, ApplicationStatus.DEPLOYING, ApplicationStatus.UNHEALTHY)


def deploy_app(library_root: str, options: DeployOptions) -> None:
    """Asks Serve for the app and returns at once; wait_until_running tells how it went."""
    serve.start(proxy_location="Disabled")  # no HTTP from here; a Serve that runs already is left as it is
    application = teacher_deployment(options).bind(library_root, options)
    target = serve.RunTarget(target=application, name=APP_NAME, route_prefix=None)
    serve.run_many([target], wait_for_ingress_deployment_creation=True, wait_for_applications_running=False)


def delete_app() -> None:
    """Deletes the app and waits until it is gone; nothing happens when there is none. Raises TimeoutError."""
    if app_status() != ApplicationStatus.NOT_STARTED:
        serve.delete(APP_NAME)


def wait_until_running(teacher: TeacherId, deadline: float) -> None:
    """Returns once the app serves. deadline: a reading of time.monotonic. Raises TeacherUnavailable, with Serve's own
    words when the deployment failed."""
    while (status := app_status()) != ApplicationStatus.RUNNING:
        if status == ApplicationStatus.DEPLOY_FAILED:
            raise TeacherUnavailable(str(teacher), 0.0, f"the service could not be deployed: {_failure()}")
        if time.monotonic() > deadline:
            raise TeacherUnavailable(str(teacher), 0.0, f"the service was not ready in time, it is {status.value}")
        time.sleep(POLL_S)


def wait_until_deleted(teacher: TeacherId, deadline: float) -> None:
    """Returns once no app is being deleted any more."""
    while app_status() == ApplicationStatus.DELETING:
        if time.monotonic() > deadline:
            raise TeacherUnavailable(str(teacher), 0.0, "the former service has not ended yet")
        time.sleep(POLL_S)


def wait_for_capacity(options: DeployOptions, timeout_s: float = CAPACITY_TIMEOUT_S) -> None:
    """Returns when the cluster has room for the replicas. Raises NoCapacity with one sentence, at once when no node
    is large enough: without this check Serve would wait for ever."""
    deadline = time.monotonic() + timeout_s
    for kind, each in (("CPU", options.num_cpus), ("GPU", options.num_gpus)):
        sizes = [node["Resources"].get(kind, 0.0) for node in ray.nodes() if node["Alive"]]
        needs = f"the teacher service needs {options.num_replicas} x {each:g} {kind}"
        if each > max(sizes):
            raise NoCapacity(f"{needs}, the largest node of the cluster has {max(sizes):g}: ask for less")
        while each * options.num_replicas > (free := ray.available_resources().get(kind, 0.0)) + 1e-6:
            if time.monotonic() > deadline:
                raise NoCapacity(
                    f"{needs}, {free:g} of the cluster's {sum(sizes):g} are free: ask for less, or wait for other jobs"
                )
            time.sleep(POLL_S)


def teacher_deployment(options: DeployOptions) -> Any:
    """The deployment, for the roster and for Serve config files.

    Every request holds at least one clip, so a replica's own limit in clips is reached before max_ongoing_requests:
    refusals are typed and come at once. max_queued_requests is for when no replica lives. A user_config makes
    aliases that do not exist yet and moves none: later changes are prepared and committed, for which it has no barrier.
    """
    number = (
        {"autoscaling_config": _autoscaling(options)}
        if options.max_replicas
        else {"num_replicas": options.num_replicas}
    )
    decorate = serve.deployment(
        name="TeacherReplica",
        **number,
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        max_ongoing_requests=options.max_queued_clips,
        max_queued_requests=256,
        health_check_period_s=2,
        health_check_timeout_s=20,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=10,
        max_constructor_retry_count=3,
        max_surge_percent=100,
        logging_config={"enable_access_log": False},
    )
    return decorate(TeacherReplica)


def _autoscaling(options: DeployOptions) -> AutoscalingConfig:
    return AutoscalingConfig(
        min_replicas=options.num_replicas,
        initial_replicas=options.num_replicas,
        max_replicas=options.max_replicas,
        upscale_delay_s=_UPSCALE_DELAY_S,
        downscale_delay_s=_DOWNSCALE_DELAY_S,
        look_back_period_s=_LOOK_BACK_S,
        policy=AutoscalingPolicy(
            policy_function="teacher_server.serve.scaling:ScaleByQueuedClips",
            policy_kwargs={"target_queued_clips": options.target_queued_clips},
        ),
    )


def _failure() -> str:
    app = serve.status().applications.get(APP_NAME)
    return "it is gone" if app is None else " ".join(app.message.split())[:500]
