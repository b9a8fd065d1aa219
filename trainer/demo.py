"""`make demo`: the same student with the same seed and views, without and with a teacher, side by side.

python -m trainer.demo
"""

from __future__ import annotations

import sys
import time

from rich.console import Console

from data.demo_store import make_demo_store
from data.errors import DataError
from data.home import runs_folder
from trainer.children import run_all
from trainer.compare import compare
from trainer.runs import RunFolder

_ARMS = {"scratch": "none", "kd": "r2plus1d"}


def training_command(teacher: str, run_id: str) -> list[str]:
    """The command of one arm, as a user would type it."""
    return [
        "python", "trainer/run.py", "--recipe", "deploy/recipes/demo.toml", "--teacher", teacher, "--run-id", run_id,
    ]  # fmt: skip


def main() -> int:
    """Makes the data, trains both arms and prints the table. Returns the exit code."""
    console = Console()
    began = time.monotonic()
    try:
        make_demo_store()
    except (DataError, OSError) as error:
        console.print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
        return 2
    runs = []
    for arm, teacher in _ARMS.items():
        run = _run_of(arm)
        command = training_command(teacher, run.run_id)
        console.print(f"\n{arm}: {' '.join(command)}", highlight=False, soft_wrap=True)
        (code,) = run_all([command])
        if code != 0:
            return code
        runs.append(run.path)
    console.print(compare(runs, title="the same student, seed and views: scratch and with a teacher"))
    console.print(
        "one seed and a few epochs: the 95 % intervals say how far a difference would move with other test videos; "
        "another seed may move it further",
        highlight=False,
        soft_wrap=True,
    )
    for path in runs:
        console.print(f"report {RunFolder(path).report}", highlight=False, soft_wrap=True)
    console.print(f"{time.monotonic() - began:.0f} s in all", highlight=False)
    return 0


def _run_of(arm: str) -> RunFolder:
    """The newest unfinished demo run of this arm, so that an interrupted demo goes on, or a new one."""
    unfinished = [run for path in runs_folder().glob(f"demo-{arm}-*") if not (run := RunFolder(path)).is_finished]
    if unfinished:
        return max(unfinished, key=lambda run: run.path.stat().st_mtime)
    return RunFolder(runs_folder() / f"demo-{arm}-{time.strftime('%Y%m%d-%H%M%S')}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
