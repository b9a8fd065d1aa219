"""A teacher replica: the class that Ray Serve runs. One process, one device, several teachers.

infer(query) ──► resident? ──► check ──► shared? ──► Batcher (merge, render, forward) ──► soften ──► reply
                    │ no                   │ yes: the answer that was made for an equal question
                    └─► TeacherNotResident, and it is loaded in the background (teacher_server.serve.residents)
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
from numpy.typing import NDArray

from data.errors import DataError
from data.views import ViewBatch
from teacher_server.answering import (
    ClipShape,
    StoreCache,
    answer_together,
    check_query,
    join_answers,
    load_pixels,
    make_reply,
)
from teacher_server.batching.batcher import Batched, Batcher, BatchRecord, Part
from teacher_server.batching.recent import RecentQuestions
from teacher_server.batching.sharing import SharedAnswers, share_key
from teacher_server.engine.ensemble import load_teacher
from teacher_server.engine.teacher import Teacher, TeacherAnswer
from teacher_server.errors import TeacherError
from teacher_server.library import TeacherLibrary
from teacher_server.promotion import GateReport
from teacher_server.protocol import PhaseSeconds, TeacherId, TeacherQuery, TeacherReply, new_request_id
from teacher_server.roster.roster import Roster
from teacher_server.serve.gate import NO_ITEMS, ForwardTime, compare_logits
from teacher_server.serve.metrics import ReplicaMetrics
from teacher_server.serve.replica_state import ReplicaState
from teacher_server.serve.residents import Residents

STUCK_AFTER_S = 300.0
MAX_SHARED_ANSWERS = 64  # some steps of several students; an answer is logits and features, no pixels
GATE_RUN = "(gate)"
GATE_WEIGHT = 0.25  # of a run's share


@dataclass(frozen=True)
class _BatchKey:
    """What must be equal for two queries to share a forward pass."""

    teacher: TeacherId
    shape: ClipShape

    def __str__(self) -> str:
        return str(self.teacher)


class Replica:
    """Ready once it holds what the roster says that aliases, promotions and live runs need; others are loaded when
    asked for."""

    def __init__(
        self, library_root: str, *, num_threads: int, device: str, max_queued_clips: int, budget_bytes: int
    ) -> None:
        self._num_threads = num_threads
        self._library = TeacherLibrary(Path(library_root))
        self._device = device
        self._stores = StoreCache()
        self._metrics = ReplicaMetrics()
        self._batches = self._batch_requests = self._batch_clips = 0
        self._forward_times: dict[TeacherId, ForwardTime] = {}
        self._shared: SharedAnswers[Batched[TeacherAnswer]] = SharedAnswers(MAX_SHARED_ANSWERS)
        self._recent = RecentQuestions()
        self._batcher: Batcher[_BatchKey, TeacherQuery, NDArray[np.uint8], TeacherAnswer] = Batcher(
            lambda query: load_pixels(query, self._stores),
            self._forward,
            join_answers,
            pass_items=lambda key: self._residents[key.teacher].card.chunk_items * num_threads,
            max_queued_clips=max_queued_clips,
            on_batch=self._count_batch,
        )
        roster = Roster(self._library)
        self._residents = Residents(
            self._library,
            lambda entry: load_teacher(entry, device, num_threads),
            roster.is_bound,
            budget_bytes=budget_bytes,
            on_change=lambda teacher, num_bytes: self._metrics.resident(str(teacher), num_bytes),
        )
        # Read again after loading: a promotion that began meanwhile could not see this replica.
        while missing := roster.required() - self._residents.known():
            self._residents.load_now(sorted(missing))

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
            self._metrics.request(label, outcome)
        self._metrics.queue(reply.seconds.queue, self._batcher.queued_clips)
        return reply

    async def prepare(self, teacher: TeacherId) -> str:
        """As Residents.prepare."""
        return await self._residents.prepare(teacher)

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
            before = {who: self._forward_times.get(who, ForwardTime()) for who in (old, new)}
            answers = []
            for views in self._recent.take(teacher.card.views_per_item, None, items):
                for first in range(0, views.batch.num_items, teacher.card.chunk_items):
                    chunk = views.batch.items(first, min(first + teacher.card.chunk_items, views.batch.num_items))
                    asking = (self._ask_for_gate(who, chunk, views.store, deadline) for who in (old, new))
                    answers.append(await asyncio.gather(*asking))
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
        """Serve replaces a replica whose check raises: one whose forward pass does not come back."""
        busy_s = self._batcher.busy_for_s()
        if busy_s > STUCK_AFTER_S:
            raise RuntimeError(f"a forward pass has taken {busy_s:.0f} s, at most {STUCK_AFTER_S:.0f} s are expected")

    async def _answer(self, query: TeacherQuery) -> TeacherReply:
        arrived = time.monotonic()
        with self._residents.use(query.teacher, query.run) as teacher:
            shape = check_query(query, teacher.card)
            key = share_key(teacher.digest, query)
            if key is None:
                batched, shared = await self._ask(query, shape), False
            else:
                batched, shared = await self._shared.get(key, query.num_clips, lambda: self._ask(query, shape))
            if not shared:
                self._recent.add(query, shape)
                return make_reply(query, teacher, batched.result, batched.seconds)
            self._metrics.shared()
            return make_reply(query, teacher, batched.result, PhaseSeconds(queue=time.monotonic() - arrived))

    async def _ask(self, query: TeacherQuery, shape: ClipShape) -> Batched[TeacherAnswer]:
        return await self._batcher.submit(
            _BatchKey(query.teacher, shape),
            query,
            num_items=query.num_clips // query.views_per_item,
            clips_per_item=query.views_per_item,
            timeout_s=query.timeout_s,
            run=query.run,
            weight=query.weight,
        )

    async def _ask_for_gate(
        self, teacher: TeacherId, chunk: ViewBatch, store: str, deadline: float
    ) -> TeacherAnswer | None:
        """A version's answer to views; None when it cannot be had."""
        query = TeacherQuery(
            request_id=new_request_id(),
            teacher=teacher,
            temperature=1.0,
            views_per_item=chunk.views_per_item,
            run=GATE_RUN,
            views=chunk.to_bytes(),
            store=store,
            timeout_s=deadline - time.monotonic(),
            weight=GATE_WEIGHT,
        )
        try:
            return (await self._ask(query, check_query(query, self._residents[teacher].card))).result
        except (TeacherError, DataError):  # its store is gone, the queue is full, the time is up
            return None

    def _forward(self, key: _BatchKey, parts: Sequence[Part[NDArray[np.uint8]]]) -> list[TeacherAnswer]:
        teacher = self._residents[key.teacher]
        began = time.monotonic()
        answers = answer_together(teacher, parts)
        took = ForwardTime(time.monotonic() - began, _padded_clips(teacher, parts))
        self._forward_times[key.teacher] = self._forward_times.get(key.teacher, ForwardTime()) + took
        return answers

    def _count_batch(self, record: BatchRecord) -> None:
        self._batches += 1
        self._batch_requests += record.requests
        self._batch_clips += record.clips
        self._metrics.batch(record)


def _padded_clips(teacher: Teacher, parts: Sequence[Part[NDArray[np.uint8]]]) -> int:
    """Clips that a pass computes: whole chunks."""
    chunks = math.ceil(sum(part.num_items for part in parts) / teacher.card.chunk_items)
    return chunks * teacher.card.chunk_items * teacher.card.views_per_item
