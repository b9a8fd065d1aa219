"""What a replica holds in memory: loading, evicting, the budget. Teachers are fakes, the library is real."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable

import pytest
import torch

from teacher_server.errors import LibraryError, LibraryUnreadable, OverBudget, TeacherNotResident, UnknownTeacher
from teacher_server.library import TeacherEntry, TeacherLibrary
from teacher_server.protocol import TeacherId
from teacher_server.serve import residents
from teacher_server.serve.residents import Residents

ONE, TWO, BETA = TeacherId("alpha", 1), TeacherId("alpha", 2), TeacherId("beta", 1)
LARGE = 2**40


class FakeTeacher:
    """Holds nothing but its size."""

    def __init__(self, entry: TeacherEntry, num_bytes: int) -> None:
        self.teacher, self.digest, self.num_bytes = entry.teacher, entry.digest, num_bytes


class World:
    """Residents over a library, what they loaded, and which runs count as bound."""

    def __init__(self, library: TeacherLibrary, *, budget_bytes: int = LARGE, num_bytes: int = 1000) -> None:
        self.loads: list[TeacherId] = []
        self.bound: set[tuple[str, TeacherId]] = set()
        self.broken: dict[TeacherId, Exception] = {}
        self.sizes: list[tuple[TeacherId, int]] = []
        self.made: list[weakref.ref[FakeTeacher]] = []
        self.loading = threading.Event()
        self.may_load = threading.Event()
        self.may_load.set()
        self._num_bytes = num_bytes
        self.residents = Residents(
            library,
            self._load,  # type: ignore[arg-type]
            lambda run, teacher: (run, teacher) in self.bound,
            budget_bytes=budget_bytes,
            on_change=lambda teacher, num_bytes: self.sizes.append((teacher, num_bytes)),
        )

    def _load(self, entry: TeacherEntry) -> FakeTeacher:
        self.loading.set()
        assert self.may_load.wait(timeout=10)
        self.loads.append(entry.teacher)
        if entry.teacher in self.broken:
            raise self.broken[entry.teacher]
        teacher = FakeTeacher(entry, self._num_bytes)
        self.made.append(weakref.ref(teacher))
        return teacher

    async def ask(self, teacher: TeacherId, run: str = "") -> None:
        """Until it is loaded, as a client does; what else goes wrong is raised."""
        for _ in range(200):
            try:
                with self.residents.use(teacher, run):
                    return
            except TeacherNotResident:
                await asyncio.sleep(0.005)
        raise AssertionError(f"{teacher} was not loaded")

    def is_refused(self, teacher: TeacherId, run: str = "") -> bool:
        try:
            with self.residents.use(teacher, run):
                return False
        except TeacherNotResident:
            return True


def play(scene: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), timeout=20))  # type: ignore[arg-type]


def file_bytes(library: TeacherLibrary, teacher: TeacherId) -> int:
    return library.entry(teacher).weights.stat().st_size


def test_a_teacher_that_is_asked_for_is_loaded_once_and_then_answers(library: TeacherLibrary) -> None:
    async def scene() -> None:
        world = World(library)
        with pytest.raises(TeacherNotResident, match="alpha@1 is not loaded on this replica: it is being loaded"):
            world.residents.use(ONE).__enter__()
        await asyncio.gather(*(world.ask(ONE) for _ in range(5)))
        assert world.loads == [ONE]
        assert world.sizes == [(ONE, 1000)]

    play(scene)


def test_questions_are_refused_while_others_load_and_never_wait(library: TeacherLibrary) -> None:
    async def scene() -> None:
        world = World(library)
        await world.ask(ONE)
        world.may_load.clear()
        assert world.is_refused(TWO)
        assert not world.is_refused(ONE)
        world.may_load.set()
        await world.ask(TWO)

    play(scene)


def test_a_version_that_does_not_exist_is_unknown(library: TeacherLibrary) -> None:
    async def scene() -> None:
        with pytest.raises(UnknownTeacher, match="known are alpha@1, alpha@2"):
            World(library).residents.use(TeacherId("alpha", 9)).__enter__()

    play(scene)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(5, "Input/output error"), "Input/output error"),
        (MemoryError(), "MemoryError"),
        (torch.OutOfMemoryError("on the device"), "on the device"),
        (LibraryUnreadable("weights", "cannot be read: Input/output error"), "Input/output error"),
    ],
)
def test_a_failure_of_disk_or_memory_passes_and_nobody_need_prepare_it_again(
    library: TeacherLibrary, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    monkeypatch.setattr(residents, "RETRY_S", 0.02)

    async def scene() -> None:
        world = World(library)
        world.broken[ONE] = error
        with pytest.raises(LibraryUnreadable, match=reason):
            await world.residents.prepare(ONE)
        with pytest.raises(TeacherNotResident, match=f"{reason}.*; it is tried again"):
            world.residents.use(ONE).__enter__()
        asking = asyncio.create_task(world.ask(ONE))
        while len(world.loads) < 3:
            await asyncio.sleep(0.005)
        del world.broken[ONE]
        await asking
        assert world.residents.failed() == {}

    play(scene)


def test_a_disk_that_fails_is_not_asked_at_every_question(library: TeacherLibrary) -> None:
    async def scene() -> None:
        world = World(library)
        world.broken[ONE] = OSError(5, "Input/output error")
        world.residents.load_now([ONE])
        for _ in range(20):
            with pytest.raises(TeacherNotResident):
                world.residents.use(ONE).__enter__()
        assert world.loads == [ONE]

    play(scene)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (LibraryError("w", "the self-test failed"), "self-test"),
        (RuntimeError("no memory left\nstack"), "no memory"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_a_failure_is_remembered_until_it_is_prepared_again(
    library: TeacherLibrary, error: Exception, reason: str
) -> None:
    async def scene() -> None:
        world = World(library)
        world.broken[ONE] = error
        with pytest.raises(LibraryError, match=reason):
            await world.ask(ONE)
        with pytest.raises(LibraryError, match=reason):
            await world.ask(ONE)
        assert world.loads == [ONE]
        with pytest.raises(LibraryError, match=reason):
            await world.residents.prepare(ONE)
        del world.broken[ONE]
        assert await world.residents.prepare(ONE) == library.entry(ONE).digest
        await world.ask(ONE)
        assert world.loads == [ONE] * 3

    play(scene)


def test_one_that_cannot_be_loaded_at_the_start_does_not_keep_the_others_out(library: TeacherLibrary) -> None:
    async def scene() -> None:
        world = World(library)
        world.broken |= {ONE: LibraryError("w", "damaged"), BETA: OSError(5, "Input/output error")}
        world.residents.load_now([ONE, BETA, TWO])
        assert list(world.residents.held()) == [TWO]
        assert list(world.residents.failed()) == [ONE, BETA]
        assert world.residents.known() == {ONE, TWO, BETA}

    play(scene)


def test_an_evicted_version_stays_out_whoever_asks_but_a_run_that_was_bound_to_it(library: TeacherLibrary) -> None:
    async def scene() -> None:
        world = World(library)
        world.bound = {("mine", ONE)}
        await world.ask(ONE)
        assert await world.residents.evict(ONE, keep_out=True)
        for run in ("", "other"):
            with pytest.raises(TeacherNotResident, match="it was evicted"):
                world.residents.use(ONE, run).__enter__()
            await asyncio.sleep(0.05)
            assert world.is_refused(ONE, run)
        assert world.loads == [ONE]
        await world.ask(ONE, "mine")
        assert world.loads == [ONE, ONE]
        await world.ask(ONE, "other")  # it is there again, for everybody

    play(scene)


def test_preparing_brings_an_evicted_version_back(library: TeacherLibrary) -> None:
    async def scene() -> None:
        world = World(library)
        await world.residents.prepare(ONE)
        await world.residents.evict(ONE, keep_out=True)
        await world.residents.prepare(ONE)
        await world.ask(ONE)
        assert world.sizes == [(ONE, 1000), (ONE, 0), (ONE, 1000)]

    play(scene)


def test_a_version_that_was_only_discarded_is_loaded_again_when_asked_for(library: TeacherLibrary) -> None:
    async def scene() -> None:
        world = World(library)
        await world.ask(ONE)
        assert await world.residents.evict(ONE, keep_out=False)
        await world.ask(ONE)
        assert world.loads == [ONE, ONE]

    play(scene)


def test_evicting_waits_for_the_questions_that_were_begun_and_refuses_new_ones(library: TeacherLibrary) -> None:
    async def scene() -> None:
        world = World(library)
        await world.ask(ONE)
        with world.residents.use(ONE) as teacher:
            with world.residents.use(ONE):
                evicting = asyncio.create_task(world.residents.evict(ONE, keep_out=True))
                await asyncio.sleep(0.02)
                assert world.is_refused(ONE)
            await asyncio.sleep(0.02)
            assert not evicting.done()
            assert world.residents[ONE] is teacher
        assert await evicting
        assert ONE not in world.residents
        assert world.residents.num_bytes == 0

    play(scene)


def test_an_eviction_that_is_called_off_leaves_the_teacher_serving(library: TeacherLibrary) -> None:
    async def scene() -> None:
        world = World(library)
        await world.ask(ONE)
        with world.residents.use(ONE):
            evicting = asyncio.create_task(world.residents.evict(ONE, keep_out=False))
            await asyncio.sleep(0.02)
            evicting.cancel()
            await asyncio.wait([evicting])
            assert not world.is_refused(ONE)
        assert world.loads == [ONE]

    play(scene)


def test_a_version_that_is_just_being_loaded_is_evicted_after_that(library: TeacherLibrary) -> None:
    async def scene() -> None:
        world = World(library)
        world.may_load.clear()
        assert world.is_refused(ONE)
        evicting = asyncio.create_task(world.residents.evict(ONE, keep_out=False))
        await asyncio.sleep(0.02)
        world.may_load.set()
        assert await evicting
        assert ONE not in world.residents

    play(scene)


def test_an_eviction_during_a_load_keeps_the_version_out(library: TeacherLibrary) -> None:
    async def scene() -> None:
        world = World(library)
        world.may_load.clear()
        assert world.is_refused(ONE)
        while not world.loading.is_set():  # so that the load was let through before the eviction
            await asyncio.sleep(0.005)
        evicting = asyncio.create_task(world.residents.evict(ONE, keep_out=True))
        await asyncio.sleep(0.02)
        world.may_load.set()
        assert await evicting
        with pytest.raises(TeacherNotResident, match="it was evicted"):
            world.residents.use(ONE).__enter__()
        await asyncio.sleep(0.05)
        assert world.is_refused(ONE)
        assert world.loads == [ONE]

    play(scene)


def test_evicting_what_is_not_there_says_so(library: TeacherLibrary) -> None:
    async def scene() -> None:
        assert not await World(library).residents.evict(ONE, keep_out=True)

    play(scene)


def test_a_version_beyond_the_budget_is_refused_until_another_one_is_evicted(library: TeacherLibrary) -> None:
    async def scene() -> None:
        size = file_bytes(library, ONE)
        world = World(library, budget_bytes=2 * size - 1, num_bytes=size)
        await world.ask(ONE)
        for _ in range(2):
            with pytest.raises(OverBudget) as caught:
                await world.ask(TWO)
            assert caught.value.args == ("alpha@2", file_bytes(library, TWO), size, 2 * size - 1)
        assert world.loads == [ONE]  # it was refused by its size on disk, before it took any memory
        await world.residents.evict(ONE, keep_out=True)
        await world.ask(TWO)
        assert list(world.residents.held()) == [TWO]

    play(scene)


def test_what_takes_more_memory_than_its_file_is_given_up_again(library: TeacherLibrary) -> None:
    async def scene() -> None:
        size = file_bytes(library, ONE)
        world = World(library, budget_bytes=2 * size, num_bytes=3 * size)
        with pytest.raises(OverBudget):
            await world.residents.prepare(ONE)
        assert world.residents.num_bytes == 0
        gc.collect()
        assert world.made[0]() is None, "the refusal keeps it in memory"

    play(scene)


def test_a_refusal_that_is_repeated_keeps_no_question_in_memory(library: TeacherLibrary) -> None:
    class Question:
        """Something that can be referred to weakly."""

    async def scene() -> None:
        world = World(library)
        world.broken[ONE] = LibraryError("alpha@1", "damaged")
        with pytest.raises(LibraryError):
            await world.ask(ONE)

        def answer(question: Question) -> None:
            with world.residents.use(ONE):
                raise AssertionError(question)

        questions = []
        for _ in range(3):
            question = Question()
            questions.append(weakref.ref(question))
            with pytest.raises(LibraryError):
                answer(question)
            del question
        gc.collect()
        assert [question() for question in questions] == [None] * 3

    play(scene)
