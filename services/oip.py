"""The Open Inference Protocol v2 with the binary tensor extension: a body becomes a Question, a reply becomes a body.

    Inference-Header-Content-Length: n | n bytes of JSON | tensors in the order of inputs      without it: all JSON

    inputs    pixels  UINT8 [N, T, H, W, 3]     views  UINT8 [n], the bytes of data.views_arrow.to_arrow
    outputs   logits  FP32 or FP16 [I, K]       features  FP32 [I, D]

Axis letters: N clips, T frames, H, W, I items, K classes, D features.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from data.errors import ViewError
from data.views import ViewBatch
from data.views_arrow import from_arrow
from services.bodies import parse_json, parse_model
from services.errors import MalformedRequest
from teacher_server.clients.wire import JSON_LENGTH_HEADER
from teacher_server.errors import BadQuery
from teacher_server.protocol import MAX_TIMEOUT_S, MAX_WEIGHT, LogitsDtype, TeacherReply

MAX_CLIPS = 2048
MAX_FRAMES = 128  # per clip; bounds a forward pass over one clip
RUN_PATTERN = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$"
_DATATYPES = {"float32": "FP32", "float16": "FP16"}
_PIXELS = "UINT8 [clips, T, H, W, 3]"

Size = Annotated[int, Field(ge=0, le=2**40)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class InputParameters(_Part):
    """binary_data_size: bytes of this tensor after the JSON."""

    binary_data_size: Size | None = None


class InferInput(_Part):
    """data: the numbers, flat or nested; left out when they follow as binary data."""

    name: Literal["pixels", "views"]
    datatype: Literal["UINT8"]
    shape: Annotated[list[Size], Field(min_length=1, max_length=5)]
    data: list[Any] | None = None
    parameters: InputParameters = InputParameters()


class OutputParameters(_Part):
    """binary_data: whether the numbers follow the JSON; default: the request's binary_data_output."""

    binary_data: bool | None = None


class InferOutput(_Part):
    """One that is wanted."""

    name: Literal["logits", "features"]
    parameters: OutputParameters = OutputParameters()


class InferParameters(_Part):
    """temperature: the logits come divided by it. store: the name of the store that `views` were drawn from. run,
    weight: whose share of a busy teacher this takes. timeout_s: seconds to wait for the answer; timeout: the same in
    microseconds, as Triton has it. dtype: of the logits."""

    temperature: Annotated[float, Field(ge=0.01, le=1000.0)] = 1.0
    store: Annotated[str, Field(max_length=128)] | None = None
    run: Annotated[str, Field(pattern=f"{RUN_PATTERN}|^$")] = ""
    weight: Annotated[float, Field(gt=0, le=MAX_WEIGHT)] = 1.0
    timeout_s: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S)] | None = None
    timeout: Annotated[int, Field(gt=0, le=MAX_TIMEOUT_S * 1e6)] | None = None
    dtype: LogitsDtype = "float32"
    binary_data_output: bool = False

    def limit_s(self, default_s: float) -> float:
        """Seconds to wait for the answer."""
        if self.timeout_s is not None:
            return self.timeout_s
        return default_s if self.timeout is None else self.timeout / 1e6


class InferRequest(_Part):
    """The JSON of a request. outputs: default logits alone."""

    id: Annotated[str, Field(max_length=256)] = ""
    inputs: Annotated[list[InferInput], Field(min_length=1, max_length=2)]
    outputs: Annotated[list[InferOutput], Field(max_length=2)] = []
    parameters: InferParameters = InferParameters()


class ReplyTensor(BaseModel):
    """data: the numbers, flat, row by row; absent when they follow as binary data of parameters.binary_data_size."""

    name: str
    datatype: str
    shape: list[int]
    data: list[float] | None = None
    parameters: InputParameters | None = None


class ReplyParameters(BaseModel):
    """teacher: name@version. digest: 64 hex digits over weights, card and architecture. engine: on what the answer was
    computed. Seconds in the queue, spent rendering views, and in the forward pass."""

    teacher: str
    digest: str
    engine: str
    temperature: float
    queue_s: float
    render_s: float
    forward_s: float


class InferReply(BaseModel):
    """The JSON of a response."""

    model_name: str
    model_version: str
    id: str
    outputs: list[ReplyTensor]
    parameters: ReplyParameters


@dataclass(frozen=True)
class Question:
    """A request, checked as far as it can be without its teacher."""

    request: InferRequest
    pixels: NDArray[np.uint8] | None
    views: ViewBatch | None

    @property
    def wants_features(self) -> bool:
        """Whether features are among the outputs."""
        return any(output.name == "features" for output in self.request.outputs)


@dataclass(frozen=True)
class Encoded:
    """A response's body; json_length: of its head when tensors follow it, else None."""

    body: bytes
    json_length: int | None


def parse_question(body: memoryview, json_length: str | None) -> Question:
    """The question in a body; json_length: the header's value. Pixels are read-only, over the body's own memory.

    Raises MalformedRequest, TooLarge, BadQuery.
    """
    split = len(body) if json_length is None else _split_at(json_length, len(body))
    request = parse_model(InferRequest, parse_json(body[:split]))
    if len({output.name for output in request.outputs}) != len(request.outputs):
        raise BadQuery("outputs: one is asked for twice")
    tensors = _tensors(request.inputs, body[split:])
    views = tensors.get("views")
    return Question(request, tensors.get("pixels"), None if views is None else _to_views(views))


def _to_views(stream: NDArray[np.uint8]) -> ViewBatch:
    try:
        return from_arrow(stream.data)
    except ViewError as error:
        raise BadQuery(str(error)) from None


def _split_at(json_length: str, body_bytes: int) -> int:
    split = int(json_length) if json_length.isascii() and json_length.isdecimal() and len(json_length) < 20 else -1
    if not 0 < split <= body_bytes:
        raise MalformedRequest(
            f"{JSON_LENGTH_HEADER} is {json_length[:40]!r}, expected a number from 1 to the body's {body_bytes} bytes"
        )
    return split


def _tensors(inputs: list[InferInput], binary: memoryview) -> dict[str, NDArray[np.uint8]]:
    """The tensors by name. Every byte after the JSON belongs to exactly one."""
    claimed = sum(given.parameters.binary_data_size or 0 for given in inputs)
    if claimed != len(binary):
        raise MalformedRequest(f"binary_data_size is {claimed} bytes in all, {len(binary)} follow the JSON")
    tensors: dict[str, NDArray[np.uint8]] = {}
    start = 0
    for given in inputs:
        if given.name in tensors:
            raise BadQuery(f"inputs: {given.name} is given twice")
        _check_shape(given)
        end = start + (given.parameters.binary_data_size or 0)
        tensors[given.name] = _tensor(given, binary[start:end])
        start = end
    return tensors


def _check_shape(given: InferInput) -> None:
    shape = given.shape
    if given.name == "views":
        if len(shape) != 1:
            raise BadQuery(f"views must be UINT8 [bytes], got shape {shape}")
        return
    if len(shape) != 5 or shape[4] != 3 or 0 in shape:
        raise BadQuery(f"pixels must be {_PIXELS}, got shape {shape}")
    if shape[0] > MAX_CLIPS or shape[1] > MAX_FRAMES:
        raise BadQuery(f"pixels: at most {MAX_CLIPS} clips of at most {MAX_FRAMES} frames, got shape {shape}")


def _tensor(given: InferInput, binary: memoryview) -> NDArray[np.uint8]:
    if (given.data is None) == (given.parameters.binary_data_size is None):
        raise BadQuery(f"{given.name}: expected its numbers as data or as binary data, got both or neither")
    flat = np.frombuffer(binary, np.uint8) if given.data is None else _from_numbers(given)
    if flat.size != math.prod(given.shape):
        raise BadQuery(f"{given.name}: shape {given.shape} takes {math.prod(given.shape)} bytes, got {flat.size}")
    return flat.reshape(given.shape)


def _from_numbers(given: InferInput) -> NDArray[np.uint8]:
    """JSON numbers, flat or nested as the shape says. numpy would guess a type first, and take any memory for it."""
    numbers = given.data or []
    if numbers and isinstance(numbers[0], list):
        level: list[Any] = [numbers]
        for size in given.shape:
            if not all(isinstance(row, list) and len(row) == size for row in level):
                raise BadQuery(f"{given.name}: data must be flat or nested as its shape {given.shape} says")
            level = list(itertools.chain.from_iterable(level))
        numbers = level
    if not all(type(number) is int and 0 <= number <= 255 for number in numbers):
        raise BadQuery(f"{given.name}: data must be whole numbers from 0 to 255")
    return np.frombuffer(bytes(numbers), np.uint8)


def encode_reply(request: InferRequest, reply: TeacherReply) -> Encoded:
    """The response with the outputs that were asked for, in that order."""
    wanted = request.outputs or [InferOutput(name="logits")]
    outputs, binary = [], []
    for output in wanted:
        array = reply.logits if output.name == "logits" else reply.features
        assert array is not None  # check_reply refuses a reply without features that were asked for
        tensor = ReplyTensor(name=output.name, datatype=_DATATYPES[str(array.dtype)], shape=list(array.shape))
        chosen = output.parameters.binary_data
        if request.parameters.binary_data_output if chosen is None else chosen:
            tensor.parameters = InputParameters(binary_data_size=array.nbytes)
            binary.append(array.tobytes())
        else:
            tensor.data = array.reshape(-1).tolist()
        outputs.append(tensor)
    head = _head(request, reply, outputs).model_dump_json(exclude_none=True).encode()
    return Encoded(b"".join([head, *binary]), len(head) if binary else None)


def _head(request: InferRequest, reply: TeacherReply, outputs: list[ReplyTensor]) -> InferReply:
    seconds = reply.seconds
    return InferReply(
        model_name=reply.teacher.name,
        model_version=str(reply.teacher.version),
        id=request.id or reply.request_id,
        outputs=outputs,
        parameters=ReplyParameters(
            teacher=str(reply.teacher),
            digest=reply.digest,
            engine=reply.engine,
            temperature=reply.temperature,
            queue_s=seconds.queue,
            render_s=seconds.render,
            forward_s=seconds.forward,
        ),
    )
