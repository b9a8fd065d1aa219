"""What the roster asks of all replicas of the teacher app at once. A replica that is just starting is missed by every
call here; it loads what the roster's file lists, and that includes what is being prepared.
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray import serve
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from teacher_server.clients.serve import APP_NAME, one_line, typed_cause
from teacher_server.errors import TeacherUnavailable
from teacher_server.promotion import GateReport
from teacher_server.protocol import TeacherId
from teacher_server.serve import app
from teacher_server.serve.replica_state import ReplicaState

POLL_S = 0.1
DESCRIBE_LIMIT_S = 10.0


class ServeReplicas:
    """The running replicas. Errors of ours come out as themselves; whatever else goes wrong is TeacherUnavailable.

    Deadlines are readings of time.monotonic.
    """

    def __init__(self, library_root: str) -> None:
        self._library_root = library_root

    def is_deployed(self) -> bool:
        """Whether there are any, or are going to be. Raises TeacherUnavailable when Serve does not tell."""
        try:
            return app.is_deployed(app.app_status())
        except (RayError, RayServeException, TimeoutError) as error:
            raise TeacherUnavailable("service", 0.0, f"Serve does not tell its state: {one_line(error)}") from None

    def load(self, teacher: TeacherId, deadline: float) -> set[str]:
        """The digests under which the replicas serve a teacher, after they have loaded it. When one dies meanwhile it
        is tried again: another is on its way. Raises LibraryError, OverBudget, TeacherUnavailable."""
        while True:
            try:
                return self.prepare(teacher, deadline)
            except TeacherUnavailable:
                if time.monotonic() + POLL_S > deadline:
                    raise
            time.sleep(POLL_S)

    def prepare(self, teacher: TeacherId, deadline: float) -> set[str]:
        """The same, tried once: raises TeacherUnavailable when a replica dies while it loads."""
        app.wait_until_running(teacher, deadline)
        return set(self._broadcast(str(teacher), "prepare", deadline, teacher))

    def describe(self, deadline: float) -> list[ReplicaState]:
        """The state of every running replica."""
        return self._broadcast("service", "describe", min(deadline, time.monotonic() + DESCRIBE_LIMIT_S))

    def compare(self, old: TeacherId, new: TeacherId, items: int, deadline: float) -> list[GateReport]:
        """Each replica's comparison on about `items` items that it was asked lately; they stop before the deadline."""
        limit_s = 0.8 * (deadline - time.monotonic())
        return self._broadcast(str(new), "compare", deadline, old, new, items, limit_s)

    def evict(self, teacher: TeacherId, deadline: float, *, keep_out: bool) -> int:
        """How many replicas held it; they do no more, and have answered what they were asked of it."""
        return sum(self._broadcast(str(teacher), "evict", deadline, teacher, keep_out=keep_out))

    def verify(self, teacher: TeacherId, deadline: float) -> str:
        """The digest of a teacher that a process of its own has loaded and tested: for when no replica runs."""
        task = ray.remote(num_cpus=0, max_retries=0)(_load_and_test)
        try:
            return ray.get(task.remote(self._library_root, teacher), timeout=max(0.1, deadline - time.monotonic()))
        except RayTaskError as error:
            raise typed_cause(error) from None
        except (RayError, GetTimeoutError) as error:
            raise TeacherUnavailable(str(teacher), 0.0, f"it could not be tested: {one_line(error)}") from None

    def _broadcast(self, subject: str, method: str, deadline: float, *args: object, **options: object) -> list[Any]:
        """What every running replica returns."""
        limit_s = max(0.1, deadline - time.monotonic())
        try:
            return serve.get_app_handle(APP_NAME).broadcast(method, *args, **options).results(timeout_s=limit_s)
        except RayTaskError as error:
            raise typed_cause(error) from None
        except (RayError, RayServeException, TimeoutError) as error:
            raise TeacherUnavailable(subject, limit_s, f"{method}: {one_line(error)}") from None


def _load_and_test(library_root: str, teacher: TeacherId) -> str:
    """Runs in a worker: the roster's own process stays small, and free to answer."""
    from pathlib import Path

    from teacher_server.engine.ensemble import load_teacher
    from teacher_server.library import TeacherLibrary

    return load_teacher(TeacherLibrary(Path(library_root)).entry(teacher)).digest
