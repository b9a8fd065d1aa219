"""The teachers that one replica holds in memory, within a budget. Plain asyncio, no Ray.

               prepare, or a question for it                evict
    on disk ──────────────────────────────► held ────────────────────► leaving ──► on disk
                │ does not load                (new questions are       (questions that were begun end)
                └─► failed, with the reason     answered)

- Loads run one at a time in a thread of their own, with one thread of computation, so questions go on being answered.
- An operator's evict keeps a version out: afterwards only a run that was bound to it, or `prepare`, brings it back.
- A version that would pass the budget is refused as OverBudget; it is tried again once something was evicted.
- A failure of the disk or the memory is no fault of the version: whoever asks is told to ask again, and every
  RETRY_S seconds at most it is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from teacher_server.engine.teacher import Teacher, is_out_of_memory
from teacher_server.errors import (
    LibraryError,
    LibraryUnreadable,
    OverBudget,
    TeacherError,
    TeacherNotResident,
    UnknownTeacher,
)
from teacher_server.library import TeacherEntry, TeacherLibrary
from teacher_server.protocol import TeacherId

EVICTED = "it was evicted, and is loaded again only for a run that was bound to it, or by a promotion"
LEAVING = "it is being evicted, ask again"
RETRY_S = 2.0


@dataclass(frozen=True)
class _Wish:
    """Who wants a teacher. forced: it is loaded even if it was kept out."""

    run: str = ""
    forced: bool = False


class Residents:
    """Use from one event loop.

    load: makes a teacher from its entry. is_bound: whether a run was ever bound to a teacher; it may read a file.
    on_change: told of each teacher that was loaded and the memory it takes, or evicted, with 0.
    """

    def __init__(
        self,
        library: TeacherLibrary,
        load: Callable[[TeacherEntry], Teacher],
        is_bound: Callable[[str, TeacherId], bool],
        *,
        budget_bytes: int,
        on_change: Callable[[TeacherId, int], None],
    ) -> None:
        self._library = library
        self._load = load
        self._is_bound = is_bound
        self._on_change = on_change
        self.budget_bytes = budget_bytes
        self._held: dict[TeacherId, Teacher] = {}
        self._failed: dict[TeacherId, TeacherError] = {}
        self._failed_at: dict[TeacherId, float] = {}  # readings of time.monotonic
        self._kept_out: set[TeacherId] = set()
        self._leaving: dict[TeacherId, asyncio.Event] = {}
        self._users: Counter[TeacherId] = Counter()
        self._loads: dict[TeacherId, asyncio.Task[None]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="load-teacher", initializer=_compute_alone)

    def __contains__(self, teacher: TeacherId) -> bool:
        return teacher in self._held

    def __getitem__(self, teacher: TeacherId) -> Teacher:
        """A teacher that is in use. Raises KeyError otherwise."""
        return self._held[teacher]

    @property
    def num_bytes(self) -> int:
        """Memory that the weights of all held teachers take."""
        return sum(held.num_bytes for held in list(self._held.values()))

    def held(self) -> dict[TeacherId, Teacher]:
        """The teachers in memory, sorted."""
        return dict(sorted(self._held.items()))

    def known(self) -> set[TeacherId]:
        """The teachers that were loaded, or could not be."""
        return {*self._held, *self._failed}

    def failed(self) -> dict[TeacherId, TeacherError]:
        """The teachers that could not be loaded, sorted, and why."""
        return dict(sorted(self._failed.items()))

    @contextlib.contextmanager
    def use(self, teacher: TeacherId, run: str = "") -> Iterator[Teacher]:
        """The teacher, which stays for as long as the context lasts. run: who asks.

        Raises TeacherNotResident, and loads it in the background if it may be; UnknownTeacher; what went wrong when it
        was loaded.
        """
        held = self._get(teacher, run)
        self._users[teacher] += 1
        try:
            yield held
        finally:
            self._users[teacher] -= 1
            if not self._users[teacher]:
                del self._users[teacher]
                if teacher in self._leaving:
                    self._leaving[teacher].set()

    def load_now(self, teachers: Iterable[TeacherId]) -> None:
        """Loads them before there is an event loop. What cannot be loaded is remembered with the reason: it must not
        keep the others from serving."""
        for teacher in teachers:
            self._settle(teacher, self._try_load(teacher, _Wish(forced=True)))

    async def prepare(self, teacher: TeacherId) -> str:
        """Loads a teacher, again if that failed before, and returns its digest. Raises LibraryError and the like."""
        self._kept_out.discard(teacher)
        self._failed.pop(teacher, None)
        while teacher not in self._held or teacher in self._leaving:
            await asyncio.shield(self._start_loading(teacher, _Wish(forced=True)))
            if teacher in self._failed:
                raise copy.copy(self._failed[teacher])
        return self._held[teacher].digest

    async def evict(self, teacher: TeacherId, *, keep_out: bool) -> bool:
        """Unloads a teacher once the questions that were begun are answered; False when it is not held.

        keep_out: questions alone do not bring it back.
        """
        if keep_out:
            self._kept_out.add(teacher)
        if teacher in self._loads:
            await asyncio.shield(self._loads[teacher])
            if keep_out:
                self._kept_out.add(teacher)  # again: a load that was under way has let it in
        if teacher not in self._held or teacher in self._leaving:
            return False
        self._leaving[teacher] = asyncio.Event()
        try:
            if self._users[teacher]:
                await self._leaving[teacher].wait()
            del self._held[teacher]
            self._on_change(teacher, 0)
        finally:
            self._leaving.pop(teacher).set()
        self._failed = {t: error for t, error in self._failed.items() if not isinstance(error, OverBudget)}
        return True

    def _get(self, teacher: TeacherId, run: str) -> Teacher:
        if teacher in self._leaving:
            raise TeacherNotResident(str(teacher), LEAVING)
        if teacher in self._held:
            return self._held[teacher]
        failure = self._failed.get(teacher)
        if isinstance(failure, LibraryUnreadable):
            if time.monotonic() >= self._failed_at[teacher] + RETRY_S:
                self._start_loading(teacher, _Wish(run))
            raise TeacherNotResident(str(teacher), f"{failure}; it is tried again")
        if failure is not None:
            # The same one raised again and again would keep the frames, and so the questions, of all who asked.
            raise copy.copy(failure)
        known = self._library.versions(teacher.name)
        if teacher.version not in known:
            raise UnknownTeacher(str(teacher), tuple(f"{teacher.name}@{version}" for version in known))
        self._start_loading(teacher, _Wish(run))
        raise TeacherNotResident(str(teacher), *([EVICTED] if teacher in self._kept_out else []))

    def _start_loading(self, teacher: TeacherId, wish: _Wish) -> asyncio.Task[None]:
        task = self._loads.get(teacher)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._load_in_background(teacher, wish))
            self._loads[teacher] = task
        return task

    async def _load_in_background(self, teacher: TeacherId, wish: _Wish) -> None:
        try:
            if teacher in self._leaving:
                await self._leaving[teacher].wait()
            if teacher in self._held:  # its eviction was called off
                return
            loop = asyncio.get_running_loop()
            self._settle(teacher, await loop.run_in_executor(self._thread, self._try_load, teacher, wish))
        finally:
            del self._loads[teacher]

    def _try_load(self, teacher: TeacherId, wish: _Wish) -> Teacher | TeacherError | None:
        """The teacher, why it cannot be loaded, or None when this wish does not bring it back."""
        try:
            if teacher in self._kept_out and not wish.forced and not self._is_bound(wish.run, teacher):
                return None
            entry = self._library.entry(teacher)
            self._check_room(teacher, _bytes_on_disk(entry))
            held = self._load(entry)
            self._check_room(teacher, held.num_bytes)
        except TeacherError as error:
            return _without_frames(error)
        except (OSError, MemoryError, RuntimeError) as error:  # a RuntimeError is torch's
            kind = LibraryUnreadable if isinstance(error, OSError) or is_out_of_memory(error) else LibraryError
            return kind(str(teacher), _cannot_be_loaded(error))
        return held

    def _settle(self, teacher: TeacherId, outcome: Teacher | TeacherError | None) -> None:
        if isinstance(outcome, TeacherError):
            self._failed[teacher] = outcome
            self._failed_at[teacher] = time.monotonic()
        elif outcome is not None:
            self._failed.pop(teacher, None)
            self._kept_out.discard(teacher)
            self._held[teacher] = outcome
            self._on_change(teacher, outcome.num_bytes)

    def _check_room(self, teacher: TeacherId, needed: int) -> None:
        if self.num_bytes + needed > self.budget_bytes:
            raise OverBudget(str(teacher), needed, self.num_bytes, self.budget_bytes)


def _without_frames(error: TeacherError) -> TeacherError:
    """It is kept for those who ask; the frames that it came from would keep the network that failed."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


def _cannot_be_loaded(error: Exception) -> str:
    return f"cannot be loaded: {' '.join(f'{type(error).__name__}: {error}'.split())[:300]}"


def _bytes_on_disk(entry: TeacherEntry) -> int:
    """About what it will take in memory."""
    if entry.members:
        return sum(_bytes_on_disk(member) for member in entry.members)
    return entry.weights.stat().st_size


def _compute_alone() -> None:
    """Loading and its self-test take one core at most: the forward pass needs the others.

    torch takes the number over at a thread's first use, so that comes first; see teacher_server.engine.teacher.
    """
    torch.get_num_threads()
    torch.set_num_threads(1)
