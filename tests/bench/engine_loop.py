"""The bare engine in a process of its own: a loop of forward passes, on request, on one core.

with EngineLoop(library_root, teacher, shape) as loop:      child process, ready when the constructor returns
    loop.start(passes)                                      without waiting
    seconds = loop.wait()                                   of all these passes
"""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from bench_tools import pin_process

from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId


class EngineLoop:
    """Passes of `clips` rendered clips each; with one compute thread, all of the process on one core."""

    def __init__(self, library_root: Path, teacher: TeacherId, shape: tuple[int, ...], core: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(child, library_root, teacher, shape, core), daemon=True)
        self._process.start()
        self._connection.recv()

    def __enter__(self) -> EngineLoop:
        return self

    def __exit__(self, *exc: object) -> None:
        self._connection.send(0)
        self._process.join(timeout=10)

    @property
    def pid(self) -> int:
        """The child's process id."""
        assert self._process.pid is not None
        return self._process.pid

    def start(self, passes: int) -> None:
        """Begins so many passes."""
        self._connection.send(passes)

    def wait(self) -> float:
        """Seconds that the passes took, once they are done."""
        return self._connection.recv()


def _serve(connection: Connection, library_root: Path, teacher: TeacherId, shape: tuple[int, ...], core: int) -> None:
    from teacher_server.engine.teacher import FrozenTeacher

    frozen = FrozenTeacher.load(TeacherLibrary(library_root).entry(teacher))
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    frozen.answer(pixels)
    pin_process(core)
    connection.send("ready")
    while passes := connection.recv():
        began = time.perf_counter()
        for _ in range(passes):
            frozen.answer(pixels)
        connection.send(time.perf_counter() - began)
