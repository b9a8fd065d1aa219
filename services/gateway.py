"""The HTTP gateway: teachers for programs outside the Ray cluster.

    GET  /healthz                    the process lives
    GET  /readyz                     503 until the teachers answer
    GET  /v1/teachers                names, versions, aliases, digests, cards
    POST /v1/teachers/NAME/logits    .npy body, uint8 [N, T, H, W, 3] -> logits; NAME is r2plus1d or r2plus1d@1

`create_app` needs no Ray: it takes a TeacherClient and callables. services.serving puts it on Ray Serve. The event
loop never blocks: what waits or hashes files runs in threads, at most `max_in_flight` questions at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from data.errors import DataError
from services.asking import Asking, GatewayOptions, Readiness
from services.directory import Directory, TeacherInfo
from services.errors import GatewayError, refuse
from services.guards import Recorder, RecordRequest, TokenGuard
from teacher_server.contract import TeacherClient
from teacher_server.errors import TeacherError
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherReply

TEMPERATURES = (0.01, 1000.0)  # outside, softened logits leave float32's range or all become equal


class Refused(BaseModel):
    """The body of every answer that is not 2xx."""

    error: str
    detail: str


class Status(BaseModel):
    """Liveness and readiness."""

    status: str


class Teachers(BaseModel):
    """The library's teachers."""

    teachers: list[TeacherInfo]


class Seconds(BaseModel):
    """Where the time went. total: on the gateway, the body's way included; the others on the replica."""

    total: float
    queue: float
    render: float
    forward: float


class LogitsReply(BaseModel):
    """logits [I, K], already divided by the temperature; teacher is name@version, digest 64 hex digits."""

    teacher: str
    digest: str
    temperature: float
    logits: list[list[float]]
    seconds: Seconds


def create_app(
    client: TeacherClient,
    library: TeacherLibrary,
    *,
    check_teachers: Callable[[], None],
    record: RecordRequest,
    options: GatewayOptions | None = None,
) -> FastAPI:
    """The ASGI app. check_teachers: returns when a teacher answers, else raises TeacherUnavailable; it may block."""
    chosen = options if options is not None else GatewayOptions()
    asking = Asking(client, Directory(library), chosen)
    # The interactive pages would load scripts from elsewhere.
    app = FastAPI(title="Preceptor gateway", docs_url=None, redoc_url=None, lifespan=asking.lifespan)
    _add_refusals(app)
    _add_health(app, Readiness(check_teachers))
    _add_teachers(app, asking)
    if chosen.token is not None:
        app.add_middleware(TokenGuard, token=chosen.token)
    app.add_middleware(Recorder, record=record)
    return app


def _add_health(app: FastAPI, readiness: Readiness) -> None:
    @app.get("/healthz")
    async def healthz() -> Status:
        return Status(status="alive")

    @app.get("/readyz", responses=_documented(503))
    async def readyz() -> Status:
        await readiness.check()
        return Status(status="ready")


def _add_teachers(app: FastAPI, asking: Asking) -> None:
    @app.get("/v1/teachers", responses=_documented(401, 503))
    async def teachers() -> Teachers:
        return Teachers(teachers=await asyncio.to_thread(asking.directory.teachers))

    body = {"required": True, "content": {"application/x-npy": {"schema": {"type": "string", "format": "binary"}}}}

    @app.post(
        "/v1/teachers/{name}/logits",
        responses=_documented(400, 401, 404, 408, 413, 415, 422, 429, 502, 503),
        openapi_extra={"requestBody": body},
    )
    async def logits(
        request: Request,
        name: str,
        temperature: Annotated[float, Query(ge=TEMPERATURES[0], le=TEMPERATURES[1], allow_inf_nan=False)] = 1.0,
    ) -> LogitsReply:
        began = time.monotonic()
        reply = await asking.answer(request, name, temperature)
        return _to_json(reply, time.monotonic() - began)


def _add_refusals(app: FastAPI) -> None:
    async def on_refusal(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, GatewayError | TeacherError | DataError)
        refusal = refuse(error)
        return JSONResponse(refusal.to_json(), refusal.status, refusal.headers)

    async def on_bad_field(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        detail = f"{first['loc'][-1]}: {first['msg']}"
        return JSONResponse({"error": "BadQuery", "detail": detail}, 422)

    async def on_http(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        body = {"error": "NoRoute" if error.status_code == 404 else "HTTPError", "detail": str(error.detail)}
        return JSONResponse(body, error.status_code, error.headers)

    async def on_bug(_request: Request, _error: Exception) -> JSONResponse:
        return JSONResponse({"error": "InternalError", "detail": "see the gateway's log"}, 500)

    app.add_exception_handler(Exception, on_bug)  # the server still logs it with its traceback
    for kind in (GatewayError, TeacherError, DataError):
        app.add_exception_handler(kind, on_refusal)
    app.add_exception_handler(RequestValidationError, on_bad_field)
    app.add_exception_handler(HTTPException, on_http)


def _documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Refused} for status in statuses}


def _to_json(reply: TeacherReply, total_s: float) -> LogitsReply:
    phases = reply.seconds
    return LogitsReply(
        teacher=str(reply.teacher),
        digest=reply.digest,
        temperature=reply.temperature,
        logits=reply.logits.tolist(),
        seconds=Seconds(total=total_s, queue=phases.queue, render=phases.render, forward=phases.forward),
    )
