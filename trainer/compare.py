"""Runs side by side: `python -m trainer.compare RUN RUN [...]`, each RUN a run's id or folder.

The last column is the second run minus the first. Where both were tried on the same views, accuracies are compared
answer by answer, and the 95 % interval says how far the difference would move with other groups of test videos (not
with another seed: `preceptor paper` trains several). Needs neither torch nor Ray.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.home import runs_folder
from trainer.answers import paired_gain, read_answers
from trainer.config import identifying
from trainer.report import REPORT_NAME
from trainer.report_data import RunData, RunFolderError, duration, number, percent, read_run
from trainer.runs import RunFolder

_OF_RESULT = ("store_fingerprint", "steps")
_TEACHING = ("teacher", "temperature", "kd_", "hint_")  # what is compared: how its settings' names begin
_HASH = "identity"
# What decides the views that a run was tried on at its end.
_TRIED_ON = (
    "store_fingerprint", "test_subset", "view_seed", "clip_len", "interval", "crop", "any_swap", "shuffle",
    "pretext_operation", "eval_tuples", "eval_clips",
)  # fmt: skip


class NothingToCompare(ValueError):
    """No run was named."""


@dataclass(frozen=True)
class Fact:
    """A row of the table: its label, the key in result.json, how a value and how a difference read."""

    label: str
    key: str
    show: Callable[[Any], str]
    difference: Callable[[float], str] | None = None


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f} points"


def _seconds(difference: float) -> str:
    return f"{'-' if difference < 0 else '+'}{duration(abs(difference))}"


def _count(value: Any) -> str:
    return "–" if value is None else str(value)


def _decimal(value: Any) -> str:
    return "–" if value is None else f"{value:.1f}"


FACTS = (
    Fact("teacher", "teacher", _count),
    Fact("student", "student", _count),
    Fact("epochs", "epochs", _count),
    Fact("steps", "steps", _count, lambda difference: f"{difference:+.0f}"),
    Fact("training time", "seconds", duration, _seconds),
    Fact("clips per second", "clips_per_second", _decimal, lambda difference: f"{difference:+.1f}"),
    Fact("teacher wait", "teacher_wait_share", percent, _points),
    Fact("pretext accuracy", "pretext_acc", percent, _points),
    Fact("pretext, balanced", "pretext_balanced_acc", percent, _points),
    Fact("retrieval top-1", "retrieval_top1", percent, _points),
    Fact("retrieval top-5", "retrieval_top5", percent, _points),
    Fact("linear probe", "probe_acc", percent, _points),
)


def compare(run_folders: Sequence[Path], title: str | None = None) -> Table:
    """The runs' results as a table, a column each; with two runs or more the difference of the first two.

    Raises RunFolderError for a folder that is not a run's or whose run is not finished, NothingToCompare for none.
    """
    if not run_folders:
        raise NothingToCompare("name at least one finished run, by its id or folder, such as var/runs/NAME")
    runs = [_finished(folder) for folder in run_folders]
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for run in runs:
        table.add_column(Text(_heading(run)), justify="right")
    if len(runs) > 1:
        table.add_column("difference", justify="right")
    gains = _paired_gains(runs)
    for fact in FACTS:
        results = [run.result or {} for run in runs]
        shown = [Text(fact.show(result.get(fact.key))) for result in results]
        differences = [Text(_difference(fact, results) + gains.get(fact.key, ""))] if len(runs) > 1 else []
        table.add_row(fact.label, *shown, *differences)
    return table


def what_differs(run_folders: Sequence[Path]) -> list[str]:
    """A sentence for each condition in which the first two runs differ, so that their figures do not compare. Settings
    of the teaching itself are none."""
    runs = [_finished(folder) for folder in run_folders[:2]]
    if len(runs) < 2:
        return []
    first, second = (
        identifying({**run.config, **{name: (run.result or {}).get(name) for name in _OF_RESULT}}) for run in runs
    )
    return [
        f"The runs differ in {name}: {first.get(name)} and {second.get(name)}."
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name) and not name.startswith(_TEACHING) and name != _HASH
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    try:
        tyro.cli(_print, args=arguments, prog="python -m trainer.compare")
    except (RunFolderError, NothingToCompare) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _print(
    names: Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN ..."), tyro.conf.Positional], title: str | None = None
) -> None:
    """Shows finished runs side by side.

    Args:
        names: Ids of runs under $PRECEPTOR_HOME/runs, or their folders.
        title: Line above the table.
    """
    runs = [Path(name) if Path(name).is_dir() else _named(name) for name in names]
    console = Console()
    console.print(compare(runs, title))
    for sentence in what_differs(runs):
        console.print(Text(sentence), soft_wrap=True)
    for folder in runs:
        report = folder.resolve() / REPORT_NAME
        line = f"report: {report}" if report.is_file() else f"report: there is none in {report.parent}"
        console.print(Text(line), soft_wrap=True)


def _named(name: str) -> Path:
    folder = runs_folder() / name
    if not folder.is_dir():
        raise RunFolderError(name, f"it is neither a folder nor the id of a run under {runs_folder()}")
    return folder


def _finished(folder: Path) -> RunData:
    run = read_run(folder)
    if run.result is None:
        raise RunFolderError(
            str(folder), "the run is not finished, there is no result.json: go on with it by the same command"
        )
    return run


def _heading(run: RunData) -> str:
    return "scratch" if (run.result or {}).get("teacher") == "none" else "KD"


def _difference(fact: Fact, results: Sequence[Mapping[str, Any]]) -> str:
    difference = number(dict(results[1]), fact.key) - number(dict(results[0]), fact.key)
    return "" if fact.difference is None or math.isnan(difference) else fact.difference(difference)


def _paired_gains(runs: Sequence[RunData]) -> dict[str, str]:
    """The intervals of the first two runs' differences, by the figures' names; none unless their views are the same."""
    if len(runs) < 2:
        return {}
    tried = [{**run.config, **(run.result or {})} for run in runs[:2]]
    if any(tried[0].get(name) != tried[1].get(name) for name in _TRIED_ON):
        return {}
    first, second = (read_answers(RunFolder(run.folder).answers) for run in runs[:2])
    found = {name: paired_gain(first[name], second[name]) for name in first.keys() & second.keys()}
    return {
        name: f" [{100 * gain.interval[0]:+.1f}, {100 * gain.interval[1]:+.1f}]"
        for name, gain in found.items()
        if gain is not None and gain.interval is not None
    }


if __name__ == "__main__":
    sys.exit(main())
