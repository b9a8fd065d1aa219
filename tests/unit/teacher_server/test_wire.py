"""The bodies of questions and answers: what is sent is read back, everything else is refused with its type."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.store import ClipStore
from data.views_arrow import from_arrow
from teacher_server.clients.wire import JSON_LENGTH_HEADER, PIECE_BYTES, InferBody, decode_reply, encode_query
from teacher_server.errors import BadQuery, BadReply
from teacher_server.protocol import PhaseSeconds, TeacherId, TeacherQuery

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 16, 16, 3), dtype=np.uint8)
LOGITS = np.random.default_rng(1).normal(size=(2, 5)).astype(np.float32)
FEATURES = np.random.default_rng(2).normal(size=(2, 7)).astype(np.float32)


def question(**fields: Any) -> TeacherQuery:
    return TeacherQuery("q", TeacherId("alpha", 1), 4.0, 3, **({"pixels": PIXELS} | fields))


def parse(body: InferBody) -> tuple[dict[str, Any], list[bytes]]:
    """As a server reads it: the JSON, and a tensor for each input."""
    whole, split = b"".join(body.pieces()), int(body.headers[JSON_LENGTH_HEADER])
    assert len(whole) == int(body.headers["Content-Length"])
    head, tensors = json.loads(whole[:split]), []
    for each in head["inputs"]:
        tensors.append(whole[split : split + each["parameters"]["binary_data_size"]])
        split += len(tensors[-1])
    assert split == len(whole)
    return head, tensors


# ---- questions


def test_views_and_pixels_are_sent_in_this_order_with_all_that_the_query_says(
    tiny: ModuleType, store: ClipStore
) -> None:
    batch = tiny.draw(store, 2)
    query = tiny.views_query(
        store, batch, pixels=PIXELS, run="r", weight=2.5, dtype="float16", timeout_s=7.0, want_features=True
    )
    head, (views, pixels) = parse(encode_query(query))
    assert from_arrow(views).to_bytes() == batch.to_bytes()
    assert pixels == PIXELS.tobytes()
    assert head["id"] == query.request_id
    assert head["parameters"] == {
        "temperature": 4.0, "run": "r", "weight": 2.5, "timeout_s": 7.0, "dtype": "float16", "store": store.path.name
    }  # fmt: skip
    assert [(each["name"], each["shape"], each["datatype"]) for each in head["inputs"]] == [
        ("views", [len(views)], "UINT8"),
        ("pixels", list(PIXELS.shape), "UINT8"),
    ]
    assert head["outputs"] == [{"name": n, "parameters": {"binary_data": True}} for n in ("logits", "features")]


def test_pixels_are_sent_from_their_own_memory_in_small_pieces() -> None:
    pixels = np.zeros((6, 16, 112, 112, 3), np.uint8)
    (tensor,) = encode_query(question(pixels=pixels)).tensors
    assert np.shares_memory(np.frombuffer(tensor, np.uint8), pixels)
    sizes = [len(piece) for piece in encode_query(question(pixels=pixels)).pieces()]
    assert sum(sizes[1:]) == pixels.nbytes
    assert max(sizes) == PIECE_BYTES


def test_pixels_with_gaps_or_that_cannot_be_written_to_are_sent_as_they_are() -> None:
    every_other = np.repeat(PIXELS, 2, axis=2)[:, :, ::2]
    every_other.flags.writeable = False
    assert parse(encode_query(question(pixels=every_other)))[1] == [PIXELS.tobytes()]


def test_without_views_no_store_is_named() -> None:
    for query in (question(), question(store="/stores/demo")):
        assert "store" not in parse(encode_query(query))[0]["parameters"]


def test_damaged_views_are_refused_before_they_are_sent(tiny: ModuleType, store: ClipStore) -> None:
    with pytest.raises(BadQuery, match="not a view batch"):
        encode_query(tiny.views_query(store, tiny.draw(store, 1), views=b"x" * 100))


def test_a_time_limit_that_json_cannot_say_is_refused() -> None:
    with pytest.raises(BadQuery, match="timeout_s must be > 0 and at most 600, got inf"):
        encode_query(question(timeout_s=float("inf")))


# ---- answers


def answer(*outputs: tuple[str, np.ndarray], **changes: Any) -> tuple[dict[str, Any], bytes]:
    """JSON and tensors of an answer."""
    parameters = {
        "teacher": "alpha@1",
        "digest": "d" * 64,
        "engine": "cpu",
        "temperature": 4.0,
        "queue_s": 0.25,
        "render_s": 0.5,
        "forward_s": 0.125,
    }
    head = {
        "model_name": "alpha",
        "model_version": "1",
        "id": "q",
        "parameters": parameters | changes,
        "outputs": [
            {
                "name": name,
                "datatype": {"float32": "FP32", "float16": "FP16"}.get(str(array.dtype), "FP64"),
                "shape": list(array.shape),
                "parameters": {"binary_data_size": array.nbytes},
            }
            for name, array in outputs
        ],
    }
    return head, b"".join(array.tobytes() for _, array in outputs)


def decode(head: object, tensors: bytes) -> Any:
    text = json.dumps(head).encode()
    return decode_reply(str(len(text)), text + tensors)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("padding", ["", " ", "  ", "   "])
def test_an_answer_is_read_back_wherever_its_numbers_start(dtype: type, padding: str) -> None:
    logits = LOGITS.astype(dtype)
    head, tensors = answer(("logits", logits), ("features", FEATURES), engine="cpu" + padding)
    reply = decode(head, tensors)
    np.testing.assert_array_equal(reply.logits, logits)
    np.testing.assert_array_equal(reply.features, FEATURES)
    assert (reply.logits.dtype, reply.features.dtype) == (dtype, np.float32)
    assert reply.logits.flags.aligned
    assert (reply.request_id, reply.teacher, reply.digest) == ("q", TeacherId("alpha", 1), "d" * 64)
    assert (reply.temperature, reply.engine) == (4.0, "cpu" + padding)
    assert reply.seconds == PhaseSeconds(0.25, 0.5, 0.125)


def test_an_answer_without_features_has_none() -> None:
    assert decode(*answer(("logits", LOGITS))).features is None


@pytest.mark.parametrize(
    ("outputs", "match"),
    [
        ([], "expected the outputs logits"),
        ([("features", FEATURES)], "expected the outputs logits"),
        ([("logits", LOGITS), ("secrets", FEATURES)], "expected the outputs logits"),
        ([("logits", LOGITS), ("logits", LOGITS)], "two outputs have one name"),
        ([("logits", LOGITS), ("features", FEATURES.astype(np.float16))], "features are FP32"),
        ([("logits", LOGITS.astype(np.float64))], r"outputs\.0\.datatype"),
        ([("logits", LOGITS[0])], r"outputs\.0\.shape"),
    ],
)
def test_other_outputs_than_were_asked_for_are_refused(outputs: list[Any], match: str) -> None:
    with pytest.raises(BadReply, match=match):
        decode(*answer(*outputs))


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher": "alpha"},
        {"teacher": "../alpha@1"},
        {"teacher": 1},
        {"digest": "d" * 63},
        {"digest": "D" * 64},
        {"temperature": "4"},
        {"temperature": float("nan")},
        {"engine": None},
        {"queue_s": -1.0},
    ],
)
def test_an_answer_that_says_nonsense_of_itself_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadReply):
        decode(*answer(("logits", LOGITS), **changes))


@pytest.mark.parametrize("shape", [[2, 6], [5, -2], [2**62, 2**62], [True, 10], [2.0, 5.0], "25", [10], []])
def test_shapes_that_do_not_fit_their_bytes_are_refused(shape: Any) -> None:
    head, tensors = answer(("logits", LOGITS))
    head["outputs"][0]["shape"] = shape
    with pytest.raises(BadReply):
        decode(head, tensors)


@pytest.mark.parametrize("length", [None, "", "0", "-1", "+5", "5.0", "ten", "٥", "9" * 30, "100000"])
def test_a_length_of_the_json_that_is_none_is_refused(length: str | None) -> None:
    head, tensors = answer(("logits", LOGITS))
    with pytest.raises(BadReply, match="Inference-Header-Content-Length"):
        decode_reply(length, json.dumps(head).encode() + tensors)


def test_every_truncation_and_every_surplus_is_refused() -> None:
    head, tensors = answer(("logits", LOGITS), ("features", FEATURES))
    text = json.dumps(head).encode()
    whole = text + tensors
    for length in range(len(whole)):
        with pytest.raises(BadReply):
            decode_reply(str(len(text)), whole[:length])
    with pytest.raises(BadReply, match="1 bytes follow the last output"):
        decode_reply(str(len(text)), whole + b"\0")


@pytest.mark.parametrize("text", [b"[]", b"null", b"{", b"\xff\xfe", b"[" * 60_000, b"<html>", b"{}"])
def test_json_that_is_no_answer_is_refused(text: bytes) -> None:
    with pytest.raises(BadReply):
        decode_reply(str(len(text)), text)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_answers_are_refused_or_have_the_shape_that_they_say(data: st.DataObject) -> None:
    head, tensors = answer(("logits", LOGITS))
    text = json.dumps(head).encode()
    body = bytearray(text + tensors)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        reply = decode_reply(str(len(text)), bytes(body))
    except BadReply:
        return
    assert reply.logits.tobytes() == bytes(body[len(text) :])
    assert reply.logits.ndim == 2
