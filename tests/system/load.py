"""Load with a content oracle: students that ask without a pause, and every reply compared with a local teacher's.

    pool of questions ──► 8 students ──► Asker ──► service ──► reply {teacher@version}
           │                                                         │ equal, bit for bit?
           └──► FrozenTeacher of every version, loaded here ──► the answer of that version to that question

Half of the questions are pixels only and never share an answer, the other half are views with their pixels. Callers,
below, are the load of the overload test: processes of their own, at a given rate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import ray

from data.render import render_batch
from data.store import ClipStore
from teacher_server.card import PRETEXT_CLASSES
from teacher_server.clients.retry import Asker, RetryPolicy
from teacher_server.contract import TeacherClient
from teacher_server.engine.ensemble import load_teacher
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId, TeacherQuery, TeacherRef, TeacherReply, new_request_id
from teacher_server.serve.deployment import TeacherService

POLICY = RetryPolicy(attempt_timeout_s=20.0, budget_s=90.0)
BLOCK_QUESTIONS = 8  # that share a binding, as the steps of a block do
PATIENCE_S = 120.0


def make_pool(tiny: Any, store: ClipStore, size: int, seed: int) -> list[TeacherQuery]:
    """Questions of one or two tuples with their pixels, every other one without its views."""
    pool = []
    for i in range(size):
        batch = tiny.draw(store, 1 + i // 2 % 2, seed * 1000 + i)
        query = tiny.views_query(store, batch, pixels=render_batch(store.gather(batch), batch))
        pool.append(dataclasses.replace(query, views=None, store=None) if i % 2 else query)
    return pool


class ContentOracle:
    """Knows what every version answers to every question of a pool: real card, real weights, real engine."""

    def __init__(self, library: TeacherLibrary, pool: list[TeacherQuery]) -> None:
        self.pool = pool
        self._library = library
        self._expected: dict[TeacherId, tuple[str, list[np.ndarray]]] = {}

    def learn(self, teacher: TeacherId) -> None:
        """Loads a version and answers the whole pool."""
        local = load_teacher(self._library.entry(teacher))
        answers = [local.answer(q.pixels).logits / np.float32(q.temperature) for q in self.pool if q.pixels is not None]
        for earlier, (_, others) in self._expected.items():  # otherwise a mixed-up version would go unnoticed
            assert not any(map(np.array_equal, answers, others)), f"{teacher} answers as {earlier} does"
        self._expected[teacher] = local.digest, answers

    def fault(self, index: int, reply: TeacherReply) -> str:
        """What is wrong with a reply, or nothing: it must be the bytes of the version that it names."""
        digest, answers = self._expected[reply.teacher]
        if reply.digest != digest:
            return f"{reply.teacher} with the digest of other weights"
        if not np.array_equal(reply.logits, answers[index]):
            whose = [str(t) for t, (_, all_) in self._expected.items() if np.array_equal(reply.logits, all_[index])]
            return f"question {index}: the reply names {reply.teacher}, its content is that of {whose or 'nobody'}"
        return ""


class Students:
    """Runs that ask about random questions of the pool, in blocks bound by the roster. Use it as a context: its end
    raises what went wrong for one of them, because every question must be answered.

    phase: under which the waits for replies are noted from now on. All fields may be read at any time.
    """

    def __init__(self, service: TeacherService, ref: TeacherRef, oracle: ContentOracle, num: int, seed: int) -> None:
        self.phase = "start"
        self.num_replies = 0
        self.waits_s: defaultdict[str, list[float]] = defaultdict(list)
        self.wrong: list[str] = []
        self.retries = 0
        self._service = service
        self._ref = ref
        self._oracle = oracle
        self._client: TeacherClient = service.client()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        gc.collect()
        gc.freeze()  # this process's own pauses, of up to a second here, would count as waits for the teacher
        self._threads = ThreadPoolExecutor(num)
        self._asking = [self._threads.submit(self._ask, f"student-{seed}-{i}") for i in range(num)]

    def __enter__(self) -> Students:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._ended.set()
        self._threads.shutdown()
        if kind is None:
            for each in self._asking:
                each.result()

    def wait_for(self, replies: int) -> None:
        """Until so many more have come. Raises what went wrong for a student."""
        target, deadline = self.num_replies + replies, time.monotonic() + 10 * PATIENCE_S
        while self.num_replies < target:
            assert not self.wrong, self.wrong[:5]
            for each in self._asking:
                if each.done():
                    each.result()
            assert time.monotonic() < deadline, f"no {replies} replies within {10 * PATIENCE_S:.0f} s"
            time.sleep(0.005)

    def _ask(self, run: str) -> None:
        rng = random.Random(run)
        asker = Asker(self._client, num_classes=len(PRETEXT_CLASSES), policy=POLICY, rng=rng)
        self._service.acquire(run, self._ref)
        block = 0
        while not self._ended.is_set():
            binding = self._service.bind(run, self._ref, block, timeout_s=PATIENCE_S)
            for index in rng.choices(range(len(self._oracle.pool)), k=BLOCK_QUESTIONS):
                query = dataclasses.replace(
                    self._oracle.pool[index], teacher=binding.teacher, request_id=new_request_id(), run=run
                )
                phase, began = self.phase, time.monotonic()
                reply = asker.ask(query, digest=binding.digest)
                self._note(phase, time.monotonic() - began, self._oracle.fault(index, reply))
            block += 1
        self._service.release(run)
        with self._lock:
            self.retries += asker.stats.retries

    def _note(self, phase: str, waited_s: float, fault: str) -> None:
        with self._lock:
            self.num_replies += 1
            self.waits_s[phase].append(waited_s)
            if fault:
                self.wrong.append(fault)


@dataclass(frozen=True)
class Asked:
    """One question's fate: when it was sent, by the machine's clock, and how long its answer or refusal took."""

    sent_at: float
    waited_s: float
    outcome: str


def make_callers(num: int) -> list[Any]:
    """Actors of their own processes. A class made here travels to them by value: tests are no package."""

    @ray.remote(num_cpus=0, max_concurrency=2)
    class Caller:
        def __init__(self, run: str) -> None:
            from teacher_server.clients.serve import ServeTeacherClient

            self._run = run
            self._client = ServeTeacherClient()

        def pid(self) -> int:
            return os.getpid()

        def saturate(self, query: TeacherQuery, seconds: float, depth: int) -> list[tuple[float, float, str]]:
            """`depth` threads that ask one question after the other."""
            end = time.monotonic() + seconds

            def ask(_: int) -> list[tuple[float, float, str]]:
                fates = []
                while time.monotonic() < end:
                    fates.append(self._ask(query))
                return fates

            with ThreadPoolExecutor(depth) as threads:
                return [fate for fates in threads.map(ask, range(depth)) for fate in fates]

        def at_rate(self, query: TeacherQuery, seconds: float, per_s: float) -> list[tuple[float, float, str]]:
            """An open loop: questions go out at this rate, whatever happens to the earlier ones."""
            began = time.monotonic()
            with ThreadPoolExecutor(256) as threads:
                asking = []
                for i in range(int(seconds * per_s)):
                    time.sleep(max(0.0, began + i / per_s - time.monotonic()))
                    asking.append(threads.submit(self._ask, query))
                return [each.result() for each in asking]

        def _ask(self, query: TeacherQuery) -> tuple[float, float, str]:
            from teacher_server.errors import TeacherError

            began = time.monotonic()
            try:
                asked = dataclasses.replace(query, request_id=new_request_id(), run=self._run)
                self._client.submit(asked).result(60.0)
                outcome = "answered"
            except TeacherError as error:
                outcome = type(error).__name__
            return began, time.monotonic() - began, outcome

    return [Caller.remote(f"caller-{i}") for i in range(num)]


def part_cores(service: TeacherService, callers: list[Any]) -> None:
    """The replica on the last core, the callers on the first: load must not slow down what it is the load of."""
    cores = sorted(os.sched_getaffinity(0))
    (replica,) = service.describe()
    pids = {replica.pid: cores[-1], **dict.fromkeys(ray.get([caller.pid.remote() for caller in callers]), cores[0])}
    for pid, core in pids.items():
        for thread in psutil.Process(pid).threads():
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.sched_setaffinity(thread.id, {core})


def fates_of(fates: list[Any]) -> list[Asked]:
    """What became of the questions of several callers."""
    return [Asked(*fate) for of_one in ray.get(fates, timeout=600.0) for fate in of_one]


def answer_rate(fates: list[Asked], warm_s: float) -> float:
    """Answers per second between the first and the last answer, those of the first `warm_s` and those that came after
    the last question left out: in between, somebody always waits."""
    first, last = min(fate.sent_at for fate in fates) + warm_s, max(fate.sent_at for fate in fates)
    answered_at = sorted(f.sent_at + f.waited_s for f in fates if f.outcome == "answered")
    counted = [moment for moment in answered_at if first <= moment <= last]
    return (len(counted) - 1) / (counted[-1] - counted[0])


@contextlib.contextmanager
def every(period_s: float, look: Callable[[], None]) -> Iterator[None]:
    """Calls `look` so often, in a thread, for as long as the context lasts."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(period_s):
            look()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Watch:
    """What was seen of the one replica."""

    def __init__(self, service: TeacherService) -> None:
        self.most_queued_clips = 0
        self.rss_mib: list[float] = []
        self._service = service

    def look(self) -> None:
        """Once more."""
        (state,) = self._service.describe()
        self.most_queued_clips = max(self.most_queued_clips, state.queued_clips)
        self.rss_mib.append(psutil.Process(state.pid).memory_info().rss / 2**20)
