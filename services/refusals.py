"""Every answer that is not 2xx is one JSON body: how errors become it, and how the OpenAPI description lists it."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from data.errors import DataError
from services.bodies import first_problem
from services.errors import GatewayError, InternalError, NoMethod, NoRoute, refuse
from teacher_server.errors import BadQuery, TeacherError


class Refused(BaseModel):
    """The body of an answer that is not 2xx. error: one sentence. code, args: the exception's class and arguments."""

    error: str
    code: str
    args: list[Any]


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that can refuse with these statuses, beside those that every guarded route can."""
    return {status: {"model": Refused} for status in sorted({*statuses, 401, 403})}


def to_response(error: GatewayError | TeacherError | DataError) -> Response:
    """The HTTP answer for an error."""
    refusal = refuse(error)
    body = json.dumps(refusal.body, allow_nan=False).encode()
    return Response(body, refusal.status, refusal.headers, media_type="application/json")


def add_refusals(app: FastAPI) -> None:
    """Makes the app answer with refusals, whatever goes wrong."""

    async def on_refusal(_request: Request, error: Exception) -> Response:
        assert isinstance(error, GatewayError | TeacherError | DataError)
        return to_response(error)

    async def on_bad_field(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return to_response(BadQuery(first_problem(error.errors())))

    async def on_http(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind = NoMethod if error.status_code == NoMethod.status else NoRoute
        response = to_response(kind(f"{error.detail}: the paths and their methods are listed at /openapi.json"))
        response.headers.update(error.headers or {})
        return response

    async def on_bug(_request: Request, _error: Exception) -> Response:
        return to_response(InternalError("this is a bug: the gateway's log says more"))

    app.add_exception_handler(Exception, on_bug)  # the server still logs it with its traceback
    for kind in (GatewayError, TeacherError, DataError):
        app.add_exception_handler(kind, on_refusal)
    app.add_exception_handler(RequestValidationError, on_bad_field)
    app.add_exception_handler(HTTPException, on_http)
