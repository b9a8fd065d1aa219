"""Names, queries, replies, and that all errors travel between processes."""

from __future__ import annotations

import pickle
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from data.store import ClipStore
from teacher_server.errors import (
    BadQuery,
    BadReply,
    LibraryError,
    NoCapacity,
    TeacherError,
    TeacherMismatch,
    TeacherNotResident,
    TeacherOverloaded,
    TeacherUnavailable,
    UnknownTeacher,
)
from teacher_server.protocol import TeacherId, TeacherQuery, TeacherRef, new_request_id

PIXELS = np.zeros((3, 8, 32, 32, 3), np.uint8)


def query(**changes: Any) -> TeacherQuery:
    values = {"request_id": "q", "teacher": TeacherId("alpha", 1), "temperature": 4.0, "views_per_item": 3}
    return TeacherQuery(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "ref"),
    [("r3d", TeacherRef("r3d")), ("r2plus1d@3", TeacherRef("r2plus1d", 3)), ("a_b-c@12", TeacherRef("a_b-c", 12))],
)
def test_references_are_read_and_written_the_same(text: str, ref: TeacherRef) -> None:
    assert TeacherRef.parse(text) == ref
    assert str(ref) == text


@pytest.mark.parametrize("text", ["", "R3D", "a/b", "../a", "a@", "a@0", "a@01", "a@x", "a@1@2", "a b", "-a", "a" * 65])
def test_names_that_could_leave_the_library_or_are_ambiguous_are_refused(text: str) -> None:
    with pytest.raises(BadQuery, match="is no teacher name"):
        TeacherRef.parse(text)


def test_a_teacher_id_needs_a_version() -> None:
    assert TeacherId.parse("r3d@2") == TeacherId("r3d", 2)
    with pytest.raises(BadQuery, match="names no version"):
        TeacherId.parse("r3d")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({}, "neither"),
        ({"pixels": PIXELS, "run": "r" * 201}, "at most 200 characters, got 201"),
        ({"pixels": PIXELS, "weight": 0.0}, "weight"),
        ({"pixels": PIXELS, "dtype": "float64"}, "float32 or float16"),
        ({"views": b"x"}, "names the store"),
        ({"pixels": PIXELS, "temperature": 0.0}, "temperature"),
        ({"pixels": PIXELS, "temperature": float("nan")}, "temperature"),
        ({"pixels": PIXELS, "temperature": float("inf")}, "temperature"),
        ({"pixels": PIXELS, "temperature": 0.0099}, "temperature must be a number from 0.01 to 1000, got 0.0099"),
        ({"pixels": PIXELS, "temperature": 1000.1}, "temperature"),
        ({"pixels": PIXELS, "timeout_s": 0.0}, "timeout_s must be > 0 and at most 600, got 0.0"),
        ({"pixels": PIXELS, "timeout_s": float("nan")}, "timeout_s"),
        ({"pixels": PIXELS, "timeout_s": 600.5}, "timeout_s"),
        ({"pixels": PIXELS, "views_per_item": 0}, "views_per_item"),
        ({"pixels": PIXELS.astype(np.float32)}, "float32"),
        ({"pixels": PIXELS[0]}, "uint8 .clips"),
        ({"pixels": PIXELS[..., :2]}, "uint8 .clips"),
        ({"pixels": PIXELS[:2]}, "whole items of 3"),
        ({"pixels": PIXELS[:0]}, "whole items of 3"),
    ],
)
def test_a_query_that_makes_no_sense_cannot_be_made(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(BadQuery, match=match):
        query(**changes)


def test_clips_are_counted_alike_in_views_and_pixels(tiny: ModuleType, store: ClipStore) -> None:
    assert query(pixels=PIXELS).num_clips == 3
    assert tiny.views_query(store, tiny.draw(store, 4)).num_clips == 12


def test_views_travel_as_bytes_and_come_back_as_the_same_batch(tiny: ModuleType, store: ClipStore) -> None:
    batch = tiny.draw(store, 4)
    copy = pickle.loads(pickle.dumps(tiny.views_query(store, batch))).view_batch()
    np.testing.assert_array_equal(copy.records, batch.records)
    assert (copy.views_per_item, copy.store_fingerprint) == (3, store.fingerprint)


def test_a_question_takes_at_most_128_bytes_a_clip_on_the_wire(tiny: ModuleType, store: ClipStore) -> None:
    asked = tiny.views_query(store, tiny.draw(store, 16), run="a-run-with-a-name")
    assert len(pickle.dumps(asked, protocol=5)) <= 128 * asked.num_clips


def test_request_ids_differ() -> None:
    assert len({new_request_id() for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "error",
    [
        TeacherNotResident("alpha@1"),
        TeacherOverloaded(5, 3, 7),
        TeacherUnavailable("alpha@1", 1.5, "it died"),
        UnknownTeacher("x", ("alpha",)),
        TeacherMismatch("alpha@1", ("a", "b")),
        NoCapacity("no room"),
        LibraryError("/l", "damaged"),
        BadQuery("no"),
        BadReply("no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickling_with_type_arguments_and_text(error: TeacherError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert copy.args == error.args
    assert str(copy) == str(error)
