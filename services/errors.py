"""What the gateway refuses, and the HTTP status of everything that the packages below can refuse.

Every refusal is JSON, {"error": the class's name, "detail": one sentence}:

    400 NotAnArray    401 Unauthorized    404 UnknownTeacher    408 SlowBody    413 TooLarge    415 EncodedBody
    422 BadQuery      429 TeacherOverloaded, GatewayBusy (Retry-After)
    502 BadReply      503 TeacherUnavailable, TeacherNotResident (Retry-After), LibraryError

Needs neither torch nor Ray nor fastapi.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from data.errors import DataError
from teacher_server.errors import (
    BadQuery,
    BadReply,
    TeacherError,
    TeacherNotResident,
    TeacherOverloaded,
    TeacherUnavailable,
    UnknownTeacher,
)

_UNAVAILABLE = 503


class GatewayError(RuntimeError):
    """Base of the gateway's own refusals. Argument: one sentence."""

    status = 500
    retry_after_s: int | None = None


class NotAnArray(GatewayError):
    """The body is no .npy array."""

    status = 400


class SlowBody(GatewayError):
    """The body did not arrive in time."""

    status = 408


class TooLarge(GatewayError):
    """The body is larger than the limit."""

    status = 413


class EncodedBody(GatewayError):
    """The body is compressed, which would hide its size."""

    status = 415


class GatewayBusy(GatewayError):
    """As many questions as the gateway takes are under way."""

    status = 429
    retry_after_s = 1


@dataclass(frozen=True)
class Refusal:
    """An HTTP answer that is not 2xx."""

    status: int
    error: str
    detail: str
    headers: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, str]:
        """The answer's body."""
        return {"error": self.error, "detail": self.detail}


# The first class that fits decides; seconds for Retry-After, or None.
_STATUS: tuple[tuple[type[Exception], int, int | None], ...] = (
    (UnknownTeacher, 404, None),
    (BadQuery, 422, None),
    (DataError, 422, None),
    (TeacherOverloaded, 429, 1),
    (BadReply, 502, None),
    (TeacherNotResident, _UNAVAILABLE, 1),
    (TeacherUnavailable, _UNAVAILABLE, 5),
    (TeacherError, _UNAVAILABLE, None),
)


def refuse(error: GatewayError | TeacherError | DataError) -> Refusal:
    """The HTTP answer for an error."""
    if isinstance(error, GatewayError):
        status, retry_after_s = error.status, error.retry_after_s
    else:
        status, retry_after_s = next((s, r) for kind, s, r in _STATUS if isinstance(error, kind))
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return Refusal(status, type(error).__name__, str(error), headers)
