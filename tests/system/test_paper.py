"""The paper's experiments as jobs on a cluster that share one teacher service and one ledger, stopped and gone on."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = [pytest.mark.system, pytest.mark.long, pytest.mark.timeout(900)]

PAPER_RUN = str(Path(__file__).with_name("paper_run.py"))
LIMIT_S = 400.0
NUM_CELLS = 9


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """result.json of every cell that is done, by its id."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("cells/*/result.json"))}


def test_cells_under_one_service_stopped_in_between_are_those_with_teachers_inside(sandbox: ModuleType) -> None:
    """The homes are two, so that neither replays what the other recorded."""
    with sandbox.Sandbox() as box, sandbox.Sandbox() as elsewhere:
        served, inside = box.home / "paper", elsewhere.home / "paper"
        process = box.start(sys.executable, PAPER_RUN, str(served), "serve")
        deadline = time.monotonic() + LIMIT_S
        while not any("from" in name for name in results(served)):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "no distilled cell was done"
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 130, output
        before = results(served)
        assert 0 < len(before) < NUM_CELLS
        assert "jobs are done; the same command goes on from here" in output
        box.assert_no_process_left()

        other = elsewhere.start(sys.executable, PAPER_RUN, str(inside), "in_process")
        process = box.start(sys.executable, PAPER_RUN, str(served), "serve")
        for each in (process, other):
            output, _ = each.communicate(timeout=LIMIT_S)
            assert each.returncode == 0, output
        box.assert_no_process_left()

        found, wanted = results(served), results(inside)
        assert len(found) == NUM_CELLS
        assert {name: before[name] for name in before} == {name: found[name] for name in before}  # not done again
        assert {name: cell["weights_sha256"] for name, cell in found.items()} == {
            name: cell["weights_sha256"] for name, cell in wanted.items()
        }
        asked = {name: cell["cost"]["asked_items"] for name, cell in found.items() if "from" in name}
        replayed = {name: cell["cost"]["replayed_items"] for name, cell in found.items() if "from" in name}
        assert sum(asked.values()) > 0
        assert sum(replayed.values()) > 0  # two students of a teacher ask the same: the second one's are in the ledger
        assert "all 9 cells are there" in (served / "results" / "results.md").read_text()
