"""A lane's limit holds for threads, not for the requests that wait for them: those can be cancelled, threads cannot."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.requests import Request

from services.errors import GatewayBusy
from services.lanes import Lane, Shares, on_disconnect

PATIENCE_S = 30.0


class Work:
    """Waits in its thread until the test lets it go."""

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.began.set()
        assert self.may_end.wait(PATIENCE_S)
        return "done"


@pytest.fixture
def lane() -> Iterator[Lane]:
    lane = Lane("questions", 2)
    yield lane
    lane.close()


async def begun(lane: Lane, work: Work) -> asyncio.Task[str]:
    task = asyncio.create_task(lane.run(work))
    assert await asyncio.to_thread(work.began.wait, PATIENCE_S)
    return task


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


def test_a_cancelled_request_holds_its_place_until_its_thread_has_ended(lane: Lane) -> None:
    first, second = Work(), Work()

    async def scenario() -> None:
        tasks = [await begun(lane, work) for work in (first, second)]
        for task in tasks:
            await cancel(task)
        with pytest.raises(GatewayBusy, match="2 questions are under way"):
            await lane.run(str)
        first.may_end.set()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(GatewayBusy):
                    assert await lane.run(lambda: "next") == "next"
                    break
                await asyncio.sleep(0.001)
        second.may_end.set()

    asyncio.run(scenario())


def test_places_are_free_as_soon_as_the_answer_is_there_and_after_an_error(lane: Lane) -> None:
    async def scenario() -> None:
        for _ in range(5):
            assert await asyncio.gather(lane.run(int, "1"), lane.run(int, "2")) == [1, 2]
            with pytest.raises(ValueError, match="invalid literal"):
                await lane.run(int, "x")

    asyncio.run(scenario())


def test_a_place_in_which_nothing_ran_is_free_again(lane: Lane) -> None:
    for _ in range(5):
        with lane.place(), lane.place(), pytest.raises(GatewayBusy), lane.place():
            pass


@pytest.mark.parametrize("disconnects", [False, True], ids=["cancelled only", "cancelled after it was seen to leave"])
def test_a_cancelled_request_gives_up_what_its_thread_waits_for(lane: Lane, disconnects: bool) -> None:
    work, left = Work(), asyncio.Event()

    async def receive() -> dict[str, str]:
        await (left.wait() if disconnects else asyncio.Event().wait())
        return {"type": "http.disconnect"}

    async def ask() -> str:
        request = Request({"type": "http"}, receive)
        with lane.place() as place:
            async with on_disconnect(request, work.may_end.set):
                return await place.run(work)

    async def scenario() -> None:
        task = asyncio.create_task(ask())
        assert await asyncio.to_thread(work.began.wait, PATIENCE_S)
        left.set()
        await cancel(task)
        assert await asyncio.to_thread(work.may_end.wait, PATIENCE_S)

    asyncio.run(scenario())


def test_each_run_has_an_equal_part_of_the_places_and_at_least_one() -> None:
    shares, held = Shares("questions", 4), contextlib.ExitStack()
    for _ in range(4):
        held.enter_context(shares.hold("a"))
    with pytest.raises(GatewayBusy, match="4 questions of run a are under way, its part of 4 among 1 run:"):
        held.enter_context(shares.hold("a"))
    for run in "bbcdef":  # b has 2 of 2 when a and it are there; each later one finds more runs, and may have one
        held.enter_context(shares.hold(run))
    for run in "abcdef":
        with pytest.raises(GatewayBusy, match="its part of 4 among 6 runs"):
            held.enter_context(shares.hold(run))
    held.close()
    with shares.hold("a"), shares.hold("a"), shares.hold("a"), shares.hold("a"):
        pass
