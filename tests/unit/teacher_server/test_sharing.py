"""Single flight and the answers that are kept, with a `make` that ends when the test says so."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data.views import VIEW_DTYPE, ViewBatch
from teacher_server.batching.sharing import SharedAnswers, share_key
from teacher_server.errors import BadQuery, TeacherError, TeacherOverloaded, TeacherUnavailable
from teacher_server.protocol import TeacherId, TeacherQuery

KEY = b"k"
LATE = TeacherUnavailable("alpha@1", 5.0, "its time ran out in the queue")


class Maker:
    """`await maker()` is one forward pass; `give` and `fail` end the oldest that is open."""

    def __init__(self) -> None:
        self.calls = 0
        self.cancelled = 0
        self.limits: list[float] = []
        self._open: list[asyncio.Future[str]] = []

    async def __call__(self, left_s: float) -> str:
        self.calls += 1
        self.limits.append(left_s)
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._open.append(future)
        try:
            return await future
        except asyncio.CancelledError:
            self.cancelled += 1
            self._open.remove(future)
            raise

    def give(self, answer: str) -> None:
        self._open.pop(0).set_result(answer)

    def fail(self, error: Exception) -> None:
        self._open.pop(0).set_exception(error)


def play(scene: Callable[[SharedAnswers[str], Maker], Awaitable[Any]], max_entries: int = 4) -> None:
    async def main() -> None:
        await asyncio.wait_for(scene(SharedAnswers(max_entries), Maker()), 10.0)
        assert asyncio.all_tasks() == {asyncio.current_task()}, "a task was left behind"

    asyncio.run(main())


async def settle() -> None:
    """Lets everything happen that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def ask(shared: SharedAnswers[str], maker: Maker, key: bytes = KEY) -> asyncio.Task[tuple[str, bool]]:
    task = asyncio.ensure_future(shared.get(key, maker))
    await settle()
    return task


def test_calls_at_the_same_time_share_one_making() -> None:
    async def scene(shared: SharedAnswers[str], maker: Maker) -> None:
        tasks = [await ask(shared, maker) for _ in range(3)]
        maker.give("answer")
        assert await asyncio.gather(*tasks) == [("answer", False), ("answer", True), ("answer", True)]
        assert (maker.calls, shared.hits) == (1, 2)

    play(scene)


@pytest.mark.parametrize("error", [None, TeacherOverloaded(1, 1, 1), LATE, BadQuery("bad")])
def test_one_who_asks_between_the_end_of_a_making_and_its_callback_does_not_hold_up_everybody(
    error: TeacherError | None,
) -> None:
    async def scene(shared: SharedAnswers[str], maker: Maker) -> None:
        async def make(_: float) -> str:
            if error is not None:
                raise error
            return "answer"

        late: list[asyncio.Task[tuple[str, bool]]] = []

        def ask_late() -> None:
            late.append(asyncio.ensure_future(shared.get(KEY, maker)))

        asyncio.get_running_loop().call_soon(ask_late)  # its first step comes between the flight's and its callback
        if error is None:
            assert await shared.get(KEY, make) == ("answer", False)
        else:
            with pytest.raises(type(error)):
                await shared.get(KEY, make)
        await settle()
        if maker.calls:  # the one who came late makes it again
            maker.give("again")
        assert await late[0] == (("again", False) if error is not None else ("answer", True))

    play(scene)


def test_a_later_call_gets_the_kept_answer() -> None:
    async def scene(shared: SharedAnswers[str], maker: Maker) -> None:
        first = await ask(shared, maker)
        maker.give("answer")
        await first
        assert await shared.get(KEY, maker) == ("answer", True)
        assert (maker.calls, shared.hits) == (1, 1)

    play(scene)


def test_other_keys_are_made_on_their_own() -> None:
    async def scene(shared: SharedAnswers[str], maker: Maker) -> None:
        tasks = [await ask(shared, maker, key) for key in (b"a", b"b")]
        maker.give("of a")
        maker.give("of b")
        assert await asyncio.gather(*tasks) == [("of a", False), ("of b", False)]

    play(scene)


def test_the_answers_used_last_are_kept() -> None:
    async def scene(shared: SharedAnswers[str], maker: Maker) -> None:
        for key in (b"a", b"b", b"a", b"c"):  # a is used again, so b is the one to go
            task = await ask(shared, maker, key)
            if not task.done():
                maker.give(key.decode())
            await task
        assert maker.calls == 3
        assert await shared.get(b"a", maker) == ("a", True)
        again = await ask(shared, maker, b"b")
        maker.give("b again")
        assert await again == ("b again", False)

    play(scene, max_entries=2)


def test_with_no_room_only_what_is_on_its_way_is_shared() -> None:
    async def scene(shared: SharedAnswers[str], maker: Maker) -> None:
        tasks = [await ask(shared, maker) for _ in range(2)]
        maker.give("answer")
        assert await asyncio.gather(*tasks) == [("answer", False), ("answer", True)]
        later = await ask(shared, maker)
        maker.give("another")
        assert await later == ("another", False)

    play(scene, max_entries=0)


@pytest.mark.parametrize("who", [0, 1, 2])
def test_a_cancelled_caller_takes_nothing_from_the_others(who: int) -> None:
    async def scene(shared: SharedAnswers[str], maker: Maker) -> None:
        tasks = [await ask(shared, maker) for _ in range(3)]
        tasks[who].cancel()
        await settle()
        maker.give("answer")
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(outcomes.pop(who), asyncio.CancelledError)
        assert [outcome[0] for outcome in outcomes] == ["answer", "answer"]  # type: ignore[index]
        assert (maker.calls, maker.cancelled) == (1, 0)

    play(scene)


def test_what_nobody_waits_for_any_more_is_cancelled_and_a_new_call_begins_anew() -> None:
    async def scene(shared: SharedAnswers[str], maker: Maker) -> None:
        tasks = [await ask(shared, maker) for _ in range(2)]
        for task in tasks:
            task.cancel()
        late = asyncio.ensure_future(shared.get(KEY, maker))  # while the cancellations are on their way
        await settle()
        assert maker.cancelled == maker.calls - 1
        maker.give("answer")
        assert (await late)[0] == "answer"
        await settle()

    play(scene)


def test_an_error_goes_to_all_who_wait_and_is_not_kept() -> None:
    async def scene(shared: SharedAnswers[str], maker: Maker) -> None:
        tasks = [await ask(shared, maker) for _ in range(3)]
        error = BadQuery("no")
        maker.fail(error)
        assert await asyncio.gather(*tasks, return_exceptions=True) == [error] * 3
        again = await ask(shared, maker)
        maker.give("answer")
        assert await again == ("answer", False)
        assert shared.hits == 0

    play(scene)


@pytest.mark.parametrize("error", [LATE, TeacherOverloaded(10, 3, 12)])
def test_neither_the_deadline_nor_the_share_of_the_first_one_fails_the_others(error: TeacherError) -> None:
    async def scene(shared: SharedAnswers[str], maker: Maker) -> None:
        hasty, patient, third = [await ask(shared, maker) for _ in range(3)]
        maker.fail(error)
        await settle()
        assert hasty.exception() is error
        assert maker.calls == 2  # the other two ask anew, together
        maker.give("answer")
        assert (await patient, await third) == (("answer", False), ("answer", True))

    play(scene)


def test_one_who_waits_for_anothers_answer_keeps_to_its_own_time() -> None:
    async def scene(shared: SharedAnswers[str], maker: Maker) -> None:
        first = asyncio.ensure_future(shared.get(KEY, maker, timeout_s=60.0))
        await settle()
        patient = asyncio.ensure_future(shared.get(KEY, maker, timeout_s=60.0))
        await settle()
        hasty = asyncio.ensure_future(shared.get(KEY, maker, who="alpha@1", timeout_s=0.02))
        with pytest.raises(TeacherUnavailable, match=r"alpha@1 did not answer within \d\.\d s: its time ran out"):
            await hasty
        maker.fail(LATE)
        await settle()
        assert maker.limits[1] <= 60.0 - 0.02  # who asks anew has what is left
        maker.give("answer")
        assert await asyncio.gather(first, patient, return_exceptions=True) == [LATE, ("answer", False)]
        assert maker.cancelled == 0

    play(scene)


def test_a_making_that_fails_with_a_timeout_of_its_own_fails_so_for_all() -> None:
    async def scene(shared: SharedAnswers[str], maker: Maker) -> None:
        tasks = [await ask(shared, maker) for _ in range(2)]
        error = TimeoutError("the disk")
        maker.fail(error)
        assert await asyncio.gather(*tasks, return_exceptions=True) == [error] * 2

    play(scene)


def test_a_teacher_that_stays_away_fails_every_caller_by_its_own_making() -> None:
    async def scene(shared: SharedAnswers[str], maker: Maker) -> None:
        tasks = [await ask(shared, maker) for _ in range(3)]
        for _ in tasks:
            maker.fail(LATE)
            await settle()
        assert await asyncio.gather(*tasks, return_exceptions=True) == [LATE] * 3
        assert maker.calls == 3

    play(scene)


PIXELS = np.zeros((2, 8, 4, 4, 3), np.uint8)


def make_query(seed: int = 0, **fields: Any) -> TeacherQuery:
    """A question about two views of one store."""
    records = np.zeros(2, VIEW_DTYPE)
    records["start"] = seed
    values: dict[str, Any] = {
        "request_id": "r",
        "teacher": TeacherId("alpha", 1),
        "temperature": 4.0,
        "views_per_item": 1,
        "views": ViewBatch(records, 1, "ab" * 16).to_bytes(),
        "store": "/stores/one",
    }
    return TeacherQuery(**(values | fields))


@pytest.mark.parametrize("pixels", [None, PIXELS])
def test_whoever_asks_and_how_the_reply_is_softened_take_no_part_in_the_key(pixels: NDArray[np.uint8] | None) -> None:
    query = make_query(pixels=pixels)
    other = dataclasses.replace(
        query, request_id="s", run="another", temperature=1.0, dtype="float16", timeout_s=1.0, weight=2.0
    )
    assert share_key("digest", query) == share_key("digest", other)


def test_another_teacher_other_views_other_pixels_or_another_source_make_another_key() -> None:
    query = make_query()
    batch = query.view_batch()
    elsewhere = dataclasses.replace(batch, store_fingerprint="cd" * 16).to_bytes()
    wrong = PIXELS.copy()
    wrong[1, 3, 2, 1, 0] = 1
    keys = [
        share_key("digest", query),
        share_key("another", query),
        share_key("digest", make_query(1)),
        share_key("digest", dataclasses.replace(query, views=elsewhere)),
        share_key("digest", dataclasses.replace(query, store="/stores/two")),
        share_key("digest", make_query(pixels=PIXELS)),
        share_key("digest", make_query(pixels=wrong)),
        share_key("digest", make_query(pixels=PIXELS.reshape(2, 8, 2, 8, 3))),
    ]
    assert None not in keys
    assert len(set(keys)) == len(keys)


def test_pixels_have_the_same_key_however_they_lie_in_memory() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 4, 4, 3), dtype=np.uint8)
    strided = np.repeat(pixels, 2, axis=3)[:, :, :, ::2]
    strided.flags.writeable = False
    assert not strided.flags.c_contiguous
    assert share_key("d", make_query(pixels=pixels)) == share_key("d", make_query(pixels=strided))


def test_a_question_without_views_is_not_shared() -> None:
    assert share_key("digest", make_query(pixels=PIXELS, views=None, store=None)) is None


def test_a_negative_number_of_entries_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        SharedAnswers(-1)
