"""Asking teachers through the HTTP gateway: for students on another cluster, or on none. Needs neither torch nor Ray.

    submit ──► event loop in a thread of its own: at most max_in_flight requests, each on a kept-alive connection
    cancel ──► ends the request and closes its connection, so that the gateway stops waiting as well

The contract is teacher_server.contract's. Nothing is repeated here: teacher_server.clients.retry does that.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator

import httpx

from teacher_server.clients.http_control import HttpOperatorControl, HttpRunControl
from teacher_server.clients.http_gateway import CONNECT_TIMEOUT_S, KEEPALIVE_S, Gateway, segment
from teacher_server.clients.wire import JSON_LENGTH_HEADER, InferBody, decode_reply, encode_query
from teacher_server.contract import FailedReply, FutureReply, PendingReply
from teacher_server.errors import BadReply, TeacherUnavailable
from teacher_server.protocol import TeacherQuery, TeacherReply

__all__ = ["HttpOperatorControl", "HttpRunControl", "HttpTeacherClient"]

MAX_REPLY_BYTES = 64 * 2**20
NETWORK_MARGIN_S = 5.0  # for the way there and back, beyond the time that the question itself allows
_CLOSE_LIMIT_S = 10.0


class HttpTeacherClient:
    """Asks the gateway at `url`. Threads may share it; it is not picklable, make one per process.

    token: the gateway's bearer token. max_in_flight: questions under way at a time, the others wait here; their time
    runs from `submit` on. Raises TeacherError for a URL or token that cannot be used; connects at the first question.
    """

    def __init__(
        self, url: str, token: str | None = None, *, max_in_flight: int = 16, max_reply_bytes: int = MAX_REPLY_BYTES
    ) -> None:
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight must be at least 1, got {max_in_flight}")
        self._gateway = Gateway(url, token)
        self._max_reply_bytes = max_reply_bytes
        self._tls = self._gateway.tls()
        self._turns = asyncio.Semaphore(max_in_flight)
        self._idle: list[httpx.AsyncClient] = []
        self._lock = threading.Lock()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="teacher-http", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"HttpTeacherClient({self._gateway.url!r})"

    def submit(self, query: TeacherQuery) -> PendingReply:
        """Sends a question; an array of pixels must not be changed before its reply is there."""
        with self._lock:
            if self._closed:
                return FailedReply(TeacherUnavailable(str(query.teacher), 0.0, "this client is closed"))
            return FutureReply(query.teacher, asyncio.run_coroutine_threadsafe(self._ask(query), self._loop))

    def close(self) -> None:
        """Cancels what is under way, closes the connections and ends the thread. Closing twice does no harm."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result(_CLOSE_LIMIT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_LIMIT_S)
        self._loop.close()

    async def _shut_down(self) -> None:
        questions = asyncio.all_tasks() - {asyncio.current_task()}
        for question in questions:
            question.cancel()
        await asyncio.gather(*questions, return_exceptions=True)
        for http in self._idle:
            await http.aclose()

    async def _ask(self, query: TeacherQuery) -> TeacherReply:
        began = time.monotonic()
        about, limit_s = str(query.teacher), query.timeout_s + NETWORK_MARGIN_S
        try:
            async with asyncio.timeout(limit_s), self._turns:
                return await self._exchange(query, began)
        except TimeoutError:
            raise TeacherUnavailable(about, limit_s, f"no answer from {self._gateway.url} in time") from None
        except httpx.TransportError as error:
            raise self._gateway.broken(error, about, time.monotonic() - began) from None

    async def _exchange(self, query: TeacherQuery, began: float) -> TeacherReply:
        body = encode_query(query)
        path = f"/v2/models/{segment(query.teacher.name)}/versions/{query.teacher.version}/infer"
        async with (
            self._connection() as http,
            http.stream("POST", path, content=_stream(body), headers=body.headers) as response,
        ):
            answer = await self._read(response)
        if response.status_code != httpx.codes.OK:
            raise self._gateway.refusal(response.status_code, answer, str(query.teacher), time.monotonic() - began)
        return decode_reply(response.headers.get(JSON_LENGTH_HEADER), answer)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[httpx.AsyncClient]:
        """A pool of one connection, thrown away after whatever goes wrong: a common pool was seen to lose a place for
        good when a request is cancelled at the wrong moment (httpcore 1.0.9), until none was left."""
        http = self._idle.pop() if self._idle else self._connect()
        try:
            yield http
        except BaseException:
            await http.aclose()
            raise
        self._idle.append(http)

    def _connect(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self._gateway.url,
            headers=self._gateway.headers,
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),  # a question has one limit for all of it: _ask
            limits=httpx.Limits(max_connections=1, keepalive_expiry=KEEPALIVE_S),
            verify=self._tls,
            trust_env=False,  # neither proxies nor a .netrc: what the environment says is meant for other servers
        )

    async def _read(self, response: httpx.Response) -> bytes:
        """The body as it came; a compressed one is not unpacked and is refused as no valid response later."""
        parts, size = [], 0
        async for part in response.aiter_raw():
            size += len(part)
            if size > self._max_reply_bytes:
                raise BadReply(f"{self._gateway.url} sends more than {self._max_reply_bytes} bytes as one answer")
            parts.append(part)
        return b"".join(parts)


async def _stream(body: InferBody) -> AsyncIterator[bytes]:
    for piece in body.pieces():
        yield piece  # type: ignore[misc] # the transport takes any buffer; bytes() would copy the pixels
