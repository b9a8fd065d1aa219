"""Asking a teacher: one contract, whether it runs as a service (teacher_server.client) or in this process
(teacher_server.inprocess). Needs neither Ray nor torch.

    client.submit(query) -> PendingReply ── result(timeout_s) -> TeacherReply
                                        └── cancel()

Errors of `result`, the same for every client: TeacherUnavailable (no answer in time, or whoever had the question
died), TeacherOverloaded, TeacherNotResident (all retryable: see teacher_server.retry); BadQuery, UnknownTeacher,
LibraryError, StoreError (repeating would not help). `submit` itself never waits for an answer.
"""

from __future__ import annotations

from typing import Protocol

from data.errors import DataError
from teacher_server.errors import TeacherError
from teacher_server.protocol import TeacherQuery, TeacherReply

MAX_QUEUED_CLIPS = 2048


class PendingReply(Protocol):
    """One question that is on its way."""

    def result(self, timeout_s: float) -> TeacherReply:
        """The reply. Raises TeacherUnavailable when there is none after `timeout_s` seconds."""
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


class FailedReply:
    """A pending reply whose failure is known already."""

    def __init__(self, error: TeacherError) -> None:
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
