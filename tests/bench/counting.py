"""Bytes that really cross a TCP connection: a forwarder between a client and the gateway, on the loopback."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType


class CountingForwarder:
    """Use it as a context. url: what to ask instead of the server at 127.0.0.1:port. sent, received: bytes so far,
    from the client's point of view, HTTP heads and all."""

    def __init__(self, port: int) -> None:
        self.sent = self.received = 0
        self.url = ""
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> CountingForwarder:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)

    async def _listen(self) -> None:
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        await asyncio.gather(self._pass_on(reader, back, "sent"), self._pass_on(there, writer, "received"))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: str) -> None:
        while chunk := await reader.read(2**16):
            setattr(self, count, getattr(self, count) + len(chunk))
            writer.write(chunk)
            await writer.drain()
        writer.close()
