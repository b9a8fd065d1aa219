"""The teacher service as drivers and workers see it.

    service = TeacherService.connect(library_root)      # ray.init() came before
    acquired = service.acquire(run, ref)                # one app for everybody: deployed here, or adopted
    client = service.client()                           # in any process of the cluster
    service.bind(run, ref, block); service.renew(run)
    service.release(run)                                # the last lease deletes what a run started
    service.promote(name, version, who); service.rollback(name, who); service.evict(teacher, who)

All of it goes through one named actor, the roster (teacher_server.serve.roster_actor), so that of twenty jobs that
start at once one deploys. Every call has a time limit; errors arrive as the types of teacher_server.errors.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from teacher_server.clients.serve import ServeTeacherClient, one_line, typed_cause
from teacher_server.contract import Acquired
from teacher_server.errors import LibraryError, TeacherUnavailable
from teacher_server.promotion import AliasRequest, GateFloors, Promotion
from teacher_server.protocol import Binding, TeacherId, TeacherRef
from teacher_server.serve.app import DeployOptions
from teacher_server.serve.replica_state import ReplicaState
from teacher_server.serve.roster_actor import roster_handle

__all__ = ["Acquired", "DeployOptions", "TeacherService"]

CALL_MARGIN_S = 5.0  # the actor's own limit strikes first, and its error says more
RECONNECT_PAUSE_S = 0.5
ATTEMPTS = 5


class TeacherService:
    """The service's control side. Cheap to make and picklable: a copy finds the roster again by its name."""

    def __init__(self, library_root: Path) -> None:
        self.library_root = library_root
        self._actor: Any = None

    @classmethod
    def connect(cls, library_root: Path, timeout_s: float = 60.0) -> TeacherService:
        """Finds the cluster's roster, or starts it. Raises LibraryError if it serves another library."""
        service = cls(Path(library_root).resolve())
        found = service._call(timeout_s, "library_root")
        if found != str(service.library_root):
            raise LibraryError(
                str(service.library_root),
                f"this cluster's roster serves the library {found}: use that one, or another cluster",
            )
        return service

    def __reduce__(self) -> tuple[type[TeacherService], tuple[Path]]:
        return TeacherService, (self.library_root,)

    def acquire(
        self, run: str, ref: TeacherRef, options: DeployOptions | None = None, timeout_s: float = 120.0
    ) -> Acquired:
        """A lease on the app for this run, to be renewed within LEASE_TTL_S (bind does it too); returns when all
        replicas have loaded the teacher.

        Raises UnknownTeacher, LibraryError, NoCapacity, TeacherUnavailable.
        """
        chosen = options if options is not None else DeployOptions()
        return self._call_limited(timeout_s, "acquire", run, ref, chosen)

    def bind(self, run: str, ref: TeacherRef, block: int, timeout_s: float = 30.0) -> Binding:
        """Which version the steps of a block use: the same answer for every rank, durable before it is given."""
        return self._call(timeout_s, "bind", run, ref, block)

    def timeline(self, run: str, timeout_s: float = 30.0) -> list[Binding]:
        """What the run was bound to so far: one binding for each change, `block` its first block."""
        return self._call(timeout_s, "timeline", run)

    def renew(self, run: str, timeout_s: float = 30.0) -> bool:
        """Keeps the run's lease; False when it ran out and must be acquired again."""
        return self._call(timeout_s, "renew", run)

    def release(self, run: str, timeout_s: float = 60.0) -> None:
        """Ends the run's lease. Releasing twice does no harm."""
        self._call(timeout_s, "release", run)

    def restore(self, run: str, bindings: Sequence[Binding], highest_block: int, timeout_s: float = 30.0) -> None:
        """Puts a run's timeline back from its checkpoint, unless the roster has a record of that run."""
        self._call(timeout_s, "restore", run, list(bindings), highest_block)

    def promote(
        self,
        name: str,
        version: int,
        who: str,
        *,
        floors: GateFloors | None = None,
        expected: int | None = None,
        timeout_s: float = 120.0,
    ) -> Promotion:
        """Points an alias at another version: all replicas load it, it is compared on recent views, one record.

        expected: the version that the alias must point to now. Raises TeacherMismatch, AliasMoved, GateRefused,
        OverBudget, LibraryError, UnknownTeacher, TeacherUnavailable; nothing has changed then.
        """
        request = AliasRequest(name, version, who, expected)
        return self._promote(request, floors if floors is not None else GateFloors(), timeout_s)

    def rollback(self, name: str, who: str, *, expected: int | None = None, timeout_s: float = 120.0) -> Promotion:
        """Points an alias back at the version that it had before its last promotion; without a gate. Done twice it
        goes back two promotions. Raises BadQuery when there is none, and as `promote`."""
        return self._promote(AliasRequest(name, None, who, expected), GateFloors(), timeout_s)

    def evict(self, teacher: TeacherId, who: str, *, timeout_s: float = 60.0) -> int:
        """Unloads a version everywhere once its questions are answered; the number of replicas that held it.

        Raises TeacherInUse, which names who needs it, and UnknownTeacher.
        """
        return self._call_limited(timeout_s, "evict", teacher, who)

    def aliases(self, timeout_s: float = 30.0) -> dict[str, TeacherId]:
        """Every name in use and the version that it points to."""
        return self._call(timeout_s, "aliases")

    def deploy(self, options: DeployOptions | None = None, timeout_s: float = 120.0) -> bool:
        """An operator's app, which outlives all runs until `delete`. True when one ran already: it is adopted as it is,
        whatever the options say."""
        chosen = options if options is not None else DeployOptions()
        return self._call_limited(timeout_s, "deploy", chosen)

    def delete(self, timeout_s: float = 60.0) -> None:
        """Ends the app, whoever uses it."""
        self._call(timeout_s, "delete")

    def sweep(self, timeout_s: float = 60.0) -> list[str]:
        """Releases runs whose leases ran out, as the roster does by itself every few seconds; returns them."""
        return self._call(timeout_s, "sweep")

    def describe(self, timeout_s: float = 30.0) -> list[ReplicaState]:
        """The state of every running replica."""
        return self._call_limited(timeout_s, "describe")

    def client(self) -> ServeTeacherClient:
        """A client of the app for this process."""
        return ServeTeacherClient()

    def _promote(self, request: AliasRequest, floors: GateFloors, timeout_s: float) -> Promotion:
        """One request for all tries, so that a promotion which was carried out is not carried out again."""
        return self._call_limited(timeout_s, "promote", request, floors)

    def _call_limited(self, timeout_s: float, method: str, *args: object) -> Any:
        """The same for methods that have a limit of their own as their last argument: what is left of it."""
        return self._call(timeout_s + CALL_MARGIN_S, method, *args, limited=True)

    def _call(self, timeout_s: float, method: str, *args: object, limited: bool = False) -> Any:
        """Calls the roster. When the actor dies the call is repeated: every method may be."""
        deadline = time.monotonic() + timeout_s
        for attempt in range(1, ATTEMPTS + 1):
            left_s = max(0.0, deadline - time.monotonic())
            try:
                return self._call_once(left_s, method, *args, *([left_s - CALL_MARGIN_S] if limited else []))
            except GetTimeoutError:
                break
            except RayTaskError as error:
                raise _typed(error) from None
            except RayActorError as error:
                self._actor = None
                if attempt == ATTEMPTS:
                    raise TeacherUnavailable("roster", timeout_s, one_line(error)) from None
            time.sleep(RECONNECT_PAUSE_S)
        raise TeacherUnavailable("roster", timeout_s, f"{method} took longer, and may have been carried out")

    def _call_once(self, timeout_s: float, method: str, *args: object) -> Any:
        if self._actor is None:
            self._actor = roster_handle(self.library_root)
        return ray.get(getattr(self._actor, method).remote(*args), timeout=timeout_s)


def _typed(error: RayTaskError) -> Exception:
    """The roster's own error; TeacherUnavailable for one of Ray or Serve, which the roster met. Else Ray's."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, RayError | RayServeException | TimeoutError):
        return TeacherUnavailable("roster", 0.0, one_line(cause))
    return typed_cause(error)
