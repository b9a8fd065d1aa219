"""Runs the paper's experiments: one cluster, one teacher service, one ledger, and workers that take job after job.

    driver: plan ──► Schedule ──take──► Ray task (run_job) ──Report──► Schedule ──► ... ──► tables
                        │                    └── asks the one teacher service, through the one ledger
                        └── a lease on the service for the whole time, so that it does not end between two cells

    <paper folder>/  run.json  progress.json  paper.lock  stop (while a stop is asked for)
                     runs/<job>/  teachers/<id>.json  cells/<cell>/{result.json, answers.npz}  results/

Started again, it does what is not done yet. Ctrl-C: the workers save and end; a second one ends at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console

from trainer.paper.estimate import Estimate, estimate, measure_step_times, teacher_mb
from trainer.paper.folder import check_settings, locked, write_run_file
from trainer.paper.live import Board, LiveTable
from trainer.paper.load import PROGRESS_NAME, RESULT_NAME, spent_s
from trainer.paper.plan import GridRequest, Job, control_fraction, make_jobs, teacher_of
from trainer.paper.scale import Choices, Scale
from trainer.paper.schedule import Schedule
from trainer.paper.stores import make_stores, missing_stores
from trainer.paper.work import DEFAULT_MEMORY_MB, Report, Workshop
from trainer.stopping import stop_on_signals

EXIT_DONE, EXIT_FAILED, EXIT_STOPPED = 0, 1, 130
RESULTS = "results"
_POLL_S = 0.5
_STOP_LIMIT_S = 120.0  # longer than any step, evaluation and checkpoint


@dataclass(frozen=True)
class PaperRequest:
    """What a user asks for. folder: absolute. workers: jobs at a time; 0 means one for each core, or GPU.

    measure: the step times for the estimate; otherwise the scale's stated ones count.
    """

    scale: Scale
    grid: GridRequest
    choices: Choices
    folder: Path
    workers: int = 0
    measure: bool = True


class Pool(Protocol):
    """Where jobs run."""

    def submit(self, job: Job) -> None:
        """Starts a job; never waits."""

    def poll(self, timeout_s: float) -> list[Report]:
        """Reports of jobs that have ended, after `timeout_s` at the latest."""


def preview(request: PaperRequest, console: Console) -> int:
    """Says what would be done and what it would take. Starts nothing. Raises ConfigError as `run_paper` would."""
    check_settings(request.folder, request.scale, request.choices)
    jobs = make_jobs(request.scale, request.grid)
    shop = _workshop(request, "dry-run", jobs)
    todo = [job for job in jobs if not shop.is_done(job)]
    _print_estimate(request, jobs, _estimate(request, jobs).of(todo), console)
    return EXIT_DONE


def run_paper(request: PaperRequest, console: Console) -> int:
    """Does what is not done yet, then writes the tables. The exit code: 0 done, 1 some jobs failed, 130 stopped."""
    jobs = make_jobs(request.scale, request.grid)
    request.folder.mkdir(parents=True, exist_ok=True)
    with locked(request.folder):
        name = write_run_file(request.folder, request.scale, request.choices, jobs, _sayer(console))
        make_stores(request.scale, _sayer(console))
        shop = _workshop(request, name, jobs)
        shop.stop_request.unlink(missing_ok=True)
        schedule = Schedule(jobs, [job.id for job in jobs if shop.is_done(job)])
        costs = _estimate(request, jobs)
        _print_estimate(request, jobs, costs.of(schedule.remaining), console)
        if not schedule.is_over:
            _run_jobs(shop, schedule, costs, console)
        return _conclude(shop, schedule, console)


def drive(
    schedule: Schedule,
    pool: Pool,
    workers: int,
    *,
    stopping: Callable[[], bool],
    ended: Callable[[Report], None],
    tick: Callable[[], None],
) -> None:
    """Keeps `workers` jobs under way until all are done, or a stop was asked for and those under way have ended."""
    stop_at: float | None = None
    while not schedule.is_over:
        if stop_at is None and stopping():
            schedule.stop()
            stop_at = time.monotonic() + _STOP_LIMIT_S
        while len(schedule.running) < workers and (job := schedule.take()) is not None:
            pool.submit(job)
        if stop_at is not None and time.monotonic() > stop_at:
            return  # the newest checkpoints are kept
        for report in pool.poll(_POLL_S):
            schedule.finish(report)
            ended(report)
        tick()


def _run_jobs(shop: Workshop, schedule: Schedule, costs: Estimate, console: Console) -> None:
    from trainer.paper.pool import ray_pool  # Ray takes seconds to import, and a dry run needs none of it

    board = Board(schedule, costs, shop.runs, spent_before_s=spent_s(shop.folder))
    with (
        ray_pool(shop, costs.workers) as pool,
        stop_on_signals(shop.stop_request),
        LiveTable(board, shop.folder / PROGRESS_NAME, console) as live,
    ):
        stopping = shop.stop_request.exists
        drive(schedule, pool, costs.workers, stopping=stopping, ended=live.ended, tick=live.update)


def _conclude(shop: Workshop, schedule: Schedule, console: Console) -> int:
    say = _sayer(console)
    for title, listed in (("failed", schedule.failed), ("not begun", schedule.blocked)):
        for job_id, reason in listed.items():
            say(f"{title} {job_id}: {reason}")
    if shop.stop_request.exists():
        say(f"stopped: {len(schedule.done)} of {len(schedule.jobs)} jobs are done; the same command goes on from here")
        return EXIT_STOPPED
    if any((shop.folder / "cells").glob(f"*/{RESULT_NAME}")):
        report(shop.folder, console)
    if schedule.failed:
        say("the same command tries the failed jobs again")
        return EXIT_FAILED
    return EXIT_DONE


def report(folder: Path, console: Console) -> None:
    """Tables, curves and pages of what is done so far. Raises PaperFolderError."""
    from trainer.paper.pages import write_results

    write_results(folder, folder / RESULTS)
    _sayer(console)(f"results {folder / RESULTS}")


def _workshop(request: PaperRequest, name: str, jobs: Sequence[Job]) -> Workshop:
    """Pixels are rendered once for student and teacher where both run on this machine's CPUs."""
    teachers = {teacher_of(job.cell) for job in jobs if job.cell is not None} - {None}
    on_cpu = request.scale.device == "cpu" and not os.environ.get("RAY_ADDRESS")
    return Workshop(
        folder=request.folder,
        name=name,
        scale=request.scale,
        choices=request.choices,
        input_kind="pixels" if on_cpu else "views",
        teacher_memory_mb=max(DEFAULT_MEMORY_MB, len(teachers) * teacher_mb(request.scale)),
    )


def _num_workers(request: PaperRequest) -> int:
    if request.workers:
        return request.workers
    if request.scale.device != "cpu":
        import torch  # heavy, and needed for this one question

        if torch.cuda.is_available():
            return torch.cuda.device_count()
    return len(os.sched_getaffinity(0))


def _estimate(request: PaperRequest, jobs: Sequence[Job]) -> Estimate:
    names = {job.student for job in jobs}
    names |= {key.arch for job in jobs if job.cell is not None and (key := teacher_of(job.cell)) is not None}
    scale = request.scale
    times = measure_step_times(scale, sorted(names)) if _measures(request) else scale.step_times
    return estimate(scale, request.choices, jobs, _num_workers(request), times)


def _measures(request: PaperRequest) -> bool:
    """A scale for GPUs is not measured on a CPU: that takes minutes and says nothing."""
    if not request.measure or request.scale.device == "cpu":
        return request.measure
    import torch  # heavy

    return torch.cuda.is_available()


def _print_estimate(request: PaperRequest, jobs: Sequence[Job], costs: Estimate, console: Console) -> None:
    scale, grid, say = request.scale, request.grid, _sayer(console)
    cells = sum(job.cell is not None for job in jobs)
    fraction = control_fraction(scale, grid.fractions)
    controls = f"controls on {fraction:g} % ({', '.join(grid.controls)})" if grid.controls else "no controls"
    say(
        f"scale {scale.name}, students of width {scale.student.width:g} for {scale.student.epochs} epochs: "
        f"{len(jobs) - cells} teachers and {cells} cells; fractions "
        f"{', '.join(f'{fraction:g}' for fraction in grid.fractions)} %, seeds "
        f"{', '.join(map(str, grid.seeds))}, {controls}; {len(jobs) - len(costs.jobs)} are done"
    )
    source = "measured now" if _measures(request) else f"stated, of {scale.measured_on}"
    say(
        f"left to do: about {costs.steps} steps, {costs.hours:.1f} hours with {costs.workers} at a time (step times "
        f"{source}), {costs.disk_bytes / 1e9:.1f} GB under {request.folder} and in the ledgers"
    )
    for name in missing_stores(scale):
        say(f"clip store {name} is not there yet: the counts are what it is expected to hold")


def _sayer(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)
