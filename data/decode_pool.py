"""Decoding in child processes with a time limit for each file.

A decoder may hang or crash on a hostile file. A child that does so is replaced, and only its file is lost.

    DecodePool.map(tasks)   a bounded number of tasks ahead  ->  results in the order of the tasks
        child 1  <- task, -> result                              (a Failure where there is none)
        child 2  ...
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Generic, TypeVar

from data.errors import DataError, VideoError

_STARTUP_LIMIT_S = 120.0
_JOIN_LIMIT_S = 5.0
_TASKS_AHEAD = 8  # per child: results held while an earlier task still runs; bounds the memory

R = TypeVar("R")


@dataclass(frozen=True)
class Failure:
    """What stands in a result's place."""

    reason: str


class DecodePool(Generic[R]):
    """Calls `function(*task)` in child processes. VideoError, a crash and a passed time limit become a Failure.

    The function must be importable, as must its arguments and results be picklable. Children end with the `with`
    block, and by themselves when the parent dies; they ignore Ctrl-C, which the parent alone handles.
    """

    def __init__(self, function: Callable[..., R], num_workers: int, timeout_s: float) -> None:
        if num_workers < 1 or timeout_s <= 0:
            raise DataError(
                f"workers must be at least 1 and the time limit positive, got {num_workers} and {timeout_s}"
            )
        self._function = function
        self._timeout_s = timeout_s
        self._window = _TASKS_AHEAD * num_workers
        self._children: list[_Child] = []
        self._num_workers = num_workers

    def __enter__(self) -> DecodePool[R]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            child.end()
        self._children.clear()

    def map(self, tasks: Sequence[tuple[Any, ...]]) -> Iterator[R | Failure]:
        """One result per task, in order. Raises DataError when children do not start."""
        for _ in range(min(self._num_workers, len(tasks)) - len(self._children)):
            self._children.append(_Child(self._function))
        done: dict[int, R | Failure] = {}
        upcoming = 0
        for wanted in range(len(tasks)):
            while wanted not in done:
                for child in self._children:
                    if child.idle and upcoming < min(len(tasks), wanted + self._window):
                        child.assign(upcoming, tasks[upcoming], self._timeout_s)
                        upcoming += 1
                done.update(self._collect())
            yield done.pop(wanted)

    def _collect(self) -> dict[int, R | Failure]:
        """Wait until a child answers, dies or passes its limit; {task number: result} of those that ended."""
        busy = [child for child in self._children if not child.idle]
        first_limit = min(child.deadline for child in busy)
        answered = wait([child.connection for child in busy], timeout=max(0.0, first_limit - time.monotonic()))
        ended: dict[int, R | Failure] = {}
        for child in busy:
            if child.connection in answered:
                outcome = child.receive()
            elif time.monotonic() >= child.deadline:
                outcome = _Died(f"it took longer than {self._timeout_s:g} s to decode")
            else:
                continue
            if isinstance(outcome, _Died):
                self._replace(child, outcome)
            if child.task is not None:
                ended[child.task] = Failure(outcome.reason) if isinstance(outcome, _Died) else outcome
            child.task = None
        return ended

    def _replace(self, child: _Child, outcome: _Died) -> None:
        child.end()
        if child.task is None:
            raise DataError(
                f"a decoding process did not start ({outcome.reason}); "
                "a script that ingests must do so under `if __name__ == '__main__':`"
            )
        self._children[self._children.index(child)] = _Child(self._function)


@dataclass(frozen=True)
class _Died:
    reason: str


class _Child:
    """One child process. It is idle once it has said that it is ready and while it has no task."""

    def __init__(self, function: Callable[..., Any]) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, function), daemon=True, name="decode")
        with _interrupts_blocked():
            self._process.start()
        theirs.close()  # so that the child's death closes the connection
        self.task: int | None = None
        self.ready = False
        self.deadline = time.monotonic() + _STARTUP_LIMIT_S

    @property
    def idle(self) -> bool:
        return self.ready and self.task is None

    def assign(self, number: int, task: tuple[Any, ...], timeout_s: float) -> None:
        self.task = number
        self.deadline = time.monotonic() + timeout_s
        with contextlib.suppress(BrokenPipeError):  # it died while idle: `receive` will find that out
            self.connection.send(task)

    def receive(self) -> Any:
        """The result, None for the message that it is ready, _Died when it has ended."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            return _Died(self._ending())
        self.ready = True
        return message

    def _ending(self) -> str:
        self._process.join(_JOIN_LIMIT_S)
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"the decoder crashed ({signal.Signals(-code).name})"
        return f"the decoder ended with code {code}"

    def end(self) -> None:
        self._process.kill()
        self._process.join(_JOIN_LIMIT_S)
        self.connection.close()


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A child inherits the mask, so Ctrl-C cannot reach it before it ignores the signal."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, function: Callable[..., Any]) -> None:
    """The child's life: a task, a result, until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send(None)
        while True:
            task = connection.recv()
            try:
                result = function(*task)
            except VideoError as error:
                result = Failure(error.reason)
            connection.send(result)


def _end_with_parent() -> None:
    """A parent that was killed cannot end its children, and one that decodes does not see the connection close."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
