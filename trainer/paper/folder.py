"""The folder of a paper's experiments: what it was begun with, and who works in it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import platform
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data.atomic import write_atomic
from trainer.config import NO_TEACHER, ConfigError
from trainer.paper.load import RUN_NAME
from trainer.paper.plan import Job
from trainer.paper.published import STUDENTS
from trainer.paper.records import Arm, Cell, TeacherKey
from trainer.paper.scale import FULL_TEACHER_SEED, Choices, Scale, student_config, teacher_config

_GIT_S = 10.0
_PACKAGES = ("torch", "ray", "numpy")
_ESTIMATES = ("expected", "step_times", "measured_on")  # of a scale: they change no result


def write_run_file(
    folder: Path, scale: Scale, choices: Choices, jobs: Sequence[Job], say: Callable[[str], None] = print
) -> str:
    """run.json, for the pages; returns the name under which the roster knows this folder's runs.

    More seeds or fractions may be asked for later; the list of cells is then that of both. A folder that was begun by
    another state of the program is gone on with, and says so. Raises ConfigError when it was begun with other settings.
    """
    before, settings = check_settings(folder, scale, choices)
    programs = list(dict.fromkeys([*before.get("programs", ()), program()]))
    if len(programs) > 1:
        say(f"note: the cells in {folder} are of more than one state of the program: {', '.join(programs)}")
    cells = dict.fromkeys([*before.get("cells", ()), *(job.id for job in jobs if job.cell is not None)])
    machine = f"{_processor()}, {os.cpu_count()} cores, {platform.platform()}"
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    content = {
        "name": before.get("name") or f"paper-{scale.name}-{secrets.token_hex(4)}",
        "scale": scale.name,
        "command": ["preceptor", *sys.argv[1:]],
        "programs": programs,
        "teachers_answer": choices.transport,
        "first_start": before.get("first_start") or now,
        "last_start": now,
        "machines": [*before.get("machines", ()), *([] if machine in before.get("machines", ()) else [machine])],
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        "settings": settings,
        "cells": list(cells),
    }
    write_atomic(folder / RUN_NAME, json.dumps(content, indent=1).encode() + b"\n")
    return str(content["name"])


def check_settings(folder: Path, scale: Scale, choices: Choices) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what run.json says, empty where there is none; the settings as it would have them). Raises ConfigError when the
    folder was begun with other settings."""
    path = folder / RUN_NAME
    before: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
    settings = {name: value for name, value in dataclasses.asdict(scale).items() if name not in _ESTIMATES}
    settings |= {"equal_steps": choices.equal_steps, "identity": _identity(scale, choices)}
    settings = json.loads(json.dumps(settings))  # tuples become lists
    if before and before.get("settings") != settings:
        raise ConfigError(
            f"{folder} was begun with other settings (see {RUN_NAME}): use another --out, or the old ones"
        )
    return before, settings


def _identity(scale: Scale, choices: Choices) -> str:
    """Of a student's and a teacher's settings: it changes with those that no scale names, such as lambda."""
    student = Cell(arm=Arm(student=STUDENTS[0]), fraction=100.0, seed=0)
    teacher = TeacherKey(arch=STUDENTS[0], data="full", fraction=100.0, seed=FULL_TEACHER_SEED)
    configs = (student_config(scale, student, NO_TEACHER, choices), teacher_config(scale, teacher, choices))
    return "-".join(config.identity() for config in configs)


def program() -> str:
    """The commit of this checkout, and where its files differ from it a + and 8 hex digits of what differs; elsewhere
    the version."""
    git = ("git", "-C", str(Path(__file__).parents[2]))
    try:
        commit, changes = (
            subprocess.run([*git, *words], check=True, capture_output=True, timeout=_GIT_S).stdout
            for words in (("rev-parse", "--short=12", "HEAD"), ("diff", "HEAD", "--binary"))
        )
    except (OSError, subprocess.SubprocessError):
        return f"preceptor {version('preceptor')}"
    differs = f"+{hashlib.sha256(changes).hexdigest()[:8]}" if changes else ""
    return f"commit {commit.decode().strip()}{differs}"


def _processor() -> str:
    """The model, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Raises ConfigError when another process works in this folder."""
    with open(folder / "paper.lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another process runs the experiments in {folder}: wait, or use another --out") from None
        yield
