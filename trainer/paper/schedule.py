"""Which job comes next, and what became of the others: bookkeeping without processes.

waiting ── all that it needs is done ──► ready ── taken ──► running ── report ──► done
   │                                                                        ├──► failed
   └── something that it needs failed ──► blocked                           └──► stopped (waits for the next start)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from trainer.paper.plan import Job
from trainer.paper.work import Report


class Schedule:
    """The jobs of one start, in the order of the plan. done: ids of those that are done before it."""

    def __init__(self, jobs: Sequence[Job], done: Collection[str]) -> None:
        self.jobs = tuple(jobs)
        self.done = {job.id for job in jobs} & set(done)
        self.failed: dict[str, str] = {}
        self.blocked: dict[str, str] = {}
        self.running: dict[str, Job] = {}
        self.seconds: dict[str, float] = {}
        self._stopping = False

    def take(self) -> Job | None:
        """The first job that can be begun, which is running from here on; None when all others have to wait."""
        if self._stopping:
            return None
        for job in self.jobs:
            if self._is_waiting(job) and self.done.issuperset(job.needs):
                self.running[job.id] = job
                return job
        return None

    def finish(self, report: Report) -> None:
        """What a running job came to. A failure blocks all that needs it, at any distance."""
        del self.running[report.id]
        if report.status == "done":
            self.done.add(report.id)
            self.seconds[report.id] = report.seconds
        elif report.status == "failed":
            self.failed[report.id] = report.reason
            self._block()

    def stop(self) -> None:
        """Nothing is begun any more."""
        self._stopping = True

    @property
    def is_over(self) -> bool:
        """Whether nothing runs and nothing can be begun."""
        return not self.running and (self._stopping or not any(self._is_waiting(job) for job in self.jobs))

    @property
    def remaining(self) -> tuple[Job, ...]:
        """The jobs that are running or may still be begun."""
        return tuple(job for job in self.jobs if job.id in self.running or self._is_waiting(job))

    def _is_waiting(self, job: Job) -> bool:
        return not any(job.id in ids for ids in (self.done, self.failed, self.blocked, self.running))

    def _block(self) -> None:
        """The plan lists every job after those that it needs, so one pass is enough."""
        for job in self.jobs:
            cause = next((need for need in job.needs if need in self.failed or need in self.blocked), None)
            if cause is not None and self._is_waiting(job):
                self.blocked[job.id] = f"it needs {cause}"
