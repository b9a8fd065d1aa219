"""Teachers as the Open Inference Protocol describes models: metadata, readiness, the repository's index."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from services.directory import Directory
from services.errors import NotLoaded
from teacher_server.library import TeacherEntry
from teacher_server.protocol import TeacherId

PLATFORM = "preceptor"
ANY = -1  # a size that the request decides


class TensorInfo(BaseModel):
    """shape: -1 where the request decides."""

    name: str
    datatype: str
    shape: list[int]


class ModelInfo(BaseModel):
    """versions: all that the library holds, as text."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]


class IndexEntry(BaseModel):
    """One version. reason: why it is not ready."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class Models:
    """What a directory of teachers looks like from there. Every method may hash weights at its first call: blocks."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def metadata(self, teacher: str) -> ModelInfo:
        """teacher: `name` or `name@version`. Raises BadQuery, UnknownTeacher, LibraryError."""
        entry = self._directory.resolve(teacher)
        versions = [str(version) for version in self._directory.versions(entry.teacher.name)]
        inputs, outputs = _tensors(entry)
        return ModelInfo(name=entry.teacher.name, versions=versions, platform=PLATFORM, inputs=inputs, outputs=outputs)

    def check_ready(self, teacher: str, loaded: frozenset[TeacherId]) -> None:
        """Raises NotLoaded for a version that is not among those that replicas have loaded, and as `metadata`."""
        entry = self._directory.resolve(teacher)
        if entry.teacher not in loaded:
            raise NotLoaded(f"{entry.teacher} is not loaded: a question to it loads it")

    def index(self, loaded: frozenset[TeacherId], *, ready_only: bool) -> list[IndexEntry]:
        """Every version of every teacher, or those that are ready. Raises LibraryError for a damaged roster."""
        entries = [
            self._entry(info.name, version.version, version.problem, loaded)
            for info in self._directory.teachers()
            for version in info.versions
        ]
        return [entry for entry in entries if entry.state == "READY" or not ready_only]

    @staticmethod
    def _entry(name: str, version: int, problem: str | None, loaded: frozenset[TeacherId]) -> IndexEntry:
        if problem is not None:
            return IndexEntry(name=name, version=str(version), state="UNAVAILABLE", reason=problem)
        if TeacherId(name, version) in loaded:
            return IndexEntry(name=name, version=str(version), state="READY", reason="")
        return IndexEntry(name=name, version=str(version), state="UNAVAILABLE", reason="a question to it loads it")


def _tensors(entry: TeacherEntry) -> tuple[list[TensorInfo], list[TensorInfo]]:
    card = entry.card
    side = ANY if card.resize else card.crop
    inputs = [
        TensorInfo(name="pixels", datatype="UINT8", shape=[ANY, ANY, side, side, 3]),
        TensorInfo(name="views", datatype="UINT8", shape=[ANY]),
    ]
    outputs = [
        TensorInfo(name="logits", datatype="FP32", shape=[ANY, len(card.classes)]),
        TensorInfo(name="features", datatype="FP32", shape=[ANY, card.feature_size]),
    ]
    return inputs, outputs
