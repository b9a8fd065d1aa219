"""A run's folder: its files, its lock, and which run a new start goes on with.

$PRECEPTOR_HOME/runs/<id>/  config.json  metrics.jsonl  result.json  answers.npz  checkpoints/  tensorboard/
                            curves.png  report.html  stop (while a stop is asked for)  run.lock
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.atomic import write_atomic
from trainer.config import NO_TEACHER, ConfigError, RunConfig, from_json


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run. The folder is on storage that all workers reach."""

    path: Path

    @property
    def run_id(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def config(self) -> Path:
        """The resolved settings, and their identity."""
        return self.path / "config.json"

    @property
    def train_list(self) -> Path:
        """The keys of the videos that it trains on, one a line."""
        return self.path / "train_list.txt"

    @property
    def metrics(self) -> Path:
        """A JSON object a line: steps and epochs."""
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        """The summary; exists once the run is finished."""
        return self.path / "result.json"

    @property
    def answers(self) -> Path:
        """Which test items it answered right at its end; see trainer.answers."""
        return self.path / "answers.npz"

    @property
    def outcome(self) -> Path:
        """Why the last attempt ended: finished, stopped or teacher_unavailable."""
        return self.path / "outcome.json"

    @property
    def checkpoints(self) -> Path:
        """A folder per checkpoint."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def report(self) -> Path:
        """The self-contained page."""
        return self.path / "report.html"

    @property
    def stop_request(self) -> Path:
        """While this file exists, the workers save and end after the step that they are in."""
        return self.path / "stop"

    @property
    def is_finished(self) -> bool:
        """Whether there is a result."""
        return self.result.is_file()

    def read_config(self) -> RunConfig:
        """The settings that the run was started with. Raises ConfigError, a sentence, for a file that has none."""
        try:
            fields = json.loads(self.config.read_bytes())
        except ValueError as error:
            raise ConfigError(f"{self.config} is damaged: {error}") from None
        if not isinstance(fields, dict):
            raise ConfigError(f"{self.config} is damaged: expected an object, got {type(fields).__name__}")
        fields.pop("identity", None)
        return from_json(fields)

    def read_result(self) -> dict[str, Any]:
        """result.json."""
        return json.loads(self.result.read_bytes())

    def read_outcome(self) -> dict[str, Any] | None:
        """outcome.json, None while an attempt is under way."""
        try:
            return json.loads(self.outcome.read_bytes())
        except FileNotFoundError:
            return None

    def write_json(self, path: Path, content: dict[str, Any]) -> None:
        """One of the folder's JSON files, whole or not at all."""
        write_atomic(path, json.dumps(content, indent=2, allow_nan=False).encode() + b"\n")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the run's lock. Raises ConfigError when another process trains this run."""
        with open(self.path / "run.lock", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"run {self.run_id} is being trained by another process: wait, or use --run-id"
                ) from None
            yield

    def is_locked(self) -> bool:
        """Whether a process trains this run now."""
        try:
            with self.locked():
                return False
        except ConfigError:
            return True


def choose_run(runs: Path, config: RunConfig, identity: str | None = None) -> RunFolder:
    """The folder to train in: the newest unfinished run of the same settings, or a new one, made with its config.json.

    With --run-id: that run, if it is unfinished and has the same settings, else ConfigError; or a new one of the name.
    identity: the plan's, which knows a recorded timeline; that of the settings alone without it.
    """
    identity = config.identity() if identity is None else identity
    if config.run_id:
        return _named_run(runs, config, identity)
    if config.resume == "auto":
        for path in sorted(runs.glob("*/config.json"), key=lambda p: p.stat().st_mtime, reverse=True):
            run = RunFolder(path.parent)
            if identity_of(run) == identity and not run.is_finished and not run.is_locked():
                return run
    return _new_run(runs, _make_id(config), config, identity)


def _named_run(runs: Path, config: RunConfig, identity: str) -> RunFolder:
    run = RunFolder(runs / config.run_id)
    if not run.path.exists():
        return _new_run(runs, config.run_id, config, identity)
    if run.is_finished:
        raise ConfigError(f"run {config.run_id} is finished: its report is {run.report}; use another --run-id")
    if config.resume == "never":
        raise ConfigError(f"run {config.run_id} exists: use another --run-id, or --resume auto to go on with it")
    if identity_of(run) != identity:
        raise ConfigError(
            f"run {config.run_id} was started with other settings or another --teacher-timeline (see {run.config}): "
            "use another --run-id"
        )
    return run


def _new_run(runs: Path, run_id: str, config: RunConfig, identity: str) -> RunFolder:
    run = RunFolder(runs / run_id)
    run.path.mkdir(parents=True)
    run.write_json(run.config, {**config.to_json(), "run_id": run_id, "identity": identity})
    return run


def _make_id(config: RunConfig) -> str:
    teacher = "scratch" if config.teacher == NO_TEACHER else config.teacher.replace("@", "-v")
    # The nanoseconds keep two starts within a second apart.
    student = re.sub(r"[^A-Za-z0-9._-]", ".", config.student)  # a plug-in is module:function
    return f"{student}-{teacher}-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 1_000_000:06d}"


def identity_of(run: RunFolder) -> str | None:
    """That of the settings with which a run was begun; None where they cannot be read."""
    try:
        return json.loads(run.config.read_bytes()).get("identity")
    except (OSError, ValueError):
        return None
