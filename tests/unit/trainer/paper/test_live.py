"""What is shown of a start that is under way."""

import io
import json

import pytest
from rich.console import Console

from trainer.paper.estimate import Estimate, JobCost
from trainer.paper.live import Board, LiveTable, last_step
from trainer.paper.plan import GridRequest, make_jobs
from trainer.paper.scale import DEMO
from trainer.paper.schedule import Schedule
from trainer.paper.work import Report


@pytest.fixture
def board(tmp_path):
    """Two of the cells on 2 % are done, in 3 times the time that was expected; one is half done, one has failed."""
    jobs = make_jobs(DEMO, GridRequest((2.0,), (0,), controls=()))
    schedule = Schedule(jobs, [job.id for job in jobs if job.teacher is not None])
    costs = Estimate({job.id: JobCost(10, 0, 2.0) for job in jobs}, 2, 0.0)
    first, second, third, fourth = (schedule.take().id for _ in range(4))
    for job_id, status in ((first, "done"), (second, "done"), (third, "failed")):
        schedule.finish(Report(job_id, status, "why", 6.0))
    (tmp_path / fourth).mkdir()
    (tmp_path / fourth / "metrics.jsonl").write_text('{"kind": "step", "step": 5}\n{"kind": "st')
    return Board(schedule, costs, tmp_path, clock=lambda: 0.0)


def test_the_end_is_reckoned_from_what_finished_jobs_really_took(board):
    """Of 18 jobs 5 are done, 1 failed and 2 wait for it; 10 are left, less a half, at 6 s each, two at a time."""
    assert board.to_json()["eta_s"] == pytest.approx(9.5 * 6.0 / 2)


def test_the_figures_are_those_of_the_schedule(board):
    state = board.to_json()
    assert (state["done"], state["total"]) == (5, 18)
    assert state["failed"] == {"r2plus1d-scratch-f2-s0": "why"}
    assert set(state["blocked"].values()) == {"it needs r2plus1d-scratch-f2-s0"}
    (running,) = state["running"]
    assert running == {"id": "r3d-from-c3d-full-f2-s0", "step": 5, "steps": 10}


def test_the_table_has_the_rows_of_table_2_with_what_is_done_runs_or_failed(board):
    shown = io.StringIO()
    Console(width=100, file=shown).print(board.table())
    lines = [line.split() for line in shown.getvalue().splitlines() if line.strip()]
    counts = {" ".join(line[:-1]): line[-1] for line in lines[1:]}
    assert counts["R3D scratch"] == "1/1"
    assert counts["R(2+1)D scratch"] == "0/1!"
    assert counts["R3D from C3D, full"] == "0/1*"
    assert counts["C3D from R(2+1)D, matched"] == "0/1"
    assert len(counts) == 15


def test_without_a_terminal_every_end_is_a_line_and_the_file_is_written(board, tmp_path, capsys):
    with LiveTable(board, tmp_path / "progress.json", Console(force_terminal=False, soft_wrap=True)) as live:
        live.ended(Report("a", "done", "", 61.0))
        live.ended(Report("b", "failed", "TrainingFailed: why", 1.0))
        live.update()
    assert capsys.readouterr().out.splitlines() == [
        "done a after 61.0 s",
        "failed b after 1.0 s: TrainingFailed: why",
    ]
    assert json.loads((tmp_path / "progress.json").read_bytes())["done"] == 5


def test_the_last_step_is_read_past_a_torn_line_and_is_0_without_a_file(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    assert last_step(metrics) == 0
    metrics.write_text("".join(f'{{"kind": "step", "step": {n}, "x": "{"y" * 200}"}}\n' for n in range(1, 60)) + '{"k')
    assert last_step(metrics) == 59
