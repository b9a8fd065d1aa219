"""The batcher with a fake teacher whose forward pass ends when the test says so."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from teacher_server.batching import Batcher, BatchRecord, check_room
from teacher_server.errors import BadQuery, TeacherOverloaded, TeacherUnavailable

PATIENCE_S = 10.0  # of a test that would otherwise hang


class FakeTeacher:
    """`run` notes its batch, says that it began, and waits for `gate`. Loading "last" sets `all_loaded`: the loader
    takes one piece of work after the other, so by then all earlier ones lie loaded."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.batches: list[tuple[str, list[str]]] = []
        self.began = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.all_loaded = threading.Event()

    def load(self, payload: str) -> str:
        self.loads.append(payload)
        if payload == "last":
            self.all_loaded.set()
        if payload.startswith("unreadable"):
            raise BadQuery(payload)
        return payload

    def run(self, key: str, inputs: Sequence[str]) -> list[str]:
        self.batches.append((key, list(inputs)))
        self.began.release()
        assert self.gate.acquire(timeout=PATIENCE_S)
        if "poison" in inputs:
            raise ZeroDivisionError("poison")
        return [f"{key}({value})" for value in inputs][: 1 if "short" in inputs else None]


class Bench:
    """A batcher over the fake, a clock that tests move, and helpers to submit and to wait."""

    def __init__(self, *, max_batch_clips: int = 100, max_queued_clips: int = 1000) -> None:
        self.fake = FakeTeacher()
        self.now = 0.0
        self.records: list[BatchRecord] = []
        self.batcher: Batcher[str, str, str, str] = Batcher(
            self.fake.load,
            self.fake.run,
            max_batch_clips=max_batch_clips,
            max_queued_clips=max_queued_clips,
            on_batch=self.records.append,
            clock=lambda: self.now,
        )

    async def submit(self, payload: str, *, key: str = "k", clips: int = 1, timeout_s: float = 60.0) -> asyncio.Task:
        task = asyncio.ensure_future(self.batcher.submit(key, payload, clips, timeout_s))
        await asyncio.sleep(0)  # let it enter the queue
        return task

    async def begin_first(self) -> asyncio.Task:
        """Makes the teacher busy with "first"."""
        task = await self.submit("first")
        assert await asyncio.to_thread(self.fake.began.acquire, timeout=PATIENCE_S)
        return task

    async def everything_loaded(self) -> asyncio.Task:
        """Submits "last" under a key of its own and waits until it is being loaded."""
        task = await self.submit("last", key="other")
        assert await asyncio.to_thread(self.fake.all_loaded.wait, PATIENCE_S)
        return task

    def finish(self) -> None:
        """From now on no forward pass waits."""
        self.fake.gate.release(100)


def play(scene: Callable[[Bench], Awaitable[Any]], **limits: int) -> Bench:
    """Runs a scene on a fresh bench, within PATIENCE_S."""

    async def main() -> Bench:
        bench = Bench(**limits)
        try:
            await asyncio.wait_for(scene(bench), PATIENCE_S)
        finally:
            bench.finish()
            bench.batcher.close()
        return bench

    return asyncio.run(main())


def test_what_arrives_during_a_pass_makes_up_the_next_one() -> None:
    async def scene(bench: Bench) -> None:
        tasks = [await bench.begin_first()]
        tasks += [await bench.submit(name) for name in "abc"]
        tasks.append(await bench.everything_loaded())
        bench.finish()
        replies = await asyncio.gather(*tasks)
        assert [reply.result for reply in replies] == ["k(first)", "k(a)", "k(b)", "k(c)", "other(last)"]
        assert [(reply.batch_requests, reply.batch_clips) for reply in replies] == [(1, 1)] + [(3, 3)] * 3 + [(1, 1)]

    bench = play(scene)
    assert bench.fake.batches == [("k", ["first"]), ("k", ["a", "b", "c"]), ("other", ["last"])]
    assert [(record.requests, record.clips) for record in bench.records] == [(1, 1), (3, 3), (1, 1)]


def test_work_is_loaded_while_a_pass_runs() -> None:
    async def scene(bench: Bench) -> None:
        await bench.begin_first()
        await bench.submit("a")
        await bench.everything_loaded()  # the first pass has not ended: nobody opened the gate
        assert bench.fake.loads == ["first", "a", "last"]
        assert len(bench.fake.batches) == 1

    play(scene)


def test_a_batch_holds_one_key_and_the_oldest_goes_first() -> None:
    async def scene(bench: Bench) -> None:
        tasks = [await bench.begin_first()]
        for name, key in (("a", "x"), ("b", "y"), ("c", "x"), ("d", "y")):
            tasks.append(await bench.submit(name, key=key))
        tasks.append(await bench.everything_loaded())
        bench.finish()
        await asyncio.gather(*tasks)

    assert play(scene).fake.batches[1:] == [("x", ["a", "c"]), ("y", ["b", "d"]), ("other", ["last"])]


def test_a_batch_stops_before_its_limit_in_clips_would_be_passed() -> None:
    async def scene(bench: Bench) -> None:
        tasks = [await bench.begin_first(), await bench.submit("a", clips=2), await bench.submit("b", clips=1)]
        last = await bench.submit("last", clips=2)  # of the same key: 5 clips in all
        assert await asyncio.to_thread(bench.fake.all_loaded.wait, PATIENCE_S)
        bench.finish()
        await asyncio.gather(*tasks, last)

    assert play(scene, max_batch_clips=4).fake.batches[1:] == [("k", ["a", "b"]), ("k", ["last"])]


def test_work_larger_than_a_batch_goes_alone() -> None:
    async def scene(bench: Bench) -> None:
        tasks = [await bench.begin_first(), await bench.submit("large", clips=9), await bench.submit("small")]
        bench.finish()
        replies = await asyncio.gather(*tasks)
        assert replies[1].batch_clips == 9

    assert play(scene, max_batch_clips=4).fake.batches[1:] == [("k", ["large"]), ("k", ["small"])]


def test_loading_pauses_while_a_whole_batch_lies_loaded() -> None:
    async def scene(bench: Bench) -> None:
        tasks = [await bench.begin_first()]
        tasks += [await bench.submit(name, clips=2) for name in "ab"]
        tasks.append(await bench.submit("last", clips=2))
        assert await asyncio.to_thread(bench.fake.all_loaded.wait, PATIENCE_S)
        tasks.append(await bench.submit("late", clips=2))
        await asyncio.sleep(0)
        assert bench.fake.loads == ["first", "a", "b", "last"]
        bench.finish()
        await asyncio.gather(*tasks)
        assert bench.fake.loads == ["first", "a", "b", "last", "late"]

    play(scene, max_batch_clips=5)


def test_work_whose_time_ran_out_is_never_run() -> None:
    async def scene(bench: Bench) -> None:
        first = await bench.begin_first()
        hasty, patient = await bench.submit("hasty", timeout_s=5.0), await bench.submit("patient", timeout_s=50.0)
        last = await bench.everything_loaded()
        bench.now = 10.0
        bench.finish()
        await asyncio.gather(first, patient, last)
        with pytest.raises(TeacherUnavailable, match="its time ran out") as caught:
            await hasty
        assert caught.value.args[1] == 10.0

    assert play(scene).fake.batches[1] == ("k", ["patient"])


def test_work_whose_time_ran_out_before_loading_is_not_even_loaded() -> None:
    async def scene(bench: Bench) -> None:
        first = await bench.begin_first()
        blocker = await bench.submit("blocker", clips=4)  # a whole batch: loading pauses behind it
        hasty = await bench.submit("hasty", timeout_s=5.0)
        bench.now = 10.0
        bench.finish()
        await asyncio.gather(first, blocker)
        with pytest.raises(TeacherUnavailable):
            await hasty

    assert play(scene, max_batch_clips=4).fake.loads == ["first", "blocker"]


def test_cancelled_work_is_never_run_and_frees_its_place() -> None:
    async def scene(bench: Bench) -> None:
        first = await bench.begin_first()
        task = await bench.submit("unwanted", clips=7)
        last = await bench.everything_loaded()
        assert bench.batcher.queued_clips == 9
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert bench.batcher.queued_clips == 2
        bench.finish()
        await asyncio.gather(first, last)
        assert bench.batcher.queued_clips == 0

    assert play(scene).fake.batches == [("k", ["first"]), ("other", ["last"])]


def test_an_error_while_loading_belongs_to_that_work_alone() -> None:
    async def scene(bench: Bench) -> None:
        tasks = [await bench.begin_first()]
        tasks += [await bench.submit(name) for name in ("a", "unreadable", "b")]
        tasks.append(await bench.everything_loaded())
        bench.finish()
        replies = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(replies[2], BadQuery)
        assert [replies[i].result for i in (1, 3)] == ["k(a)", "k(b)"]

    assert play(scene).fake.batches[1] == ("k", ["a", "b"])


@pytest.mark.parametrize(("bad", "error"), [("poison", ZeroDivisionError), ("short", RuntimeError)])
def test_an_error_in_a_pass_belongs_to_its_batch_and_the_next_one_runs(bad: str, error: type[Exception]) -> None:
    async def scene(bench: Bench) -> None:
        first = await bench.begin_first()
        failing = [await bench.submit(name) for name in ("a", bad)]
        last = await bench.everything_loaded()
        bench.finish()
        assert [type(reply) for reply in await asyncio.gather(*failing, return_exceptions=True)] == [error, error]
        assert (await first).result == "k(first)"
        assert (await last).result == "other(last)"
        assert (await (await bench.submit("again"))).result == "k(again)"

    play(scene)


def test_more_than_the_queue_holds_is_refused_at_once_and_taken_again_later() -> None:
    async def scene(bench: Bench) -> None:
        first = await bench.begin_first()
        second = await bench.submit("a", clips=8)
        with pytest.raises(TeacherOverloaded) as caught:
            await bench.batcher.submit("k", "b", 2, 60.0)
        assert caught.value.args == (9, 2, 10)
        bench.finish()
        await asyncio.gather(first, second)
        assert (await bench.batcher.submit("k", "b", 2, 60.0)).result == "k(b)"

    play(scene, max_queued_clips=10)


def test_a_question_that_never_fits_is_a_bad_one() -> None:
    with pytest.raises(BadQuery, match="a question of 11 clips never fits a queue of 10"):
        check_room(0, 11, 10)
    check_room(0, 10, 10)


def test_closing_fails_what_waits_and_takes_nothing_more() -> None:
    async def scene(bench: Bench) -> None:
        first = await bench.begin_first()
        waiting = await bench.submit("a")
        await bench.everything_loaded()
        bench.batcher.close()
        with pytest.raises(TeacherUnavailable, match="closing"):
            await waiting
        with pytest.raises(TeacherUnavailable, match="closing"):
            await bench.batcher.submit("k", "b", 1, 60.0)
        bench.finish()
        assert (await first).result == "k(first)"

    play(scene)


def test_nothing_runs_in_the_background_when_there_is_no_work() -> None:
    async def scene(bench: Bench) -> None:
        bench.finish()
        await (await bench.submit("a"))
        await asyncio.sleep(0)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert {task.get_coro().__qualname__ for task in others} <= {"play.<locals>.main"}  # type: ignore[union-attr]

    play(scene)


def test_the_times_of_a_reply_add_up() -> None:
    async def scene(bench: Bench) -> None:
        first = await bench.begin_first()
        bench.now = 2.0
        second = await bench.submit("a")
        last = await bench.everything_loaded()
        bench.now = 5.0
        bench.finish()
        assert (await first).seconds.forward == 5.0
        assert (await second).seconds.queue == 3.0
        assert (await last).seconds.forward == 0.0

    play(scene)


@pytest.mark.parametrize("limits", [{"max_batch_clips": 0}, {"max_queued_clips": 0}])
def test_limits_below_one_clip_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1 clip"):
        Bench(**limits)
