"""Clients of the service benchmarks, each an actor process of its own on the core of everything but the forward."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np
import ray
from bench_tools import SPEC, draw, question

from data.render import render_batch
from data.store import ClipStore
from teacher_server.clients.serve import ServeTeacherClient
from teacher_server.contract import PendingReply, TeacherClient
from teacher_server.protocol import TeacherId

PATIENCE_S = 120.0


@dataclass(frozen=True)
class Load:
    """What one caller asks: `items` a question, `depth` questions in flight."""

    teacher: TeacherId
    head: str
    items: int
    depth: int
    pixels: bool = False
    url: str = ""


@dataclass(frozen=True)
class Answered:
    """clips: answered between the first `warm` seconds and the end of the window; latencies in seconds."""

    clips: int
    seconds: float
    latencies: tuple[float, ...]


@ray.remote(num_cpus=0, max_concurrency=4)
class Caller:
    """Asks about fresh views without a pause. With `pixels` one rendered array stands for all, as shared memory."""

    def __init__(self, store: str, load: Load, seed: int) -> None:
        self._store = ClipStore.open(store)
        self._load = load
        self._seed = seed * 100_003  # no two callers of a benchmark ever draw equal views
        self._run = f"caller-{os.getpid()}"
        self._client = _client(load)
        batch = draw(self._store, load.head, load.items, self._seed)
        self._pixels = render_batch(self._store.gather(batch), batch) if load.pixels else None
        self._stop = threading.Event()

    def ready(self) -> None:
        """Returns once the actor is up and one question was answered."""
        self._submit().result(PATIENCE_S)

    def saturate(self, warm_s: float, window_s: float) -> Answered:
        """Keeps `depth` questions in flight; counts what is answered in the window after the warm-up."""
        load = self._load
        waiting: deque[tuple[float, PendingReply]] = deque()
        clips_per_question = load.items * (3 if load.head == "pretext" else 1)
        clips, latencies = 0, []
        began = time.perf_counter()
        first_end = last_end = 0.0
        while True:
            while len(waiting) < load.depth:
                waiting.append((time.perf_counter(), self._submit()))
            asked, pending = waiting.popleft()
            pending.result(PATIENCE_S)
            now = time.perf_counter()
            if now - began < warm_s:
                first_end = now
                continue
            first_end = first_end or began
            clips += clips_per_question
            latencies.append(now - asked)
            last_end = now
            if now - began > warm_s + window_s:
                break
        for _, pending in waiting:
            pending.result(PATIENCE_S)
        return Answered(clips, last_end - first_end, tuple(latencies))

    def at_rate(self, questions_per_s: float, count: int, seed: int) -> Answered:
        """An open loop: questions at random moments (a Poisson process), whether or not earlier ones are answered."""
        rng = np.random.default_rng(seed)
        moments = np.cumsum(rng.exponential(1 / questions_per_s, count))
        latencies: list[float] = [0.0] * count
        threads = []
        began = time.perf_counter()

        def wait(index: int, due: float, pending: PendingReply) -> None:
            pending.result(PATIENCE_S)
            latencies[index] = time.perf_counter() - due

        for index, moment in enumerate(moments):
            due = began + float(moment)
            time.sleep(max(0.0, due - time.perf_counter()))
            thread = threading.Thread(target=wait, args=(index, due, self._submit()))
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()
        clips = count * self._load.items * (3 if self._load.head == "pretext" else 1)
        return Answered(clips, time.perf_counter() - began, tuple(latencies))

    def paced(self, think_s: float, count: int) -> Answered:
        """A closed loop: a question, its answer, a pause, as a training run asks."""
        latencies = []
        for _ in range(count):
            asked = time.perf_counter()
            self._submit().result(PATIENCE_S)
            latencies.append(time.perf_counter() - asked)
            time.sleep(think_s)
        clips = count * self._load.items * (3 if self._load.head == "pretext" else 1)
        return Answered(clips, sum(latencies), tuple(latencies))

    def ask_until_stopped(self) -> tuple[int, float]:
        """One question after the other until `stop`: how many, and the longest wait in seconds."""
        self._stop.clear()
        count, longest = 0, 0.0
        while not self._stop.is_set():
            asked = time.perf_counter()
            self._submit().result(PATIENCE_S)
            longest = max(longest, time.perf_counter() - asked)
            count += 1
        return count, longest

    def keep_asking(self) -> None:
        """`depth` questions in flight until `stop`."""
        self._stop.clear()
        waiting: deque[PendingReply] = deque()
        while not self._stop.is_set():
            while len(waiting) < self._load.depth:
                waiting.append(self._submit())
            waiting.popleft().result(PATIENCE_S)
        for pending in waiting:
            pending.result(PATIENCE_S)

    def stop(self) -> None:
        """Ends `ask_until_stopped` and `keep_asking`."""
        self._stop.set()

    def _submit(self) -> PendingReply:
        self._seed += 1
        load = self._load
        batch = draw(self._store, load.head, load.items, self._seed)
        return self._client.submit(question(self._store, load.teacher, batch, self._pixels, run=self._run))


def _client(load: Load) -> TeacherClient:
    if load.url:
        from teacher_server.clients.http import HttpTeacherClient

        return HttpTeacherClient(load.url)
    return ServeTeacherClient()


def pass_shape(load: Load, chunk_items: int) -> tuple[int, ...]:
    """Shape of the pixels of one full chunk [N, T, H, W, 3]."""
    clips = chunk_items * (3 if load.head == "pretext" else 1)
    return (clips, SPEC.clip_len, SPEC.crop, SPEC.crop, 3)
