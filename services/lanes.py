"""Work that blocks, off the event loop: a fixed number of threads, and no queue before them.

A gateway has a lane for questions, one for short calls of the roster and one for what waits until teachers have loaded,
so that twenty runs that wait for a teacher hold up neither questions nor the renewal of leases.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from starlette.requests import Request

from services.errors import GatewayBusy

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Lane:
    """At most `limit` pieces of work at a time; one more is refused at once. Used by one event loop."""

    def __init__(self, what: str, limit: int) -> None:
        self._what = what
        self._limit = limit
        self._taken = 0
        self._threads = ThreadPoolExecutor(limit, thread_name_prefix=what)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Holds one of the places. Raises GatewayBusy when all are taken."""
        if self._taken >= self._limit:
            raise GatewayBusy(f"{self._limit} {self._what} are under way, which is the limit: ask again later")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Calls it in a thread, in a place of its own."""
        with self.place():
            return await self.run_in_place(function, *args, **kwargs)

    async def run_in_place(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """The same for a caller that holds a place already."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))

    def close(self) -> None:
        """What has not begun never will."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@contextlib.asynccontextmanager
async def on_disconnect(request: Request, give_up: Callable[[], None]) -> AsyncIterator[None]:
    """While inside, `give_up` is called when the client goes away. The request's body must have been read."""
    watch = asyncio.create_task(_watch(request, give_up))
    try:
        yield
    finally:
        watch.cancel()


async def _watch(request: Request, give_up: Callable[[], None]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    await asyncio.to_thread(give_up)  # cancelling a question may wait for its routing
