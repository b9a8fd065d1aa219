"""The batcher with a fake teacher: closed-form answers, and a forward pass that ends when the test says so."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_server.batching.batcher import Batched, Batcher, BatchRecord, Part, check_room
from teacher_server.errors import BadQuery, TeacherOverloaded, TeacherUnavailable

PATIENCE_S = 10.0  # of a test that would otherwise hang
Answers = tuple[str, ...]  # one per item


def oracle(key: str, name: str, items: int) -> Answers:
    """What the teacher says about each item of a question, whatever it is merged with."""
    return tuple(f"{key}({name}[{i}])" for i in range(items))


class FakeTeacher:
    """`run` notes its batch, says that it began, and waits for `gate`. Loading "last" sets `all_loaded`: the loader
    takes one request after the other, so by then all earlier ones lie loaded."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.batches: list[tuple[str, list[tuple[str, int, int]]]] = []
        self.began = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.all_loaded = threading.Event()

    def load(self, name: str) -> str:
        self.loads.append(name)
        if name == "last":
            self.all_loaded.set()
        if name.startswith("unreadable"):
            raise BadQuery(name)
        return name

    def run(self, key: str, parts: Sequence[Part[str]]) -> list[Answers]:
        self.batches.append((key, [(part.loaded, part.first, part.last) for part in parts]))
        self.began.release()
        assert self.gate.acquire(timeout=PATIENCE_S)
        names = [part.loaded for part in parts]
        if any(name.startswith("poison") for name in names):
            raise ZeroDivisionError("poison")
        answers = [tuple(f"{key}({part.loaded}[{i}])" for i in range(part.first, part.last)) for part in parts]
        return answers[: 1 if "short" in names else None]

    @property
    def names(self) -> list[tuple[str, list[str]]]:
        """The batches without the items."""
        return [(key, [name for name, _, _ in parts]) for key, parts in self.batches]


def join(results: Sequence[Answers]) -> Answers:
    """The answers of one question; one of "unjoinable" fails."""
    answers = tuple(itertools.chain.from_iterable(results))
    if "unjoinable" in answers[0]:
        raise LookupError("unjoinable")
    return answers


class Bench:
    """A batcher over the fake, a clock that tests move, and helpers to submit and to wait. A clip an item."""

    def __init__(self, *, pass_items: int = 100, max_queued_clips: int = 1000) -> None:
        self.fake = FakeTeacher()
        self.now = 0.0
        self.records: list[BatchRecord] = []
        self.batcher: Batcher[str, str, str, Answers] = Batcher(
            self.fake.load,
            self.fake.run,
            join,
            pass_items=lambda _: pass_items,
            max_queued_clips=max_queued_clips,
            on_batch=self.records.append,
            clock=lambda: self.now,
        )

    def ask(self, name: str, *, key: str = "k", items: int = 1, **fields: Any) -> Awaitable[Batched[Answers]]:
        values = {"num_items": items, "clips_per_item": 1, "timeout_s": 60.0}
        return self.batcher.submit(key, name, **(values | fields))

    async def submit(self, name: str, **fields: Any) -> asyncio.Task[Batched[Answers]]:
        task = asyncio.ensure_future(self.ask(name, **fields))
        await asyncio.sleep(0)  # let it enter the queue
        return task  # type: ignore[return-value]

    async def pass_began(self) -> None:
        assert await asyncio.to_thread(self.fake.began.acquire, timeout=PATIENCE_S)

    async def begin_first(self) -> asyncio.Task[Batched[Answers]]:
        """Makes the teacher busy with "first"."""
        task = await self.submit("first")
        await self.pass_began()
        return task

    async def everything_loaded(self) -> asyncio.Task[Batched[Answers]]:
        """Submits "last" under a key of its own and waits until it is being loaded."""
        task = await self.submit("last", key="other")
        assert await asyncio.to_thread(self.fake.all_loaded.wait, PATIENCE_S)
        return task

    async def loading_paused(self) -> None:
        """Waits until the loader has nothing to do."""
        while self.batcher._loader is not None:
            await asyncio.sleep(0)

    def finish(self) -> None:
        """From now on no forward pass waits."""
        self.fake.gate.release(1000)


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
        assert [reply.result for reply in replies] == [
            *(oracle("k", name, 1) for name in ("first", "a", "b", "c")),
            oracle("other", "last", 1),
        ]
        assert [(reply.batch_requests, reply.batch_clips) for reply in replies] == [(1, 1)] + [(3, 3)] * 3 + [(1, 1)]

    bench = play(scene)
    assert bench.fake.names == [("k", ["first"]), ("k", ["a", "b", "c"]), ("other", ["last"])]
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

    assert play(scene).fake.names[1:] == [("x", ["a", "c"]), ("y", ["b", "d"]), ("other", ["last"])]


def test_requests_are_spread_over_full_passes_and_their_parts_joined_in_order() -> None:
    async def scene(bench: Bench) -> None:
        tasks = [await bench.begin_first(), await bench.submit("a", items=6), await bench.submit("b", items=5)]
        tasks.append(await bench.everything_loaded())
        bench.finish()
        replies = await asyncio.gather(*tasks)
        assert [reply.result for reply in replies[1:3]] == [oracle("k", "a", 6), oracle("k", "b", 5)]

    assert play(scene, pass_items=4).fake.batches[1:] == [
        ("k", [("a", 0, 4)]),
        ("k", [("a", 4, 6), ("b", 0, 2)]),
        ("k", [("b", 2, 5)]),
        ("other", [("last", 0, 1)]),
    ]


def test_a_run_that_asks_little_goes_before_the_backlog_of_another() -> None:
    async def scene(bench: Bench) -> None:
        tasks = [await bench.begin_first()]
        tasks += [await bench.submit(f"g{i}", items=100, run="greedy") for i in range(8)]
        for _ in range(4):
            bench.fake.gate.release()
            await bench.pass_began()  # two thirds of the greedy run's credit are spent
        tasks.append(await bench.submit("light", items=50, run="light"))
        bench.finish()
        await asyncio.gather(*tasks)

    order = [name for _, names in play(scene).fake.names for name in names]
    assert order.index("light") < order.index("g6")


def test_loading_pauses_while_two_whole_passes_lie_loaded() -> None:
    async def scene(bench: Bench) -> None:
        tasks = [await bench.begin_first()]
        tasks += [await bench.submit(name, items=2) for name in "abcde"]
        tasks.append(await bench.submit("last", items=2))
        assert await asyncio.to_thread(bench.fake.all_loaded.wait, PATIENCE_S)
        tasks.append(await bench.submit("late", items=2))
        await asyncio.sleep(0)
        assert bench.fake.loads == ["first", *"abcde", "last"]
        bench.finish()
        await asyncio.gather(*tasks)
        assert bench.fake.loads == ["first", *"abcde", "last", "late"]

    play(scene, pass_items=6)


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

    assert play(scene).fake.names[1] == ("k", ["patient"])


def test_work_whose_time_ran_out_before_loading_is_not_even_loaded() -> None:
    async def scene(bench: Bench) -> None:
        first = await bench.begin_first()
        blocker = await bench.submit("blocker", items=8)  # two whole passes: loading pauses behind it
        hasty = await bench.submit("hasty", timeout_s=5.0)
        bench.now = 10.0
        bench.finish()
        await asyncio.gather(first, blocker)
        with pytest.raises(TeacherUnavailable):
            await hasty

    assert play(scene, pass_items=4).fake.loads == ["first", "blocker"]


def test_work_whose_time_ran_out_after_its_first_part_is_not_continued() -> None:
    async def scene(bench: Bench) -> None:
        long = await bench.submit("long", items=9, timeout_s=5.0)
        await bench.pass_began()
        bench.now = 10.0
        bench.finish()
        with pytest.raises(TeacherUnavailable, match="its time ran out"):
            await long
        assert bench.batcher.queued_clips == 0

    assert play(scene, pass_items=4).fake.batches == [("k", [("long", 0, 4)])]


def test_cancelled_work_is_never_run_and_frees_its_place() -> None:
    async def scene(bench: Bench) -> None:
        first = await bench.begin_first()
        task = await bench.submit("unwanted", items=7)
        last = await bench.everything_loaded()
        assert bench.batcher.queued_clips == 9
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert bench.batcher.queued_clips == 2
        bench.finish()
        await asyncio.gather(first, last)
        assert bench.batcher.queued_clips == 0

    assert play(scene).fake.names == [("k", ["first"]), ("other", ["last"])]


def test_work_cancelled_after_its_first_part_is_not_continued() -> None:
    async def scene(bench: Bench) -> None:
        long = await bench.submit("long", items=9)
        await bench.pass_began()
        long.cancel()
        next_one = await bench.submit("next")
        bench.finish()
        assert (await next_one).result == oracle("k", "next", 1)

    assert play(scene, pass_items=4).fake.batches == [("k", [("long", 0, 4)]), ("k", [("next", 0, 1)])]


def test_cancelling_all_that_lies_loaded_lets_others_be_loaded() -> None:
    async def scene(bench: Bench) -> None:
        first = await bench.begin_first()
        blocker = await bench.submit("blocker", items=8)  # two whole passes
        last = await bench.submit("last")
        await bench.loading_paused()
        assert bench.fake.loads == ["first", "blocker"]
        blocker.cancel()
        assert await asyncio.to_thread(bench.fake.all_loaded.wait, PATIENCE_S)  # the first pass still runs
        bench.finish()
        await asyncio.gather(first, last)

    play(scene, pass_items=4)


def test_an_error_while_loading_belongs_to_that_work_alone() -> None:
    async def scene(bench: Bench) -> None:
        tasks = [await bench.begin_first()]
        tasks += [await bench.submit(name) for name in ("a", "unreadable", "b")]
        tasks.append(await bench.everything_loaded())
        bench.finish()
        replies = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(replies[2], BadQuery)
        assert [replies[i].result for i in (1, 3)] == [oracle("k", "a", 1), oracle("k", "b", 1)]  # type: ignore[union-attr]

    assert play(scene).fake.names[1] == ("k", ["a", "b"])


@pytest.mark.parametrize(("bad", "error"), [("poison", ZeroDivisionError), ("short", RuntimeError)])
def test_an_error_in_a_pass_belongs_to_its_batch_and_the_next_one_runs(bad: str, error: type[Exception]) -> None:
    async def scene(bench: Bench) -> None:
        first = await bench.begin_first()
        failing = [await bench.submit(name) for name in ("a", bad)]
        last = await bench.everything_loaded()
        bench.finish()
        assert [type(reply) for reply in await asyncio.gather(*failing, return_exceptions=True)] == [error, error]
        assert (await first).result == oracle("k", "first", 1)
        assert (await last).result == oracle("other", "last", 1)
        assert (await bench.ask("again")).result == oracle("k", "again", 1)

    play(scene)


def test_an_error_while_joining_belongs_to_that_work_alone() -> None:
    async def scene(bench: Bench) -> None:
        first = await bench.begin_first()
        tasks = [await bench.submit(name, items=3) for name in ("unjoinable", "b")]
        bench.finish()
        with pytest.raises(LookupError):
            await tasks[0]
        assert (await tasks[1]).result == oracle("k", "b", 3)
        await first

    play(scene, pass_items=2)


def test_more_than_the_queue_holds_is_refused_at_once_and_taken_again_later() -> None:
    async def scene(bench: Bench) -> None:
        first = await bench.begin_first()
        second = await bench.submit("a", items=8)
        with pytest.raises(TeacherOverloaded) as caught:
            await bench.ask("b", items=2)
        assert caught.value.args == (9, 2, 10)
        bench.finish()
        await asyncio.gather(first, second)
        assert (await bench.ask("b", items=2)).result == oracle("k", "b", 2)

    play(scene, max_queued_clips=10)


def test_a_run_that_holds_less_pushes_out_the_newest_work_of_the_one_that_holds_most() -> None:
    async def scene(bench: Bench) -> None:
        first = await bench.begin_first()
        older, newer = await bench.submit("a", items=4, run="greedy"), await bench.submit("b", items=4, run="greedy")
        light = await bench.submit("light", items=3, run="light")
        with pytest.raises(TeacherOverloaded) as caught:
            await newer
        assert caught.value.args == (5, 4, 10)
        with pytest.raises(TeacherOverloaded):
            await bench.ask("more", items=3, run="light")  # it would then hold more than the other
        bench.finish()
        assert (await light).result == oracle("k", "light", 3)
        assert (await older).result == oracle("k", "a", 4)
        await first

    assert "b" not in [name for _, names in play(scene, max_queued_clips=10).fake.names for name in names]


def test_work_whose_time_ran_out_makes_room_in_a_full_queue() -> None:
    async def scene(bench: Bench) -> None:
        first = await bench.begin_first()
        hasty = await bench.submit("hasty", items=9, timeout_s=5.0)
        await bench.loading_paused()  # so it is only looked at again for the next pass
        bench.now = 10.0
        task = await bench.submit("a", items=9)
        with pytest.raises(TeacherUnavailable):
            await hasty
        bench.finish()
        assert (await task).result == oracle("k", "a", 9)
        await first

    play(scene, max_queued_clips=10)


def test_a_question_that_never_fits_is_a_bad_one() -> None:
    async def scene(bench: Bench) -> None:
        with pytest.raises(BadQuery, match="a question of 11 clips never fits a queue of 10"):
            await bench.ask("a", items=11)

    play(scene, max_queued_clips=10)
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
            await bench.ask("b")
        bench.finish()
        assert (await first).result == oracle("k", "first", 1)

    play(scene)


def test_nothing_runs_in_the_background_when_there_is_no_work() -> None:
    async def scene(bench: Bench) -> None:
        bench.finish()
        await bench.ask("a")
        await asyncio.sleep(0)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert {task.get_coro().__qualname__ for task in others} <= {"play.<locals>.main"}  # type: ignore[union-attr]

    play(scene)


def test_the_times_of_a_reply_add_up() -> None:
    async def scene(bench: Bench) -> None:
        first = await bench.begin_first()
        bench.now = 2.0
        second = await bench.submit("a", items=3)
        last = await bench.everything_loaded()
        bench.now = 5.0
        bench.fake.gate.release()
        await first
        await bench.pass_began()
        bench.now = 6.0
        bench.fake.gate.release()
        await bench.pass_began()
        bench.now = 8.0
        bench.finish()
        assert (await first).seconds.forward == 5.0
        seconds = (await second).seconds
        assert (seconds.queue, seconds.forward) == (3.0, 3.0)  # two passes, of 1 s and of 2 s
        assert (await last).seconds.forward == 0.0

    play(scene, pass_items=2)


@pytest.mark.parametrize(
    ("limits", "fields", "match"),
    [
        ({"max_queued_clips": 0}, {}, "at least 1 clip"),
        ({"pass_items": 0}, {}, "pass_items must be at least 1"),
        ({}, {"items": 0}, "num_items must be at least 1"),
        ({}, {"clips_per_item": 0}, "clips_per_item must be at least 1"),
    ],
)
def test_numbers_below_one_are_refused(limits: dict[str, int], fields: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        play(lambda bench: bench.ask("a", **fields), **limits)


ACTIONS = st.one_of(
    st.tuples(
        st.just("submit"),
        st.sampled_from(["fine", "fine", "fine", "poison", "unreadable", "unjoinable"]),
        st.sampled_from("xy"),
        st.integers(1, 9),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from([1.0, 5.0, 1000.0]),
    ),
    st.tuples(st.just("cancel"), st.integers(0, 50)),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 2.0])),
    st.tuples(st.just("pass")),
)
EXPECTED_ERRORS = (BadQuery, ZeroDivisionError, LookupError, TeacherOverloaded, TeacherUnavailable)


@settings(max_examples=150, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=40))
def test_every_request_gets_its_own_result_or_one_error_whatever_happens(actions: list[tuple[Any, ...]]) -> None:
    async def scene(bench: Bench) -> None:
        asked: list[tuple[asyncio.Task[Batched[Answers]], Answers]] = []
        for action in actions:
            match action:
                case ("submit", kind, key, items, run, timeout_s):
                    name = f"{kind} {len(asked)}"
                    task = await bench.submit(name, key=key, items=items, run=run, timeout_s=timeout_s)
                    asked.append((task, oracle(key, name, items)))
                case ("cancel", index) if asked:
                    asked[index % len(asked)][0].cancel()
                case ("wait", seconds):
                    bench.now += seconds
                case ("pass",):
                    bench.fake.gate.release()
            assert bench.batcher.queued_clips <= 30
            await asyncio.sleep(0)
        bench.finish()
        outcomes = await asyncio.gather(*(task for task, _ in asked), return_exceptions=True)
        for outcome, (_, expected) in zip(outcomes, asked, strict=True):
            if isinstance(outcome, Batched):
                assert outcome.result == expected
                assert expected[0].split("(")[1].startswith("fine")
            else:
                assert isinstance(outcome, (*EXPECTED_ERRORS, asyncio.CancelledError))
        assert bench.batcher.queued_clips == 0
        assert (await bench.ask("afterwards")).result == oracle("k", "afterwards", 1)

    bench = play(scene, pass_items=4, max_queued_clips=30)
    for (_, parts), record in zip(bench.fake.batches, bench.records, strict=False):
        assert sum(last - first for _, first, last in parts) <= 4
        assert record.clips <= 4
