"""Reading files that nobody vouches for: bounded, regular ones only, and hashed without being held in memory."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from teacher_server.errors import LibraryError, LibraryUnreadable


def read_file(path: Path, max_bytes: int) -> bytes:
    """A file's bytes. Raises LibraryError when it is no regular file, cannot be read, or is larger than max_bytes."""
    with _opened(path, max_bytes) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:  # it grew
        raise LibraryError(str(path), f"has more than the {max_bytes} bytes that are allowed")
    return content


def hash_file(path: Path, max_bytes: int) -> str:
    """The sha256 of a file, 64 hex digits. Raises LibraryError as `read_file`."""
    with _opened(path, max_bytes) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _opened(path: Path, max_bytes: int) -> Iterator[BufferedReader]:
    """Opened without waiting (a pipe would wait for its writer) and without following a link in the last place."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise LibraryError(str(path), "cannot be read: it is a symbolic link") from None
        raise LibraryUnreadable(str(path), f"cannot be read: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise LibraryError(str(path), "is no regular file")
        if status.st_size > max_bytes:
            raise LibraryError(str(path), f"has {status.st_size} bytes, at most {max_bytes} are allowed")
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    except OSError as error:
        raise LibraryUnreadable(str(path), f"cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
