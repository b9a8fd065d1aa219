"""Errors survive the way through JSON; what is not known becomes the base class with the sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import errors as data_errors
from data.errors import StoreMismatch, VideoTooShort, ViewError
from teacher_server import errors as teacher_errors
from teacher_server.errors import (
    AliasMoved,
    BadQuery,
    GateRefused,
    LibraryError,
    NoReplyYet,
    OverBudget,
    TeacherError,
    TeacherInUse,
    TeacherNotResident,
    TeacherOverloaded,
    TeacherUnavailable,
    UnknownTeacher,
)
from teacher_server.wire_errors import from_json, to_json

ERRORS: list[Exception] = [
    BadQuery("alpha@1 takes 8x8 pixels, got 9x9"),
    AliasMoved("alpha", 1, None),
    GateRefused("alpha@2", ("it agrees on 50.0%", "it is slow")),
    LibraryError("/x/card.json", "damaged"),
    OverBudget("alpha@2", 1, 2, 3),
    TeacherInUse("alpha@1", ("alias alpha", "run r")),
    TeacherNotResident("alpha@1"),
    TeacherOverloaded(10, 3, 12),
    TeacherUnavailable("alpha@1", 30.0, "no reply"),
    NoReplyYet("alpha@1", 30.0, "no reply yet"),
    UnknownTeacher("nobody", ("alpha", "beta")),
    UnknownTeacher("nobody", ()),
    StoreMismatch("demo", "another one"),
    VideoTooShort("a/b", 5, 16),
    ViewError("no view"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_comes_back_as_itself(error: Exception) -> None:
    said = json.loads(json.dumps(to_json(error), allow_nan=False))
    back = from_json(said["code"], said["args"], said["error"])
    assert type(back) is type(error)
    assert back.args == error.args
    assert str(back) == str(error) == said["error"]


@pytest.mark.parametrize(
    ("code", "args"),
    [
        ("NoSuchError", ["x"]),
        ("SystemExit", [0]),
        ("AliasMoved", []),
        ("AliasMoved", ["alpha"]),
        ("TeacherUnavailable", ["alpha@1", "long", "no reply"]),
        ("UnknownTeacher", ["alpha", 5]),
        ("OverBudget", ["alpha", {}, [], None]),
        ("__builtins__", ["x"]),
        ("annotations", ["x"]),
    ],
)
def test_what_is_not_known_or_does_not_fit_is_the_base_class_with_the_sentence(code: str, args: list[Any]) -> None:
    error = from_json(code, args, "the sentence")
    assert type(error) is TeacherError
    assert str(error) == "the sentence"


def test_numbers_that_json_lacks_are_sent_as_text() -> None:
    assert to_json(TeacherUnavailable("a", float("inf"), "x"))["args"] == ["a", "inf", "x"]


_NAMES = sorted({*vars(teacher_errors), *vars(data_errors)})
_ARGS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(_NAMES), st.lists(_ARGS, max_size=5))
def test_any_message_is_some_error_of_ours_with_a_text(code: str, args: list[Any]) -> None:
    error = from_json(code, args, "the sentence")
    assert isinstance(error, teacher_errors.TeacherError | data_errors.DataError)
    assert isinstance(str(error), str)
