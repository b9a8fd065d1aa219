"""Routes for runs on other clusters, which cannot reach the roster through Ray: leases and timelines.

GET    /v1/runs    /v1/runs/RUN
POST   /v1/runs/RUN/lease {teacher}          returns when the teachers have loaded what the run needs
PUT    /v1/runs/RUN/lease                    renews it
DELETE /v1/runs/RUN/lease
POST   /v1/runs/RUN/blocks/BLOCK {teacher}   which version a block of steps uses, durable before it is said
PUT    /v1/runs/RUN/timeline                 what a checkpoint holds, unless the roster knows the run
"""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from services.bodies import read_model
from services.control import Control
from services.directory import Directory
from services.lanes import Lane
from services.oip import RUN_PATTERN
from services.openapi import body_of
from services.refusals import documented
from teacher_server.protocol import Binding, TeacherId, TeacherRef
from teacher_server.roster.state import RosterState

MAX_SPANS = 5000
_READING = documented(422, 429, 503)
_WRITING = documented(400, 404, 408, 409, 413, 415, 422, 429, 503)
Block = Annotated[int, Field(ge=0, le=2**53)]
RunName = Annotated[str, Path(pattern=RUN_PATTERN)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TeacherRequest(_Body):
    """teacher: an alias to follow, or name@version."""

    teacher: Annotated[str, Field(max_length=80)]


class Span(_Body):
    """From this block on, until the next span, a run uses this teacher (name@version) with this digest."""

    teacher: Annotated[str, Field(max_length=80)]
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    block: Block


class RestoreRequest(_Body):
    """bindings: the spans of a checkpoint. highest_block: the last one that was bound."""

    bindings: Annotated[list[Span], Field(max_length=MAX_SPANS)]
    highest_block: Annotated[int, Field(ge=-1, le=2**53)]


class Bound(BaseModel):
    """The version of a block. teacher: name@version."""

    teacher: str
    digest: str
    block: int

    @classmethod
    def of(cls, binding: Binding) -> Bound:
        """As JSON."""
        return cls(teacher=str(binding.teacher), digest=binding.digest, block=binding.block)


class AcquiredLease(Bound):
    """What the run's next block would get. adopted: teachers were served already."""

    adopted: bool


class Held(BaseModel):
    """Whether the run has a lease."""

    held: bool


class LeaseInfo(BaseModel):
    """expires_at: seconds since 1970."""

    teacher: str
    expires_at: float


class RunInfo(BaseModel):
    """timeline: a span for each change, `block` its first; highest_block: the last one bound, null before the first."""

    run: str
    timeline: list[Bound]
    highest_block: int | None
    lease: LeaseInfo | None


class Runs(BaseModel):
    """The roster's runs, by name."""

    runs: list[RunInfo]


def add_runs(app: FastAPI, directory: Directory, control: Control, quick: Lane, waiting: Lane) -> None:
    """quick: for what only reads or writes the roster's file; waiting: for what waits for teachers."""
    _add_reading(app, directory, quick)
    _add_leases(app, control, quick, waiting)
    _add_timeline(app, directory, control, quick)


def _add_reading(app: FastAPI, directory: Directory, quick: Lane) -> None:
    @app.get("/v1/runs", responses=documented(429, 503))
    async def runs() -> Runs:
        return await quick.run(_all_runs, directory)

    @app.get("/v1/runs/{run}", responses=_READING)
    async def run_info(run: RunName) -> RunInfo:
        return _info(await quick.run(directory.state), run)


def _add_leases(app: FastAPI, control: Control, quick: Lane, waiting: Lane) -> None:
    @app.post("/v1/runs/{run}/lease", responses=_WRITING, openapi_extra=body_of(TeacherRequest))
    async def acquire(request: Request, run: RunName) -> AcquiredLease:
        asked = await read_model(request, TeacherRequest)
        acquired = await waiting.run(control.acquire, run, TeacherRef.parse(asked.teacher))
        return AcquiredLease(**Bound.of(acquired.binding).model_dump(), adopted=acquired.adopted)

    @app.put("/v1/runs/{run}/lease", responses=_READING)
    async def renew(run: RunName) -> Held:
        return Held(held=await quick.run(control.renew, run))

    @app.delete("/v1/runs/{run}/lease", responses=_READING)
    async def release(run: RunName) -> Held:
        await waiting.run(control.release, run)
        return Held(held=False)


def _add_timeline(app: FastAPI, directory: Directory, control: Control, quick: Lane) -> None:
    @app.post("/v1/runs/{run}/blocks/{block}", responses=_WRITING, openapi_extra=body_of(TeacherRequest))
    async def bind(request: Request, run: RunName, block: Block) -> Bound:
        asked = await read_model(request, TeacherRequest)
        return Bound.of(await quick.run(control.bind, run, TeacherRef.parse(asked.teacher), block))

    @app.put("/v1/runs/{run}/timeline", responses=_WRITING, openapi_extra=body_of(RestoreRequest))
    async def restore(request: Request, run: RunName) -> RunInfo:
        asked = await read_model(request, RestoreRequest)
        bindings = [Binding(TeacherId.parse(span.teacher), span.digest, span.block) for span in asked.bindings]
        if bindings:
            # Replicas are not ready before they have loaded what a live run was last bound to: it must exist.
            await quick.run(directory.entry, bindings[-1].teacher)
        await quick.run(control.restore, run, bindings, asked.highest_block)
        return _info(await quick.run(directory.state), run)


def _all_runs(directory: Directory) -> Runs:
    state = directory.state()
    names = sorted(state.timelines.keys() | state.leases.keys())
    return Runs(runs=[_info(state, name) for name in names])


def _info(state: RosterState, run: str) -> RunInfo:
    """Empty for a run that the roster never heard of, as RunControl.timeline has it."""
    timeline, lease = state.timelines.get(run), state.leases.get(run)
    spans = () if timeline is None else timeline.spans
    return RunInfo(
        run=run,
        timeline=[Bound(teacher=span.teacher, digest=span.digest, block=span.from_block) for span in spans],
        highest_block=None if timeline is None else timeline.highest_block,
        lease=None if lease is None else LeaseInfo(teacher=lease.teacher, expires_at=lease.expires_at),
    )
