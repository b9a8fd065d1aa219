"""A library whose weights are any bytes, and a teacher client in closed form. Neither torch nor Ray."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from teacher_server.card import PRETEXT_CLASSES, Provenance, TeacherCard
from teacher_server.contract import FailedReply, PendingReply
from teacher_server.errors import TeacherError, TeacherUnavailable
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import PhaseSeconds, TeacherId, TeacherQuery, TeacherReply


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
    """logits[i, k] = (mean pixel of item i + 10 version + k) / temperature."""
    assert query.pixels is not None
    means = query.pixels.reshape(-1, query.views_per_item, query.pixels[0].size).mean(axis=(1, 2))
    raw = means[:, None] + 10 * query.teacher.version + np.arange(num_classes)
    return (raw / query.temperature).astype(np.float32)


@dataclass
class FakeClient:
    """Answers at once in closed form, or with `refusals` first; while `gate` is not set, answers wait for it."""

    library: TeacherLibrary
    refusals: list[TeacherError] = field(default_factory=list)
    digest: str | None = None
    gate: threading.Event | None = None
    waiting: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    asked: list[TeacherQuery] = field(default_factory=list)
    cancelled: int = 0

    def submit(self, query: TeacherQuery) -> PendingReply:
        self.asked.append(query)
        if self.refusals:
            return _Refusing(self, self.refusals.pop(0))
        return _Answering(self, query)

    def close(self) -> None:
        pass


class _Refusing(FailedReply):
    def __init__(self, client: FakeClient, error: TeacherError) -> None:
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
        entry = client.library.entry(query.teacher)
        return TeacherReply(
            request_id=query.request_id,
            teacher=query.teacher,
            digest=entry.digest if client.digest is None else client.digest,
            temperature=query.temperature,
            logits=closed_form(query, len(entry.card.classes)),
            engine="cpu",
            seconds=PhaseSeconds(0.25, 0.5, 0.125),
        )

    def cancel(self) -> None:
        self.client.cancelled += 1


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
