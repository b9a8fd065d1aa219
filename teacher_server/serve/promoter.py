"""Moving an alias: prepare, gate, commit. Decides; what acts are the roster's file and the replicas.

begin ──► prepare on all replicas ──► all hold it? ──► gate ──► commit      one durable record; nothing else changes
  │            │ one cannot, or dies     │ one lacks it    │ refused
  │            └─────────────────────────┴─────────────────┴──► undo        as if it had never been asked for
  └─ noted durably, so that a replica which starts in the middle loads the version too
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from teacher_server.errors import GateRefused, LibraryError, TeacherError, TeacherInUse, TeacherUnavailable
from teacher_server.promotion import AliasRequest, GateFloors, GateReport, Promotion
from teacher_server.protocol import TeacherId
from teacher_server.roster.roster import Proposal, Roster
from teacher_server.serve.gate import GATE_ITEMS, merge_reports
from teacher_server.serve.replica_state import ReplicaState

RECHECK_S = 5.0
POLL_S = 0.1
UNDO_LIMIT_S = 30.0

logger = logging.getLogger(__name__)


class ReplicaGroup(Protocol):
    """All replicas; see teacher_server.serve.replicas.ServeReplicas. Deadlines are readings of time.monotonic."""

    def is_deployed(self) -> bool: ...
    def prepare(self, teacher: TeacherId, deadline: float) -> set[str]: ...
    def describe(self, deadline: float) -> list[ReplicaState]: ...
    def compare(self, old: TeacherId, new: TeacherId, items: int, deadline: float) -> list[GateReport]: ...
    def evict(self, teacher: TeacherId, deadline: float, *, keep_out: bool) -> int: ...
    def verify(self, teacher: TeacherId, deadline: float) -> str: ...


class Promoter:
    """Moves the aliases of one app, one at a time."""

    def __init__(
        self,
        roster: Roster,
        app_key: str,
        replicas: ReplicaGroup,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._roster = roster
        self._app_key = app_key
        self._replicas = replicas
        self._clock = clock
        self._sleep = sleep

    def move(self, request: AliasRequest, floors: GateFloors, deadline: float) -> Promotion:
        """Points the alias at the version that is asked for, or leaves everything as it was and raises.

        A rollback passes no gate; where no replica runs there is none, and a floor cannot be passed. Asked again with
        the same change_id, or for where the alias points already, it does nothing. Raises as Roster.begin and commit,
        what keeps a replica from loading the version, GateRefused, and TeacherUnavailable when a replica died or the
        deadline has passed: nobody waits for the outcome any more.
        """
        self._check_time(request, deadline)
        proposal = self._roster.begin(request, self._app_key)
        if proposal.settled:
            return Promotion(proposal.teacher, proposal.previous)
        seconds: dict[str, float] = {}
        gate = None
        try:
            deployed = self._replicas.is_deployed()
            with self._timed(seconds, "prepare"):
                self._prepare(proposal, deadline, deployed=deployed)
            if request.version is not None:
                with self._timed(seconds, "gate"):
                    gate = self._gate(proposal, floors, deadline, deployed=deployed)
            with self._timed(seconds, "commit"):
                self._check_time(request, deadline)
                self._roster.commit(proposal)
        except BaseException:
            self._undo(proposal)
            raise
        return Promotion(proposal.teacher, proposal.previous, gate, seconds)

    def _check_time(self, request: AliasRequest, deadline: float) -> None:
        late_s = self._clock() - deadline
        if late_s > 0:
            raise TeacherUnavailable(request.name, late_s, "the time for moving the alias is up, it is as it was")

    def _prepare(self, proposal: Proposal, deadline: float, *, deployed: bool) -> None:
        if not deployed:
            check_digests(
                self._roster, proposal.teacher, proposal.digest, {self._replicas.verify(proposal.teacher, deadline)}
            )
            return
        digests = self._replicas.prepare(proposal.teacher, deadline)
        check_digests(self._roster, proposal.teacher, proposal.digest, digests)
        self._check_all_hold(proposal, min(deadline, self._clock() + RECHECK_S))

    def _check_all_hold(self, proposal: Proposal, deadline: float) -> None:
        """One that started meanwhile was missed by the call, and may have read the roster a moment too early."""
        while True:
            try:
                states = self._replicas.describe(deadline)
                lacking = [s.pid for s in states if s.teachers.get(str(proposal.teacher)) != proposal.digest]
                if states and not lacking:
                    return
                reason = f"replicas {lacking} have not loaded it" if lacking else "no replica runs"
            except TeacherUnavailable as error:
                reason = str(error.args[2])
            if self._clock() + POLL_S > deadline:
                raise TeacherUnavailable(str(proposal.teacher), RECHECK_S, reason)
            self._sleep(POLL_S)

    def _gate(self, proposal: Proposal, floors: GateFloors, deadline: float, *, deployed: bool) -> GateReport | None:
        """None when there is nothing to compare with, or nobody who could."""
        old, new = proposal.previous, proposal.teacher
        reports = self._replicas.compare(old, new, GATE_ITEMS, deadline) if deployed and old is not None else []
        report = merge_reports(reports)
        refusals = report.refusals(floors)
        if not math.isfinite(report.kl):
            refusals = ("its answers to recorded views are not finite", *refusals)
        if refusals:
            raise GateRefused(str(new), (*refusals, f"measured: {report.figures()}"))
        return report if reports else None

    def _undo(self, proposal: Proposal) -> None:
        """Nothing is pending, and the replicas give the memory back. What goes wrong here is logged only: the caller
        must hear why the version was not promoted."""
        try:
            self._roster.abort(proposal.request.name, self._app_key)
            self._roster.check_unused(proposal.teacher, self._app_key)
            if self._replicas.is_deployed():
                self._replicas.evict(proposal.teacher, self._clock() + UNDO_LIMIT_S, keep_out=False)
        except TeacherInUse:
            pass  # a run is bound to it: it stays
        except (TeacherError, OSError) as error:
            logger.warning("after %s was not promoted: %s", proposal.teacher, error)

    @contextlib.contextmanager
    def _timed(self, seconds: dict[str, float], phase: str) -> Iterator[None]:
        began = self._clock()
        yield
        seconds[phase] = self._clock() - began


def check_digests(roster: Roster, teacher: TeacherId, wanted: str, found: set[str]) -> None:
    """Raises LibraryError unless all replicas serve the files that lie in the library here."""
    if found != {wanted}:
        raise LibraryError(
            str(roster.library.root),
            f"{teacher} has digest {wanted[:12]} here, replicas serve it as "
            f"{', '.join(sorted(digest[:12] for digest in found))}: they have other files; end that service, "
            "or put the old files back",
        )
