"""Equal questions share one answer: several students that ask about the same views cost one forward pass.

    get(key, make) ── kept? ──► the answer
                   └─ on its way? ──► wait for it ──► the answer, the error of whoever makes it, or own time is up
                   └─ neither ──► make it, for all who ask meanwhile

Raw answers are shared and softened after, so neither temperature nor dtype is part of the question. An answer is made
with the weight and on the account of the run that asked first. Plain asyncio.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import xxhash

from teacher_server.errors import TeacherOverloaded, TeacherUnavailable
from teacher_server.protocol import TeacherQuery

T = TypeVar("T")


@dataclass(eq=False)
class _Flight(Generic[T]):
    """An answer on its way, and how many wait for it."""

    task: asyncio.Task[T]
    waiting: int = 0


class SharedAnswers(Generic[T]):
    """Answers on their way and the last `max_entries` that were used. Use from one event loop.

    A caller that is cancelled takes nothing from the others; what nobody waits for any more is cancelled. An error
    goes to all who wait and is not kept. hits: calls that got an answer which they did not make.
    """

    def __init__(self, max_entries: int) -> None:
        if max_entries < 0:
            raise ValueError(f"max_entries must be at least 0, got {max_entries}")
        self._max_entries = max_entries
        self._kept: dict[bytes, T] = {}  # the one used last comes last
        self._flights: dict[bytes, _Flight[T]] = {}
        self._hits = 0

    @property
    def hits(self) -> int:
        """Calls that were answered without a forward pass of their own."""
        return self._hits

    async def get(
        self, key: bytes, make: Callable[[float], Awaitable[T]], *, who: str = "", timeout_s: float = math.inf
    ) -> tuple[T, bool]:
        """The answer, and whether another call made it. Raises what `make` raises, its own or the other call's.

        make: gets the seconds that are left. Deadlines and room in the queue are the asker's own. So one who waits for
        another's answer and finds TeacherUnavailable or TeacherOverloaded asks anew, as the first if need be. When
        timeout_s passed while it waited for another's, it gets TeacherUnavailable of its own, about `who`.
        """
        began = time.monotonic()
        while key not in self._kept:
            flight = self._flights.get(key)
            if flight is not None and flight.task.done():
                self._landed(key, flight)  # its callback is still to come; waiting for it here would not let that run
                continue
            waited_s = time.monotonic() - began
            left_s = timeout_s - waited_s
            if left_s <= 0:
                raise TeacherUnavailable(who, waited_s, "its time ran out in the queue")
            if flight is None:  # `make` keeps to the time itself: what it began it may end
                return await self._wait(key, self._start(key, make, left_s)), False
            try:
                async with asyncio.timeout(left_s if left_s < math.inf else None) as limit:
                    return self._hit(await self._wait(key, flight))
            except TimeoutError:
                if not limit.expired():
                    raise  # of `make`
                raise TeacherUnavailable(who, time.monotonic() - began, "its time ran out in the queue") from None
            except (TeacherUnavailable, TeacherOverloaded):
                continue
        answer = self._kept[key] = self._kept.pop(key)
        return self._hit(answer)

    def _start(self, key: bytes, make: Callable[[float], Awaitable[T]], left_s: float) -> _Flight[T]:
        async def fly() -> T:
            return await make(left_s)

        flight = self._flights[key] = _Flight(asyncio.get_running_loop().create_task(fly()))
        flight.task.add_done_callback(lambda _: self._landed(key, flight))
        return flight

    async def _wait(self, key: bytes, flight: _Flight[T]) -> T:
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if flight.waiting == 0 and not flight.task.done():
                self._forget(key, flight)  # first, so that nobody joins what is being cancelled
                flight.task.cancel()

    def _landed(self, key: bytes, flight: _Flight[T]) -> None:
        """Runs before those who wait go on, so that one who asks anew does not find the failed flight. A second time
        it changes nothing that matters."""
        self._forget(key, flight)
        if flight.task.cancelled() or flight.task.exception() is not None:
            return
        self._kept[key] = flight.task.result()
        while len(self._kept) > self._max_entries:
            del self._kept[next(iter(self._kept))]

    def _forget(self, key: bytes, flight: _Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _hit(self, answer: T) -> tuple[T, bool]:
        self._hits += 1
        return answer, True


def share_key(digest: str, query: TeacherQuery) -> bytes | None:
    """16 bytes that are equal for questions with equal raw answers: xxh3_128 over the teacher digest and the views.

    The views name their store's fingerprint. Where pixels came they are what is answered, so their own hash enters: a
    client that sends wrong ones must not answer for others. Where none came the store's path enters: a wrong one must
    not fail others. None for a question without views.
    """
    if query.views is None:
        return None
    if query.pixels is None:
        source = b"store" + (query.store or "").encode("utf-8", "surrogateescape")
    else:
        pixels = np.ascontiguousarray(query.pixels)
        source = b"pixels" + repr(pixels.shape).encode() + xxhash.xxh3_128_digest(pixels.data)
    hashed = xxhash.xxh3_128(digest.encode())
    for field in (query.views, source):
        hashed.update(len(field).to_bytes(8, "little"))
        hashed.update(field)
    return bytes(hashed.digest())
