"""Accumulate while busy: whatever arrives during one forward pass makes up the next one. Plain asyncio.

    submit ──► waiting ──► load thread ──► loaded ──► forward thread ──► parts ──► join ──► result
              (by run,    (store, render) (bounded   (up to pass_items
               bounded in                  in bytes)  items of one key)
               clips)

- Nothing waits for company: an idle forward thread takes what is there. What a pass holds is decided when that thread
  is free. While it is busy, requests are loaded one by one, so pixels are ready when it comes back.
- A request is spread over several passes where that fills them, by whole items: an item is never split.
- Who goes next, who is loaded next and who must leave when the queue is full: teacher_server.batching.fairness.
- A request that was cancelled, or whose time ran out, is dropped before it is loaded and before each of its parts is
  run: one that was begun is not continued.
- An exception of `load` fails that request, one of `run` those that had a part in the pass, and nothing else.

There are no timers and no polling: the two loops below run only while they have something to do.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from teacher_server.batching.fairness import FairQueue, Request, Take
from teacher_server.errors import BadQuery, TeacherOverloaded, TeacherUnavailable
from teacher_server.protocol import PhaseSeconds

CLOSING = "this replica is closing"

Key = TypeVar("Key", bound=Hashable)
Payload = TypeVar("Payload")
Loaded = TypeVar("Loaded")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Part(Generic[Loaded]):
    """Items first..last-1 of one request, as its part of a forward pass."""

    loaded: Loaded
    first: int
    last: int

    @property
    def num_items(self) -> int:
        """How many items that is."""
        return self.last - self.first


@dataclass(frozen=True)
class Batched(Generic[Result]):
    """A result, where its time went, and how many clips and requests shared its last forward pass."""

    result: Result
    seconds: PhaseSeconds
    batch_clips: int
    batch_requests: int


@dataclass(frozen=True)
class BatchRecord:
    """What one forward pass was: told to `on_batch` after its results went out."""

    clips: int
    requests: int
    forward_s: float


@dataclass(eq=False, kw_only=True)
class Work(Request[Key], Generic[Key, Payload, Loaded, Result]):
    """One request on its way. Times are readings of the batcher's clock, in seconds."""

    payload: Payload
    arrived: float
    deadline: float
    done: asyncio.Future[Batched[Result]]
    loaded: list[Loaded] = field(default_factory=list)  # empty, then one
    results: list[Result] = field(default_factory=list)  # of its parts, in order
    load_s: float = 0.0
    forward_s: float = 0.0


class Batcher(Generic[Key, Payload, Loaded, Result]):
    """Use from one event loop. `load` runs in one thread, `run` in another, so neither need be thread-safe in itself.

    run: gets a key and parts of loaded payloads; returns as many results in that order. join: makes one result of
    those of one request's parts, in order; called in the event loop, so it must be quick. pass_items: the most items
    of a key that one pass takes. max_loaded_bytes: that lie loaded or are being loaded at a time; one request may.
    """

    def __init__(
        self,
        load: Callable[[Payload], Loaded],
        run: Callable[[Key, Sequence[Part[Loaded]]], Sequence[Result]],
        join: Callable[[Sequence[Result]], Result],
        *,
        pass_items: Callable[[Key], int],
        max_queued_clips: int,
        max_loaded_bytes: float = math.inf,
        on_batch: Callable[[BatchRecord], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_queued_clips < 1:
            raise ValueError(f"the limit must be at least 1 clip, got {max_queued_clips}")
        self._load = load
        self._run = run
        self._join = join
        self._pass_items = pass_items
        self._max_queued_clips = max_queued_clips
        self._on_batch = on_batch
        self._clock = clock
        self._queue: FairQueue[Work[Key, Payload, Loaded, Result]] = FairQueue(max_loaded_bytes=max_loaded_bytes)
        self._earliest_deadline = float("inf")  # no request in the queue has an earlier one
        self._load_thread = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._forward_thread = ThreadPoolExecutor(1, thread_name_prefix="forward")
        self._loader: asyncio.Task[None] | None = None
        self._runner: asyncio.Task[None] | None = None
        self._busy_since: float | None = None
        self._loading_since: float | None = None
        self._closed = False

    @property
    def queued_clips(self) -> int:
        """Clips accepted and not answered yet."""
        return self._queue.held_clips

    def busy_for_s(self) -> float:
        """Seconds that the present forward pass has taken so far; 0 when there is none."""
        return self._since(self._busy_since)

    def loading_for_s(self) -> float:
        """Seconds that reading one request's clips has taken so far; 0 when none is being read."""
        return self._since(self._loading_since)

    def _since(self, began: float | None) -> float:
        return 0.0 if began is None else self._clock() - began

    async def submit(
        self,
        key: Key,
        payload: Payload,
        *,
        num_items: int,
        clips_per_item: int,
        timeout_s: float,
        num_bytes: int = 0,
        run: str = "",
        weight: float = 1.0,
    ) -> Batched[Result]:
        """The result for one request. Cancelling the caller drops what was not begun of it.

        num_bytes: what it takes when it is loaded. run: whom it is counted for, with `weight` relative to other runs.
        Raises TeacherOverloaded at once when there is no room, or later when a run that holds less needs its place;
        BadQuery for one that never fits; TeacherUnavailable when timeout_s passed before all of it was begun or the
        batcher closed; and whatever `load`, `run` and `join` raise.
        """
        if self._closed:
            raise TeacherUnavailable(str(key), 0.0, CLOSING)
        now = self._clock()
        work: Work[Key, Payload, Loaded, Result] = Work(
            run=run,
            weight=weight,
            key=key,
            num_items=_at_least_1("num_items", num_items),
            clips_per_item=_at_least_1("clips_per_item", clips_per_item),
            pass_items=_at_least_1("pass_items", self._pass_items(key)),
            num_bytes=num_bytes,
            payload=payload,
            arrived=now,
            deadline=now + timeout_s,
            done=asyncio.get_running_loop().create_future(),
        )
        self._admit(work)
        self._wake()
        try:
            return await work.done
        except asyncio.CancelledError:
            self._queue.leave(work)
            self._wake()  # it may have kept others from being loaded
            raise

    def close(self) -> None:
        """Fails what has items that were not begun, and takes nothing more. A pass that is running ends by itself."""
        self._closed = True
        for work in self._queue.untaken():
            self._fail(work, TeacherUnavailable(str(work.key), self._clock() - work.arrived, CLOSING))
        self._load_thread.shutdown(wait=False, cancel_futures=True)
        self._forward_thread.shutdown(wait=False, cancel_futures=True)

    def _admit(self, work: Work[Key, Payload, Loaded, Result]) -> None:
        """Into the queue, in the place of others if it must be. Raises TeacherOverloaded, BadQuery."""
        limit = self._max_queued_clips
        if self.queued_clips + work.num_clips > limit:
            self._drop_expired()
        victims = self._queue.room_for(work, limit)
        if victims is None:
            check_room(self.queued_clips, work.num_clips, limit)
        for victim in victims or ():
            self._fail(victim, TeacherOverloaded(self.queued_clips - victim.num_clips, victim.num_clips, limit))
        self._queue.add(work)
        self._earliest_deadline = min(self._earliest_deadline, work.deadline)

    def _drop_expired(self) -> None:
        """Fails all that has expired, wherever it stands. Looks at every request, so only if one can have expired."""
        if self._clock() > self._earliest_deadline:
            left = [work.deadline for work in self._queue.untaken() if self._alive(work)]
            self._earliest_deadline = min(left, default=float("inf"))

    def _wake(self) -> None:
        """Starts the loop that has work and is not running. Called whenever something was added or taken."""
        if self._loader is None and self._queue.may_load:
            self._loader = asyncio.get_running_loop().create_task(self._load_loop())
        if self._runner is None and self._queue.any_loaded:
            self._runner = asyncio.get_running_loop().create_task(self._run_loop())

    async def _load_loop(self) -> None:
        try:
            while (work := self._queue.next_to_load()) is not None:
                if self._alive(work):
                    await self._load_one(work)
                    self._wake()
        finally:
            self._loader = None

    async def _load_one(self, work: Work[Key, Payload, Loaded, Result]) -> None:
        began = self._loading_since = self._clock()
        try:
            loaded = await asyncio.get_running_loop().run_in_executor(self._load_thread, self._load, work.payload)
        except Exception as error:  # whatever it was, it belongs to whoever asked
            self._fail(work, error)
            return
        finally:
            self._loading_since = None
        work.loaded.append(loaded)
        work.load_s = self._clock() - began
        self._queue.mark_loaded(work)

    async def _run_loop(self) -> None:
        try:
            while takes := self._take_pass():
                await self._run_pass(takes)
        finally:
            self._runner = None

    def _take_pass(self) -> list[Take[Work[Key, Payload, Loaded, Result]]]:
        for work in self._queue.loaded():
            self._alive(work)
        takes = self._queue.take_pass()
        self._wake()  # there may be room for loading again
        return takes

    async def _run_pass(self, takes: list[Take[Work[Key, Payload, Loaded, Result]]]) -> None:
        parts = [Part(take.request.loaded[0], take.first, take.last) for take in takes]
        began = self._busy_since = self._clock()
        try:
            results = await asyncio.get_running_loop().run_in_executor(
                self._forward_thread, self._run, takes[0].request.key, parts
            )
            if len(results) != len(parts):
                raise RuntimeError(f"{len(parts)} parts were run together, {len(results)} results came back")
        except Exception as error:  # the same: it belongs to those whose pass it was
            for take in takes:
                self._fail(take.request, error)
            return
        finally:
            self._busy_since = None
        clips = sum(part.num_items * take.request.clips_per_item for part, take in zip(parts, takes, strict=True))
        record = BatchRecord(clips, len(takes), self._clock() - began)
        for take, result in zip(takes, results, strict=True):
            self._collect(take.request, result, record)
        if self._on_batch is not None:
            self._on_batch(record)

    def _collect(self, work: Work[Key, Payload, Loaded, Result], result: Result, record: BatchRecord) -> None:
        """One more part of a request has its result; after the last one the request has its own."""
        work.results.append(result)
        work.forward_s += record.forward_s
        if work.taken < work.num_items:
            return
        try:
            joined = self._join(work.results)
        except Exception as error:  # of this request alone
            self._fail(work, error)
            return
        queue_s = self._clock() - work.arrived - work.load_s - work.forward_s
        seconds = PhaseSeconds(queue_s, work.load_s, work.forward_s)
        self._queue.leave(work)
        if not work.done.done():
            work.done.set_result(Batched(joined, seconds, record.clips, record.requests))

    def _alive(self, work: Work[Key, Payload, Loaded, Result]) -> bool:
        """False for a request that nobody waits for any more; one whose time ran out is failed here."""
        waited_s = self._clock() - work.arrived
        if not work.gone and work.arrived + waited_s > work.deadline:
            self._fail(work, TeacherUnavailable(str(work.key), waited_s, "its time ran out in the queue"))
        return not work.gone

    def _fail(self, work: Work[Key, Payload, Loaded, Result], error: Exception) -> None:
        self._queue.leave(work)
        if not work.done.done():
            work.done.set_exception(error)


def check_room(waiting: int, asked: int, limit: int) -> None:
    """The one rule of the bounded queues here, in clips.

    Raises TeacherOverloaded when `asked` more would pass the limit, and BadQuery for a question that never fits:
    waiting would not help it, and accepting it would leave memory without a bound.
    """
    if asked > limit:
        raise BadQuery(f"a question of {asked} clips never fits a queue of {limit}: split it")
    if waiting + asked > limit:
        raise TeacherOverloaded(waiting, asked, limit)


def _at_least_1(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value
