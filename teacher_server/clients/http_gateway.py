"""What both HTTP clients know of the gateway: its address, the token, and what its refusals mean.

    TeacherError                   401 and 403 (the token), refusals of a kind that this version does not know
    the error that was raised      any refusal with a code that teacher_server.wire_errors knows
    TeacherUnavailable             nobody listens, the connection broke, time ran out; 408, 429, 5xx of whoever else,
                                   and 404: Serve's proxy says so while the gateway starts again
    BadReply                       what answers is no gateway

The token is in no message and in no repr.
"""

from __future__ import annotations

import json
import re
import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx

from teacher_server.contract import OPERATOR_TOKEN_VARIABLE, TOKEN_VARIABLE
from teacher_server.errors import BadQuery, BadReply, NoReplyYet, TeacherError, TeacherUnavailable
from teacher_server.wire_errors import from_json

CONNECT_TIMEOUT_S = 5.0
# Below the 5 s after which uvicorn ends an idle connection, so that a question is seldom sent into one that just ended.
KEEPALIVE_S = 4.0
_TRY_AGAIN = (408, 429, 503)
_NOT_FOUND = 404
_SHOWN_CHARACTERS = 120
_HOST_NAME = re.compile(r"[\w-]{1,63}(\.[\w-]{1,63}){0,9}\.?", re.ASCII)  # others break in the resolver, untyped


@dataclass(frozen=True)
class Gateway:
    """Where the gateway is and what opens it. Raises TeacherError for a URL or token that cannot be used."""

    url: str
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_url(self.url)
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise TeacherError(
                f"the gateway's token must be printable ASCII characters on one line: look at {TOKEN_VARIABLE}"
            )
        object.__setattr__(self, "url", self.url.rstrip("/"))

    @property
    def headers(self) -> dict[str, str]:
        """For every request; answers are wanted uncompressed, so that their size can be limited."""
        plain = {"Accept-Encoding": "identity"}
        return plain if self.token is None else plain | {"Authorization": f"Bearer {self.token}"}

    def tls(self) -> ssl.SSLContext:
        """What an https gateway's certificate is checked with: the system's authorities, or those in SSL_CERT_FILE."""
        return ssl.create_default_context()

    def refusal(self, status: int, body: bytes, about: str, waited_s: float) -> Exception:
        """The error that an answer other than 200 stands for. about: the teacher, or what else was asked."""
        if status in (401, 403):
            return TeacherError(
                f"the gateway at {self.url} refuses the token (HTTP {status}): set {TOKEN_VARIABLE} to the one that "
                f"the gateway was started with, or {OPERATOR_TOKEN_VARIABLE} where something is to be changed"
            )
        refused = _parse_refusal(body)
        if refused is None:
            return self._foreign(status, body, about, waited_s)
        error = from_json(refused.code, refused.args, refused.sentence)
        if isinstance(error, NoReplyYet):  # the gateway waits no more, so waiting here brings nothing
            return TeacherUnavailable(*error.args)
        if status in _TRY_AGAIN and type(error) is TeacherError:
            return TeacherUnavailable(about, waited_s, refused.sentence)
        return error

    def _foreign(self, status: int, body: bytes, about: str, waited_s: float) -> TeacherError:
        """Something between here and the gateway answered, or this is another server altogether."""
        said = " ".join(body.decode("utf-8", "replace").split())[:_SHOWN_CHARACTERS]
        if status >= 500 or status in _TRY_AGAIN:
            return TeacherUnavailable(about, waited_s, f"{self.url} answered HTTP {status} without a reason: {said}")
        answered = f"{self.url} answered HTTP {status}, which no gateway sends"
        if status == _NOT_FOUND:  # what Serve's proxy says while it has no gateway behind it yet
            return TeacherUnavailable(about, waited_s, f"{answered}: it still starts, or the URL is wrong: {said}")
        return BadReply(f"{answered}: is the URL right? It said: {said}")

    def broken(self, error: Exception, about: str, waited_s: float) -> TeacherUnavailable:
        """The error for a connection that failed or broke."""
        text = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {text[0] if text else ''}".rstrip(": ")
        return TeacherUnavailable(about, waited_s, f"no answer from {self.url} ({reason})")


@dataclass(frozen=True)
class _Refused:
    code: str
    args: list[Any]
    sentence: str


def _parse_refusal(body: bytes) -> _Refused | None:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    code, args, sentence = said.get("code"), said.get("args", []), said.get("error")
    if not (isinstance(code, str) and isinstance(args, list) and isinstance(sentence, str)):
        return None
    return _Refused(code, args, sentence)


def segment(text: str) -> str:
    """A name as one segment of a path. Raises BadQuery for what can be none."""
    if text in ("", ".", ".."):
        raise BadQuery(f"{text!r} cannot be part of an address")
    return quote(text, safe="")


def _check_url(text: str) -> None:
    """Never shows the user and password that a URL may carry."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        raise TeacherError("the gateway's URL cannot be read: expected http://HOST:PORT or https://HOST") from None
    if url.userinfo:
        raise TeacherError(f"the gateway's URL carries a user or password: leave them out and set {TOKEN_VARIABLE}")
    is_web = url.scheme in ("http", "https") and not url.query and not url.fragment
    is_host = ":" in url.host or _HOST_NAME.fullmatch(url.raw_host.decode("ascii")) is not None  # httpx checked IPv6
    if not (is_web and is_host and (url.port is None or 0 < url.port < 2**16)):
        raise TeacherError(f"{text!r} is no URL of a gateway: expected http://HOST:PORT or https://HOST")
