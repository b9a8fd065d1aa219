"""The roster as one named, detached actor of the cluster: the only one that deploys or deletes the teacher app.

Methods that touch the app take turns (`_turn`), so twenty runs that start at once get one app; promotions take turns
among themselves (`_moving`), because they may take long. The others only read or write the roster file, and are never
held up by either. Everything that blocks runs in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from teacher_server.contract import Acquired
from teacher_server.errors import TeacherError, UnknownTeacher
from teacher_server.library import TeacherLibrary
from teacher_server.promotion import AliasRequest, GateFloors, Promotion
from teacher_server.protocol import Binding, TeacherId, TeacherRef
from teacher_server.roster.roster import Roster
from teacher_server.serve import app
from teacher_server.serve.app import DeployOptions
from teacher_server.serve.metrics import RosterMetrics
from teacher_server.serve.promoter import Promoter, check_digests
from teacher_server.serve.replica_state import ReplicaState
from teacher_server.serve.replicas import ServeReplicas
from teacher_server.serve.turns import turn_of

ROSTER_NAME = "preceptor-roster"
NAMESPACE = "preceptor"
SWEEP_PERIOD_S = 15.0

logger = logging.getLogger(__name__)


class RosterActor:
    """Leases, timelines and aliases of one library, and the life of the app. See `Roster` for what is durable."""

    async def __init__(self, library_root: str) -> None:  # type: ignore[misc]  # Ray awaits it
        self._library_root = library_root
        self._roster = Roster(TeacherLibrary(Path(library_root)))
        self._app_key = app.app_key()
        self._address = ray.get_runtime_context().gcs_address
        self._replicas = ServeReplicas(library_root)
        self._promoter = Promoter(self._roster, self._app_key, self._replicas)
        self._metrics = RosterMetrics()
        self._turn = asyncio.Lock()
        self._moving = asyncio.Lock()
        # A promotion that was under way when the former actor died. A damaged file is reported by every call.
        with contextlib.suppress(TeacherError, OSError):
            await asyncio.to_thread(self._roster.abort_all, self._app_key)
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep_for_ever())

    async def library_root(self) -> str:
        """Which library this roster writes for."""
        return self._library_root

    async def acquire(self, run: str, ref: TeacherRef, options: DeployOptions, timeout_s: float) -> Acquired:
        """Gives the run a lease on the app, which is deployed first if need be, and waits until all replicas have
        loaded the teacher. When that fails nothing is left behind."""
        deadline = time.monotonic() + timeout_s
        async with turn_of(self._turn, str(ref), deadline):
            return await asyncio.to_thread(self._acquire, run, ref, options, deadline)

    async def release(self, run: str) -> None:
        """Ends the run's lease; the last one deletes an app that a run started."""
        async with self._turn:
            await asyncio.to_thread(self._release, run)

    async def deploy(self, options: DeployOptions, timeout_s: float) -> bool:
        """An operator's app: no run ends it. True when one ran already, which is adopted as it is."""
        deadline = time.monotonic() + timeout_s
        async with turn_of(self._turn, "service", deadline):
            return await asyncio.to_thread(self._deploy_for_operator, options, deadline)

    async def delete(self) -> None:
        """An operator ends the app, whoever uses it."""
        async with self._turn:
            await asyncio.to_thread(self._delete_app)

    async def promote(self, request: AliasRequest, floors: GateFloors, timeout_s: float) -> Promotion:
        """As Promoter.move; a rollback too."""
        deadline = time.monotonic() + timeout_s
        outcome = "failed"
        try:
            async with turn_of(self._moving, request.name, deadline):
                promotion = await asyncio.to_thread(self._promoter.move, request, floors, deadline)
            outcome = "ok"
        except TeacherError as error:
            outcome = type(error).__name__
            raise
        finally:
            self._metrics.promotion(outcome)
        logger.info("%s: %s points to %s", request.who, request.name, promotion.teacher)
        return promotion

    async def evict(self, teacher: TeacherId, who: str, timeout_s: float) -> int:
        """Unloads a version on all replicas, unless somebody needs it; how many held it. Nobody comes to need it
        meanwhile: neither a promotion nor a new run."""
        deadline = time.monotonic() + timeout_s
        async with turn_of(self._moving, str(teacher), deadline), turn_of(self._turn, str(teacher), deadline):
            held = await asyncio.to_thread(self._evict, teacher, deadline)
        logger.info("%s: %s evicted from %d replicas", who, teacher, held)
        return held

    async def sweep(self) -> list[str]:
        """Releases the runs whose leases ran out, and returns them. What a promotion left pending that could not be
        taken back, because the disk was full, is taken back."""
        if not self._moving.locked():
            async with self._moving:
                await asyncio.to_thread(self._abort_left)
        async with self._turn:
            return await asyncio.to_thread(self._sweep)

    async def bind(self, run: str, ref: TeacherRef, block: int) -> Binding:
        """As Roster.bind."""
        return await asyncio.to_thread(self._roster.bind, run, ref, block)

    async def restore(self, run: str, bindings: Sequence[Binding], highest_block: int) -> None:
        """As Roster.restore."""
        await asyncio.to_thread(self._roster.restore, run, bindings, highest_block)

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
        self._roster.acquire(run, self._app_key, binding.teacher, deploying=not adopted, cluster_address=self._address)
        try:
            self._ensure_app(binding.teacher, options, deadline)
            digests = self._replicas.load(binding.teacher, deadline)
            check_digests(self._roster, binding.teacher, binding.digest, digests)
        except BaseException:
            self._release(run)
            raise
        return Acquired(binding, adopted)

    def _ensure_app(self, teacher: TeacherId, options: DeployOptions, deadline: float) -> None:
        if not app.is_deployed(app.app_status()):
            app.wait_for_capacity(options, min(app.CAPACITY_TIMEOUT_S, deadline - time.monotonic()))
            app.deploy_app(self._library_root, options)
        app.wait_until_running(teacher, deadline)
        self._roster.note_app(self._app_key, self._address)

    def _release(self, run: str, *, only_expired: bool = False) -> bool:
        """Whether a lease ended. only_expired: one that was renewed meanwhile stays.

        The app goes before its last lease: after a crash in between, the lease runs out and it is tried again. Then
        the lease goes too, renewed or not: the run must acquire again, and gets another app.
        """
        if only_expired and run not in self._roster.expired(self._app_key):
            return False
        leases = self._roster.leases(self._app_key)
        lease = leases.get(run)
        if lease is not None and lease.started_by_run and len(leases) == 1:
            self._delete_app()
            only_expired = False
        return self._roster.release(run, only_expired=only_expired) is not None

    def _delete_app(self) -> None:
        app.delete_app()
        self._roster.forget_app(self._app_key)

    def _deploy_for_operator(self, options: DeployOptions, deadline: float) -> bool:
        anybody = TeacherId("service", 1)
        app.wait_until_deleted(anybody, deadline)
        adopted = app.is_deployed(app.app_status())
        self._roster.hand_to_operator(self._app_key)
        self._ensure_app(anybody, options, deadline)
        return adopted

    def _evict(self, teacher: TeacherId, deadline: float) -> int:
        self._roster.check_unused(teacher)
        known = self._roster.library.versions(teacher.name)
        # One whose files are gone may be held still. What is not there is not kept out: it may be imported later.
        is_known = teacher.version in known
        held = self._replicas.evict(teacher, deadline, keep_out=is_known) if self._replicas.is_deployed() else 0
        if not held and not is_known:
            raise UnknownTeacher(str(teacher), tuple(f"{teacher.name}@{version}" for version in known))
        return held

    def _abort_left(self) -> None:
        if self._roster.state().pending:
            self._roster.abort_all(self._app_key)

    def _sweep(self) -> list[str]:
        runs = [run for run in self._roster.expired(self._app_key) if self._release(run, only_expired=True)]
        for run in runs:
            logger.warning("run %s has not renewed its lease: released", run)
        if self._replicas.is_deployed():
            self._roster.note_app(self._app_key, self._address)
        else:
            self._roster.forget_app(self._app_key)
        return runs

    async def _sweep_for_ever(self) -> None:
        while True:
            try:
                await self.sweep()
            except (TeacherError, RayError, RayServeException, OSError) as error:
                logger.error("sweeping leases failed, it will be tried again: %s", error)  # there is nobody to tell
            await asyncio.sleep(SWEEP_PERIOD_S)

    def _describe(self, timeout_s: float) -> list[ReplicaState]:
        return self._replicas.describe(time.monotonic() + timeout_s) if self._replicas.is_deployed() else []


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
