"""Training commands as child processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_all(commands: Sequence[Sequence[str]]) -> list[int]:
    """Runs `python ...` commands at the same time, with this interpreter, and returns their exit codes.

    A terminal sends Ctrl-C to all of them: they save and end by themselves, so this process only waits.
    """
    processes = [subprocess.Popen([sys.executable, *command[1:]], cwd=ROOT) for command in commands]
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # after the start: children would inherit it
    try:
        return [process.wait() for process in processes]
    finally:
        signal.signal(signal.SIGINT, previous)
