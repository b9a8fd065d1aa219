"""The roster through the HTTP gateway: what a run needs of it, and what an operator may change.

    call ──► answer                              limits per call in seconds: _LIMIT_S, _LOADING_LIMIT_S
      │ no connection: the call was never sent, so any call is made again
      └ connection broke, 429, 503: a run's calls are made again, each may arrive twice; an operator's are not

The contracts are teacher_server.contract's. Needs neither torch nor Ray.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from teacher_server.clients.http_gateway import CONNECT_TIMEOUT_S, Gateway, segment
from teacher_server.clients.retry import RetryPolicy
from teacher_server.contract import Acquired
from teacher_server.errors import BadQuery, BadReply, RetryableTeacherError, TeacherUnavailable
from teacher_server.promotion import GateFloors, GateReport, Promotion
from teacher_server.protocol import Binding, TeacherId, TeacherRef

ATTEMPTS = 4
MAX_ANSWER_BYTES = 16 * 2**20
_LIMIT_S = 30.0
_LOADING_LIMIT_S = 150.0  # teachers are loaded or deployed meanwhile; the roster's own limit strikes first
_PAUSES = RetryPolicy(backoff_s=0.2, max_backoff_s=2.0)
_Answer = TypeVar("_Answer", bound=BaseModel)


class _BindingJson(BaseModel):
    teacher: str
    digest: str
    block: int

    def binding(self) -> Binding:
        return Binding(_teacher_id(self.teacher), self.digest, self.block)


class _AcquiredJson(_BindingJson):
    adopted: bool


class _HeldJson(BaseModel):
    held: bool


class _RunJson(BaseModel):
    timeline: list[_BindingJson]


class _GateJson(BaseModel):
    items: int
    agreement: float | None
    kl: float | None
    old_ms: float | None
    new_ms: float | None

    def report(self) -> GateReport:
        """JSON has no number that is not finite: null stands for it."""
        numbers = (self.agreement, self.kl, self.old_ms, self.new_ms)
        agreement, kl, old_ms, new_ms = (math.nan if number is None else number for number in numbers)
        return GateReport(self.items, agreement, kl, old_ms, new_ms)


class _PromotionJson(BaseModel):
    teacher: str
    previous: str | None = None
    gate: _GateJson | None = None
    seconds: dict[str, float] = {}

    def promotion(self) -> Promotion:
        previous = None if self.previous is None else _teacher_id(self.previous)
        gate = None if self.gate is None else self.gate.report()
        return Promotion(_teacher_id(self.teacher), previous, gate, self.seconds)


class _EvictedJson(BaseModel):
    replicas: int


class _NothingJson(BaseModel):
    """An answer that says no more than that it was done."""


@dataclass(frozen=True)
class _Call:
    """about: the run or teacher that errors name. repeatable: making it twice does what making it once does."""

    method: str
    path: str
    about: str
    body: dict[str, Any] | None = None
    limit_s: float = _LIMIT_S
    repeatable: bool = True


class _Caller:
    """Makes calls within their limits. Holds no connection between two of them, so there is nothing to close."""

    def __init__(self, url: str, token: str | None, sleep: Callable[[float], None]) -> None:
        self.gateway = Gateway(url, token)
        self._sleep = sleep
        self._rng = random.Random()  # spreads the retries of many clients; it takes no part in any result
        self._http = httpx.Client(
            base_url=self.gateway.url,
            headers=self.gateway.headers,
            limits=httpx.Limits(max_keepalive_connections=0),
            verify=self.gateway.tls(),
            trust_env=False,  # neither proxies nor a .netrc: what the environment says is meant for other servers
        )

    def __call__(self, call: _Call, answer: type[_Answer]) -> _Answer:
        """The parsed answer. Raises the errors of teacher_server.clients.http_gateway."""
        body = self._until_answered(call)
        try:
            return answer.model_validate_json(body or b"{}")
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            url = self.gateway.url
            raise BadReply(f"{url} answered {call.method} {call.path} unexpectedly, {where}: {first['msg']}") from None

    def _until_answered(self, call: _Call) -> bytes:
        began = time.monotonic()
        failure: RetryableTeacherError
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._once(call, began)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure, again = self._broken(error, call, began), True
            except httpx.TransportError as error:
                failure, again = self._broken(error, call, began), call.repeatable
            except RetryableTeacherError as error:
                failure, again = error, call.repeatable
            pause_s = _PAUSES.pause_s(attempt, self._rng)
            if not again or attempt == ATTEMPTS or time.monotonic() - began + pause_s >= call.limit_s:
                break
            self._sleep(pause_s)
        raise failure

    def _once(self, call: _Call, began: float) -> bytes:
        left_s = max(0.001, call.limit_s - (time.monotonic() - began))
        timeout = httpx.Timeout(left_s, connect=min(CONNECT_TIMEOUT_S, left_s))
        with self._http.stream(call.method, call.path, json=call.body, timeout=timeout) as response:
            answer = self._read(response, call, began)
        if not response.is_success:
            raise self.gateway.refusal(response.status_code, answer, call.about, time.monotonic() - began)
        return answer

    def _read(self, response: httpx.Response, call: _Call, began: float) -> bytes:
        answer = bytearray()
        for part in response.iter_raw():
            answer += part
            if len(answer) > MAX_ANSWER_BYTES:
                raise BadReply(f"{self.gateway.url} sends more than {MAX_ANSWER_BYTES} bytes as one answer")
            if time.monotonic() - began > call.limit_s:  # a body that drips keeps each single read in time
                raise TeacherUnavailable(call.about, call.limit_s, f"the answer of {self.gateway.url} did not end")
        return bytes(answer)

    def _broken(self, error: httpx.TransportError, call: _Call, began: float) -> TeacherUnavailable:
        return self.gateway.broken(error, call.about, time.monotonic() - began)


class HttpRunControl:
    """A contract.RunControl through the gateway at `url`. Threads may share it; it is not picklable.

    Every call may arrive twice without harm, and is made up to ATTEMPTS times. sleep is for tests.
    """

    def __init__(self, url: str, token: str | None = None, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._call = _Caller(url, token, sleep)

    def __repr__(self) -> str:
        return f"HttpRunControl({self._call.gateway.url!r})"

    def acquire(self, run: str, ref: TeacherRef) -> Acquired:
        """A lease for this run; returns when the teachers have loaded what it needs."""
        call = _Call("POST", f"{_run_path(run)}/lease", str(ref), {"teacher": str(ref)}, _LOADING_LIMIT_S)
        said = self._call(call, _AcquiredJson)
        return Acquired(said.binding(), said.adopted)

    def bind(self, run: str, ref: TeacherRef, block: int) -> Binding:
        """Which version the steps of a block use: the same answer for every rank, durable before it is given."""
        call = _Call("POST", f"{_run_path(run)}/blocks/{block}", str(ref), {"teacher": str(ref)})
        return self._call(call, _BindingJson).binding()

    def restore(self, run: str, bindings: Sequence[Binding], highest_block: int) -> None:
        """Puts a run's timeline back from its checkpoint, unless the roster has a record of that run."""
        spans = [{"teacher": str(b.teacher), "digest": b.digest, "block": b.block} for b in bindings]
        body = {"bindings": spans, "highest_block": highest_block}
        self._call(_Call("PUT", f"{_run_path(run)}/timeline", f"for run {run}", body), _NothingJson)

    def timeline(self, run: str) -> list[Binding]:
        """What the run was bound to so far: one binding for each change, `block` its first block."""
        said = self._call(_Call("GET", _run_path(run), f"for run {run}"), _RunJson)
        return [span.binding() for span in said.timeline]

    def renew(self, run: str) -> bool:
        """Keeps the run's lease; False when it ran out and must be acquired again."""
        return self._call(_Call("PUT", f"{_run_path(run)}/lease", f"for run {run}"), _HeldJson).held

    def release(self, run: str) -> None:
        """Ends the run's lease. Releasing twice does no harm."""
        self._call(_Call("DELETE", f"{_run_path(run)}/lease", f"for run {run}"), _NothingJson)


class HttpOperatorControl:
    """A contract.OperatorControl through the gateway at `url`, with the operator's token. sleep is for tests.

    A call is made again only when it was never sent: a second promotion or rollback would find what the first one did.
    The log has `who` beside the address that the gateway saw the call come from.
    """

    def __init__(self, url: str, token: str | None = None, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._call = _Caller(url, token, sleep)

    def __repr__(self) -> str:
        return f"HttpOperatorControl({self._call.gateway.url!r})"

    def promote(
        self, name: str, version: int, who: str, *, floors: GateFloors | None = None, expected: int | None = None
    ) -> Promotion:
        """Points an alias at another version: prepare, gate, commit."""
        chosen = floors if floors is not None else GateFloors()
        body = {"version": version, "expected": expected, "who": who} | asdict(chosen)
        return self._change("PUT", f"/v1/aliases/{segment(name)}", f"{name}@{version}", body).promotion()

    def rollback(self, name: str, who: str, *, expected: int | None = None) -> Promotion:
        """Points an alias back at the version that it had before its last change; without a gate."""
        path = f"/v1/aliases/{segment(name)}/rollback"
        return self._change("POST", path, name, {"expected": expected, "who": who}).promotion()

    def evict(self, teacher: TeacherId, who: str) -> int:
        """Unloads a version everywhere once its questions are answered; the number of replicas that held it."""
        path = f"/v1/teachers/{segment(teacher.name)}/versions/{teacher.version}/evict"
        call = _Call("POST", path, str(teacher), {"who": who}, _LOADING_LIMIT_S, repeatable=False)
        return self._call(call, _EvictedJson).replicas

    def _change(self, method: str, path: str, about: str, body: dict[str, Any]) -> _PromotionJson:
        return self._call(_Call(method, path, about, body, _LOADING_LIMIT_S, repeatable=False), _PromotionJson)


def ask_gateway(url: str, token: str | None, path: str, about: str, answer: type[_Answer]) -> _Answer:
    """What the gateway at `url` answers to a GET, parsed. about: what errors say that it was asked."""
    return _Caller(url, token, time.sleep)(_Call("GET", path, about), answer)


def _run_path(run: str) -> str:
    return f"/v1/runs/{segment(run)}"


def _teacher_id(text: str) -> TeacherId:
    try:
        return TeacherId.parse(text)
    except BadQuery as error:
        raise BadReply(f"the gateway names no teacher: {error}") from None
