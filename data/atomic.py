"""Writing a file so that it is whole or absent: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"


def temporary_beside(path: Path) -> Path:
    """A name in the same folder (a rename must not cross file systems) that no other writer uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`, replacing what was there: after a crash the old file or the new one is found, whole.

    Raises OSError: then `path` is as it was before, unless the folder alone could not be synced, and the new content
    is there but may not outlive a crash.
    """
    temporary = temporary_beside(path)
    try:
        _write_synced(temporary, data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def publish_new(path: Path, data: bytes) -> bool:
    """Write `data` to `path` only if nothing lies there. Of several writers exactly one gets True.

    A hard link, unlike a rename, fails when the name exists.
    """
    temporary = temporary_beside(path)
    try:
        _write_synced(temporary, data)
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def sync_file(path: Path) -> None:
    """Force what was written to `path` to the disk."""
    _sync(path, os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Force the names in a folder to the disk: a rename or a new file is durable only after this."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
