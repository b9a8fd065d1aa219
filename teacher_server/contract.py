"""Asking a teacher: one contract, whether it runs as a service (teacher_server.clients.serve) or in this process
(teacher_server.clients.inprocess). Needs neither Ray nor torch.

    client.submit(query) -> PendingReply ── result(timeout_s) -> TeacherReply
                                        └── cancel()

Errors of `result`, the same for every client: NoReplyYet (no answer in time), any other TeacherUnavailable (whoever had
the question died), TeacherOverloaded, TeacherNotResident (all retryable: see teacher_server.clients.retry); BadQuery,
UnknownTeacher, LibraryError, StoreError (repeating would not help). `submit` itself never waits for an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Protocol

from data.errors import DataError
from teacher_server.errors import NoReplyYet, TeacherError, TeacherUnavailable
from teacher_server.promotion import GateFloors, Promotion
from teacher_server.protocol import Binding, TeacherId, TeacherQuery, TeacherRef, TeacherReply

MAX_QUEUED_CLIPS = 2048
TOKEN_VARIABLE = "PRECEPTOR_TOKEN"
"""Environment variable of the bearer token that callers over HTTP show."""
OPERATOR_TOKEN_VARIABLE = "PRECEPTOR_OPERATOR_TOKEN"
"""That of those who change teachers."""


class PendingReply(Protocol):
    """One question that is on its way."""

    def result(self, timeout_s: float) -> TeacherReply:
        """The reply, however often it is asked for. Raises NoReplyYet when there is none after `timeout_s` seconds."""
        ...

    def cancel(self) -> None:
        """Nobody waits for the reply any more; if it was not begun, it never will be. Never blocks or raises."""
        ...


class TeacherClient(Protocol):
    """Where questions go."""

    def submit(self, query: TeacherQuery) -> PendingReply:
        """Sends a question."""
        ...

    def close(self) -> None:
        """Frees what the client holds; pending replies may then fail as TeacherUnavailable."""
        ...


@dataclass(frozen=True)
class Acquired:
    """binding: the teacher that the run's next block would get; `bind` records it. adopted: the app ran already."""

    binding: Binding
    adopted: bool


class RunControl(Protocol):
    """What a run needs of the roster: over Ray in teacher_server.serve.deployment, over HTTP in
    teacher_server.clients.http_control."""

    def acquire(self, run: str, ref: TeacherRef) -> Acquired:
        """A lease for this run; returns when the teachers have loaded what it needs."""
        ...

    def bind(self, run: str, ref: TeacherRef, block: int) -> Binding:
        """Which version the steps of a block use: the same answer for every rank, durable before it is given."""
        ...

    def restore(self, run: str, bindings: Sequence[Binding], highest_block: int) -> None:
        """Puts a run's timeline back from its checkpoint, unless the roster has a record of that run."""
        ...

    def timeline(self, run: str) -> list[Binding]:
        """What the run was bound to so far: one binding for each change, `block` its first block."""
        ...

    def renew(self, run: str) -> bool:
        """Keeps the run's lease; False when it ran out and must be acquired again."""
        ...

    def release(self, run: str) -> None:
        """Ends the run's lease. Releasing twice does no harm."""
        ...


class OperatorControl(Protocol):
    """What an operator may change."""

    def promote(
        self, name: str, version: int, who: str, *, floors: GateFloors | None = None, expected: int | None = None
    ) -> Promotion:
        """Points an alias at another version: prepare, gate, commit. expected: the version that it must point to now.

        Raises TeacherMismatch, AliasMoved, GateRefused, OverBudget, LibraryError, UnknownTeacher; nothing has changed.
        """
        ...

    def rollback(self, name: str, who: str, *, expected: int | None = None) -> Promotion:
        """Points an alias back at the version that it had before its last change; without a gate."""
        ...

    def evict(self, teacher: TeacherId, who: str) -> int:
        """Unloads a version everywhere once its questions are answered; the number of replicas that held it.

        Raises TeacherInUse when an alias or a live run needs it.
        """
        ...


class FutureReply:
    """A pending reply that a thread of this process is going to give."""

    def __init__(self, teacher: TeacherId, future: Future[TeacherReply]) -> None:
        self._teacher = teacher
        self._future = future

    def result(self, timeout_s: float) -> TeacherReply:
        """As PendingReply.result."""
        try:
            return self._future.result(timeout_s)
        except CancelledError:
            raise TeacherUnavailable(str(self._teacher), 0.0, "the question was cancelled") from None
        except TimeoutError:
            raise NoReplyYet(str(self._teacher), timeout_s, "no reply yet") from None

    def cancel(self) -> None:
        """As PendingReply.cancel."""
        self._future.cancel()


class FailedReply:
    """A pending reply whose failure is known already."""

    def __init__(self, error: TeacherError | DataError) -> None:
        self._error = error

    def result(self, timeout_s: float) -> TeacherReply:  # noqa: ARG002 the contract's signature
        """Raises the error."""
        raise self._error

    def cancel(self) -> None:
        """Nothing to cancel."""


def unwrap(reply: object) -> TeacherReply:
    """What `infer` of a replica returned: a reply, or the error that it refused the question with, raised here."""
    if isinstance(reply, TeacherError | DataError):
        raise reply
    if not isinstance(reply, TeacherReply):
        raise TypeError(f"expected a TeacherReply or a refusal, got {type(reply).__name__}")
    return reply
