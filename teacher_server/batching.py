"""Accumulate while busy: whatever arrives during one forward pass makes up the next one. Plain asyncio.

    submit ──► waiting ──► load thread ──► loaded ──► forward thread ──► results
              (in order,   (store, render)  (oldest of   (one batch of one key,
               bounded in                    one key,     up to max_batch_clips)
               clips)                        merged)

- Nothing waits for company: an idle forward thread takes what is there. While it is busy, work is loaded one by one,
  so pixels are ready when it comes back; loading pauses while a whole batch of clips lies loaded.
- A batch holds work of one key only, oldest first; a piece of work is never split, and one that is larger than
  max_batch_clips goes alone.
- Accepted and unanswered clips never pass max_queued_clips; more are refused at once.
- Work that was cancelled, or whose time ran out, is dropped before it is loaded and again before it is run.
- An exception of `load` fails that work, one of `run` the work of that batch, and nothing else.

There are no timers and no polling: the two loops below run only while they have something to do.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from teacher_server.errors import BadQuery, TeacherOverloaded, TeacherUnavailable
from teacher_server.protocol import PhaseSeconds

CLOSING = "this replica is closing"

Key = TypeVar("Key", bound=Hashable)
Payload = TypeVar("Payload")
Loaded = TypeVar("Loaded")
Result = TypeVar("Result")


@dataclass(eq=False)
class Work(Generic[Key, Payload, Loaded, Result]):
    """One request on its way. Times are readings of the batcher's clock, in seconds."""

    key: Key
    payload: Payload
    num_clips: int
    arrived: float
    deadline: float
    done: asyncio.Future[Batched[Result]]
    loaded: list[Loaded] = field(default_factory=list)  # empty, then one
    load_s: float = 0.0


@dataclass(frozen=True)
class Batched(Generic[Result]):
    """A result, where its time went, and how many clips and requests shared the forward pass."""

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


class Batcher(Generic[Key, Payload, Loaded, Result]):
    """Use from one event loop. `load` runs in one thread, `run` in another, so neither need be thread-safe in itself.

    run: gets a key and the loaded payloads, oldest first; returns as many results in that order.
    """

    def __init__(
        self,
        load: Callable[[Payload], Loaded],
        run: Callable[[Key, Sequence[Loaded]], Sequence[Result]],
        *,
        max_batch_clips: int,
        max_queued_clips: int,
        on_batch: Callable[[BatchRecord], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_batch_clips < 1 or max_queued_clips < 1:
            raise ValueError(f"limits must be at least 1 clip, got {max_batch_clips} and {max_queued_clips}")
        self._load = load
        self._run = run
        self._max_batch_clips = max_batch_clips
        self._max_queued_clips = max_queued_clips
        self._on_batch = on_batch
        self._clock = clock
        self._waiting: deque[Work[Key, Payload, Loaded, Result]] = deque()
        self._loaded: deque[Work[Key, Payload, Loaded, Result]] = deque()
        self._queued_clips = 0
        self._load_thread = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._forward_thread = ThreadPoolExecutor(1, thread_name_prefix="forward")
        self._loader: asyncio.Task[None] | None = None
        self._runner: asyncio.Task[None] | None = None
        self._busy_since: float | None = None
        self._closed = False

    @property
    def queued_clips(self) -> int:
        """Clips accepted and not answered yet."""
        return self._queued_clips

    def busy_for_s(self) -> float:
        """Seconds that the present forward pass has taken so far; 0 when there is none."""
        since = self._busy_since
        return 0.0 if since is None else self._clock() - since

    async def submit(self, key: Key, payload: Payload, num_clips: int, timeout_s: float) -> Batched[Result]:
        """The result for one piece of work. Cancelling the caller drops the work if it was not begun.

        Raises TeacherOverloaded or BadQuery at once (see check_room), TeacherUnavailable when timeout_s passed before
        it was begun or the batcher closed, and whatever `load` and `run` raise.
        """
        if self._closed:
            raise TeacherUnavailable(str(key), 0.0, CLOSING)
        check_room(self._queued_clips, num_clips, self._max_queued_clips)
        now = self._clock()
        done: asyncio.Future[Batched[Result]] = asyncio.get_running_loop().create_future()
        self._queued_clips += num_clips
        self._waiting.append(Work(key, payload, num_clips, now, now + timeout_s, done))
        self._wake()
        try:
            return await done
        finally:
            self._queued_clips -= num_clips

    def close(self) -> None:
        """Fails what was not begun, and takes nothing more. A pass that is running ends by itself."""
        self._closed = True
        for work in (*self._waiting, *self._loaded):
            self._alive(work)
        self._waiting.clear()
        self._loaded.clear()
        self._load_thread.shutdown(wait=False, cancel_futures=True)
        self._forward_thread.shutdown(wait=False, cancel_futures=True)

    def _wake(self) -> None:
        """Starts the loop that has work and is not running. Called whenever something was added or taken."""
        if self._loader is None and self._may_load():
            self._loader = asyncio.get_running_loop().create_task(self._load_loop())
        if self._runner is None and self._loaded:
            self._runner = asyncio.get_running_loop().create_task(self._run_loop())

    def _may_load(self) -> bool:
        return bool(self._waiting) and sum(work.num_clips for work in self._loaded) < self._max_batch_clips

    async def _load_loop(self) -> None:
        try:
            while self._may_load():
                work = self._waiting.popleft()
                if self._alive(work) and await self._load_one(work):
                    self._loaded.append(work)
                    self._wake()
        finally:
            self._loader = None

    async def _load_one(self, work: Work[Key, Payload, Loaded, Result]) -> bool:
        began = self._clock()
        try:
            loaded = await asyncio.get_running_loop().run_in_executor(self._load_thread, self._load, work.payload)
        except Exception as error:  # whatever it was, it belongs to whoever asked
            _fail(work, error)
            return False
        work.loaded.append(loaded)
        work.load_s = self._clock() - began
        return True

    async def _run_loop(self) -> None:
        try:
            while self._loaded:
                batch = self._take_batch()
                self._wake()  # there is room for loading again
                if batch:
                    await self._run_batch(batch)
        finally:
            self._runner = None

    async def _run_batch(self, batch: list[Work[Key, Payload, Loaded, Result]]) -> None:
        inputs = [work.loaded[0] for work in batch]
        clips = sum(work.num_clips for work in batch)
        began = self._busy_since = self._clock()
        try:
            results = await asyncio.get_running_loop().run_in_executor(
                self._forward_thread, self._run, batch[0].key, inputs
            )
            if len(results) != len(batch):
                raise RuntimeError(f"{len(batch)} requests were run together, {len(results)} results came back")
        except Exception as error:  # the same: it belongs to those whose batch it was
            for work in batch:
                _fail(work, error)
            return
        finally:
            self._busy_since = None
        forward_s = self._clock() - began
        for work, result in zip(batch, results, strict=True):
            if not work.done.done():
                seconds = PhaseSeconds(began - work.arrived - work.load_s, work.load_s, forward_s)
                work.done.set_result(Batched(result, seconds, clips, len(batch)))
        if self._on_batch is not None:
            self._on_batch(BatchRecord(clips, len(batch), forward_s))

    def _take_batch(self) -> list[Work[Key, Payload, Loaded, Result]]:
        """The oldest loaded work and all of its key that fits beside it, in order; the rest stays, in order."""
        self._loaded = deque(work for work in self._loaded if self._alive(work))
        if not self._loaded:
            return []
        key, room = self._loaded[0].key, max(self._max_batch_clips, self._loaded[0].num_clips)
        batch: list[Work[Key, Payload, Loaded, Result]] = []
        rest: deque[Work[Key, Payload, Loaded, Result]] = deque()
        for work in self._loaded:
            # Loading pauses at a whole batch, so only the last one can fail to fit: nothing overtakes it.
            fits = work.key == key and work.num_clips <= room
            room -= work.num_clips if fits else 0
            (batch if fits else rest).append(work)
        self._loaded = rest
        return batch

    def _alive(self, work: Work[Key, Payload, Loaded, Result]) -> bool:
        """False for work that nobody waits for any more; work whose time ran out, or ours, is failed here."""
        if work.done.done():
            return False
        waited_s = self._clock() - work.arrived
        if self._closed:
            _fail(work, TeacherUnavailable(str(work.key), waited_s, CLOSING))
        elif work.arrived + waited_s > work.deadline:
            _fail(work, TeacherUnavailable(str(work.key), waited_s, "its time ran out in the queue"))
        return not work.done.done()


def check_room(waiting: int, asked: int, limit: int) -> None:
    """The one rule of the bounded queues here, in clips.

    Raises TeacherOverloaded when `asked` more would pass the limit, and BadQuery for a question that never fits:
    waiting would not help it, and accepting it would leave memory without a bound.
    """
    if asked > limit:
        raise BadQuery(f"a question of {asked} clips never fits a queue of {limit}: split it")
    if waiting + asked > limit:
        raise TeacherOverloaded(waiting, asked, limit)


def _fail(work: Work[Key, Payload, Loaded, Result], error: Exception) -> None:
    if not work.done.done():
        work.done.set_exception(error)
