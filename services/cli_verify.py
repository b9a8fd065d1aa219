"""The `preceptor verify` command: random steps of a run, trained again and compared bit by bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from services.arguments import Run

if TYPE_CHECKING:
    from rich.table import Table

    from trainer.verify_run import Bits, Verification


def verify(run: Run, steps: int = 20, seed: int = 0, reach: int = 64, ledger: bool = False) -> int:
    """Train random steps of a run again, from its checkpoints, and compare weights and losses bit by bit.

    For runs of one worker on the CPU. Steps are reached from the checkpoints that the run has kept and from its
    beginning; train with more --keep-checkpoints to reach more. The teacher is asked in this process: if a GPU answered
    the run, its answers had other bits, and --ledger takes those that were recorded. The exit code is 1 when a step
    differs.

    Example: preceptor verify r3d-r2plus1d-20260101-120000-000001 --steps 20

    Args:
        run: id of the run, a folder under $PRECEPTOR_HOME/runs, or the path of a run's folder.
        steps: how many to compare.
        seed: of their choice.
        reach: steps after a checkpoint that may be trained again.
        ledger: take the teacher's answers from the ledger instead of asking a teacher in this process.
    """
    from rich.console import Console

    from data.home import runs_folder
    from trainer.config import ConfigError
    from trainer.runs import RunFolder
    from trainer.verify_run import VerifyOptions, verify_run

    console = Console(markup=False, highlight=False, soft_wrap=True)
    folder = RunFolder(Path(run).absolute() if os.sep in run else runs_folder() / run)
    if not folder.config.is_file():
        raise ConfigError(f"no run {run!r} under {folder.path.parent}: expected the id of a run or its folder")
    found = verify_run(folder, VerifyOptions(steps, seed, reach, ledger), console.print)
    console.print(_table(found))
    first = found.first_difference
    if first is not None:
        console.print(f"differs first at step {first.step}: the run cannot be repeated from there")
        return 1
    console.print(f"{len(found.compared)} steps compared, {len(found.chosen)} of them drawn: every bit is equal")
    return 0


def _table(found: Verification) -> Table:
    """The drawn steps, and whichever differs first. A drawn step after a difference was not reached."""
    from rich.table import Table

    table = Table("step", "recorded: weights, loss", "recomputed: weights, loss", "equal")
    compared = {step.step: step for step in found.compared}
    differing = {step.step for step in found.compared if not step.is_equal}
    for number in sorted({*found.chosen, *differing}):
        step = compared.get(number)
        if step is None:
            table.add_row(str(number), "", "", "not reached")
            continue
        table.add_row(str(number), _words(step.recorded), _words(step.recomputed), "yes" if step.is_equal else "NO")
    return table


def _words(bits: Bits) -> str:
    return f"{bits.weights} {float.fromhex(bits.loss):.9g}"
