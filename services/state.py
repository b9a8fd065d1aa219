"""What lies under PRECEPTOR_HOME, read without a lock and without trust: damaged things come back as None."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import StoreError, StoreMissing
from data.manifest import Manifest, latest_generation, manifest_path, read_manifest
from data.store import ClipStore
from teacher_server.card import EnsembleCard
from teacher_server.errors import LibraryError, UnknownTeacher
from teacher_server.library import WEIGHTS, TeacherLibrary, read_card
from teacher_server.roster.roster import Roster
from teacher_server.roster.state import RosterState
from trainer.runs import RunFolder

_TAIL_BYTES = 64 * 1024  # more than a step's and an epoch's record


@dataclass(frozen=True)
class RunState:
    """steps: done so far. pretext_acc: None until a run that is evaluated has ended."""

    student: str
    teacher: str
    steps: int
    finished: bool
    pretext_acc: float | None


@dataclass(frozen=True)
class StoreState:
    """A sound store."""

    num_videos: int
    num_bytes: int


class StateReader:
    """Reads three folders; one that is absent counts as empty."""

    def __init__(self, teachers: Path, runs: Path, stores: Path) -> None:
        self._library = TeacherLibrary(teachers)
        self._runs = runs
        self._stores = stores
        self._manifests: dict[tuple[Path, int, int], Manifest] = {}  # path, mtime, size: they take long to parse

    def roster(self) -> RosterState | None:
        """The roster's state, empty when there is no file; None when it is damaged."""
        try:
            return Roster(self._library).state()
        except LibraryError:
            return None

    def teachers(self) -> Iterator[tuple[str, int, int]]:
        """Name, sound versions and damaged versions, of the library's own folder. Weights are not hashed here."""
        for folder in _folders(self._library.root):
            try:
                versions = self._library.versions(folder.name)
            except (UnknownTeacher, OSError):
                continue  # no teacher, or one that is just being added
            good = sum(_is_sound(folder / str(version)) for version in versions)
            yield folder.name, good, len(versions) - good

    def runs(self) -> Iterator[tuple[str, RunState | None]]:
        """The runs by name; a folder without config.json is none."""
        for folder in _folders(self._runs):
            run = RunFolder(folder)
            if run.config.exists():
                yield run.run_id, _run_state(run)

    def stores(self) -> Iterator[tuple[str, StoreState | None]]:
        """The stores by name; a folder without a manifest is none."""
        for folder in _folders(self._stores):
            try:
                store = ClipStore(folder, self._manifest(folder))
            except StoreMissing:
                continue
            except (StoreError, OSError):
                yield folder.name, None
            else:
                yield folder.name, StoreState(len(store), store.num_bytes)

    def _manifest(self, folder: Path) -> Manifest:
        generation = latest_generation(folder)
        if not generation:
            return read_manifest(folder)  # raises StoreMissing
        status = manifest_path(folder, generation).stat()
        key = (folder, status.st_mtime_ns, status.st_size)
        if key not in self._manifests:
            self._manifests = {k: m for k, m in self._manifests.items() if k[0] != folder}
            self._manifests[key] = read_manifest(folder)
        return self._manifests[key]


def _folders(root: Path) -> list[Path]:
    """Sorted; what begins with a dot is somebody's unfinished work."""
    try:
        return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def _is_sound(version: Path) -> bool:
    try:
        return isinstance(read_card(version), EnsembleCard) or (version / WEIGHTS).stat().st_size > 0
    except (LibraryError, OSError):
        return False


def _run_state(run: RunFolder) -> RunState | None:
    try:
        config = json.loads(run.config.read_bytes())
        result = run.read_result() if run.is_finished else {}
        accuracy = result.get("pretext_acc")
        return RunState(
            student=str(config["student"]),
            teacher=str(config["teacher"]),
            steps=int(result["steps"]) if result else _last_step(run.metrics),
            finished=bool(result),
            pretext_acc=None if accuracy is None else float(accuracy),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _last_step(metrics: Path) -> int:
    """Steps done by the newest whole record; 0 before the first. A line that is being written is left out."""
    try:
        with open(metrics, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    if not lines:
        return 0
    record: dict[str, Any] = json.loads(lines[-1])
    return int(record["step"])
