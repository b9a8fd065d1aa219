"""A teacher in this process, behind the same contract as the service: for debugging, tests and small runs.

Answers come from the very code that a replica runs, so they are the same bytes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data.store import ClipStore
from teacher_server.answering import StoreCache, answer_together, check_query, load_pixels, make_reply
from teacher_server.batching.batcher import Part, check_room
from teacher_server.contract import MAX_QUEUED_CLIPS, FailedReply, FutureReply, PendingReply
from teacher_server.engine.ensemble import load_teacher
from teacher_server.engine.teacher import Teacher
from teacher_server.errors import TeacherError, TeacherUnavailable
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import PhaseSeconds, TeacherId, TeacherQuery, TeacherReply


class InProcessTeacherClient:
    """Answers in a thread of this process with the very code that a replica runs. Needs no Ray cluster.

    A teacher is loaded at its first question. open_store: how a store's path becomes a store.
    """

    def __init__(
        self,
        library: TeacherLibrary,
        open_store: Callable[[Path], ClipStore] = ClipStore.open,
        *,
        max_queued_clips: int = MAX_QUEUED_CLIPS,
        device: str = "cpu",
        num_threads: int = 1,
    ) -> None:
        self._library = library
        self._stores = StoreCache(open_store)
        self._device = device
        self._num_threads = num_threads
        self._teachers: dict[TeacherId, Teacher] = {}
        self._max_queued_clips = max_queued_clips
        self._queued_clips = 0
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="teacher")

    def submit(self, query: TeacherQuery) -> PendingReply:
        """Queues a question; they are answered one after the other."""
        try:
            clips = query.num_clips
            self._reserve(clips)
        except TeacherError as error:
            return FailedReply(error)
        arrived = time.monotonic()
        try:
            future = self._thread.submit(self._answer, query, arrived)
        except RuntimeError:
            self._free(clips)
            return FailedReply(TeacherUnavailable(str(query.teacher), 0.0, "this client is closed"))
        future.add_done_callback(lambda _: self._free(clips))
        return FutureReply(query.teacher, future)

    def close(self) -> None:
        """Cancels what was not begun and waits for what was."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _reserve(self, clips: int) -> None:
        with self._lock:
            check_room(self._queued_clips, clips, self._max_queued_clips)
            self._queued_clips += clips

    def _free(self, clips: int) -> None:
        with self._lock:
            self._queued_clips -= clips

    def _answer(self, query: TeacherQuery, arrived: float) -> TeacherReply:
        began = time.monotonic()
        if began - arrived > query.timeout_s:
            raise TeacherUnavailable(str(query.teacher), began - arrived, "its time ran out in the queue")
        teacher = self._teacher(query.teacher)
        check_query(query, teacher.card)
        pixels = load_pixels(query, self._stores)
        rendered = time.monotonic()
        (answer,) = answer_together(teacher, [Part(pixels, 0, len(pixels) // teacher.card.views_per_item)])
        seconds = PhaseSeconds(began - arrived, rendered - began, time.monotonic() - rendered)
        return make_reply(query, teacher, answer, seconds)

    def _teacher(self, teacher: TeacherId) -> Teacher:
        if teacher not in self._teachers:
            self._teachers[teacher] = load_teacher(self._library.entry(teacher), self._device, self._num_threads)
        return self._teachers[teacher]
