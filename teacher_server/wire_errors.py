"""Errors as JSON and back, so that a client over HTTP raises what the service raised.

    {"error": the sentence, "code": the class's name, "args": the raw arguments}

Only the classes of teacher_server.errors and data.errors come back as themselves, by name; nothing that a message
names is imported. Any other code becomes a TeacherError with the sentence. Needs neither Ray nor torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from data import errors as data_errors
from data.errors import DataError
from teacher_server import errors as teacher_errors
from teacher_server.errors import TeacherError


def to_json(error: Exception) -> dict[str, Any]:
    """A dictionary that json.dumps takes, also with allow_nan=False."""
    return {"error": str(error), "code": type(error).__name__, "args": [_to_plain(arg) for arg in error.args]}


def from_json(code: str, args: Sequence[Any], sentence: str) -> TeacherError | DataError:
    """The error that `to_json` was given; TeacherError(sentence) when the class or its arguments are not known here."""
    kind = _KINDS.get(code)
    if kind is None:
        return TeacherError(sentence)
    try:
        error = kind(*(_from_plain(arg) for arg in args))
        str(error)  # some make their text of the arguments, which may be of the wrong number or type
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError):
        return TeacherError(sentence)
    return error


def _classes(module: ModuleType, base: type[Exception]) -> dict[str, type[Any]]:
    return {name: kind for name, kind in vars(module).items() if isinstance(kind, type) and issubclass(kind, base)}


_KINDS = _classes(teacher_errors, TeacherError) | _classes(data_errors, DataError)


def _to_plain(value: object) -> Any:
    """Tuples become lists; what JSON has no form for becomes text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    return str(value)


def _from_plain(value: Any) -> Any:
    """Lists become tuples, which is what the classes take."""
    return tuple(_from_plain(item) for item in value) if isinstance(value, list) else value
