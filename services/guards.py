"""Two wrappers around the gateway, plain ASGI: who may do what, and what is counted.

                       no token set     PRECEPTOR_TOKEN     PRECEPTOR_OPERATOR_TOKEN
    liveness, readiness    open              open                    open
    asking                 open              yes                     yes
    operating              open              403                     yes

Asking includes the leases and timelines of runs, of all runs: callers who share a token trust each other.
With PRECEPTOR_OPERATOR_TOKEN alone, asking wants that one too: nothing but liveness and readiness is open then.
Without any token the gateway is open to whoever reaches it, which is this machine only (services.addresses: it does not
start elsewhere then). A web page that a browser on this machine shows reaches it too, so requests from pages are
refused, by their Origin and by the Host that they name.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.addresses import is_loopback
from services.asking import GatewayOptions
from services.errors import Forbidden, GatewayError, Unauthorized
from services.refusals import to_response
from teacher_server.contract import OPERATOR_TOKEN_VARIABLE

OPEN_ROUTES = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
_MAY_OPERATE = "preceptor.may_operate"

RecordRequest = Callable[[str, int, float], None]
"""Route (its template, never the path that a client made up), HTTP status, seconds."""


class TokenGuard:
    """Refuses every route but liveness and readiness to a request that lacks the right bearer token."""

    def __init__(self, app: ASGIApp, options: GatewayOptions) -> None:
        self.app = app
        self._has_token = options.has_token
        self._ask, self._operate = _expected(options.token), _expected(options.operator_token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_ROUTES:
            refused = self._check(scope)
            if refused is not None:
                await to_response(refused)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> GatewayError | None:
        if not self._has_token:
            scope[_MAY_OPERATE] = True
            return _page_refusal(scope)
        given = _header(scope, b"authorization")
        # Both in constant time, and both always.
        asks, operates = (_same(given, expected) for expected in (self._ask, self._operate))
        scope[_MAY_OPERATE] = operates
        if asks or operates:
            return None
        return Unauthorized("this gateway wants a token: send it as `Authorization: Bearer TOKEN`")


def operator(request: Request) -> str:
    """Who operates, for the audit log. Raises Forbidden for whoever may only ask."""
    if not request.scope[_MAY_OPERATE]:
        raise Forbidden(
            f"this changes what is served and wants the operator's token: the one in {OPERATOR_TOKEN_VARIABLE} "
            "where the gateway was started, if one was set there"
        )
    return f"http {request.client.host}" if request.client is not None else "http"


def _expected(token: str | None) -> bytes | None:
    return None if token is None else f"Bearer {token}".encode()


def _page_refusal(scope: Scope) -> Forbidden | None:
    """What a web page is told that asks a gateway without a token. A page whose own name leads here (DNS rebinding)
    sends no Origin, but that name as the Host."""
    if _header(scope, b"origin"):
        return Forbidden("this gateway has no token, so it takes no requests from web pages")
    given = _header(scope, b"host").decode("latin-1")
    try:
        host = urlsplit(f"//{given}").hostname
    except ValueError:  # a bracket without its other half
        host = given
    if host and not is_loopback(host):
        return Forbidden(
            "this gateway has no token, so it takes only requests for this machine: ask 127.0.0.1 or localhost, not "
            f"{host[:80]!r}"
        )
    return None


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _same(given: bytes, expected: bytes | None) -> bool:
    return expected is not None and hmac.compare_digest(given, expected)


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
