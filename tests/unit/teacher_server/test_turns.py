"""Turns with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from teacher_server.errors import TeacherUnavailable
from teacher_server.serve.turns import turn_of


def play(scene: Callable[[asyncio.Lock], Awaitable[None]]) -> None:
    async def main() -> None:
        lock = asyncio.Lock()
        await asyncio.wait_for(scene(lock), 10.0)
        assert not lock.locked()

    asyncio.run(main())


def test_turns_come_one_after_the_other() -> None:
    order: list[str] = []

    async def take(lock: asyncio.Lock, name: str) -> None:
        async with turn_of(lock, name, time.monotonic() + 10.0):
            order.append(f"{name} begins")
            await asyncio.sleep(0)
            order.append(f"{name} ends")

    async def scene(lock: asyncio.Lock) -> None:
        await asyncio.gather(take(lock, "a"), take(lock, "b"))

    play(scene)
    assert order == ["a begins", "a ends", "b begins", "b ends"]


def test_one_whose_turn_does_not_come_in_time_is_told_and_begins_nothing() -> None:
    async def scene(lock: asyncio.Lock) -> None:
        async with lock:
            with pytest.raises(TeacherUnavailable, match=r"alpha did not answer .* other runs"):
                async with turn_of(lock, "alpha", time.monotonic() + 0.02):
                    raise AssertionError("it began")

    play(scene)


def test_a_turn_that_comes_too_late_is_passed_on() -> None:
    """As with a caller that came when its time was over, though the lock was free."""

    async def scene(lock: asyncio.Lock) -> None:
        with pytest.raises(TeacherUnavailable):
            async with turn_of(lock, "alpha", time.monotonic() - 1.0):
                raise AssertionError("it began")

    play(scene)


def test_an_error_of_the_turn_is_its_own_and_the_next_one_comes() -> None:
    async def scene(lock: asyncio.Lock) -> None:
        error = TimeoutError("of the work")
        with pytest.raises(TimeoutError) as caught:
            async with turn_of(lock, "alpha", time.monotonic() + 10.0):
                raise error
        assert caught.value is error

    play(scene)
