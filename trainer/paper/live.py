"""What a person sees while a paper's experiments run: the rows of Table 2, what runs now, and when it will be over.

a terminal          a table that moves
a file or a pipe    a line for every job that ends, and one now and then
progress.json       the same figures, for programs, in either case
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from data.atomic import write_atomic
from trainer.paper.controls import control_kind
from trainer.paper.estimate import Estimate
from trainer.paper.plan import Job
from trainer.paper.published import DISPLAY, ROWS
from trainer.paper.schedule import Schedule
from trainer.paper.work import Report
from trainer.report_data import duration

_PLAIN_EVERY_S = 60.0
_FILE_EVERY_S = 5.0
_TAIL_BYTES = 4096


@dataclass(frozen=True)
class Running:
    """A job under way: steps done of all."""

    id: str
    step: int
    steps: int


class Board:
    """The state of a start in figures. runs: the folder of the runs' folders. spent_before_s: by earlier starts."""

    def __init__(
        self,
        schedule: Schedule,
        estimate: Estimate,
        runs: Path,
        clock: Callable[[], float] = time.monotonic,
        *,
        spent_before_s: float = 0.0,
    ) -> None:
        self._schedule = schedule
        self._estimate = estimate
        self._runs = runs
        self._clock = clock
        self._spent_before_s = spent_before_s
        self._began = clock()

    @property
    def elapsed_s(self) -> float:
        """Since the start."""
        return self._clock() - self._began

    def running(self) -> tuple[Running, ...]:
        """The jobs under way, as far as their metrics say."""
        return tuple(
            Running(job_id, last_step(self._runs / job_id / "metrics.jsonl"), self._estimate.jobs[job_id].steps)
            for job_id in self._schedule.running
        )

    def eta_s(self, running: tuple[Running, ...]) -> float:
        """Seconds to the end: what is left by the estimate, corrected by what finished jobs really took."""
        costs, seconds = self._estimate.jobs, self._schedule.seconds
        expected = sum(costs[job_id].seconds for job_id in seconds)
        factor = sum(seconds.values()) / expected if expected > 0 else 1.0
        left = sum(costs[job.id].seconds for job in self._schedule.remaining)
        left -= sum(costs[one.id].seconds * min(1.0, one.step / max(1, one.steps)) for one in running)
        return max(0.0, left * factor / self._estimate.workers)

    def to_json(self) -> dict[str, Any]:
        """progress.json."""
        schedule, running = self._schedule, self.running()
        return {
            "done": len(schedule.done),
            "total": len(schedule.jobs),
            "running": [vars(one) for one in running],
            "failed": schedule.failed,
            "blocked": schedule.blocked,
            "elapsed_s": round(self.elapsed_s, 1),
            "spent_s": round(self._spent_before_s + self.elapsed_s, 1),
            "eta_s": round(self.eta_s(running), 1),
            "written_at": round(time.time(), 1),
        }

    def line(self) -> str:
        """All of it in one line."""
        schedule, running = self._schedule, self.running()
        names = ", ".join(f"{one.id} {one.step}/{one.steps}" for one in running) or "nothing"
        failed = f", {len(schedule.failed)} failed" if schedule.failed else ""
        return (
            f"{len(schedule.done)} of {len(schedule.jobs)} done{failed}; running {names}; "
            f"eta {duration(self.eta_s(running))}"
        )

    def table(self) -> Table:
        """The rows of Table 2 and the other jobs: how many are done of how many, by fraction."""
        jobs = [job for job in self._schedule.jobs if job.cell is not None]
        fractions = sorted({job.fraction for job in jobs}, reverse=True)
        table = Table("student from teacher", *(f"{fraction:g} %" for fraction in fractions), box=None, pad_edge=False)
        for name, matches in self._rows():
            found = [[job for job in jobs if job.fraction == fraction and matches(job)] for fraction in fractions]
            if any(found):
                table.add_row(name, *(self._count(part) for part in found))
        return table

    def _rows(self) -> list[tuple[str, Callable[[Job], bool]]]:
        rows: list[tuple[str, Callable[[Job], bool]]] = []
        for student, teacher in ROWS:
            for data in ("none",) if teacher is None else ("full", "matched"):
                name = f"{DISPLAY[student]} " + ("scratch" if teacher is None else f"from {DISPLAY[teacher]}, {data}")
                rows.append((name, _is_arm(student, teacher, data)))
        return [*rows, ("controls", _is_control)]

    def _count(self, jobs: list[Job]) -> str:
        if not jobs:
            return ""
        done = sum(job.id in self._schedule.done for job in jobs)
        marks = "!" if any(job.id in self._schedule.failed for job in jobs) else ""
        marks += "*" if any(job.id in self._schedule.running for job in jobs) else ""
        return f"{done}/{len(jobs)}{marks}"


def _is_arm(student: str, teacher: str | None, data: str) -> Callable[[Job], bool]:
    def matches(job: Job) -> bool:
        assert job.cell is not None
        arm = job.cell.arm
        return control_kind(arm) is None and (arm.student, arm.teacher, arm.teacher_data) == (student, teacher, data)

    return matches


def _is_control(job: Job) -> bool:
    return job.cell is not None and control_kind(job.cell.arm) is not None


def last_step(metrics: Path) -> int:
    """The newest step in a run's metrics.jsonl; 0 before there is one."""
    try:
        with open(metrics, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return 0
    for raw in reversed(lines):
        try:
            line = json.loads(raw)
        except ValueError:  # torn, or cut off by where we began to read
            continue
        if isinstance(line, Mapping) and isinstance(line.get("step"), int):
            return int(line["step"])
    return 0


class LiveTable:
    """Shows a board; use it as a context and call `update` now and then."""

    def __init__(self, board: Board, progress_file: Path, console: Console) -> None:
        self._board = board
        self._file = progress_file
        self._console = console
        self._live = Live("", console=console, refresh_per_second=2) if console.is_terminal else None
        self._line_at = time.monotonic()
        self._file_at = 0.0

    def __enter__(self) -> LiveTable:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._write()
        if self._live is not None:
            self._live.update(self._picture())
            self._live.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def ended(self, report: Report) -> None:
        """A job has ended."""
        reason = f": {report.reason}" if report.reason else ""
        if report.status != "done" or self._live is None:
            self.say(f"{report.status} {report.id} after {duration(report.seconds)}{reason}")

    def update(self) -> None:
        """Shows how it stands."""
        now = time.monotonic()
        if now - self._file_at >= _FILE_EVERY_S:
            self._file_at = now
            self._write()
        if self._live is not None:
            self._live.update(self._picture())
        elif now - self._line_at >= _PLAIN_EVERY_S:
            self._line_at = now
            self.say(self._board.line())

    def _picture(self) -> Group:
        return Group(self._board.table(), Text(self._board.line()))

    def _write(self) -> None:
        write_atomic(self._file, json.dumps(self._board.to_json(), indent=1).encode() + b"\n")
