"""From an HTTP body to clips: bytes counted as they arrive, then a strict reading of numpy's .npy format.

    numpy.save(buffer, clips)   clips uint8 [N, T, H, W, 3], C order

The format is numpy.lib.format's, version 1.0 or 2.0. Nothing in a body is ever unpickled or executed.
"""

from __future__ import annotations

import ast
import asyncio
import math
import struct
from collections.abc import AsyncIterator, Mapping

import numpy as np
from numpy.typing import NDArray

from services.errors import EncodedBody, NotAnArray, SlowBody, TooLarge
from teacher_server.errors import BadQuery

MAX_CLIPS = 2048
MAX_FRAMES = 128  # per clip; bounds a forward pass over one clip
_MAGIC = b"\x93NUMPY"
_MAX_HEADER_BYTES = 1024  # numpy writes 118 for clips; a literal of this size is harmless to parse
_HOW = "send uint8 [clips, T, H, W, 3] as written by numpy.save"


async def read_body(
    chunks: AsyncIterator[bytes], headers: Mapping[str, str], *, max_bytes: int, timeout_s: float
) -> bytes:
    """The whole body. Raises EncodedBody, TooLarge as soon as the limit is passed, SlowBody."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise EncodedBody(f"content-encoding {encoding!r} is not taken: send the array as it is")
    declared = headers.get("content-length", "0")
    if declared.isascii() and declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise TooLarge(f"a body of {declared[:20]} bytes is over the limit of {max_bytes}: send fewer clips at a time")
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in chunks:
                body += chunk
                if len(body) > max_bytes:
                    raise TooLarge(f"the body is over the limit of {max_bytes} bytes: send fewer clips at a time")
    except TimeoutError:
        raise SlowBody(f"the body did not arrive within {timeout_s:g} s") from None
    return bytes(body)


def parse_clips(body: bytes) -> NDArray[np.uint8]:
    """Read-only uint8 [N, T, H, W, 3] over the body's own memory.

    Raises NotAnArray for anything but one whole .npy array, BadQuery for an array of another type or shape.
    """
    header, start = _header(body)
    try:
        descr, fortran, sizes = header["descr"], header["fortran_order"], header["shape"]
    except (KeyError, TypeError):
        raise NotAnArray(f"the header lacks descr, fortran_order or shape: {_HOW}") from None
    if descr not in ("|u1", "u1", "<u1", ">u1") or fortran is not False:
        raise BadQuery(f"the array has dtype {str(descr)[:40]!r}, fortran_order {str(fortran)[:10]}: {_HOW}")
    shape = _checked_shape(sizes)
    if math.prod(shape) != len(body) - start:
        raise NotAnArray(f"shape {list(shape)} takes {math.prod(shape)} bytes, {len(body) - start} follow the header")
    return np.frombuffer(body, np.uint8, offset=start).reshape(shape)


def _checked_shape(sizes: object) -> tuple[int, ...]:
    if (
        not isinstance(sizes, tuple)
        or len(sizes) != 5
        or not all(type(size) is int and 0 < size < 2**31 for size in sizes)
    ):
        raise BadQuery(f"the array has shape {str(sizes)[:80]}: {_HOW}")
    if sizes[4] != 3:
        raise BadQuery(f"the last axis must be 3 for R, G and B, got {sizes[4]}: {_HOW}")
    if sizes[0] > MAX_CLIPS or sizes[1] > MAX_FRAMES:
        raise BadQuery(f"at most {MAX_CLIPS} clips of at most {MAX_FRAMES} frames, got {sizes[0]} of {sizes[1]}")
    return sizes


def _header(body: bytes) -> tuple[dict[str, object], int]:
    """The header's dictionary and where the numbers begin."""
    layouts = {b"\x01\x00": ("<H", 10), b"\x02\x00": ("<I", 12)}
    layout = layouts.get(body[6:8]) if body.startswith(_MAGIC) else None
    if layout is None or len(body) < layout[1]:
        raise NotAnArray(f"the body is no .npy array of version 1.0 or 2.0: {_HOW}")
    (length,) = struct.unpack_from(layout[0], body, 8)
    start = layout[1] + length
    if length > _MAX_HEADER_BYTES or start > len(body):
        raise NotAnArray(f"the header claims {length} bytes of a body of {len(body)}: {_HOW}")
    try:
        header = ast.literal_eval(body[layout[1] : start].decode("latin-1").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise NotAnArray(f"the header is not numpy's: {_HOW}") from None
    if not isinstance(header, dict):
        raise NotAnArray(f"the header is not numpy's: {_HOW}")
    return header, start
