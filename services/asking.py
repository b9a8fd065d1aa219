"""The gateway's questions under way, and whether teachers answer. The event loop never waits here: threads do."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request

from services.directory import Directory
from services.errors import GatewayBusy, SlowBody
from services.pixels import parse_clips, read_body
from teacher_server.contract import TeacherClient
from teacher_server.errors import TeacherError, TeacherNotResident, TeacherUnavailable
from teacher_server.library import TeacherEntry
from teacher_server.protocol import TeacherQuery, TeacherReply, check_reply, new_request_id

READY_FOR_S = 1.0
_LOADING_PAUSE_S = 0.2


@dataclass(frozen=True)
class GatewayOptions:
    """Limits, and the bearer token that every route but /healthz and /readyz wants when there is one."""

    token: str | None = field(default=None, repr=False)
    max_body_bytes: int = 32 * 2**20
    max_in_flight: int = 16
    body_timeout_s: float = 30.0
    answer_timeout_s: float = 30.0


class Asking:
    """Questions under way: at most max_in_flight, bodies included, so memory has a bound."""

    def __init__(self, client: TeacherClient, directory: Directory, options: GatewayOptions) -> None:
        self.directory = directory
        self._client = client
        self._options = options
        self._in_flight = 0
        self._threads = ThreadPoolExecutor(options.max_in_flight, thread_name_prefix="ask-teacher")

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """Frees the threads and the client when the app ends."""
        yield
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    async def answer(self, request: Request, name: str, temperature: float) -> TeacherReply:
        """Raises the errors that services.errors lists."""
        with self._admitted():
            entry = await asyncio.to_thread(self.directory.resolve, name)
            query = self._query(entry, await self._body(request), temperature)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self._ask, entry, query)

    async def _body(self, request: Request) -> bytes:
        limits = self._options
        try:
            return await read_body(
                request.stream(), request.headers, max_bytes=limits.max_body_bytes, timeout_s=limits.body_timeout_s
            )
        except ClientDisconnect:
            raise SlowBody("the client went away before its body had arrived") from None

    @contextlib.contextmanager
    def _admitted(self) -> Iterator[None]:
        limit = self._options.max_in_flight
        if self._in_flight >= limit:
            raise GatewayBusy(f"{limit} questions are under way, which is the limit: ask again later")
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def _query(self, entry: TeacherEntry, body: bytes, temperature: float) -> TeacherQuery:
        return TeacherQuery(
            request_id=new_request_id(),
            teacher=entry.teacher,
            temperature=temperature,
            views_per_item=entry.card.views_per_item,
            run="gateway",
            pixels=parse_clips(body),
            timeout_s=self._options.answer_timeout_s,
        )

    def _ask(self, entry: TeacherEntry, query: TeacherQuery) -> TeacherReply:
        """Blocks; runs in a thread. A version that the replica is still loading is asked again, overload is not."""
        deadline = time.monotonic() + self._options.answer_timeout_s
        while True:
            pending = self._client.submit(query)
            try:
                reply = pending.result(timeout_s=max(0.0, deadline - time.monotonic()))
                return check_reply(query, reply, digest=entry.digest, num_classes=len(entry.card.classes))
            except TeacherNotResident:
                if time.monotonic() + _LOADING_PAUSE_S > deadline:
                    raise
            except TeacherUnavailable:
                pending.cancel()  # nobody waits for it any more
                raise
            time.sleep(_LOADING_PAUSE_S)


class Readiness:
    """Asks the teachers at most once a second, however often it is asked, and never twice at a time."""

    def __init__(self, check_teachers: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._check_teachers = check_teachers
        self._clock = clock
        self._turn = asyncio.Lock()
        self._checked_at = float("-inf")
        self._error: TeacherError | None = None

    async def check(self) -> None:
        """Raises TeacherUnavailable while no teacher answers."""
        async with self._turn:
            if self._clock() - self._checked_at >= READY_FOR_S:
                self._error = await asyncio.to_thread(self._failure)
                self._checked_at = self._clock()
        if self._error is not None:
            raise self._error

    def _failure(self) -> TeacherError | None:
        try:
            self._check_teachers()
        except TeacherError as error:
            return error
        return None
