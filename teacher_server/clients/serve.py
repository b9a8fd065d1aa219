"""Asking the teacher service of this Ray cluster. The contract is teacher_server.contract's; needs no torch."""

from __future__ import annotations

import contextlib
import logging
import time
from concurrent.futures import CancelledError
from typing import Any

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from data.errors import DataError
from teacher_server.contract import FailedReply, PendingReply, TeacherClient, unwrap
from teacher_server.errors import NoReplyYet, TeacherError, TeacherUnavailable
from teacher_server.protocol import TeacherId, TeacherQuery, TeacherReply

__all__ = ["APP_NAME", "PendingReply", "ServeTeacherClient", "TeacherClient", "one_line", "typed_cause"]

APP_NAME = "preceptor-teachers"

logger = logging.getLogger(__name__)


def app_key_of(head_node_id: str) -> str:
    """What the roster calls the teacher app of the cluster with this head node: clusters may share a roster file."""
    return f"{head_node_id}/{APP_NAME}"


class ServeTeacherClient:
    """Asks the teacher app on this Ray cluster through a Serve handle. Make one per process; threads may share it.

    Pixels are numpy arrays, so Ray passes them through shared memory and the replica maps them: one copy in, none out.
    """

    def __init__(self) -> None:
        self._handle: Any = None

    def submit(self, query: TeacherQuery) -> PendingReply:
        """Sends a question to one of the replicas. A missing app shows in `result`, as TeacherUnavailable."""
        try:
            if self._handle is None:
                self._handle = serve.get_app_handle(APP_NAME)
            return _ServePending(query.teacher, self._handle.infer.remote(query))
        except (RayServeException, RayError) as error:
            self._handle = None  # it is looked up again: Serve may have been restarted
            return FailedReply(TeacherUnavailable(str(query.teacher), 0.0, one_line(error)))

    def close(self) -> None:
        """Forgets the handle."""
        self._handle = None


class _ServePending:
    def __init__(self, teacher: TeacherId, response: Any) -> None:
        self._teacher = teacher
        self._response = response
        self._submitted = time.monotonic()

    def result(self, timeout_s: float) -> TeacherReply:
        try:
            reply = self._response.result(timeout_s=timeout_s)
        except RayTaskError as error:
            cause = typed_cause(error)
            if cause is not error:
                raise cause from None
            # Nothing that was foreseen: another replica, or this one when it is asked again, may do better.
            logger.error("a teacher replica failed at a question: %s", error)
            raise TeacherUnavailable(
                str(self._teacher), self._waited_s(), one_line(getattr(error, "cause", error))
            ) from None
        except TimeoutError:  # Ray's GetTimeoutError is one too
            raise NoReplyYet(str(self._teacher), self._waited_s(), "no reply yet") from None
        except CancelledError:
            raise TeacherUnavailable(str(self._teacher), self._waited_s(), "the question was cancelled") from None
        except (RayError, RayServeException) as error:
            raise TeacherUnavailable(str(self._teacher), self._waited_s(), one_line(error)) from None
        return unwrap(reply)

    def cancel(self) -> None:
        # Serve waits for the routing here, and raises what went wrong there.
        with contextlib.suppress(RayError, RayServeException, CancelledError):
            self._response.cancel()

    def _waited_s(self) -> float:
        return time.monotonic() - self._submitted


def typed_cause(error: RayTaskError) -> Exception:
    """The error that the other process raised, if it is one of ours, without Ray's wrapping; else Ray's."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, TeacherError | DataError) else error


def one_line(error: BaseException) -> str:
    """An error of Ray as one short line: its type and the first line of its text."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}".rstrip(": ")
