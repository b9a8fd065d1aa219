"""A library whose weights are any bytes, a teacher client in closed form, a roster that no actor guards, and a gateway
over them. Neither torch nor Ray.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from data.errors import DataError
from services.asking import GatewayOptions
from services.gateway import create_app
from teacher_server.card import PRETEXT_CLASSES, Provenance, TeacherCard
from teacher_server.contract import Acquired, FailedReply, PendingReply
from teacher_server.errors import GateRefused, TeacherError, TeacherUnavailable
from teacher_server.library import TeacherLibrary
from teacher_server.promotion import AliasRequest, GateFloors, GateReport, Promotion
from teacher_server.protocol import Binding, PhaseSeconds, TeacherId, TeacherQuery, TeacherRef, TeacherReply
from teacher_server.roster.roster import Roster


def make_card(**changes: object) -> TeacherCard:
    values: dict[str, object] = {
        "arch": "r3d",
        "arch_version": 1,
        "width": 0.125,
        "head": "pretext",
        "classes": PRETEXT_CLASSES,
        "clip_len": 8,
        "crop": 8,
        "modality": "rgb",
        "feature_size": 64,
        "provenance": Provenance(command="no network at all"),
    }
    return TeacherCard.model_validate(values | changes)


def closed_form(query: TeacherQuery, num_classes: int) -> np.ndarray:
    """logits[i, k] = (mean pixel of item i + 10 version + k) / temperature; the mean first frame stands for pixels."""
    if query.pixels is not None:
        means = query.pixels.reshape(-1, query.views_per_item, query.pixels[0].size).mean(axis=(1, 2))
    else:
        means = query.view_batch().records["start"].reshape(-1, query.views_per_item).mean(axis=1)
    raw = means[:, None] + 10 * query.teacher.version + np.arange(num_classes)
    return (raw / query.temperature).astype(query.dtype)


CLIPS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 8, 3), dtype=np.uint8)
FEATURES = np.random.default_rng(0).normal(size=(2048, 64)).astype(np.float32)


@dataclass
class FakeClient:
    """Answers at once in closed form, or with `refusals` first; while `gate` is not set, answers wait for it."""

    library: TeacherLibrary
    refusals: list[TeacherError | DataError] = field(default_factory=list)
    digest: str | None = None
    gate: threading.Event | None = None
    nan: bool = False
    waiting: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    asked: list[TeacherQuery] = field(default_factory=list)
    cancelled: int = 0
    on_cancel: Callable[[], None] = lambda: None

    def submit(self, query: TeacherQuery) -> PendingReply:
        self.asked.append(query)
        if self.refusals:
            return _Refusing(self, self.refusals.pop(0))
        return _Answering(self, query)

    def close(self) -> None:
        pass


class _Refusing(FailedReply):
    def __init__(self, client: FakeClient, error: TeacherError | DataError) -> None:
        super().__init__(error)
        self._client = client

    def cancel(self) -> None:
        self._client.cancelled += 1


@dataclass
class _Answering:
    client: FakeClient
    query: TeacherQuery

    def result(self, timeout_s: float) -> TeacherReply:
        client, query = self.client, self.query
        if client.gate is not None:
            client.waiting.release()
            if not client.gate.wait(min(timeout_s, 30.0)):
                raise TeacherUnavailable(str(query.teacher), timeout_s, "the test never opened the gate")
        if client.nan:
            return dataclasses.replace(self._reply(), logits=np.full((len(self._reply().logits), 5), np.nan, "float32"))
        return self._reply()

    def _reply(self) -> TeacherReply:
        client, query = self.client, self.query
        entry = client.library.entry(query.teacher)
        return TeacherReply(
            request_id=query.request_id,
            teacher=query.teacher,
            digest=entry.digest if client.digest is None else client.digest,
            temperature=query.temperature,
            logits=closed_form(query, len(entry.card.classes)),
            engine="cpu",
            features=FEATURES[: query.num_clips // query.views_per_item] if query.want_features else None,
            seconds=PhaseSeconds(0.25, 0.5, 0.125),
        )

    def cancel(self) -> None:
        self.client.cancelled += 1
        self.client.on_cancel()


class RosterControl:
    """The roster's file without its actor: nothing has to be loaded. `errors` come first; `gate` as FakeClient's."""

    def __init__(self, library: TeacherLibrary) -> None:
        self.roster = Roster(library)
        self.errors: list[TeacherError] = []
        self.gate: threading.Event | None = None
        self.waiting = threading.Semaphore(0)

    def acquire(self, run: str, ref: TeacherRef) -> Acquired:
        self._wait()
        binding = self.roster.preview(run, ref)
        self.roster.acquire(run, "cluster/app", binding.teacher, deploying=False)
        return Acquired(binding, adopted=True)

    def bind(self, run: str, ref: TeacherRef, block: int) -> Binding:
        return self.roster.bind(run, ref, block)

    def restore(self, run: str, bindings: Sequence[Binding], highest_block: int) -> None:
        self.roster.restore(run, bindings, highest_block)

    def timeline(self, run: str) -> list[Binding]:
        return self.roster.timeline(run)

    def renew(self, run: str) -> bool:
        return self.roster.renew(run)

    def release(self, run: str) -> None:
        self.roster.release(run)

    def promote(
        self, name: str, version: int, who: str, *, floors: GateFloors | None = None, expected: int | None = None
    ) -> Promotion:
        report = GateReport(items=4, agreement=0.5, kl=float("inf"), old_ms=1.0, new_ms=2.0)
        if floors is not None and (reasons := report.refusals(floors)):
            raise GateRefused(f"{name}@{version}", reasons)
        return self._move(AliasRequest(name, version, who, expected), report)

    def rollback(self, name: str, who: str, *, expected: int | None = None) -> Promotion:
        return self._move(AliasRequest(name, None, who, expected), None)

    def evict(self, teacher: TeacherId, who: str) -> int:  # noqa: ARG002 the contract's signature
        self._wait()
        self.roster.library.entry(teacher)
        self.roster.check_unused(teacher)
        return 2

    def _move(self, request: AliasRequest, report: GateReport | None) -> Promotion:
        self._wait()
        proposal = self.roster.begin(request, "cluster/app")
        if not proposal.settled:
            self.roster.commit(proposal)
        return Promotion(proposal.teacher, proposal.previous, report, {"prepare": 0.5, "commit": 0.25})

    def _wait(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
        if self.gate is not None:
            self.waiting.release()
            assert self.gate.wait(30.0), "the test never opened the gate"


class Gateway:
    """The app, what it recorded, and a way to talk to it. `loaded` or `ready_error` is what the teachers say."""

    def __init__(self, client: Any, library: TeacherLibrary, control: Any, stores: Path, **options: Any) -> None:
        self.recorded: list[tuple[str, int]] = []
        self.loaded: frozenset[TeacherId] = frozenset()
        self.ready_error: TeacherError | None = None
        self.app: FastAPI = create_app(
            client,
            library,
            control,
            stores_root=stores,
            check_teachers=self._check_teachers,
            record=self._record,
            options=GatewayOptions(**options),
        )

    def _record(self, route: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.recorded.append((route, status))

    def _check_teachers(self) -> frozenset[TeacherId]:
        if self.ready_error is not None:
            raise self.ready_error
        return self.loaded

    def run(self, check: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
        """What `check` returns, in an event loop of its own."""

        async def talk() -> Any:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                return await asyncio.wait_for(check(http), 30.0)

        return asyncio.run(talk())

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.send("GET", path, **kwargs)

    def send(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        return self.run(lambda http: http.request(method, path, **kwargs))

    def ask(self, name: str = "alpha", body: tuple[bytes, dict[str, str]] | None = None) -> httpx.Response:
        """A question about CLIPS, or what `body` says."""
        content, headers = body if body is not None else binary_question(CLIPS)
        return self.send("POST", f"/v2/models/{name}/infer", content=content, headers=headers)


def binary_question(pixels: np.ndarray, **request: Any) -> tuple[bytes, dict[str, str]]:
    """Body and headers that ask about these pixels, as binary data; request: other fields of the JSON."""
    size = {"binary_data_size": pixels.nbytes}
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": list(pixels.shape), "parameters": size}
    return with_tensors({"inputs": [tensor], **request}, pixels.tobytes())


def with_tensors(request: Any, *tensors: bytes) -> tuple[bytes, dict[str, str]]:
    """Body and headers of JSON and what follows it."""
    head = json.dumps(request).encode()
    return head + b"".join(tensors), {"Inference-Header-Content-Length": str(len(head))}


@pytest.fixture
def make_gateway(
    client: FakeClient, library: TeacherLibrary, control: RosterControl, tmp_path: Path
) -> Callable[..., Gateway]:
    """Gateways over the same client, library and roster; keyword arguments are GatewayOptions'."""
    return lambda **options: Gateway(client, library, control, tmp_path / "stores", **options)


@pytest.fixture
def gateway(make_gateway: Callable[..., Gateway]) -> Gateway:
    return make_gateway()


@pytest.fixture
def clips() -> np.ndarray:
    """What `Gateway.ask` asks about: two items of three clips."""
    return CLIPS


@pytest.fixture
def question() -> Callable[..., tuple[bytes, dict[str, str]]]:
    """binary_question."""
    return binary_question


@pytest.fixture
def tensors() -> Callable[..., tuple[bytes, dict[str, str]]]:
    """with_tensors."""
    return with_tensors


@pytest.fixture
def control(library: TeacherLibrary) -> RosterControl:
    return RosterControl(library)


@pytest.fixture
def library(tmp_path: Path) -> TeacherLibrary:
    """alpha@1, alpha@2 (pretext, items of 3 clips), beta@1 (action, items of one clip)."""
    library = TeacherLibrary(tmp_path / "teachers")
    weights = tmp_path / "weights"
    for number, (name, card) in enumerate(
        [("alpha", make_card()), ("alpha", make_card()), ("beta", make_card(head="action", classes=("a", "b")))]
    ):
        weights.write_bytes(bytes([number]))
        library.add(name, card, weights)
    return library


@pytest.fixture
def client(library: TeacherLibrary) -> FakeClient:
    return FakeClient(library)


@pytest.fixture
def expected() -> Callable[[TeacherQuery, int], np.ndarray]:
    """The closed form."""
    return closed_form


@pytest.fixture
def alpha() -> TeacherId:
    return TeacherId("alpha", 1)
