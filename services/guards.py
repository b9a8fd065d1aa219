"""Two wrappers around the gateway, plain ASGI: who may ask, and what is counted."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN_ROUTES = ("/healthz", "/readyz")

RecordRequest = Callable[[str, int, float], None]
"""Route (its template, never the path that a client made up), HTTP status, seconds."""


class TokenGuard:
    """401 for every route but liveness and readiness, unless the bearer token is the right one."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_ROUTES and not self._allowed(scope):
            detail = "this gateway wants a token: send it as `Authorization: Bearer TOKEN`"
            refusal = JSONResponse({"error": "Unauthorized", "detail": detail}, 401, {"WWW-Authenticate": "Bearer"})
            await refusal(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return hmac.compare_digest(given, self._expected)  # in constant time


class Recorder:
    """Calls `record` once for every request, whatever became of it."""

    def __init__(self, app: ASGIApp, record: RecordRequest, clock: Callable[[], float] = time.monotonic) -> None:
        self.app = app
        self._record = record
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = self._clock(), 500  # what the client gets when the app raises

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            self._record(_route(scope), status, self._clock() - began)


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "unmatched")
