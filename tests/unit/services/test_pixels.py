"""Bodies: numpy.save is read back, everything else is refused with a type."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import EncodedBody, NotAnArray, SlowBody, TooLarge
from services.pixels import MAX_CLIPS, MAX_FRAMES, parse_clips, read_body
from teacher_server.errors import BadQuery

CLIPS = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, 3), dtype=np.uint8)


def saved(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version, allow_pickle=True)
    return buffer.getvalue()


def with_header(text: str, numbers: bytes = b"") -> bytes:
    header = text.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + numbers


# ---- arrays


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_what_numpy_saved_is_read_back_without_a_copy(version: tuple[int, int]) -> None:
    body = saved(CLIPS, version)
    clips = parse_clips(body)
    np.testing.assert_array_equal(clips, CLIPS)
    assert np.shares_memory(clips, np.frombuffer(body, np.uint8))
    assert not clips.flags.writeable


def test_every_truncation_is_refused() -> None:
    body = saved(CLIPS)
    for length in range(len(body)):
        with pytest.raises(NotAnArray):
            parse_clips(body[:length])
    with pytest.raises(NotAnArray, match="follow the header"):
        parse_clips(body + b"\0")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (CLIPS.astype(np.float32), "dtype '<f4'"),
        (CLIPS.view(np.int8), "dtype"),
        (np.asfortranarray(CLIPS), "fortran_order True"),
        (CLIPS[0], "shape"),
        (CLIPS[..., :2].copy(), "last axis must be 3"),
        (CLIPS[:0], "shape"),
        (np.zeros((1, MAX_FRAMES + 1, 1, 1, 3), np.uint8), "at most"),
        (np.zeros((MAX_CLIPS + 1, 1, 1, 1, 3), np.uint8), "at most"),
        (np.zeros((1, 1, 1, 1, 3), [("a", np.uint8)]), "dtype"),
    ],
)
def test_arrays_of_another_type_or_shape_are_told_what_was_expected(array: np.ndarray, words: str) -> None:
    with pytest.raises(BadQuery, match=words):
        parse_clips(saved(array))


def test_a_pickled_array_is_refused_and_never_loaded() -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return pytest.fail, ("the pickle was loaded",)

    array = np.empty((1, 1, 1, 1, 3), dtype=object)
    array[...] = Trap()
    with pytest.raises(BadQuery, match="dtype"):
        parse_clips(saved(array))


@pytest.mark.parametrize(
    "header",
    [
        "",
        "{'descr': '|u1'",
        "[1, 2, 3]",
        "{'descr': '|u1', 'fortran_order': False}",
        "__import__('os').getpid()",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1,1,1,1,10**9)}",
        "(" * 900,
        "{{}: 1}",
        "'\\d'",
    ],
)
def test_headers_that_are_not_numpys_are_refused(header: str) -> None:
    with pytest.raises(NotAnArray):
        parse_clips(with_header(header))


@pytest.mark.parametrize(
    "shape", ["(1,1,1,1,True)", "(1.0,1,1,1,3)", "(-1,-1,1,1,3)", "(2**31,1,1,1,3)", "'abcde'", "5"]
)
def test_shapes_are_five_positive_integers(shape: str) -> None:
    with pytest.raises((BadQuery, NotAnArray)):
        parse_clips(with_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}", b"abc"))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bodies_are_refused_or_have_the_shape_that_they_say(data: st.DataObject) -> None:
    body = bytearray(saved(CLIPS[:1, :1, :2, :2].copy()))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        clips = parse_clips(bytes(body))
    except (NotAnArray, BadQuery):
        return
    assert clips.dtype == np.uint8
    assert clips.ndim == 5
    assert clips.tobytes() == bytes(body[-clips.size :])


# ---- bodies


async def chunks_of(sizes: list[int], taken: list[int]) -> AsyncIterator[bytes]:
    for size in sizes:
        taken.append(size)
        yield b"x" * size


def read(sizes: list[int], headers: Mapping[str, str], limit: int) -> tuple[bytes, list[int]]:
    taken: list[int] = []
    body = asyncio.run(read_body(chunks_of(sizes, taken), headers, max_bytes=limit, timeout_s=10.0))
    return body, taken


def test_a_body_of_exactly_the_limit_is_read() -> None:
    assert read([4, 0, 6], {"content-length": "10"}, 10)[0] == b"x" * 10


def test_reading_stops_at_the_chunk_that_passes_the_limit_whatever_the_length_says() -> None:
    for headers in ({}, {"content-length": "3"}, {"content-length": "nonsense"}):
        taken: list[int] = []
        with pytest.raises(TooLarge, match="limit of 10 bytes"):
            asyncio.run(read_body(chunks_of([6, 6, 6, 6], taken), headers, max_bytes=10, timeout_s=10.0))
        assert taken == [6, 6]


@pytest.mark.parametrize("length", ["11", "9" * 5000])
def test_a_declared_length_over_the_limit_is_refused_before_reading(length: str) -> None:
    taken: list[int] = []
    with pytest.raises(TooLarge):
        asyncio.run(read_body(chunks_of([1], taken), {"content-length": length}, max_bytes=10, timeout_s=10.0))
    assert taken == []


def test_compressed_bodies_are_refused() -> None:
    with pytest.raises(EncodedBody, match="gzip"):
        read([1], {"content-encoding": "gzip"}, 10)


def test_a_body_that_does_not_come_is_given_up_on() -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    with pytest.raises(SlowBody, match=r"within 0\.05 s"):
        asyncio.run(read_body(never(), {}, max_bytes=10, timeout_s=0.05))
