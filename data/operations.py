"""A pretext operation of the user's own, in the place of the fifth (label 4, temporal shuffle).

    def reverse(clip):                       uint8 [T, H, W, 3], the middle clip of a tuple as the four others see it
        return clip[::-1]                    the same shape and type

It must be a pure function: teacher and student call it each on its own, and their pixels must be the same. A batch of
views carries its name (ViewBatch.operation), so digests of its items are its own. Whoever renders such views needs the
function: a process whose user typed the name loads it with `load_operation`; any other process, a teacher's above all,
loads it when it first meets the name, and only if data.plugins allows it there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
from numpy.typing import NDArray

from data.errors import ViewError
from data.plugins import PluginError, resolve

Operation = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]

_loaded: dict[str, Operation] = {}  # by name, for the life of the process


def load_operation(name: str, *, trusted: bool) -> Operation:
    """The function that a name means; once loaded it stays. trusted: whether the user of this process typed the name.

    Raises ViewError when there is none, it is not allowed here, or it is no function.
    """
    if name not in _loaded:
        try:
            operation = resolve("pretext", name, trusted=trusted)
        except PluginError as error:
            raise ViewError(str(error)) from error
        if not callable(operation):
            raise ViewError(f"pretext operation {name} must be a function, it is a {type(operation).__name__}")
        _loaded[name] = cast(Operation, operation)
    return _loaded[name]


def apply_operation(name: str, clip_THW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What the operation makes of a clip. Raises ViewError when it fails or returns another shape or type."""
    operation = load_operation(name, trusted=False)
    try:
        result = np.asarray(operation(clip_THW3.copy()))
    except Exception as error:  # it is foreign code: whatever it raises becomes one sentence, and the cause is kept
        raise ViewError(f"pretext operation {name} failed with {type(error).__name__}: {error}") from error
    if result.dtype != np.uint8 or result.shape != clip_THW3.shape:
        raise ViewError(
            f"pretext operation {name} must return uint8 {list(clip_THW3.shape)}, it returned {result.dtype} "
            f"{list(result.shape)}"
        )
    return result
