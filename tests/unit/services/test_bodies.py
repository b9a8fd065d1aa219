"""Bodies are cut off at their limit; JSON is JSON and nothing more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.requests import Request

from services.bodies import MAX_JSON_BYTES, parse_json, parse_model, read_body
from services.errors import EncodedBody, MalformedRequest, SlowBody, TooLarge
from teacher_server.errors import BadQuery


def request_of(chunks: AsyncIterator[bytes], headers: Mapping[str, str]) -> Request:
    async def receive() -> dict[str, Any]:
        chunk = await anext(chunks, None)
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "headers": pairs}, receive)


async def chunks_of(sizes: list[int], taken: list[int]) -> AsyncIterator[bytes]:
    for size in sizes:
        taken.append(size)
        yield b"x" * size


def read(sizes: list[int], headers: Mapping[str, str], limit: int = 10) -> tuple[bytes, list[int]]:
    taken: list[int] = []
    try:
        body = asyncio.run(read_body(request_of(chunks_of(sizes, taken), headers), max_bytes=limit, timeout_s=10.0))
    except TooLarge as error:
        error.add_note(str(taken))
        raise
    return bytes(body), taken


def test_a_body_of_exactly_the_limit_is_read() -> None:
    assert read([4, 0, 6], {"content-length": "10"})[0] == b"x" * 10


@pytest.mark.parametrize("headers", [{}, {"content-length": "3"}, {"content-length": "nonsense"}])
def test_reading_stops_at_the_chunk_that_passes_the_limit_whatever_the_length_says(headers: dict[str, str]) -> None:
    with pytest.raises(TooLarge, match="limit of 10 bytes") as caught:
        read([6, 6, 6, 6], headers)
    assert caught.value.__notes__ == ["[6, 6]"]


@pytest.mark.parametrize("length", ["11", "9" * 5000])
def test_a_declared_length_over_the_limit_is_refused_before_reading(length: str) -> None:
    with pytest.raises(TooLarge) as caught:
        read([1], {"content-length": length})
    assert caught.value.__notes__ == ["[]"]


def test_compressed_bodies_are_refused() -> None:
    with pytest.raises(EncodedBody, match="gzip"):
        read([1], {"content-encoding": "gzip"})


def test_a_body_that_does_not_come_is_given_up_on() -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    with pytest.raises(SlowBody, match=r"within 0\.05 s"):
        asyncio.run(read_body(request_of(never(), {}), max_bytes=10, timeout_s=0.05))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[1] x", "no JSON"),
        (b'{"a": NaN}', "NaN is no number"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b"[1e999]", "1e999 is too large"),
        (b'{"a": 1, "a": 2}', "names something twice"),
        (b"\xff\xfe[\x001\x00]\x00", "no JSON"),
        (b'["\\ud800"]', "no JSON"),
        (b"1" * 5000, "no JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "nested too deeply"),
    ],
)
def test_what_is_no_strict_json_is_refused(text: bytes, match: str) -> None:
    with pytest.raises(MalformedRequest, match=match):
        parse_json(memoryview(text))


def test_json_over_its_limit_is_refused_unparsed() -> None:
    with pytest.raises(TooLarge, match="send tensors as binary"):
        parse_json(memoryview(b"[" * (MAX_JSON_BYTES + 1)))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(_JSON)
def test_every_json_value_is_read_back(value: Any) -> None:
    assert parse_json(memoryview(json.dumps(value).encode())) == value


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200) | st.text(alphabet='{}[]",:0123456789.eE-\\ud8ntrue NaIfiy', max_size=80).map(str.encode)
)
def test_any_bytes_are_a_value_that_can_be_sent_on_or_refused(text: bytes) -> None:
    try:
        value = parse_json(memoryview(text))
    except MalformedRequest:
        return
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


class Model(BaseModel):
    number: float
    names: list[str] = []


def test_a_model_takes_an_integer_for_a_float_and_nothing_else_for_anything() -> None:
    assert parse_model(Model, {"number": 2}).number == 2.0
    for wrong in ({"number": "2"}, {"number": True}, {"number": 2, "names": "ab"}, [], None, {}):
        with pytest.raises(BadQuery):
            parse_model(Model, wrong)


def test_a_bad_field_is_named_with_what_came_in_short() -> None:
    with pytest.raises(BadQuery, match=r"names\.1: .*string, got \[0, 0, 0") as caught:
        parse_model(Model, {"number": 1, "names": ["a", [0] * 100_000]})
    assert len(str(caught.value)) < 200
