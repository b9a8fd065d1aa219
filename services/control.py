"""Routes for operators: what the names mean, and unloading.

    GET  /v1/aliases                                   who may ask may look
    PUT  /v1/aliases/NAME {version, expected}          prepare, gate, commit; compare-and-set when expected is given
    POST /v1/aliases/NAME/rollback {expected}
    POST /v1/teachers/NAME/versions/V/evict

These wait until every replica has loaded or unloaded a version, so they have a lane of their own.
"""

from __future__ import annotations

import math
from typing import Annotated, Protocol

from fastapi import Depends, FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field

from services.bodies import read_model
from services.directory import Aliases, AliasInfo, Directory
from services.guards import operator
from services.lanes import Lane
from services.openapi import body_of
from services.refusals import documented
from teacher_server.contract import OperatorControl, RunControl
from teacher_server.errors import BadQuery
from teacher_server.promotion import GateFloors, GateReport, Promotion
from teacher_server.protocol import TeacherId

MAX_SHOWN_CHANGES = 1000
_REFUSALS = documented(400, 404, 408, 409, 413, 415, 422, 429, 503)
Version = Annotated[int, Field(ge=1, le=999_999_999)]
Who = Annotated[str, Field(max_length=200)]
Operator = Annotated[str, Depends(operator)]


class Control(RunControl, OperatorControl, Protocol):
    """The roster, for runs and for operators."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PromoteRequest(_Body):
    """version: what the alias is to point to. expected: what it must point to now. The three floors as GateFloors has
    them; null: anything goes. who: for the log, beside the address that this came from."""

    version: Version
    expected: Version | None = None
    min_agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    max_kl: Annotated[float, Field(ge=0)] | None = None
    max_latency_ratio: Annotated[float, Field(gt=0)] | None = None
    who: Who = ""


class RollbackRequest(_Body):
    """expected: what the alias must point to now; null: whatever it does."""

    expected: Version | None = None
    who: Who = ""


class EvictRequest(_Body):
    """who: for the log, beside the address that this came from."""

    who: Who = ""


class GateInfo(BaseModel):
    """The new version beside the old one on `items` recently asked items; null: not a finite number."""

    items: int
    agreement: float | None
    kl: float | None
    old_ms: float | None
    new_ms: float | None

    @classmethod
    def of(cls, report: GateReport) -> GateInfo:
        """The report as JSON can hold it."""
        numbers = (report.agreement, report.kl, report.old_ms, report.new_ms)
        agreement, kl, old_ms, new_ms = (number if math.isfinite(number) else None for number in numbers)
        return cls(items=report.items, agreement=agreement, kl=kl, old_ms=old_ms, new_ms=new_ms)


class Promoted(BaseModel):
    """teacher, previous: name@version. seconds: of each phase."""

    teacher: str
    previous: str | None
    gate: GateInfo | None
    seconds: dict[str, float]

    @classmethod
    def of(cls, promotion: Promotion) -> Promoted:
        """What was done."""
        previous, gate = promotion.previous, promotion.gate
        return cls(
            teacher=str(promotion.teacher),
            previous=None if previous is None else str(previous),
            gate=None if gate is None else GateInfo.of(gate),
            seconds=promotion.seconds,
        )


class Evicted(BaseModel):
    """replicas: how many had it loaded."""

    teacher: str
    replicas: int


def add_aliases(app: FastAPI, directory: Directory, control: Control, quick: Lane, waiting: Lane) -> None:
    """quick: for reading; waiting: for changes."""

    @app.get("/v1/aliases", responses=documented(429, 503))
    async def aliases() -> Aliases:
        return await quick.run(_aliases, directory)

    @app.put("/v1/aliases/{name}", responses=_REFUSALS, openapi_extra=body_of(PromoteRequest))
    async def promote(request: Request, name: str, by: Operator) -> Promoted:
        asked = await read_model(request, PromoteRequest)
        floors = GateFloors(asked.min_agreement, asked.max_kl, asked.max_latency_ratio)
        teacher = _named(name, asked.version)
        done = await waiting.run(
            control.promote, teacher.name, teacher.version, _who(asked.who, by), floors=floors, expected=asked.expected
        )
        return Promoted.of(done)

    @app.post(
        "/v1/aliases/{name}/rollback", responses=_REFUSALS, openapi_extra=body_of(RollbackRequest, required=False)
    )
    async def rollback(request: Request, name: str, by: Operator) -> Promoted:
        asked = await read_model(request, RollbackRequest)
        who = _who(asked.who, by)
        return Promoted.of(await waiting.run(control.rollback, _named(name, 1).name, who, expected=asked.expected))


def add_eviction(app: FastAPI, control: Control, waiting: Lane) -> None:
    """Unloading a version everywhere."""

    @app.post(
        "/v1/teachers/{name}/versions/{version}/evict",
        responses=_REFUSALS,
        openapi_extra=body_of(EvictRequest, required=False),
    )
    async def evict(request: Request, name: str, version: Version, by: Operator) -> Evicted:
        asked = await read_model(request, EvictRequest)
        teacher = _named(name, version)
        replicas = await waiting.run(control.evict, teacher, _who(asked.who, by))
        return Evicted(teacher=str(teacher), replicas=replicas)


def _aliases(directory: Directory) -> Aliases:
    state = directory.state()
    infos = [
        AliasInfo(name=name, version=version, digest=directory.version(TeacherId(name, version)).digest)
        for name, version in sorted(state.aliases.items())
    ]
    return Aliases(aliases=infos, log=list(state.log[-MAX_SHOWN_CHANGES:]))


def _named(name: str, version: int) -> TeacherId:
    """Raises BadQuery for what is no name."""
    if "@" in name:
        raise BadQuery(f"{name[:80]!r} is no name of a teacher: the version is no part of it")
    return TeacherId.parse(f"{name}@{version}")


def _who(given: str, by: str) -> str:
    return f"{given} ({by})" if given else by
