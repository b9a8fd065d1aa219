"""What a student keeps of its speed with a served teacher.

    python tests/bench/retention.py [--alternations N] [--json FILE] [--only PART ...]

Student and teacher have one core each; steps take at least 1 s and the teacher's forward less than a step; the first
steps of every block, which fill the pipeline, are left out; the distillation term is applied in every step.

    retention    student clips/s with the served teacher, over the same student (without a teacher) while an equal,
                 unconnected forward runs on the other core; printed beside it: over an idle core. A/A: the same arm
                 twice in each alternation.
    replay       with the ledger, the teacher app deleted, no teacher call, over an idle core
    one-core     seconds per step with student and teacher on one core, over the sum of the two alone
    equal        1, 2 and 4 students on one served teacher, against as many with a teacher inside each process: clips/s
                 of all and memory of all processes (PSS), with different views and with shared ones
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import ray
from bench_tools import (
    OTHER_CORE,
    SPEC,
    TEACHER_CORE,
    Estimate,
    add_teacher,
    build_store,
    counted,
    estimate,
    pin_process,
    print_rows,
    private_cluster,
    write_json,
)
from engine_loop import EngineLoop
from student import FILL_STEPS, Block, Setup, StudentProcess, Trained

from data.home import VARIABLE
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherRef
from teacher_server.serve.deployment import TeacherService

PARTS = ("retention", "replay", "one-core", "equal")
WIDTH, BATCH = 0.25, 5
STEPS = 2  # measured per block
EQUAL_STEPS = 10  # of each student: a short window would be all beginning and end
LEAST_STEP_S = 1.0
ASKED = {"retention": 0.95, "replay": 0.98, "one-core": 1.05}
BOTH_CORES = {OTHER_CORE, TEACHER_CORE}


class Bench:
    """The cluster's teacher and how students are made."""

    def __init__(self, home: Path, alternations: int) -> None:
        self.home, self.alternations = home, alternations
        build_store(home / "stores" / "bench")
        self.library = TeacherLibrary(home / "teachers")
        self.teacher = add_teacher(self.library, "teacher", width=WIDTH, chunk_items=BATCH)
        self.digest = self.library.entry(self.teacher).digest
        self.results: dict[str, Any] = {}

    def deploy(self) -> None:
        """One replica, on the teacher's core with all of Ray."""
        self.service = TeacherService.connect(self.library.root)
        self.service.deploy()
        self.service.acquire("bench", TeacherRef("teacher"))
        self.address = ray.get_runtime_context().gcs_address

    def student(self, core: int | None, view_seed: int = 0) -> StudentProcess:
        """A student process, ready."""
        return StudentProcess(
            Setup(self.home, self.teacher, self.digest, BATCH, WIDTH, self.address, core, view_seed, TEACHER_CORE)
        )

    def clips_answered(self) -> int:
        """By all replicas so far."""
        return sum(state.batch_clips for state in self.service.describe())


def mean(trained: Trained) -> float:
    return sum(trained.seconds) / len(trained.seconds)


def retention(bench: Bench) -> None:
    student = bench.student(OTHER_CORE)
    arms = ("served", "beside", "beside", "alone")
    for arm in arms:
        student.train(Block(arm, 1))
    seconds: dict[str, list[float]] = {name: [] for name in ("served", "beside", "control", "alone")}
    before, distilled = bench.clips_answered(), 0
    for i in counted(bench.alternations, "retention, alternations"):
        order = list(zip(seconds, arms, strict=True))
        for name, arm in order[i % 4 :] + order[: i % 4]:
            trained = student.train(Block(arm, STEPS))
            seconds[name].append(mean(trained))
            distilled += trained.distilled
    student.end()
    assert distilled == STEPS * bench.alternations, "the distillation term was not applied in every served step"
    assert bench.clips_answered() - before >= 3 * BATCH * distilled, "the served steps were not served"
    with EngineLoop(bench.library.root, bench.teacher, _shape(), TEACHER_CORE) as loop:
        loop.start(5)
        forward_s = loop.wait() / 5
    ratios = {
        "served / beside an equal forward": _ratios(seconds["beside"], seconds["served"]),
        "A/A control": _ratios(seconds["beside"], seconds["control"]),
        "served / idle core": _ratios(seconds["alone"], seconds["served"]),
    }
    step = estimate(seconds["beside"])
    print_rows("retention", ("student clips/s", "ratio"), [(name, str(value)) for name, value in ratios.items()])
    fits = step.median >= LEAST_STEP_S and forward_s < step.median
    print(
        f"step {step.median:.2f} s (at least {LEAST_STEP_S:g} asked), forward {forward_s:.2f} s (less than the step): "
        f"{'ok' if fits else 'NOT REACHED'}"
    )
    _verdict("retention", ratios["served / beside an equal forward"].median)
    bench.results["retention"] = {**ratios, "step s": step, "forward s": forward_s}


def replay(bench: Bench) -> None:
    """Recorded first; then the app goes, and the same steps are trained from the ledger."""
    student = bench.student(OTHER_CORE)
    for _ in counted(bench.alternations, "replay, recording"):
        student.train(Block("record", STEPS))
    bench.service.release("bench")
    bench.service.delete()
    student.train(Block("alone", 1))
    seconds: dict[str, list[float]] = {"replay": [], "alone": [], "control": []}
    distilled = 0
    for i in counted(bench.alternations, "replay, alternations"):
        order = [("replay", "replay"), ("alone", "alone"), ("control", "alone")]
        for name, arm in order[i % 3 :] + order[: i % 3]:
            trained = student.train(Block(arm, STEPS))  # type: ignore[arg-type]
            seconds[name].append(mean(trained))
            distilled += trained.distilled
    student.end()
    assert distilled == STEPS * bench.alternations, "the distillation term was not applied in every replayed step"
    assert not bench.service.describe(), "a teacher was still there"
    ratios = {
        "replay / idle core": _ratios(seconds["alone"], seconds["replay"]),
        "A/A control": _ratios(seconds["alone"], seconds["control"]),
    }
    print_rows("replay", ("student clips/s", "ratio"), [(name, str(value)) for name, value in ratios.items()])
    _verdict("replay", ratios["replay / idle core"].median)
    bench.results["replay"] = ratios
    bench.deploy()


def one_core(bench: Bench) -> None:
    """Everything on core 0."""
    for pid in _teacher_pids(bench):
        pin_process(OTHER_CORE, pid)
    student = bench.student(OTHER_CORE)
    ratios = []
    with EngineLoop(bench.library.root, bench.teacher, _shape(), OTHER_CORE) as loop:
        for arm in ("served", "alone"):
            student.train(Block(arm, 1))  # type: ignore[arg-type]
        for _ in counted(bench.alternations, "one core, alternations"):
            both = mean(student.train(Block("served", STEPS)))
            alone = mean(student.train(Block("alone", STEPS)))
            loop.start(2)
            ratios.append(both / (alone + loop.wait() / 2))
        student.end()
    for pid in _teacher_pids(bench):
        pin_process(TEACHER_CORE, pid)
    ratio = estimate(ratios)
    print(f"seconds per step with both on one core / sum of the two alone: {ratio}")
    _verdict("one-core", ratio.median)
    bench.results["one-core"] = ratio


def equal(bench: Bench) -> None:
    """All processes may use both cores."""
    _free_cores()
    rows, figures = [], {}
    for count in (1, 2, 4):
        for views in ("different", "shared") if count > 1 else ("different",):
            found = {}
            for arm in ("served", "in_process"):
                # Views of its own in every row: an earlier row's answers must not be at hand.
                first_seed = 10 * len(rows)
                students = [bench.student(None, first_seed + (0 if views == "shared" else i)) for i in range(count)]
                for each in students:
                    each.start(Block(arm, 1))  # type: ignore[arg-type]
                for each in students:
                    each.wait()
                answered = bench.clips_answered()
                for each in students:
                    each.start(Block(arm, EQUAL_STEPS))  # type: ignore[arg-type]
                time.sleep(1.0)
                student_memory = sum(_memory(each.pid) for each in students)
                memory = student_memory + (_memory_of_cluster() if arm == "served" else 0.0)
                trained = [each.wait() for each in students]
                answered = bench.clips_answered() - answered
                clips = sum(3 * BATCH * len(each.seconds) for each in trained)
                span = max(each.ended for each in trained) - min(each.began for each in trained)
                for each in students:
                    each.end()
                asked = 3 * BATCH * count * (EQUAL_STEPS + 2 * FILL_STEPS)
                found[arm] = clips / span, memory, student_memory, answered / asked
            served, inside = found["served"], found["in_process"]
            rows.append(
                (
                    count,
                    views,
                    *(f"{x:.2f}" for x in (served[0], inside[0], served[0] / inside[0])),
                    *(f"{x:.0f}" for x in (served[1], served[2], inside[1])),
                    f"{served[3]:.2f}",
                )
            )
            figures[f"{count} {views}"] = {"served": served, "in process": inside}
    header = ("students", "views", "served clips/s", "in process clips/s", "ratio")
    memory_header = ("served MiB, Ray too", "of it students", "in process MiB", "computed / asked")
    print_rows("equal hardware, two cores", header + memory_header, rows)
    bench.results["equal"] = figures


def _shape() -> tuple[int, ...]:
    return (3 * BATCH, SPEC.clip_len, SPEC.crop, SPEC.crop, 3)


def _ratios(base_s: list[float], other_s: list[float]) -> Estimate:
    """Clips/s of `other` over those of `base`, alternation by alternation."""
    return estimate([base / other for base, other in zip(base_s, other_s, strict=True)])


def _verdict(part: str, value: float) -> None:
    reached = value <= ASKED[part] if part == "one-core" else value >= ASKED[part]
    word = "at most" if part == "one-core" else "at least"
    print(f"{part}: {value:.3f}, {word} {ASKED[part]} asked: {'ok' if reached else 'NOT REACHED'}\n")


def _teacher_pids(bench: Bench) -> list[int]:
    return [state.pid for state in bench.service.describe()]


def _cluster_processes() -> list[psutil.Process]:
    """Ray's processes: they leave the process group, but keep the environment that they were started in."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(VARIABLE) == os.environ[VARIABLE]:
                found.append(process)
        except psutil.Error:
            continue
    return found


def _memory(pid: int) -> float:
    """Proportional set size in MiB: shared pages are divided among those who share them."""
    return psutil.Process(pid).memory_full_info().pss / 2**20


def _memory_of_cluster() -> float:
    total = 0.0
    for process in _cluster_processes():
        try:
            name = " ".join(process.cmdline())
            if "multiprocessing" not in name:
                total += _memory(process.pid)
        except psutil.Error:
            continue
    return total


def _free_cores() -> None:
    for process in [psutil.Process(), *_cluster_processes()]:
        try:
            for thread in process.threads():
                os.sched_setaffinity(thread.id, BOTH_CORES)
        except (psutil.Error, ProcessLookupError):
            continue


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--alternations", type=int, default=20, help="of each comparison")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    parts = dict(zip(PARTS, (retention, replay, one_core, equal), strict=True))
    with tempfile.TemporaryDirectory(prefix="pc-bench-", dir="/tmp") as scratch:
        os.environ[VARIABLE] = scratch
        bench = Bench(Path(scratch), args.alternations)
        with private_cluster(num_cpus=4, core=TEACHER_CORE):
            os.environ["RAY_AUTH_MODE"] = "token"  # for the students, which join the cluster
            bench.deploy()
            for name in args.only:
                parts[name](bench)
    if args.json:
        write_json(args.json, bench.results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
