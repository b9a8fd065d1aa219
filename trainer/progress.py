"""What a person sees while a run trains: one line that moves on a terminal, plain lines elsewhere.

It follows the run's metrics.jsonl, which workers on any machine write.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

_PLAIN_EVERY_S = 10.0
_SMOOTH = 0.9  # weight of the past in the moving averages
_TERMS = (
    ("pretext", "pretext"),
    ("contrast", "contrast"),
    ("kd", "distill"),
    ("hint", "hint"),
    ("supervised", "ce"),
    ("extra", "extra"),
)


class Progress:
    """Call `update` now and then; use it as a context."""

    def __init__(self, metrics: Path, total_steps: int, console: Console | None = None) -> None:
        self._metrics = metrics
        self._total = total_steps
        self._console = console or Console()
        self._live = Live("", console=self._console, refresh_per_second=4) if self._console.is_terminal else None
        self._offset = metrics.stat().st_size if metrics.exists() else 0
        self._rest = b""
        self._seconds = 0.0
        self._wait_share = 0.0
        self._kd_skipped = 0
        self._printed_at = 0.0

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def has_steps(self) -> bool:
        """Whether a step was seen since this object was made."""
        return self._seconds > 0.0

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def update(self) -> None:
        """Reads what was written since the last call and shows it."""
        step = None
        for record in self._new_records():
            if record["kind"] == "step":
                self._average(record)
                step = record
            elif record["kind"] == "epoch":
                self.say(_epoch_line(record))
        if step is None:
            return
        line = self._step_line(step)
        if self._live is not None:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))
        elif time.monotonic() - self._printed_at >= _PLAIN_EVERY_S or step["step"] == self._total:
            self._printed_at = time.monotonic()
            self.say(line)

    def _new_records(self) -> list[dict[str, Any]]:
        if not self._metrics.exists():
            return []
        with open(self._metrics, "rb") as file:
            file.seek(self._offset)
            blob = file.read()
        self._offset += len(blob)
        *lines, self._rest = (self._rest + blob).split(b"\n")
        return [record for line in lines if (record := _parse(line)) is not None]

    def _average(self, record: dict[str, Any]) -> None:
        self._kd_skipped += record["kd_skipped"]
        share = record["teacher_wait_s"] / record["seconds"] if record["seconds"] else 0.0
        if self._seconds == 0.0:
            self._seconds, self._wait_share = record["seconds"], share
        self._seconds = _SMOOTH * self._seconds + (1 - _SMOOTH) * record["seconds"]
        self._wait_share = _SMOOTH * self._wait_share + (1 - _SMOOTH) * share

    def _step_line(self, record: dict[str, Any]) -> str:
        eta = max(0, self._total - record["step"]) * self._seconds
        terms = " ".join(f"{name} {record[key]:.3f}" for name, key in _TERMS if record.get(key) is not None)
        teacher = f"  teacher {record['teacher']} wait {self._wait_share:.0%}" if record["teacher"] else ""
        skipped = f"  kd skipped for {self._kd_skipped} tuples" if self._kd_skipped else ""
        return (
            f"step {record['step']}/{self._total}  eta {int(eta) // 60}:{int(eta) % 60:02d}  "
            f"{record['clips'] / self._seconds:.0f} clips/s  loss {record['loss']:.3f} ({terms})  "
            f"acc {record['pretext_acc']:.2f}{teacher}{skipped}"
        )


def _parse(line: bytes) -> dict[str, Any] | None:
    """A record; None for what a killed worker left of one."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def _epoch_line(record: dict[str, Any]) -> str:
    lists = (("train", "train"), ("validation", "val"), ("test", "test"))
    figures = "  ".join(
        f"{name} loss {record[f'{key}_loss']:.3f} acc {record[f'{key}_pretext_acc']:.3f}"
        for name, key in lists
        if f"{key}_loss" in record
    )
    return f"epoch {record['epoch'] + 1}  {figures}  {record['seconds']:.1f} s"
