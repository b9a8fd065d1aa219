"""The HTTP gateway: teachers for programs outside the Ray cluster.

    GET  /healthz    /readyz                    the process lives; 503 until the teachers answer
    /v2/...                                     Open Inference Protocol: questions          services.inference
    GET  /v1/teachers                           names, versions, aliases, digests, cards
    /v1/aliases...    /v1/teachers/.../evict    for operators                               services.control
    /v1/runs...                                 leases and timelines of runs elsewhere      services.runs

`create_app` needs no Ray: it takes a TeacherClient, a roster and callables. services.serving puts it on Ray Serve. The
event loop never blocks: what waits or reads files runs in lanes of threads (services.lanes).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from fastapi import FastAPI
from pydantic import BaseModel

from services.asking import Asking, GatewayOptions, Readiness
from services.control import Control, EvictRequest, PromoteRequest, RollbackRequest, add_aliases, add_eviction
from services.directory import Directory, Teachers
from services.guards import Recorder, RecordRequest, TokenGuard
from services.inference import IndexRequest, add_infer, add_models, add_server
from services.lanes import Lane
from services.models import Models
from services.oip import InferRequest
from services.openapi import describe_bodies
from services.refusals import add_refusals, documented
from services.runs import RestoreRequest, TeacherRequest, add_runs
from teacher_server.contract import TeacherClient
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId

BODIES = (
    InferRequest, IndexRequest, PromoteRequest, RollbackRequest, EvictRequest, TeacherRequest, RestoreRequest
)  # fmt: skip


class Status(BaseModel):
    """Liveness and readiness."""

    status: str


def always_ready() -> frozenset[TeacherId]:
    """`check_teachers` where the client needs no service, as the in-process one: it loads what it is asked for."""
    return frozenset()


def record_nothing(route: str, status: int, seconds: float) -> None:
    """`record` where nobody counts requests."""


def create_app(
    client: TeacherClient,
    library: TeacherLibrary,
    control: Control,
    *,
    stores_root: Path,
    check_teachers: Callable[[], frozenset[TeacherId]] = always_ready,
    record: RecordRequest = record_nothing,
    options: GatewayOptions | None = None,
) -> FastAPI:
    """The ASGI app. stores_root: the folder of the stores that callers may name. check_teachers: the versions that are
    loaded, once a teacher answers, else it raises TeacherUnavailable; it may block."""
    chosen = options if options is not None else GatewayOptions()
    directory = Directory(library)
    asking = Asking(client, directory, stores_root, chosen)
    quick, waiting = Lane("calls", chosen.max_control), Lane("calls that wait for teachers", chosen.max_waiting)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        for each in (quick, waiting, asking):
            each.close()

    # The interactive pages would load scripts from elsewhere.
    app = FastAPI(title="Preceptor gateway", docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan)
    readiness = Readiness(check_teachers)
    add_refusals(app)
    _add_health(app, readiness)
    add_server(app, readiness)
    add_models(app, Models(directory), readiness, quick)
    add_infer(app, asking)
    _add_teachers(app, directory, quick)
    add_aliases(app, directory, control, quick, waiting)
    add_eviction(app, control, waiting)
    add_runs(app, directory, control, quick, waiting)
    describe_bodies(app, BODIES)
    app.add_middleware(TokenGuard, options=chosen)
    app.add_middleware(Recorder, record=record)
    return app


def _add_health(app: FastAPI, readiness: Readiness) -> None:
    @app.get("/healthz")
    async def healthz() -> Status:
        return Status(status="alive")

    @app.get("/readyz", responses=documented(503))
    async def readyz() -> Status:
        await readiness.check()
        return Status(status="ready")


def _add_teachers(app: FastAPI, directory: Directory, quick: Lane) -> None:
    @app.get("/v1/teachers", responses=documented(429, 503))
    async def teachers() -> Teachers:
        return Teachers(teachers=await quick.run(directory.teachers))
