"""Bodies of the Open Inference Protocol: what was put in comes out; everything else is a typed refusal."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.views import VIEW_DTYPE, ViewBatch
from data.views_arrow import to_arrow
from services.errors import GatewayError, MalformedRequest
from services.oip import MAX_CLIPS, MAX_FRAMES, Encoded, InferRequest, encode_reply, parse_question
from teacher_server.errors import BadQuery, TeacherError
from teacher_server.protocol import PhaseSeconds, TeacherId, TeacherReply

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, 3), dtype=np.uint8)
VIEWS = ViewBatch(np.zeros(6, VIEW_DTYPE), 3, "ab" * 16)


def tensor(name: str, shape: list[int], **fields: Any) -> dict[str, Any]:
    return {"name": name, "datatype": "UINT8", "shape": shape, **fields}


def binary(name: str, shape: list[int], size: int) -> dict[str, Any]:
    return tensor(name, shape, parameters={"binary_data_size": size})


def body_of(request: Any, *tensors: bytes) -> tuple[memoryview, str]:
    head = json.dumps(request).encode()
    return memoryview(head + b"".join(tensors)), str(len(head))


def pixels_body(**request: Any) -> tuple[memoryview, str]:
    return body_of({"inputs": [binary("pixels", list(PIXELS.shape), PIXELS.nbytes)], **request}, PIXELS.tobytes())


# ---- questions


def test_binary_pixels_are_read_over_the_bodys_own_memory() -> None:
    body, length = pixels_body()
    question = parse_question(body, length)
    np.testing.assert_array_equal(question.pixels, PIXELS)
    assert np.shares_memory(question.pixels, np.frombuffer(body, np.uint8))
    assert not question.pixels.flags.writeable
    assert question.views is None


@pytest.mark.parametrize("data", [PIXELS.tolist(), PIXELS.reshape(-1).tolist()], ids=["nested", "flat"])
def test_pixels_as_json_numbers_are_the_same(data: list[Any]) -> None:
    body, _ = body_of({"inputs": [tensor("pixels", list(PIXELS.shape), data=data)]})
    np.testing.assert_array_equal(parse_question(body, None).pixels, PIXELS)


def test_views_and_pixels_come_in_the_order_of_the_inputs() -> None:
    views = to_arrow(VIEWS)
    inputs = [binary("views", [len(views)], len(views)), binary("pixels", list(PIXELS.shape), PIXELS.nbytes)]
    for given_inputs, sections in ((inputs, (views, PIXELS.tobytes())), (inputs[::-1], (PIXELS.tobytes(), views))):
        question = parse_question(*body_of({"inputs": given_inputs}, *sections))
        np.testing.assert_array_equal(question.pixels, PIXELS)
        assert question.views is not None
        assert question.views.to_bytes() == VIEWS.to_bytes()


def test_parameters_have_the_protocols_defaults() -> None:
    request = parse_question(*pixels_body()).request
    given = request.parameters
    assert (given.temperature, given.dtype, given.store, given.run, given.weight) == (1.0, "float32", None, "", 1.0)
    assert given.limit_s(7.0) == 7.0
    assert request.outputs == []


def test_a_time_limit_is_in_seconds_or_as_triton_has_it_in_microseconds() -> None:
    for parameters, seconds in (({"timeout_s": 2}, 2.0), ({"timeout": 2_500_000}, 2.5)):
        assert parse_question(*pixels_body(parameters=parameters)).request.parameters.limit_s(7.0) == seconds


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"temperature": 0}, "temperature: .* 0.01, got 0"),
        ({"temperature": 1e9}, "temperature"),
        ({"temperature": "4"}, "temperature: .*got '4'"),
        ({"temperature": True}, "temperature"),
        ({"temprature": 4}, "temprature: Extra inputs"),
        ({"dtype": "bfloat16"}, "dtype: .*'float32' or 'float16', got 'bfloat16'"),
        ({"run": "../r"}, "run"),
        ({"run": ".r"}, "run"),
        ({"run": "r" * 129}, "run"),
        ({"weight": 0}, "weight"),
        ({"weight": 101}, "weight"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": 601}, "timeout_s"),
        ({"store": 5}, "store"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_came(parameters: dict[str, Any], match: str) -> None:
    with pytest.raises(BadQuery, match=match):
        parse_question(*pixels_body(parameters=parameters))


@pytest.mark.parametrize(
    ("given_input", "match"),
    [
        (binary("frames", [2, 3, 4, 5, 3], 360), "name: .*'pixels' or 'views', got 'frames'"),
        (binary("pixels", [2, 3, 4, 5, 3], 360) | {"datatype": "FP32"}, "datatype: .*'UINT8', got 'FP32'"),
        (binary("pixels", [2, 3, 4, 5], 360), r"UINT8 \[clips, T, H, W, 3\], got shape \[2, 3, 4, 5\]"),
        (binary("pixels", [2, 3, 3, 5, 4], 360), r"\[clips, T, H, W, 3\]"),
        (binary("pixels", [0, 3, 4, 5, 3], 360), r"\[clips, T, H, W, 3\]"),
        (binary("pixels", [-2, 3, 4, 5, 3], 360), "shape.0: .*greater than or equal to 0, got -2"),
        (binary("pixels", [2.0, 3, 4, 5, 3], 360), "shape.0"),
        (binary("pixels", [1, 3, 4, 5, 3], 360), "takes 180 bytes, got 360"),
        (binary("pixels", [2**40, 2**40, 2**40, 2**40, 3], 360), "at most"),
        (binary("pixels", [MAX_CLIPS + 1, 1, 1, 1, 3], 360), f"at most {MAX_CLIPS} clips"),
        (binary("pixels", [1, MAX_FRAMES + 1, 1, 1, 3], 360), f"at most {MAX_FRAMES} frames"),
        (binary("pixels", [2, 3, 4, 5, 3], 360) | {"data": [1]}, "both or neither"),
        (binary("views", [360, 1], 360), r"views must be UINT8 \[bytes\]"),
        (binary("views", [360], 360) | {"shared_memory_region": "x"}, "shared_memory_region: Extra"),
    ],
)
def test_a_wrong_input_is_refused_with_what_was_expected(given_input: dict[str, Any], match: str) -> None:
    with pytest.raises(BadQuery, match=match):
        parse_question(*body_of({"inputs": [given_input]}, PIXELS.tobytes()))


@pytest.mark.parametrize(
    "data", [[256], [-1], [1.0], ["1"], [True], [None], [[1], [2]], [[[[[1, 2]]]]], [[[[[1], 2]]]], [{}], [10**30], []]
)
def test_json_data_must_be_bytes_in_the_shape_that_it_says(data: list[Any]) -> None:
    with pytest.raises(BadQuery, match="pixels"):
        parse_question(body_of({"inputs": [tensor("pixels", [1, 1, 1, 1, 3], data=data)]})[0], None)


def test_neither_data_nor_binary_data_is_refused() -> None:
    with pytest.raises(BadQuery, match="both or neither"):
        parse_question(body_of({"inputs": [tensor("pixels", [1, 1, 1, 1, 3])]})[0], None)


def test_an_input_or_output_that_is_named_twice_is_refused() -> None:
    one = binary("pixels", [1, 1, 1, 1, 3], 3)
    with pytest.raises(BadQuery, match="given twice"):
        parse_question(*body_of({"inputs": [one, one]}, b"abcabc"))
    with pytest.raises(BadQuery, match="asked for twice"):
        parse_question(*pixels_body(outputs=[{"name": "logits"}, {"name": "logits"}]))


def test_views_that_are_no_arrow_stream_are_refused_by_name() -> None:
    with pytest.raises(BadQuery, match="no Arrow IPC stream of views"):
        parse_question(*body_of({"inputs": [binary("views", [360], 360)]}, PIXELS.tobytes()))


@pytest.mark.parametrize("length", ["0", "-1", "1e2", "", "x", "99999999", "9" * 30, "٣", " 5", "+5"])
def test_a_header_length_that_lies_is_refused(length: str) -> None:
    with pytest.raises(MalformedRequest, match="Inference-Header-Content-Length"):
        parse_question(pixels_body()[0], length)


@pytest.mark.parametrize("claimed", [0, 359, 361, 2**40])
def test_binary_sizes_that_do_not_add_up_are_refused(claimed: int) -> None:
    with pytest.raises(MalformedRequest, match=f"binary_data_size is {claimed} bytes in all, 360 follow"):
        parse_question(*body_of({"inputs": [binary("pixels", [2, 3, 4, 5, 3], claimed)]}, PIXELS.tobytes()))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_damaged_body_is_a_question_or_a_typed_refusal(data: st.DataObject) -> None:
    views = to_arrow(VIEWS)
    inputs = [binary("views", [len(views)], len(views)), binary("pixels", [1, 1, 2, 2, 3], 12)]
    whole, length = body_of({"inputs": inputs, "parameters": {"store": "s"}}, views, bytes(12))
    body, head = bytearray(whole), int(length)
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, head - 1) | st.integers(0, len(body) - 1))
        body[place] = data.draw(st.sampled_from(b'0129"{}[],:-.eaz\x00\xff'))
    cut = data.draw(st.integers(0, 40) | st.just(0))
    lie = data.draw(st.sampled_from([length, None, "0", str(head - 1), str(head + 1), str(len(body)), "junk"]))
    try:
        question = parse_question(memoryview(bytes(body[: len(body) - cut])), lie)
    except (GatewayError, TeacherError):
        return
    if question.pixels is not None:
        assert list(question.pixels.shape) in [given_input.shape for given_input in question.request.inputs]


_SHAPES = st.tuples(*[st.integers(1, 3)] * 4).map(lambda sizes: (*sizes, 3))


@settings(max_examples=100, deadline=None)
@given(_SHAPES, st.integers(0, 2**32 - 1), st.booleans())
def test_every_array_of_clips_is_read_back(shape: tuple[int, ...], seed: int, as_json: bool) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    if as_json:
        body, length = body_of({"inputs": [tensor("pixels", list(shape), data=pixels.tolist())]})[0], None
    else:
        body, length = body_of({"inputs": [binary("pixels", list(shape), pixels.nbytes)]}, pixels.tobytes())
    np.testing.assert_array_equal(parse_question(body, length).pixels, pixels)


# ---- replies


def reply(dtype: str = "float32", features: bool = False) -> TeacherReply:
    rng = np.random.default_rng(1)
    return TeacherReply(
        request_id="r1",
        teacher=TeacherId("alpha", 2),
        digest="ab" * 32,
        temperature=4.0,
        logits=rng.normal(size=(2, 5)).astype(dtype),
        engine="cpu",
        features=rng.normal(size=(2, 7)).astype(np.float32) if features else None,
        seconds=PhaseSeconds(0.25, 0.5, 0.125),
    )


def request_for(*outputs: tuple[str, bool | None], **fields: Any) -> InferRequest:
    wanted = [
        {"name": name, "parameters": {} if binary_data is None else {"binary_data": binary_data}}
        for name, binary_data in outputs
    ]
    return parse_question(*pixels_body(outputs=wanted, **fields)).request


def head_of(encoded: Encoded) -> dict[str, Any]:
    return json.loads(encoded.body if encoded.json_length is None else encoded.body[: encoded.json_length])


def test_a_reply_says_who_made_it_and_repeats_the_id() -> None:
    head = head_of(encode_reply(request_for(id="mine"), reply()))
    assert (head["model_name"], head["model_version"], head["id"]) == ("alpha", "2", "mine")
    assert head["parameters"] == {
        "teacher": "alpha@2",
        "digest": "ab" * 32,
        "engine": "cpu",
        "temperature": 4.0,
        "queue_s": 0.25,
        "render_s": 0.5,
        "forward_s": 0.125,
    }
    assert head_of(encode_reply(request_for(), reply()))["id"] == "r1"


@pytest.mark.parametrize(("dtype", "datatype"), [("float32", "FP32"), ("float16", "FP16")])
def test_logits_as_json_are_the_very_numbers(dtype: str, datatype: str) -> None:
    made = reply(dtype)
    encoded = encode_reply(request_for(), made)
    (output,) = head_of(encoded)["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("logits", datatype, [2, 5])
    np.testing.assert_array_equal(np.array(output["data"], dtype).reshape(2, 5), made.logits)
    assert encoded.json_length is None


@pytest.mark.parametrize(
    ("request_", "binary_names"),
    [
        (request_for(("features", True), ("logits", True)), ["features", "logits"]),
        (request_for(("features", True), ("logits", None)), ["features"]),
        (request_for(("logits", None), ("features", None), parameters={"binary_data_output": True}),
         ["logits", "features"]),
        (request_for(("logits", False), ("features", None), parameters={"binary_data_output": True}), ["features"]),
    ],
)  # fmt: skip
def test_outputs_come_in_the_order_asked_for_as_json_or_binary_each(
    request_: InferRequest, binary_names: list[str]
) -> None:
    made = reply(features=True)
    encoded = encode_reply(request_, made)
    assert encoded.json_length is not None
    rest = encoded.body[encoded.json_length :]
    outputs = head_of(encoded)["outputs"]
    assert [output["name"] for output in outputs] == [output.name for output in request_.outputs]
    for output in outputs:
        expected = made.logits if output["name"] == "logits" else made.features
        if output["name"] in binary_names:
            size = output["parameters"]["binary_data_size"]
            found, rest = np.frombuffer(rest[:size], np.float32), rest[size:]
        else:
            found = np.float32(output["data"])
        np.testing.assert_array_equal(found.reshape(output["shape"]), expected)
    assert rest == b""
