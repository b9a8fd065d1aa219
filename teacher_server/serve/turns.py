"""Taking turns, and giving up when one's own time is over before the turn comes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from teacher_server.errors import TeacherUnavailable

WAITING = "other runs or operators were changing the teacher service all the time"


@contextlib.asynccontextmanager
async def turn_of(lock: asyncio.Lock, subject: str, deadline: float) -> AsyncIterator[None]:
    """The lock, for as long as the context lasts. deadline: a reading of time.monotonic().

    Raises TeacherUnavailable about `subject` when it has passed, also if it passed in the moment of the turn: nobody
    waits for the result any more, and what was begun for nobody would hold up those behind.
    """
    began = time.monotonic()
    try:
        async with asyncio.timeout(deadline - began):
            await lock.acquire()
    except TimeoutError:
        raise TeacherUnavailable(subject, time.monotonic() - began, WAITING) from None
    try:
        if time.monotonic() >= deadline:
            raise TeacherUnavailable(subject, time.monotonic() - began, WAITING)
        yield
    finally:
        lock.release()
