"""A teacher replica: the class that Ray Serve runs. One process, one device, several teachers.

infer(query) ──► resident? ──► check ──► shared? ──► Batcher (merge, render, forward) ──► soften ──► reply
                    │ no                   │ yes: the answer that was made for an equal question
                    └─► TeacherNotResident, and it is loaded in the background (teacher_server.serve.residents)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
from numpy.typing import NDArray

from data.errors import DataError, StoreMissing, StoreUnreadable, may_pass
from teacher_server.answering import (
    MAX_QUESTION_BYTES,
    ClipShape,
    StoreCache,
    answer_together,
    check_query,
    join_answers,
    load_pixels,
    make_reply,
)
from teacher_server.batching.batcher import Batched, Batcher, BatchRecord, Part
from teacher_server.batching.recent import RecentQuestions, RecentViews
from teacher_server.batching.sharing import SharedAnswers, share_key
from teacher_server.card import Card
from teacher_server.clients.serve import one_line
from teacher_server.engine.ensemble import load_teacher
from teacher_server.engine.teacher import Teacher, TeacherAnswer, is_out_of_memory
from teacher_server.errors import TeacherError, TeacherUnavailable
from teacher_server.library import TeacherLibrary
from teacher_server.promotion import NO_ITEMS, GateReport
from teacher_server.protocol import (
    MAX_TIMEOUT_S,
    PhaseSeconds,
    TeacherId,
    TeacherQuery,
    TeacherReply,
    new_request_id,
)
from teacher_server.roster.roster import Roster
from teacher_server.serve.gate import GATE_ITEMS, ForwardTime, compare_logits
from teacher_server.serve.metrics import ReplicaMetrics
from teacher_server.serve.replica_state import ReplicaState
from teacher_server.serve.residents import Residents

STUCK_AFTER_S = 300.0
MAX_LOADED_BYTES = 2 * MAX_QUESTION_BYTES  # of pixels that wait for a forward pass
MAX_SHARED_ANSWERS = 64  # some steps of several students; an answer is logits and features, no pixels
USER_CONFIG = "user_config"  # who made an alias, for the log
GATE_RUN = "(gate)"
GATE_WEIGHT = 0.25  # of a run's share
WARM_UP_LIMIT_S = 120.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _BatchKey:
    """What must be equal for two queries to share a forward pass."""

    teacher: TeacherId
    shape: ClipShape

    def __str__(self) -> str:
        return str(self.teacher)


class Replica:
    """Ready once it holds what the roster says that aliases, promotions and live runs need; others are loaded when
    asked for.

    app_key: whose promotions and runs those are, None for those of all apps that share the roster's file.
    """

    def __init__(
        self,
        library_root: str,
        *,
        num_threads: int,
        device: str,
        max_queued_clips: int,
        budget_bytes: int,
        app_key: str | None = None,
    ) -> None:
        self._num_threads = num_threads
        self._library = TeacherLibrary(Path(library_root))
        self._device = device
        self._stores = StoreCache()
        self._metrics = ReplicaMetrics()
        self._device_fault = ""  # what a forward pass on the GPU failed with; such a process is not used any more
        self._batches = self._batch_requests = self._batch_clips = 0
        self._forward_times: dict[TeacherId, ForwardTime] = {}
        self._shared: SharedAnswers[Batched[TeacherAnswer]] = SharedAnswers(MAX_SHARED_ANSWERS)
        self._recent = RecentQuestions(GATE_ITEMS)
        self._batcher: Batcher[_BatchKey, TeacherQuery, NDArray[np.uint8], TeacherAnswer] = Batcher(
            self._load,
            self._forward,
            join_answers,
            pass_items=lambda key: self._residents[key.teacher].card.chunk_items * num_threads,
            max_queued_clips=max_queued_clips,
            max_loaded_bytes=MAX_LOADED_BYTES,
            on_batch=self._count_batch,
        )
        self._app_key = app_key
        self._roster = Roster(self._library)
        self._residents = Residents(
            self._library,
            lambda entry: load_teacher(entry, device, num_threads),
            self._roster.is_bound,
            budget_bytes=budget_bytes,
            on_change=lambda teacher, num_bytes: self._metrics.resident(str(teacher), num_bytes),
        )
        # Read again after loading: a promotion that began meanwhile could not see this replica.
        while missing := self._missing():
            self._residents.load_now(missing)

    @property
    def queued_clips(self) -> int:
        """Clips accepted and not answered yet."""
        return self._batcher.queued_clips

    async def infer(self, query: TeacherQuery) -> TeacherReply | TeacherError | DataError:
        """Answers a question, or returns why not, as teacher_server.contract says. A refusal is no exception: Serve
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
            label = str(query.teacher) if query.teacher in self._residents else "not loaded"
            self._metrics.request(label, outcome, self._batcher.queued_clips)
        return reply

    async def begin_with(self, teachers: Sequence[TeacherId]) -> None:
        """As Roster.begin_with; then it loads what is needed and it has not tried to load. Raises UnknownTeacher and
        LibraryError; what cannot be loaded is remembered, as when it starts."""
        await asyncio.to_thread(self._roster.begin_with, teachers, USER_CONFIG)
        for teacher in await asyncio.to_thread(self._missing):
            with contextlib.suppress(TeacherError):
                await self._residents.prepare(teacher)

    async def prepare(self, teacher: TeacherId) -> str:
        """As Residents.prepare; then it answers some of the views that were asked lately, so that no student meets the
        first pass of a clip shape, which sets its kernels up."""
        digest = await self._residents.prepare(teacher)
        with self._residents.use(teacher, GATE_RUN) as held:
            chunks = self._recent_chunks(held.card, GATE_ITEMS)
            deadline = time.monotonic() + WARM_UP_LIMIT_S
            for chunk in {_shape(chunk): chunk for chunk in chunks}.values():
                await self._ask_for_gate(teacher, chunk, deadline)
        return digest

    async def evict(self, teacher: TeacherId, *, keep_out: bool) -> bool:
        """As Residents.evict."""
        was_held = await self._residents.evict(teacher, keep_out=keep_out)
        self._forward_times.pop(teacher, None)
        return was_held

    async def compare(self, old: TeacherId, new: TeacherId, items: int, limit_s: float) -> GateReport:
        """Asks both versions about the views of recent questions, as a run of little weight, for at most limit_s
        seconds. Views that cannot be answered are left out; so is everything when the old version is not loaded."""
        if old not in self._residents or new not in self._residents:
            return NO_ITEMS
        deadline = time.monotonic() + limit_s
        with self._residents.use(old, GATE_RUN) as teacher, self._residents.use(new, GATE_RUN):

            async def ask_both(chunk: RecentViews) -> list[TeacherAnswer | None]:
                return [await self._ask_for_gate(who, chunk, deadline) for who in (old, new)]

            chunks = self._recent_chunks(teacher.card, items)
            before = {who: self._forward_times.get(who, ForwardTime()) for who in (old, new)}
            answers = [await ask_both(chunk) for chunk in chunks]
            times = {who: self._forward_times.get(who, ForwardTime()) - before[who] for who in (old, new)}
        pairs = [(a.logits, b.logits) for a, b in answers if a is not None and b is not None]
        if not pairs:
            return NO_ITEMS
        old_IK, new_IK = (np.concatenate(logits) for logits in zip(*pairs, strict=True))
        return compare_logits(old_IK, new_IK, times[old], times[new])

    async def describe(self) -> ReplicaState:
        """What it holds and has done."""
        return ReplicaState(
            pid=os.getpid(),
            node_id=ray.get_runtime_context().get_node_id(),
            device=self._device,
            library_root=str(self._library.root),
            teachers={str(teacher): held.digest for teacher, held in self._residents.held().items()},
            failed={str(teacher): str(error) for teacher, error in self._residents.failed().items()},
            queued_clips=self._batcher.queued_clips,
            batches=self._batches,
            batch_requests=self._batch_requests,
            batch_clips=self._batch_clips,
            shared=self._shared.hits,
            resident_bytes=self._residents.num_bytes,
            budget_bytes=self._residents.budget_bytes,
        )

    def check_health(self) -> None:
        """Serve replaces a replica whose check raises: one whose forward pass does not come back, or that hangs while
        it reads clips, or whose GPU failed, for after a fault every later pass of the process fails too."""
        if self._device_fault:
            raise RuntimeError(f"a forward pass on {self._device} failed: {self._device_fault}")
        for what, busy_s in (
            ("a forward pass", self._batcher.busy_for_s()),
            ("reading clips", self._batcher.loading_for_s()),
        ):
            if busy_s > STUCK_AFTER_S:
                raise RuntimeError(f"{what} has taken {busy_s:.0f} s, at most {STUCK_AFTER_S:.0f} s are expected")

    async def _answer(self, query: TeacherQuery) -> TeacherReply:
        arrived = time.monotonic()
        with self._residents.use(query.teacher, query.run) as teacher:
            shape = check_query(query, teacher.card)
            key = share_key(teacher.digest, query)
            if key is None:
                batched, shared = await self._ask(query, shape, query.timeout_s), False
            else:
                batched, shared = await self._shared.get(
                    key,
                    lambda left_s: self._ask(query, shape, left_s),
                    who=str(query.teacher),
                    timeout_s=query.timeout_s,
                )
            if not shared:
                self._metrics.waited(batched.seconds.queue)
                self._recent.add(query, shape)
                return make_reply(query, teacher, batched.result, batched.seconds)
            self._metrics.shared()
            return make_reply(query, teacher, batched.result, PhaseSeconds(queue=time.monotonic() - arrived))

    async def _ask(self, query: TeacherQuery, shape: ClipShape, timeout_s: float) -> Batched[TeacherAnswer]:
        return await self._batcher.submit(
            _BatchKey(query.teacher, shape),
            query,
            num_items=query.num_clips // query.views_per_item,
            clips_per_item=query.views_per_item,
            num_bytes=query.num_clips * shape.num_bytes,
            timeout_s=timeout_s,
            run=query.run,
            weight=query.weight,
        )

    def _missing(self) -> list[TeacherId]:
        known = self._residents.known()
        return [teacher for teacher in self._roster.required(self._app_key) if teacher not in known]

    def _recent_chunks(self, card: Card, items: int) -> list[RecentViews]:
        """At most so many of the items asked last, of any clip shape, in parts that fill a forward pass."""
        recent = self._recent.take(card.views_per_item, items)
        return [chunk for views in recent for chunk in _chunks(views, card.chunk_items)]

    async def _ask_for_gate(self, teacher: TeacherId, chunk: RecentViews, deadline: float) -> TeacherAnswer | None:
        """A version's answer to views; None when it cannot be had."""
        limit_s = min(deadline - time.monotonic(), MAX_TIMEOUT_S)
        if limit_s <= 0:
            return None
        query = TeacherQuery(
            request_id=new_request_id(),
            teacher=teacher,
            temperature=1.0,
            views_per_item=chunk.batch.views_per_item,
            run=GATE_RUN,
            views=chunk.batch.to_bytes(),
            store=chunk.store,
            timeout_s=limit_s,
            weight=GATE_WEIGHT,
        )
        try:
            return (await self._ask(query, check_query(query, self._residents[teacher].card), limit_s)).result
        except (TeacherError, DataError):  # its store is gone, the queue is full, the time is up
            return None

    def _load(self, query: TeacherQuery) -> NDArray[np.uint8]:
        try:
            return load_pixels(query, self._stores)
        except (StoreUnreadable, OSError, MemoryError) as error:
            if isinstance(error, OSError) and not may_pass(error):
                raise StoreMissing(str(query.store), f"it cannot be opened here ({error.strerror})") from error
            reason = f"the clips could not be read: {one_line(error)}"
            raise TeacherUnavailable(str(query.teacher), 0.0, reason) from error

    def _forward(self, key: _BatchKey, parts: Sequence[Part[NDArray[np.uint8]]]) -> list[TeacherAnswer]:
        teacher = self._residents[key.teacher]
        began = time.monotonic()
        try:
            answers = answer_together(teacher, parts)
        except TeacherError:
            raise
        except (RuntimeError, MemoryError) as error:  # torch's: no memory left, a fault of the device
            raise self._failed_pass(key, error) from error
        took = ForwardTime(time.monotonic() - began, _padded_clips(teacher, parts))
        self._forward_times[key.teacher] = self._forward_times.get(key.teacher, ForwardTime()) + took
        return answers

    def _failed_pass(self, key: _BatchKey, error: Exception) -> TeacherUnavailable:
        """What those are told who had a part in it: another replica, or this one later, may answer them."""
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if self._device != "cpu" and not is_out_of_memory(error):  # out of memory: the next pass may fit
            self._device_fault = reason
        logger.error("a forward pass of %s on %s failed: %s", key, self._device, reason)
        return TeacherUnavailable(str(key), 0.0, f"its forward pass failed: {reason}")

    def _count_batch(self, record: BatchRecord) -> None:
        self._batches += 1
        self._batch_requests += record.requests
        self._batch_clips += record.clips
        self._metrics.batch(record)
        for teacher, held in self._residents.held().items():
            self._metrics.resident(str(teacher), held.num_bytes)  # Ray forgets a gauge that is not set again


def _chunks(views: RecentViews, chunk_items: int) -> list[RecentViews]:
    """The same items, at most `chunk_items` at a time."""
    starts = range(0, views.batch.num_items, chunk_items)
    ends = (min(first + chunk_items, views.batch.num_items) for first in starts)
    return [RecentViews(views.batch.items(*span), views.store) for span in zip(starts, ends, strict=True)]


def _shape(views: RecentViews) -> tuple[int, int, int]:
    """Frames, height and width of a question's clips, which all have the same."""
    clip_len, height, width = views.batch.records[0][["clip_len", "crop_h", "crop_w"]].item()
    return clip_len, height, width


def _padded_clips(teacher: Teacher, parts: Sequence[Part[NDArray[np.uint8]]]) -> int:
    """Clips that a pass computes: whole chunks."""
    chunks = math.ceil(sum(part.num_items for part in parts) / teacher.card.chunk_items)
    return chunks * teacher.card.chunk_items * teacher.card.views_per_item
