"""From an HTTP body to checked values: bytes counted as they arrive, strict JSON, typed models.

    read_body ──► parse_json ──► parse_model       each raises an error that names what was expected and what came

FastAPI's own reading of bodies has no limit, so no route uses it.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import reprlib
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from services.errors import EncodedBody, MalformedRequest, SlowBody, TooLarge
from teacher_server.errors import BadQuery

MAX_JSON_BYTES = 2**20  # parsed, it can take twenty times that
_SMALL_BODY_TIMEOUT_S = 10.0
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_Model = TypeVar("_Model", bound=BaseModel)


async def read_body(request: Request, *, max_bytes: int, timeout_s: float) -> memoryview:
    """The whole body, read-only. Raises EncodedBody, TooLarge as soon as the limit is passed, SlowBody."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise EncodedBody(f"content-encoding {encoding[:40]!r} is not taken: send the body as it is")
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise TooLarge(f"a body of {declared[:20]} bytes is over the limit of {max_bytes}: send fewer clips at a time")
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise TooLarge(f"the body is over the limit of {max_bytes} bytes: send fewer clips at a time")
    except TimeoutError:
        raise SlowBody(f"the body did not arrive within {timeout_s:g} s") from None
    except ClientDisconnect:
        raise SlowBody("the client went away before its body had arrived") from None
    return memoryview(body).toreadonly()


async def read_model(request: Request, model: type[_Model]) -> _Model:
    """A small JSON body as a model; no body is an empty object. Raises as the functions that it calls."""
    body = await read_body(request, max_bytes=MAX_JSON_BYTES, timeout_s=_SMALL_BODY_TIMEOUT_S)
    return await asyncio.to_thread(lambda: parse_model(model, parse_json(body) if body else {}))


def parse_json(text: memoryview) -> Any:
    """What the JSON says. Raises TooLarge; MalformedRequest for anything but UTF-8 JSON, repeated names, and numbers
    that are not finite."""
    if len(text) > MAX_JSON_BYTES:
        raise TooLarge(f"JSON of {len(text)} bytes is over the limit of {MAX_JSON_BYTES}: send tensors as binary data")
    try:
        decoded = str(text, "utf-8")
        parsed = json.loads(
            decoded, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_without_repeats
        )
        if _ESCAPED_SURROGATE.search(decoded):
            json.dumps(parsed, ensure_ascii=False).encode()  # half of a pair alone is no character
    except RecursionError:
        raise MalformedRequest("the JSON is nested too deeply") from None
    except ValueError as error:
        raise MalformedRequest(f"the body is no JSON: {error}") from None
    return parsed


def parse_model(model: type[_Model], value: Any) -> _Model:
    """The value as a model, with no conversions but int to float. Raises BadQuery."""
    try:
        return model.model_validate(value, strict=True)
    except ValidationError as error:
        raise BadQuery(first_problem(error.errors(include_url=False, include_context=False))) from None


def first_problem(problems: Sequence[Any]) -> str:
    """The first problem that pydantic lists: where, what was expected, what came."""
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"]) or "the body"
    return f"{where[:100]}: {first['msg']}, got {reprlib.repr(first['input'])}"


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object names something twice")
    return found
