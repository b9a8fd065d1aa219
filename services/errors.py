"""What the gateway refuses, and the HTTP status of everything that the packages below can refuse.

Every refusal is JSON, {"error": one sentence, "code": the class's name, "args": its raw arguments}:

    400 MalformedRequest    401 Unauthorized    403 Forbidden    404 UnknownTeacher, NoRoute    405 NoMethod
    408 SlowBody    409 AliasMoved, GateRefused, TeacherMismatch, TeacherInUse, OtherFiles, OverBudget
    413 TooLarge    415 EncodedBody    422 BadQuery, StoreMissing, StoreMismatch
    429 TeacherOverloaded, GatewayBusy (Retry-After)    500 InternalError    502 BadReply
    503 TeacherUnavailable, TeacherNotResident, NotLoaded (Retry-After), NoCapacity, LibraryError,
        StoreDamaged

teacher_server.wire_errors turns them back into exceptions. Needs neither torch nor Ray nor fastapi.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from data.errors import DataError, StoreDamaged
from teacher_server.errors import (
    AliasMoved,
    BadQuery,
    BadReply,
    GateRefused,
    OtherFiles,
    OverBudget,
    TeacherError,
    TeacherInUse,
    TeacherMismatch,
    TeacherNotResident,
    TeacherOverloaded,
    TeacherUnavailable,
    UnknownTeacher,
)
from teacher_server.wire_errors import to_json

_CONFLICT = 409
_UNAVAILABLE = 503


class GatewayError(RuntimeError):
    """Base of the gateway's own refusals. Argument: one sentence."""

    status = 500
    headers: ClassVar[Mapping[str, str]] = {}


class InternalError(GatewayError):
    """A bug; what it was is in the log only."""


class MalformedRequest(GatewayError):
    """The body is no JSON, or its parts are not where it says."""

    status = 400


class Unauthorized(GatewayError):
    """No token, or none that is known."""

    status = 401
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}


class Forbidden(GatewayError):
    """Who asks is known, and may not do this."""

    status = 403


class NoRoute(GatewayError):
    """Nothing is served at that path."""

    status = 404


class NoMethod(GatewayError):
    """The path takes other methods."""

    status = 405


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
    """As much as the gateway takes is under way."""

    status = 429
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}


class NotLoaded(GatewayError):
    """The version is in the library, and no replica has loaded it."""

    status = _UNAVAILABLE
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "5"}


@dataclass(frozen=True)
class Refusal:
    """An HTTP answer that is not 2xx; `body` is what JSON is made of."""

    status: int
    body: dict[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)


# The first class that fits decides; seconds for Retry-After, or None.
_STATUS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], int, int | None], ...] = (
    (UnknownTeacher, 404, None),
    ((AliasMoved, GateRefused, TeacherMismatch, TeacherInUse, OtherFiles, OverBudget), _CONFLICT, None),
    (BadQuery, 422, None),
    (StoreDamaged, _UNAVAILABLE, None),
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
        return Refusal(error.status, to_json(error), error.headers)
    status, retry_after_s = next((s, r) for kind, s, r in _STATUS if isinstance(error, kind))
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return Refusal(status, to_json(error), headers)
