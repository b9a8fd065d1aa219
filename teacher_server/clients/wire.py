"""A query and its reply as bodies of the Open Inference Protocol v2 with the binary tensor extension.

    Inference-Header-Content-Length: n | n bytes of JSON | views (Arrow IPC) | pixels (uint8)      the request
    Inference-Header-Content-Length: n | n bytes of JSON | logits (FP32 or FP16) | features        the response

The client's half; the gateway reads requests and writes responses. Needs neither torch nor Ray nor an HTTP library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeFloat, NonNegativeInt, ValidationError

from data.views_arrow import to_arrow
from teacher_server.errors import BadQuery, BadReply
from teacher_server.protocol import PhaseSeconds, TeacherId, TeacherQuery, TeacherReply

JSON_LENGTH_HEADER = "Inference-Header-Content-Length"
PIECE_BYTES = 2**20  # of a tensor, given to the socket at a time
_DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "FP16": np.dtype("<f2")}
_MAX_JSON_BYTES = 64 * 2**10


@dataclass(frozen=True)
class InferBody:
    """json: the head of the body. tensors: what follows it, flat bytes; pixels are the query's own memory."""

    json: bytes
    tensors: tuple[memoryview, ...]

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the request that carries this body."""
        length = len(self.json) + sum(len(tensor) for tensor in self.tensors)
        return {
            JSON_LENGTH_HEADER: str(len(self.json)),
            "Content-Type": "application/octet-stream",
            "Content-Length": str(length),
        }

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The body in order, in pieces of at most PIECE_BYTES."""
        yield self.json
        for tensor in self.tensors:
            for start in range(0, len(tensor), PIECE_BYTES):
                yield tensor[start : start + PIECE_BYTES]


def encode_query(query: TeacherQuery) -> InferBody:
    """The body that asks this. Raises BadQuery as TeacherQuery.view_batch."""
    tensors: dict[str, tuple[list[int], memoryview]] = {}
    if query.views is not None:
        views = memoryview(to_arrow(query.view_batch()))
        tensors["views"] = ([len(views)], views)
    if query.pixels is not None:
        pixels = np.ascontiguousarray(query.pixels)  # a copy only where the array has gaps
        tensors["pixels"] = (list(pixels.shape), pixels.reshape(-1).data)
    head = {
        "id": query.request_id,
        "parameters": _parameters(query),
        "inputs": [_input(name, shape, len(tensor)) for name, (shape, tensor) in tensors.items()],
        "outputs": [
            {"name": name, "parameters": {"binary_data": True}}
            for name in (("logits", "features") if query.want_features else ("logits",))
        ],
    }
    return InferBody(json.dumps(head).encode(), tuple(tensor for _, tensor in tensors.values()))


def _parameters(query: TeacherQuery) -> dict[str, Any]:
    """The store goes by its folder's name, and only with views: where stores lie is the gateway's affair."""
    values = {
        "temperature": query.temperature,
        "run": query.run,
        "weight": query.weight,
        "timeout_s": query.timeout_s,
        "dtype": query.dtype,
    }
    if query.views is None or query.store is None:
        return values
    return values | {"store": Path(query.store).name}


def _input(name: str, shape: list[int], num_bytes: int) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": "UINT8", "parameters": {"binary_data_size": num_bytes}}


_STRICT = ConfigDict(strict=True)  # no numbers in strings, no true for 1


class _Size(BaseModel):
    model_config = _STRICT

    binary_data_size: NonNegativeInt


class _Output(BaseModel):
    model_config = _STRICT

    name: str
    datatype: Literal["FP32", "FP16"]
    shape: tuple[NonNegativeInt, NonNegativeInt]
    parameters: _Size


class _Parameters(BaseModel):
    model_config = _STRICT

    teacher: str
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    engine: str
    temperature: FiniteFloat
    queue_s: NonNegativeFloat
    render_s: NonNegativeFloat
    forward_s: NonNegativeFloat


class _Head(BaseModel):
    """The JSON of a response, as far as it is used."""

    model_config = _STRICT

    id: str
    parameters: _Parameters
    outputs: list[_Output]


def decode_reply(json_length: str | None, body: bytes) -> TeacherReply:
    """The reply in a response's body; json_length: its JSON_LENGTH_HEADER. The arrays are copies of their own.

    Raises BadReply unless every byte is accounted for. Whether it answers the question, protocol.check_reply says.
    """
    split = _split_at(json_length, len(body))
    try:
        head = _Head.model_validate_json(body[:split])
        teacher = TeacherId.parse(head.parameters.teacher)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadReply(f"the response's JSON is not as expected, {where or 'at the top'}: {first['msg']}") from None
    except BadQuery as error:
        raise BadReply(f"the response names no teacher: {error}") from None
    arrays = _arrays(head.outputs, memoryview(body)[split:])
    if "logits" not in arrays or arrays.keys() - {"logits", "features"}:
        raise BadReply(f"expected the outputs logits and perhaps features, got {sorted(arrays)}")
    features = arrays.get("features")
    if features is not None and features.dtype != np.float32:
        raise BadReply(f"features are FP32, got {features.dtype}")
    said = head.parameters
    seconds = PhaseSeconds(said.queue_s, said.render_s, said.forward_s)
    return TeacherReply(
        head.id, teacher, said.digest, said.temperature, arrays["logits"], said.engine, features, seconds
    )


def _split_at(json_length: str | None, body_bytes: int) -> int:
    limit = min(body_bytes, _MAX_JSON_BYTES)
    given = json_length or ""
    split = int(given) if given.isascii() and given.isdigit() and len(given) < 20 else -1
    if not 0 < split <= limit:
        raise BadReply(
            f"the response has {body_bytes} bytes and its header {JSON_LENGTH_HEADER} is {json_length!r}: "
            f"expected a number from 1 to {limit}"
        )
    return split


def _arrays(outputs: list[_Output], tensors: memoryview) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    start = 0
    for output in outputs:
        dtype, size = _DTYPES[output.datatype], output.parameters.binary_data_size
        if math.prod(output.shape) * dtype.itemsize != size or size > len(tensors) - start:
            raise BadReply(
                f"{output.name} {list(output.shape)} of {output.datatype} is said to take {size} bytes, "
                f"{len(tensors) - start} are left"
            )
        flat = np.frombuffer(tensors[start : start + size], dtype)
        arrays[output.name] = flat.reshape(output.shape).copy()  # aligned, and the body can go
        start += size
    if start != len(tensors) or len(arrays) != len(outputs):
        raise BadReply(f"{len(tensors) - start} bytes follow the last output, or two outputs have one name")
    return arrays
