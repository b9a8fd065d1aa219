"""What rank 0 writes while it trains: metrics.jsonl, TensorBoard events and, in a cluster, Ray's metrics."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from trainer.runs import RunFolder

MetricSink = Callable[[Mapping[str, Any]], None]


class RunLog:
    """Appends records to metrics.jsonl and mirrors their numbers. `sink` gets every record, for live metrics."""

    def __init__(self, run: RunFolder, sink: MetricSink | None = None) -> None:
        self._file = open(run.metrics, "a", encoding="utf-8")  # noqa: SIM115 -- closed by close()
        if _is_torn(run.metrics):
            self._file.write("\n")  # a killed attempt broke off in a line: the next record must not be glued to it
        self._events = SummaryWriter(str(run.tensorboard))
        self._sink = sink
        self._began = time.monotonic()

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One line; `step` counts from 1 and is the number of steps done."""
        line = {"kind": kind, "step": step, **values, "elapsed_s": round(time.monotonic() - self._began, 3)}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)) and name != "epoch":
                self._events.add_scalar(f"{kind}/{name}", value, step)
        if self._sink is not None:
            self._sink(line)

    def close(self) -> None:
        """Flushes and closes the files."""
        self._file.close()
        self._events.close()


def _is_torn(path: Path) -> bool:
    """Whether the last line has no end."""
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def rounded(record: Any, digits: int = 6) -> dict[str, Any]:
    """A dataclass as a JSON object, floats rounded for reading."""
    return {
        name: round(value, digits) if isinstance(value, float) else value
        for name, value in dataclasses.asdict(record).items()
    }
