"""Promises 1, 2 and 4, and the transports: training commands that lose replicas, teachers, workers and themselves.

Every run of the same settings must end with the same bytes as `undisturbed`, which has its teacher in its own process.
"""

from __future__ import annotations

import itertools
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.system

STALL_WITH_SURVIVOR_S, STALL_WITHOUT_S = 1.0, 12.0
QUESTION_LIMIT_S = 3.0
AWAY = ("--teacher-timeout-s", "1", "--teacher-budget-s", "3")
Figure = Callable[[int, str, str], None]


@dataclass(frozen=True)
class Form:
    """epochs: of all runs that end with the same bytes. kills: what is killed of the resumed run, in so many epochs.

    Its workers are in the driver where only the command is killed: test_training kills a worker in the short form.
    """

    epochs: int
    rounds: int
    kills: tuple[str, ...]
    resumed_epochs: int

    @property
    def length(self) -> tuple[str, str]:
        """The flag."""
        return "--epochs", str(self.epochs)


SHORT = Form(epochs=10, rounds=1, kills=("command",) * 2, resumed_epochs=14)
FULL = Form(epochs=24, rounds=5, kills=("worker", "command") * 5, resumed_epochs=67)


@pytest.fixture(scope="module")
def form(full: bool) -> Form:
    return FULL if full else SHORT


@pytest.fixture(scope="module")
def stage(
    ray_cluster: None,  # noqa: ARG001 it must run
    sandbox: ModuleType, fault_stage: ModuleType, tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory,
    form: Form,
) -> Iterator[Any]:  # fmt: skip
    with sandbox.Sandbox() as box, sandbox.Sandbox() as elsewhere:
        stage = fault_stage.Stage(box, elsewhere, tiny, tmp_path_factory.mktemp("weights"))
        process = stage.start_alone("undisturbed", *fault_stage.LOCAL, *form.length)
        stage.serve()
        fault_stage.finish(process, 0)
        assert stage.count("undisturbed") == form.epochs * fault_stage.STEPS_PER_EPOCH
        yield stage


@pytest.fixture(scope="module")
def undisturbed(stage: Any) -> bytes:
    """The tensors of its last checkpoint."""
    return stage.box.weights("undisturbed")


@pytest.fixture(scope="module")
def over_http(stage: Any, fault_stage: ModuleType, form: Form) -> Any:
    """A command that shares nothing with the service but the gateway's URL. It and the next run while others wait."""
    flags = (*fault_stage.SETTINGS, *fault_stage.IN_DRIVER, *form.length, "--run-id", "http")
    return stage.elsewhere.start_training(*flags, "--teacher-transport", "http", "--gateway", stage.gateway)


@pytest.fixture(scope="module")
def replayed(stage: Any, fault_stage: ModuleType, form: Form) -> Any:
    """A command that has the ledger of promise 1's first test, and knows of no service."""
    return stage.start_alone("replayed", *fault_stage.IN_DRIVER, *form.length, "--ledger", "replay")


# ---- promise 1


def test_the_only_replica_is_killed_and_the_run_ends_with_the_same_bytes(
    stage: Any, undisturbed: bytes, fault_stage: ModuleType, form: Form, seed: int, figure: Figure
) -> None:
    rng, stalls = random.Random(seed), []
    for i in range(form.rounds):
        run_id, at = f"only-{i}", rng.randrange(6, 12)
        (pid,) = stage.teachers(1)
        process = stage.start(run_id, *fault_stage.IN_DRIVER, *form.length, "--ledger", "record")
        stage.box.wait_for_steps(run_id, at, process)
        psutil.Process(pid).kill()
        fault_stage.finish(process, 0)
        assert stage.box.weights(run_id) == undisturbed
        stalls.append(stage.stall(run_id, at))
    figure(
        1,
        f"the only replica killed, 0 failed steps, same bytes: {'; '.join(map(str, stalls))}",
        f"same bytes, a stall of at most one step + {STALL_WITHOUT_S:.0f} s",
    )
    if form is FULL:  # figures of time, for an idle machine; the short form prints them
        for stall in stalls:
            stall.check(STALL_WITHOUT_S)


def test_one_of_two_replicas_is_stopped_then_one_is_killed_and_the_run_ends_with_the_same_bytes(
    stage: Any, undisturbed: bytes, fault_stage: ModuleType, form: Form, seed: int, figure: Figure
) -> None:
    rng, stopped, killed = random.Random(seed), [], []
    limit = ("--teacher-timeout-s", f"{QUESTION_LIMIT_S:g}")
    for i in range(form.rounds):
        run_id, pids = f"two-{i}", stage.teachers(2)
        process = stage.start(run_id, *fault_stage.IN_DRIVER, *form.length, *limit)
        stop_at, go_at, kill_at = 6, 12, rng.randrange(14, 20)
        stage.box.wait_for_steps(run_id, stop_at, process)
        sleeper = psutil.Process(rng.choice(pids))
        sleeper.suspend()
        try:
            stage.box.wait_for_steps(run_id, go_at, process)
        finally:
            sleeper.resume()
        stage.box.wait_for_steps(run_id, kill_at, process)
        psutil.Process(rng.choice(pids)).kill()
        fault_stage.finish(process, 0)
        assert stage.box.weights(run_id) == undisturbed
        stopped.append(stage.stall(run_id, stop_at, go_at))
        killed.append(stage.stall(run_id, kill_at, first_fault=stop_at))
    figure(
        1,
        f"one of two replicas, 0 failed steps, same bytes: stopped: {'; '.join(map(str, stopped))}; killed: "
        f"{'; '.join(map(str, killed))}",
        f"same bytes, a stall of at most one step + {STALL_WITH_SURVIVOR_S:.0f} s, and for a stopped one + the "
        f"limit of a question, {QUESTION_LIMIT_S:.0f} s",
    )
    if form is FULL:
        for stall in stopped:
            stall.check(QUESTION_LIMIT_S + STALL_WITH_SURVIVOR_S)
        for stall in killed:
            stall.check(STALL_WITH_SURVIVOR_S)


def test_the_check_of_stalls_finds_a_planted_one(fault_stage: ModuleType) -> None:
    steps = [{"step": step, "seconds": seconds} for step, seconds in enumerate((9.0, 0.2, 0.3, 1.4, 0.2), start=1)]
    fault_stage.Stall.of(steps, at=3, until=5).check(1.2)
    with pytest.raises(AssertionError, match=r"longest step 1\.40 s, before 0\.30 s"):
        fault_stage.Stall.of(steps, at=3, until=5).check(1.0)


# ---- promise 4


def test_killed_and_resumed_with_a_promotion_in_between_ends_with_the_same_bytes(
    stage: Any, over_http: Any, replayed: Any, fault_stage: ModuleType, form: Form, seed: int, figure: Figure
) -> None:
    del over_http, replayed  # they take the time in which this test waits
    rng, box = random.Random(seed), stage.box
    workers = () if "worker" in form.kills else fault_stage.IN_DRIVER
    flags = ("--teacher", "alpha", "--epochs", str(form.resumed_epochs), *workers)
    total = form.resumed_epochs * fault_stage.STEPS_PER_EPOCH
    steps = sorted(rng.sample(range(6, total - 8), len(form.kills)))
    process = stage.start("killed", *flags)
    for i, kind in enumerate(form.kills):
        box.wait_for_steps("killed", max(steps[i], stage.count("killed") + 1), process)
        assert int(box.newest_checkpoint("killed").name.removeprefix("step-")) > 0
        if kind == "worker":
            stage.kill_training_worker()
        else:
            stage.kill_command(process)
        if i == (len(form.kills) - 1) // 2:
            # The command finds the cluster by itself: the roster's file says where the run's lease is held.
            stage.run_command("-m", "services.cli", "teacher", "promote", "alpha", "2", joined=False)
        if kind == "command":
            process = stage.start("killed", *flags)
    output = fault_stage.finish(process, 0)
    result = stage.result("killed")
    assert [entry["teacher"] for entry in result["teacher_timeline"]] == ["alpha@1", "alpha@2"]
    attempts = [record["step"] for record in box.records("killed") if record["kind"] == "step"]
    resumes = [step for before, step in itertools.pairwise(attempts) if step <= before]
    timeline = str(box.run_folder("killed") / "result.json")
    again = stage.start_alone("same-timeline", *flags, *fault_stage.LOCAL, "--teacher-timeline", timeline)
    fault_stage.finish(again, 0)
    same = box.weights("killed") == box.weights("same-timeline")
    timeline_text = ", ".join(f"{e['teacher']} from step {e['first_step']}" for e in result["teacher_timeline"])
    kills = ", ".join(f"{kind} at {step}" for kind, step in zip(form.kills, steps, strict=True))
    figure(
        4,
        f"{len(form.kills)} kills ({kills}) and a promotion in {total} steps; went on with steps {resumes}; "
        f"{'same' if same else 'other'} bytes; {timeline_text}",
        "each resume at a step > 1, the bytes of an undisturbed run with the same timeline",
    )
    assert same, output
    assert box.losses("killed") == box.losses("same-timeline")
    assert result["teacher_timeline"] == stage.result("same-timeline")["teacher_timeline"]
    assert attempts.count(1) == 1


# ---- promise 2


def test_no_teacher_comes_back_and_each_policy_does_what_it_says(
    stage: Any, undisturbed: bytes, fault_stage: ModuleType, form: Form, figure: Figure
) -> None:
    box = stage.box
    alpha = (*fault_stage.IN_DRIVER, *AWAY)
    waits = stage.start("waits", *alpha, *form.length)
    replays = stage.start("replays", *alpha, *form.length, "--on-teacher-loss", "replay", "--ledger", "record")
    skips = stage.start("skips", *alpha, "--epochs", "1000", "--on-teacher-loss", "skip")
    for run_id, process in (("waits", waits), ("replays", replays), ("skips", skips)):
        box.wait_for_steps(run_id, 5, process)
    gone = time.monotonic()
    stage.teachers(0)

    output = fault_stage.finish(waits, 3)
    waited_s = time.monotonic() - gone
    (reason,) = [line for line in output.splitlines() if line.startswith("teacher unavailable after step")]
    assert "teacher alpha@1 did not answer within" in reason
    assert "saved" in reason
    saved = int(box.newest_checkpoint("waits").name.removeprefix("step-"))
    assert 5 <= saved < form.epochs * fault_stage.STEPS_PER_EPOCH

    fault_stage.finish(replays, 0)
    replayed = stage.result("replays")["replayed_items"]
    assert replayed > 0
    assert box.weights("replays") == undisturbed

    without = next(r["step"] for r in box.steps("skips") if r["kd_skipped"])
    stage.teachers(1)
    resumed = stage.start("waits", *alpha, *form.length)
    fault_stage.wait_until(lambda: not box.steps("skips")[-1]["kd_skipped"], "a teacher's answer after its return")
    skips.send_signal(signal.SIGINT)
    fault_stage.finish(skips, 130)
    skipped = sum(r["kd_skipped"] for r in box.steps("skips"))
    assert skipped > 0

    fault_stage.finish(resumed, 0)
    assert box.weights("waits") == undisturbed
    figure(
        2,
        f"wait: exit 3 after {waited_s:.1f} s, saved after step {saved}, resumed to the same bytes ({reason!r}); "
        f"replay: {replayed} items from the ledger, same bytes; skip: {skipped} tuples from step {without} on without "
        "the term, then answers again",
        "wait: a checkpoint, a clean exit and the reason; skip trains on and recovers; replay needs no teacher",
    )


def test_the_ledger_alone_gives_the_recorded_runs_bytes_and_asks_no_service(
    stage: Any, replayed: Any, undisturbed: bytes, fault_stage: ModuleType, figure: Figure
) -> None:
    fault_stage.finish(replayed, 0)
    result = stage.result("replayed")
    same = stage.box.weights("replayed") == undisturbed
    figure(2, f"{result['replayed_items']} items replayed without a service, same bytes: {same}", "all, same bytes")
    assert same
    assert result["replayed_items"] == sum(r["clips"] for r in stage.box.steps("replayed")) // 3


def test_a_library_that_cannot_be_read_any_more_ends_the_run_with_a_checkpoint_and_the_reason(
    stage: Any, undisturbed: bytes, fault_stage: ModuleType, form: Form, full: bool, figure: Figure
) -> None:
    if not full:
        pytest.skip("in the full form only")
    box, folder = stage.box, stage.library.root / "alpha"
    flags = (*fault_stage.IN_DRIVER, *form.length, *AWAY)
    process = stage.start("unreadable", *flags)
    box.wait_for_steps("unreadable", 5, process)
    hidden = folder.rename(folder.with_name(".away"))  # the next block of steps cannot be bound
    try:
        output = fault_stage.finish(process, 3)
    finally:
        hidden.rename(folder)
    (reason,) = [line for line in output.splitlines() if line.startswith("teacher unavailable after step")]
    figure(2, f"library moved away: {reason!r}", "a checkpoint, a clean exit and the reason")
    assert "alpha" in reason
    assert "saved" in reason
    fault_stage.finish(stage.start("unreadable", *flags), 0)
    assert box.weights("unreadable") == undisturbed


# ---- transports


def test_a_run_over_http_ends_with_the_bytes_of_the_served_one(
    stage: Any, over_http: Any, undisturbed: bytes, fault_stage: ModuleType, figure: Figure
) -> None:
    fault_stage.finish(over_http, 0)
    same = stage.elsewhere.weights("http") == undisturbed
    figure(1, f"over HTTP, from a home without that teacher: same bytes: {same}", "the bytes of an undisturbed run")
    assert not (stage.elsewhere.home / "teachers" / "alpha").exists()
    assert same
