"""The roster's state on disk: read, change, write under a lock file, so that several processes may share it.

A change is durable (fsync, rename, fsync of the folder) before the call that makes it returns. Reading never writes and
takes no lock, because the file is replaced as a whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from data.atomic import write_atomic
from teacher_server.errors import LibraryError, TeacherUnavailable
from teacher_server.roster.state import RosterState, parse_state

LOCK_TIMEOUT_S = 10.0

_Result = TypeVar("_Result")


class RosterFile:
    """One JSON file. A missing one is an empty roster."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> RosterState:
        """What the file says now. Raises LibraryError when it is damaged; it is never replaced in silence."""
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return RosterState()
        except OSError as error:
            raise LibraryError(str(self.path), f"cannot be read: {error.strerror}") from None
        return parse_state(str(self.path), text)

    def change(self, change: Callable[[RosterState], tuple[RosterState, _Result]]) -> _Result:
        """Applies `change` under the lock; nothing is written when nothing changed or `change` raises.

        Raises TeacherUnavailable when the disk does not let it be written.
        """
        began = time.monotonic()
        with self._locked():
            before = self.read()
            after, result = change(before)
            if after != before:
                try:
                    write_atomic(self.path, after.to_bytes())
                except OSError as error:
                    raise _unavailable(self.path, began, error) from None
        return result

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the lock file. It is never deleted: two processes could then hold locks on two files of one name."""
        began = time.monotonic()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _unavailable(self.path, began, error) from None
        try:
            _lock_within(descriptor, LOCK_TIMEOUT_S, str(self.path))
            yield
        finally:
            os.close(descriptor)  # also unlocks


def _unavailable(path: Path, began: float, error: OSError) -> TeacherUnavailable:
    return TeacherUnavailable("roster", time.monotonic() - began, f"{path} cannot be written: {error.strerror}")


def _lock_within(descriptor: int, timeout_s: float, path: str) -> None:
    """flock has no timeout of its own, so it is tried without blocking."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TeacherUnavailable("roster", timeout_s, f"another process holds the lock of {path}") from None
        time.sleep(0.005)
