"""Servers for tests of the HTTP clients: a real ASGI app on a port of its own, and one that says whatever it is told.

Test folders are no packages, so tests load this by path.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import uvicorn

PATIENCE_S = 30.0
SILENCE = b"SILENCE"  # instead of an answer: nothing, until the client goes away


@contextlib.contextmanager
def serve(app: Any) -> Iterator[str]:
    """The URL of an ASGI app on 127.0.0.1; at the end its lifespan has ended and its thread is gone."""
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=5, lifespan="on", ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"  # it listens already: early calls wait
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "the server did not end"


class Asked(NamedTuple):
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, or that part of it that is JSON."""
        return json.loads(self.body[: int(self.headers.get("inference-header-content-length", len(self.body)))])


class ScriptedServer:
    """Answers the n-th request with the n-th of `answers`, raw bytes; the last one stands for all that follow.

    Where an answer says `Connection: close`, the connection is closed after it. left: a client went away in SILENCE.
    """

    def __init__(self, answers: list[bytes]) -> None:
        self.answers = answers
        self.asked: list[Asked] = []
        self.arrived = threading.Semaphore(0)
        self.left = threading.Event()
        self.num_connections = 0
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> ScriptedServer:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def _start(self, target: Any, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                connection, _ = self._listener.accept()
                self.num_connections += 1
                self._open.append(connection)
                self._start(self._answer_all, connection)

    def _answer_all(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as stream:
            while (asked := _read_request(stream)) is not None:
                answer = self.answers[min(len(self.asked), len(self.answers) - 1)]
                self.asked.append(asked)
                self.arrived.release()
                if answer == SILENCE:
                    stream.read(1)
                    self.left.set()
                    return
                connection.sendall(answer)
                if b"connection: close" in answer.lower():
                    return


def _read_request(stream: Any) -> Asked | None:
    words = stream.readline().decode().split()
    if len(words) != 3:
        return None
    headers = {}
    while line := stream.readline().strip().decode():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Asked(words[0], words[1], headers, stream.read(int(headers.get("content-length", 0))))


def http_answer(status: int, body: bytes, **headers: str) -> bytes:
    """An answer with its length."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def json_answer(status: int, body: object) -> bytes:
    """An answer in JSON."""
    return http_answer(status, json.dumps(body).encode(), Content_Type="application/json")


def refusal(status: int, code: str, *args: object, sentence: str = "no") -> bytes:
    """An answer as the gateway refuses."""
    return json_answer(status, {"error": sentence, "code": code, "args": args})
