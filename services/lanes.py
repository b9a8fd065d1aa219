"""Work that blocks, off the event loop: a fixed number of threads, and no queue before them.

A gateway has a lane for questions, one for short calls of the roster and one for what waits until teachers have loaded,
so that twenty runs that wait for a teacher hold up neither questions nor the renewal of leases.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from starlette.requests import Request

from services.errors import GatewayBusy

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Lane:
    """At most `limit` pieces of work at a time; one more is refused at once."""

    def __init__(self, what: str, limit: int) -> None:
        self._what = what
        self._limit = limit
        self._free = threading.Semaphore(limit)  # threads give places back too
        self._threads = ThreadPoolExecutor(limit, thread_name_prefix=what)

    @contextlib.contextmanager
    def place(self) -> Iterator[Place]:
        """Holds one of the places: while inside, and for as long as a thread works in it, which no cancellation ends.

        Raises GatewayBusy when all are taken.
        """
        if not self._free.acquire(blocking=False):
            raise GatewayBusy(f"{self._limit} {self._what} are under way, which is the limit: ask again later")
        place = Place(self._threads)
        try:
            yield place
        finally:
            place.call_when_idle(self._free.release)

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Calls it in a thread, in a place of its own."""
        with self.place() as place:
            return await place.run(function, *args, **kwargs)

    def close(self) -> None:
        """What has not begun never will."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Shares:
    """Who has how many of `limit` places: each run that has any, or asks for one, may have an equal part of them."""

    def __init__(self, what: str, limit: int) -> None:
        self._what = what
        self._limit = limit
        self._held: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def hold(self, run: str) -> Iterator[None]:
        """Holds one place. Raises GatewayBusy when the run has its part already."""
        with self._lock:
            num_runs = len({*self._held, run})
            part = max(1, self._limit // num_runs)
            if self._held[run] >= part:
                raise GatewayBusy(
                    f"{self._held[run]} {self._what} of run {run} are under way, its part of {self._limit} among "
                    f"{num_runs} {'run' if num_runs == 1 else 'runs'}: ask again later"
                )
            self._held[run] += 1
        try:
            yield
        finally:
            with self._lock:
                self._held[run] -= 1
                if not self._held[run]:
                    del self._held[run]


class Place:
    """One of a lane's places, for one piece of work."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._work: Future[Any] | None = None

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Calls it in a thread. Cancelling the wait does not end the thread."""
        work = self._threads.submit(function, *args, **kwargs)
        self._work = work
        return await asyncio.wrap_future(work)

    def call_when_idle(self, function: Callable[[], None]) -> None:
        """Now, or from the thread that works still once it has ended."""
        if self._work is None:
            function()
        else:
            self._work.add_done_callback(lambda _: function())


@contextlib.asynccontextmanager
async def on_disconnect(request: Request, give_up: Callable[[], None]) -> AsyncIterator[None]:
    """While inside, `give_up` is called when the client goes away, and when the task is cancelled because it did. The
    request's body must have been read."""
    watch = asyncio.create_task(_watch(request, give_up))
    try:
        yield
    except asyncio.CancelledError:
        asyncio.get_running_loop().run_in_executor(None, give_up)  # nobody is left to wait for it
        raise
    finally:
        watch.cancel()


async def _watch(request: Request, give_up: Callable[[], None]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    await asyncio.to_thread(give_up)  # cancelling a question may wait for its routing
