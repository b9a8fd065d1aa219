"""Reading a run's folder back: settings, metrics and result, and their figures as text. Needs no torch.

A run that was killed may leave a torn line at the end of metrics.jsonl, and one that was resumed repeats steps and
starts its clock anew; here the torn lines are counted, the later of two lines for a step wins, and the clocks of the
attempts are laid end to end.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.runs import RunFolder


class RunFolderError(ValueError):
    """A run's folder that cannot be read. Arguments: folder, what is wrong."""

    def __init__(self, folder: str, reason: str) -> None:
        super().__init__(folder, reason)
        self.folder = folder
        self.reason = reason

    def __str__(self) -> str:
        return f"run folder {self.folder}: {self.reason}"


@dataclass(frozen=True)
class Metrics:
    """Lines of metrics.jsonl by kind, each kind in the order of its steps. `torn_lines` could not be read."""

    steps: tuple[dict[str, Any], ...] = ()
    epochs: tuple[dict[str, Any], ...] = ()
    torn_lines: int = 0


@dataclass(frozen=True)
class RunData:
    """Everything that a run wrote. `result` is None for a run that is not finished."""

    folder: Path
    config: dict[str, Any]
    metrics: Metrics
    result: dict[str, Any] | None

    @property
    def run_id(self) -> str:
        """The run's name: that of its folder."""
        return self.folder.name

    @property
    def evaluation(self) -> dict[str, Any]:
        """The final evaluation's figures; empty when there was none."""
        return (self.result or {}).get("evaluation") or {}


def read_run(folder: Path) -> RunData:
    """Raises RunFolderError when there is no config.json, or when a JSON file is not JSON."""
    run = RunFolder(Path(folder).resolve())
    if not run.config.is_file():
        raise RunFolderError(str(folder), "there is no config.json: this is not the folder of a run")
    result = _read_object(run, run.result) if run.is_finished else None
    return RunData(run.path, _read_object(run, run.config), read_metrics(run.metrics), result)


def read_metrics(path: Path) -> Metrics:
    """The metrics in a file; none when there is no such file."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return Metrics()
    lines: dict[str, dict[float, dict[str, Any]]] = {"step": {}, "epoch": {}}
    torn, before_s, last_s = 0, 0.0, 0.0
    for raw in text.splitlines():
        line = _parse(raw)
        if line is None:
            torn += 1
            continue
        elapsed_s = number(line, "elapsed_s")
        if elapsed_s < last_s:  # the clock of a new attempt
            before_s += last_s
        if not np.isnan(elapsed_s):
            last_s = elapsed_s
            line["elapsed_s"] = before_s + elapsed_s
        kind = line.get("kind")
        if isinstance(kind, str) and kind in lines:
            lines[kind][number(line, "step")] = line
    in_order = {kind: tuple(by_step[step] for step in sorted(by_step)) for kind, by_step in lines.items()}
    return Metrics(in_order["step"], in_order["epoch"], torn)


def number(fields: dict[str, Any], name: str) -> float:
    """A figure as float, NaN where it is missing, null or no number."""
    value = fields.get(name)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else float("nan")


def column(lines: tuple[dict[str, Any], ...], name: str) -> NDArray[np.float64]:
    """One figure of every line, NaN where it is missing."""
    return np.array([number(line, name) for line in lines], dtype=np.float64)


def percent(value: object) -> str:
    """A share as 43.2 %, a dash where there is none."""
    share = number({"value": value}, "value")
    return "–" if math.isnan(share) else f"{100 * share:.1f} %"


def duration(seconds: object) -> str:
    """Seconds as 42.1 s, 3 min 05 s or 2 h 07 min, a dash where there is no number."""
    value = number({"value": seconds}, "value")
    if math.isnan(value):
        return "–"
    if value < 100:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _parse(raw: str) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) and not np.isnan(number(line, "step")) else None


def _read_object(run: RunFolder, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunFolderError(str(run.path), f"{path.name} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise RunFolderError(str(run.path), f"{path.name} must hold a JSON object, got {type(content).__name__}")
    return content
