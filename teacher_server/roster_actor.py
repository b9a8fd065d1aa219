"""The roster as one named, detached actor of the cluster: the only one that deploys or deletes the teacher app.

Methods that touch the app take turns (`_turn`), so twenty runs that start at once get one app. The others only read or
write the roster file, and are never held up by a deployment. Everything that blocks runs in threads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import TypeVar

import ray
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from teacher_server import app
from teacher_server.app import DeployOptions
from teacher_server.client import APP_NAME
from teacher_server.contract import Acquired
from teacher_server.errors import LibraryError, TeacherError, TeacherUnavailable
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import Binding, TeacherId, TeacherRef
from teacher_server.replica_state import ReplicaState
from teacher_server.roster import Roster

ROSTER_NAME = "preceptor-roster"
NAMESPACE = "preceptor"
SWEEP_PERIOD_S = 15.0

_Result = TypeVar("_Result")
logger = logging.getLogger(__name__)


class RosterActor:
    """Leases, timelines and aliases of one library, and the life of the app. See `Roster` for what is durable."""

    async def __init__(self, library_root: str) -> None:  # type: ignore[misc]  # Ray awaits it
        self._library_root = library_root
        self._roster = Roster(TeacherLibrary(Path(library_root)))
        self._app_key = f"{_cluster_id()}/{APP_NAME}"
        self._turn = asyncio.Lock()
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep_for_ever())

    async def library_root(self) -> str:
        """Which library this roster writes for."""
        return self._library_root

    async def acquire(self, run: str, ref: TeacherRef, options: DeployOptions, timeout_s: float) -> Acquired:
        """Gives the run a lease on the app, which is deployed first if need be, and waits until all replicas have
        loaded the teacher. When that fails nothing is left behind."""
        deadline = time.monotonic() + timeout_s
        async with self._turn:
            return await asyncio.to_thread(self._acquire, run, ref, options, deadline)

    async def release(self, run: str) -> None:
        """Ends the run's lease; the last one deletes an app that a run started."""
        async with self._turn:
            await asyncio.to_thread(self._release, run)

    async def deploy(self, options: DeployOptions, timeout_s: float) -> None:
        """An operator's app: no run ends it. Adopts one that runs already."""
        async with self._turn:
            await asyncio.to_thread(self._deploy_for_operator, options, time.monotonic() + timeout_s)

    async def delete(self) -> None:
        """An operator ends the app, whoever uses it."""
        async with self._turn:
            await asyncio.to_thread(app.delete_app)

    async def promote(self, name: str, version: int, who: str, timeout_s: float) -> TeacherId:
        """Replicas load the version first; if one cannot, nothing changes."""
        async with self._turn:
            return await asyncio.to_thread(self._promote, name, version, who, time.monotonic() + timeout_s)

    async def sweep(self) -> list[str]:
        """Releases the runs whose leases ran out, and returns them."""
        async with self._turn:
            return await asyncio.to_thread(self._sweep)

    async def bind(self, run: str, ref: TeacherRef, block: int) -> Binding:
        """As Roster.bind."""
        return await asyncio.to_thread(self._roster.bind, run, ref, block)

    async def timeline(self, run: str) -> list[Binding]:
        """As Roster.timeline."""
        return await asyncio.to_thread(self._roster.timeline, run)

    async def renew(self, run: str) -> bool:
        """As Roster.renew."""
        return await asyncio.to_thread(self._roster.renew, run)

    async def aliases(self) -> dict[str, TeacherId]:
        """As Roster.aliases."""
        return await asyncio.to_thread(self._roster.aliases)

    async def describe(self, timeout_s: float) -> list[ReplicaState]:
        """The state of every running replica; empty when no app runs."""
        return await asyncio.to_thread(self._describe, timeout_s)

    def _acquire(self, run: str, ref: TeacherRef, options: DeployOptions, deadline: float) -> Acquired:
        binding = self._roster.preview(run, ref)
        app.wait_until_deleted(binding.teacher, deadline)
        adopted = app.is_deployed(app.app_status())
        self._roster.acquire(run, self._app_key, binding.teacher, deploying=not adopted)
        try:
            self._ensure_app(binding.teacher, options, deadline)
            self._load(binding, deadline)
        except BaseException:
            self._release(run)
            raise
        return Acquired(binding, adopted)

    def _ensure_app(self, teacher: TeacherId, options: DeployOptions, deadline: float) -> None:
        if not app.is_deployed(app.app_status()):
            app.wait_for_capacity(options, min(app.CAPACITY_TIMEOUT_S, deadline - time.monotonic()))
            app.deploy_app(self._library_root, options)
        app.wait_until_running(teacher, deadline)

    def _load(self, binding: Binding, deadline: float) -> None:
        digests = app.load_everywhere(binding.teacher, deadline)
        if digests != {binding.digest}:
            raise LibraryError(
                self._library_root,
                f"{binding.teacher} has digest {binding.digest[:12]} here, replicas serve it as "
                f"{', '.join(sorted(digest[:12] for digest in digests))}: they have other files; end that service, "
                "or put the old files back",
            )

    def _release(self, run: str) -> None:
        """The app goes before its last lease: after a crash in between, the lease runs out and it is tried again."""
        leases = self._roster.leases(self._app_key)
        lease = leases.get(run)
        if lease is not None and lease.started_by_run and len(leases) == 1:
            app.delete_app()
        self._roster.release(run)

    def _deploy_for_operator(self, options: DeployOptions, deadline: float) -> None:
        anybody = TeacherId("service", 1)
        app.wait_until_deleted(anybody, deadline)
        self._roster.hand_to_operator(self._app_key)
        self._ensure_app(anybody, options, deadline)

    def _promote(self, name: str, version: int, who: str, deadline: float) -> TeacherId:
        teacher = self._roster.check_promotion(name, version)
        if app.is_deployed(app.app_status()):
            app.load_everywhere(teacher, deadline)
        return self._roster.promote(name, version, who)

    def _sweep(self) -> list[str]:
        runs = self._roster.expired(self._app_key)
        for run in runs:
            logger.warning("run %s has not renewed its lease: released", run)
            self._release(run)
        return runs

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_PERIOD_S)
            try:
                await self.sweep()
            except (TeacherError, RayError, RayServeException, OSError) as error:
                logger.error("sweeping leases failed, it will be tried again: %s", error)  # there is nobody to tell

    def _describe(self, timeout_s: float) -> list[ReplicaState]:
        return app.describe_replicas(timeout_s) if app.is_deployed(app.app_status()) else []


def roster_handle(library_root: Path) -> ray.actor.ActorHandle:
    """The cluster's roster actor, started if there is none. It restarts by itself and goes on from the file."""
    actor = ray.remote(RosterActor).options(
        name=ROSTER_NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
    )
    return actor.remote(str(library_root))


def _cluster_id() -> str:
    """Tells apart the clusters that share a roster file: the id of the head node."""
    for node in ray.nodes():
        if "node:__internal_head__" in node["Resources"]:
            return str(node["NodeID"])
    raise TeacherUnavailable("roster", 0.0, "this cluster lists no head node")
