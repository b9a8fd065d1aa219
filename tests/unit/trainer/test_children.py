"""Commands as child processes; a stand-in for training commands that only answers signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

from trainer.children import ROOT, run_all


def test_exit_codes_come_in_the_order_of_the_commands():
    assert run_all([["python", "-c", "raise SystemExit(3)"], ["python", "-c", "pass"]]) == [3, 0]


def test_ctrl_c_lets_the_child_save_before_it_ends(tmp_path: Path):
    child = tmp_path / "child.py"
    child.write_text(
        textwrap.dedent("""
        import pathlib, signal, sys
        def save(*_):
            pathlib.Path(sys.argv[1]).write_text("saved")
            raise SystemExit(130)
        signal.signal(signal.SIGINT, save)
        print("ready", flush=True)
        signal.pause()
        """)
    )
    saved = tmp_path / "saved"
    code = f"from trainer.children import run_all; print(run_all([['python', {str(child)!r}, {str(saved)!r}]]))"
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: to the whole group
    output, _ = parent.communicate(timeout=60)
    assert output == "[130]\n"
    assert saved.read_text() == "saved"
