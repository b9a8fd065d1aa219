"""Routes of the Open Inference Protocol v2: what a stock Triton client talks to.

GET  /v2    /v2/health/live    /v2/health/ready
GET  /v2/models/NAME[/versions/V]    .../ready
POST /v2/models/NAME[/versions/V]/infer
POST /v2/repository/index
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version as distribution_version
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from services.asking import Asking, Readiness
from services.bodies import read_model
from services.lanes import Lane
from services.models import IndexEntry, ModelInfo, Models
from services.oip import InferReply, InferRequest
from services.openapi import BINARY, body_of
from services.refusals import documented
from teacher_server.clients.wire import JSON_LENGTH_HEADER


class ServerInfo(BaseModel):
    """extensions: of the protocol, by Triton's names."""

    name: str = "preceptor"
    version: str = distribution_version("preceptor")
    extensions: tuple[str, ...] = ("binary_tensor_data", "model_repository")


class Live(BaseModel):
    """The process answers."""

    live: bool = True


class Ready(BaseModel):
    """Teachers answer."""

    ready: bool = True


class IndexRequest(BaseModel):
    """ready: only those that are."""

    model_config = ConfigDict(extra="forbid")

    ready: bool = False


def by_alias(name: str) -> str:
    """The version that the alias points to."""
    return name


def by_version(name: str, version: str) -> str:
    """One exact version."""
    return f"{name}@{version}"


def add_server(app: FastAPI, readiness: Readiness) -> None:
    """What concerns the server as a whole."""

    @app.get("/v2", responses=documented())
    async def server() -> ServerInfo:
        return ServerInfo()

    @app.get("/v2/health/live")
    async def live() -> Live:
        return Live()

    @app.get("/v2/health/ready", responses=documented(503))
    async def ready() -> Ready:
        await readiness.check()
        return Ready()


def add_models(app: FastAPI, models: Models, readiness: Readiness, lane: Lane) -> None:
    """What concerns models, by their alias and by version; lane: for what may hash weights."""

    @app.post(
        "/v2/repository/index",
        responses=documented(400, 408, 413, 415, 422, 429, 503),
        openapi_extra=body_of(IndexRequest, required=False),
    )
    async def index(request: Request) -> list[IndexEntry]:
        wanted = await read_model(request, IndexRequest)
        loaded = await readiness.check()
        return await lane.run(models.index, loaded, ready_only=wanted.ready)

    for path, named in (("/v2/models/{name}", by_alias), ("/v2/models/{name}/versions/{version}", by_version)):
        _add_model(app, path, Depends(named), models, readiness, lane)


def _add_model(app: FastAPI, path: str, named: Any, models: Models, readiness: Readiness, lane: Lane) -> None:
    @app.get(path, responses=documented(404, 422, 429, 503))
    async def metadata(teacher: str = named) -> ModelInfo:
        return await lane.run(models.metadata, teacher)

    @app.get(f"{path}/ready", responses=documented(404, 422, 429, 503))
    async def model_ready(teacher: str = named) -> Ready:
        loaded = await readiness.check()
        await lane.run(models.check_ready, teacher, loaded)
        return Ready()


def add_infer(app: FastAPI, asking: Asking) -> None:
    """The questions."""
    for path, named in (("/v2/models/{name}", by_alias), ("/v2/models/{name}/versions/{version}", by_version)):
        _add_infer(app, f"{path}/infer", named, asking)


def _add_infer(app: FastAPI, path: str, named: Callable[..., str], asking: Asking) -> None:
    reply = {"model": InferReply, "description": "JSON, or JSON and tensors after it", "content": BINARY}

    async def infer(
        request: Request,
        teacher: str = Depends(named),
        json_length: Annotated[
            str | None, Header(alias=JSON_LENGTH_HEADER, description="bytes of JSON before the tensors")
        ] = None,
    ) -> Response:
        encoded = await asking.infer(request, teacher, json_length)
        if encoded.json_length is None:
            return Response(encoded.body, media_type="application/json")
        headers = {JSON_LENGTH_HEADER: str(encoded.json_length)}
        return Response(encoded.body, headers=headers, media_type="application/octet-stream")

    app.post(
        path,
        responses={200: reply, **documented(400, 404, 408, 409, 413, 415, 422, 429, 502, 503)},
        openapi_extra=body_of(InferRequest, binary=True),
        response_class=Response,
    )(infer)
