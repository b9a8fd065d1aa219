"""Which job comes next, and what a failure stops; with a fake pool in place of Ray."""

from trainer.paper.plan import Job
from trainer.paper.run import drive
from trainer.paper.schedule import Schedule
from trainer.paper.work import Report

JOBS = (Job("t"), Job("a"), Job("b", ("a",)), Job("c", ("b",)), Job("d", ("t",)))


class FakePool:
    """Ends the jobs that were submitted, in that order, one at each poll. endings: id -> status."""

    def __init__(self, **endings):
        self.endings = endings
        self.waiting = []
        self.submitted = []
        self.most_at_once = 0

    def submit(self, job):
        self.waiting.append(job.id)
        self.submitted.append(job.id)
        self.most_at_once = max(self.most_at_once, len(self.waiting))

    def poll(self, timeout_s):  # noqa: ARG002 the signature of run.Pool
        job_id = self.waiting.pop(0)
        return [Report(job_id, self.endings.get(job_id, "done"), "why", 2.0)]


def run(schedule, pool, workers=2, stopping=lambda: False):
    reports = []
    drive(schedule, pool, workers, stopping=stopping, ended=reports.append, tick=lambda: None)
    return reports


def test_every_job_runs_once_after_those_that_it_needs():
    schedule, pool = Schedule(JOBS, ()), FakePool()
    run(schedule, pool)
    assert sorted(pool.submitted) == ["a", "b", "c", "d", "t"]
    for job in JOBS:
        assert all(pool.submitted.index(need) < pool.submitted.index(job.id) for need in job.needs)
    assert schedule.done == {job.id for job in JOBS}
    assert pool.most_at_once == 2


def test_what_is_done_already_is_not_run_again():
    schedule, pool = Schedule(JOBS, ("t", "a", "b")), FakePool()
    run(schedule, pool)
    assert pool.submitted == ["c", "d"]


def test_a_failure_blocks_what_needs_it_and_nothing_else():
    schedule, pool = Schedule(JOBS, ()), FakePool(a="failed")
    run(schedule, pool)
    assert schedule.failed == {"a": "why"}
    assert schedule.blocked == {"b": "it needs a", "c": "it needs b"}
    assert schedule.done == {"t", "d"}


def test_failed_jobs_are_tried_again_at_the_next_start():
    first = Schedule(JOBS, ())
    run(first, FakePool(a="failed"))
    second, pool = Schedule(JOBS, first.done), FakePool()
    run(second, pool)
    assert pool.submitted == ["a", "b", "c"]
    assert second.is_over


def test_after_a_stop_nothing_is_begun_and_what_runs_is_waited_for():
    schedule = Schedule(JOBS, ())
    pool = FakePool(t="stopped", a="stopped")
    reports = run(schedule, pool, stopping=lambda: bool(pool.submitted))
    assert [report.id for report in reports] == ["t", "a"]
    assert pool.submitted == ["t", "a"]
    assert schedule.done == set()
    assert schedule.failed == {}


def test_what_remains_is_what_runs_or_can_still_run():
    schedule = Schedule(JOBS, ("t",))
    assert schedule.take() == JOBS[1]
    assert schedule.take() == JOBS[4]
    assert schedule.take() is None
    assert [job.id for job in schedule.remaining] == ["a", "b", "c", "d"]
    schedule.finish(Report("a", "failed"))
    assert [job.id for job in schedule.remaining] == ["d"]
