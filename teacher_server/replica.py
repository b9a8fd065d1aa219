"""A teacher replica: the class that Ray Serve runs. One process, one device, several teachers.

infer(query) ──► resident? ──► check ──► Batcher (merge, render, forward) ──► reply
                    │ no: TeacherNotResident, and it is loaded in the background
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
from numpy.typing import NDArray

from data.errors import DataError
from teacher_server.answering import ClipShape, StoreCache, answer_together, check_query, load_pixels, make_reply
from teacher_server.batching import Batcher, BatchRecord
from teacher_server.errors import LibraryError, TeacherError, TeacherNotResident, UnknownTeacher
from teacher_server.library import TeacherLibrary
from teacher_server.metrics import ReplicaMetrics
from teacher_server.protocol import TeacherId, TeacherQuery, TeacherReply
from teacher_server.replica_state import ReplicaState
from teacher_server.roster import Roster
from teacher_server.teacher import FrozenTeacher, TeacherAnswer

STUCK_AFTER_S = 300.0


@dataclass(frozen=True)
class _BatchKey:
    """What must be equal for two queries to share a forward pass."""

    teacher: TeacherId
    shape: ClipShape

    def __str__(self) -> str:
        return str(self.teacher)


class Replica:
    """Ready once it holds what the roster says that aliases and live runs need; others are loaded when asked for."""

    def __init__(
        self, library_root: str, *, num_threads: int, device: str, max_queued_clips: int, max_batch_clips: int
    ) -> None:
        self._num_threads = num_threads
        self._library = TeacherLibrary(Path(library_root))
        self._device = device
        self._teachers: dict[TeacherId, FrozenTeacher] = {}
        self._failed: dict[TeacherId, TeacherError] = {}
        self._loads: dict[TeacherId, asyncio.Task[None]] = {}
        self._load_thread = ThreadPoolExecutor(1, thread_name_prefix="load-teacher")
        self._stores = StoreCache()
        self._metrics = ReplicaMetrics()
        self._batches = self._batch_requests = self._batch_clips = 0
        self._batcher: Batcher[_BatchKey, TeacherQuery, NDArray[np.uint8], TeacherAnswer] = Batcher(
            self._load_pixels,
            self._forward,
            max_batch_clips=max_batch_clips,
            max_queued_clips=max_queued_clips,
            on_batch=self._count_batch,
        )
        for teacher in sorted(Roster(self._library).required()):
            self._load_now(teacher)

    async def infer(self, query: TeacherQuery) -> TeacherReply | TeacherError | DataError:
        """Answers a question, or returns why not, as teacher_server.client says. A refusal is no exception: Serve
        would log each with its traceback, and overload is when that hurts most."""
        outcome = "failed"
        try:
            reply = await self._answer(query)
            outcome = "ok"
        except (TeacherError, DataError) as refusal:
            outcome = type(refusal).__name__
            return refusal
        finally:
            # A label must not take whatever names clients make up.
            label = str(query.teacher) if query.teacher in self._teachers else "not loaded"
            self._metrics.request(label, outcome)
        self._metrics.queue(reply.seconds.queue, self._batcher.queued_clips)
        return reply

    async def load(self, teacher: TeacherId) -> str:
        """Loads a teacher, again if that failed before, and returns its digest. Raises LibraryError and the like."""
        if teacher not in self._teachers:
            self._failed.pop(teacher, None)
            await asyncio.shield(self._start_loading(teacher))
            if teacher in self._failed:
                raise self._failed[teacher]
        return self._teachers[teacher].digest

    async def describe(self) -> ReplicaState:
        """What it holds and has done."""
        return ReplicaState(
            pid=os.getpid(),
            node_id=ray.get_runtime_context().get_node_id(),
            device=self._device,
            library_root=str(self._library.root),
            teachers={str(teacher): frozen.digest for teacher, frozen in sorted(self._teachers.items())},
            failed={str(teacher): str(error) for teacher, error in sorted(self._failed.items())},
            queued_clips=self._batcher.queued_clips,
            batches=self._batches,
            batch_requests=self._batch_requests,
            batch_clips=self._batch_clips,
        )

    def check_health(self) -> None:
        """Serve replaces a replica whose check raises: one whose forward pass does not come back."""
        busy_s = self._batcher.busy_for_s()
        if busy_s > STUCK_AFTER_S:
            raise RuntimeError(f"a forward pass has taken {busy_s:.0f} s, at most {STUCK_AFTER_S:.0f} s are expected")

    async def _answer(self, query: TeacherQuery) -> TeacherReply:
        teacher = self._resident(query.teacher)
        key = _BatchKey(query.teacher, check_query(query, teacher.card))
        batched = await self._batcher.submit(key, query, query.num_clips, query.timeout_s)
        return make_reply(query, teacher, batched.result, batched.seconds)

    def _resident(self, teacher: TeacherId) -> FrozenTeacher:
        if teacher in self._teachers:
            return self._teachers[teacher]
        if teacher in self._failed:
            raise self._failed[teacher]
        known = self._library.versions(teacher.name)
        if teacher.version not in known:
            raise UnknownTeacher(str(teacher), tuple(f"{teacher.name}@{version}" for version in known))
        self._start_loading(teacher)
        raise TeacherNotResident(str(teacher))

    def _start_loading(self, teacher: TeacherId) -> asyncio.Task[None]:
        task = self._loads.get(teacher)
        if task is None:
            task = self._loads[teacher] = asyncio.get_running_loop().create_task(self._load_in_background(teacher))
        return task

    async def _load_in_background(self, teacher: TeacherId) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._load_thread, self._load_now, teacher)
        finally:
            del self._loads[teacher]

    def _load_now(self, teacher: TeacherId) -> None:
        """A teacher that cannot be loaded is remembered with the reason; it must not keep the others from serving."""
        try:
            self._teachers[teacher] = FrozenTeacher.load(self._library.entry(teacher), self._device, self._num_threads)
        except TeacherError as error:
            self._failed[teacher] = error
        except RuntimeError as error:  # torch's, such as no memory left on the device
            self._failed[teacher] = LibraryError(str(teacher), f"cannot be loaded: {str(error).splitlines()[0]}")

    def _load_pixels(self, query: TeacherQuery) -> NDArray[np.uint8]:
        return load_pixels(query, self._stores)

    def _forward(self, key: _BatchKey, pixels: Sequence[NDArray[np.uint8]]) -> list[TeacherAnswer]:
        return answer_together(self._teachers[key.teacher], pixels)

    def _count_batch(self, record: BatchRecord) -> None:
        self._batches += 1
        self._batch_requests += record.requests
        self._batch_clips += record.clips
        self._metrics.batch(record)
