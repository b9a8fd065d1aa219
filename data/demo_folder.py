"""The folder of a built-in data set: drawn once, whole or not at all, and marked so that it is known again.

with new_set(out, marker, summary) as folder:      a partial folder beside `out`, locked
    if folder is not None: draw into it            None: `out` holds this very set already
                                                   leaving the block: demo.json, fsync, rename to `out`
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import tyro

from data.atomic import sync_file, sync_folder
from data.errors import CatalogError, DataError

MARKER = "demo.json"
Marker = Mapping[str, object]  # what tells one set from another, "size", "seed" and "version" among it


@contextmanager
def new_set(out: Path, marker: Marker, summary: str) -> Iterator[Path | None]:
    """The folder to draw into, which becomes `out` at the end of the block; None when `out` holds this set already.

    Says in a line what was done. Raises CatalogError if something else lies at `out`.
    """
    if _already_there(out, marker):
        print(f"{out} already holds this set: {summary}, seed {marker['seed']}")
        yield None
        return
    with _partial_folder(out) as partial:
        yield partial
        write_text(partial / MARKER, json.dumps(marker, indent=2) + "\n")
        for folder in (partial, *(path for path in partial.rglob("*") if path.is_dir())):
            sync_folder(folder)
        os.rename(partial, out)
        sync_folder(out.parent)
    print(f"{out}: {summary}, seed {marker['seed']}")


def write_text(path: Path, text: str) -> None:
    """Write a new file and force it to the disk."""
    path.write_text(text, "utf-8")
    sync_file(path)


def run_command(command: Callable[..., None], name: str) -> None:
    """The entry point of `python -m NAME`: a refusal is one sentence, Ctrl-C and SIGTERM keep nothing."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    try:
        tyro.cli(command, prog=f"python -m {name}")
    except (DataError, OSError) as error:
        raise SystemExit(f"{name}: {error}") from None
    except KeyboardInterrupt:
        print(f"{name}: stopped; nothing was kept", file=sys.stderr)
        raise SystemExit(130) from None


def _already_there(out: Path, marker: Marker) -> bool:
    """Whether `out` holds the set that is asked for. Raises CatalogError if it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / MARKER).read_text("utf-8"))
    except (OSError, ValueError):  # no folder, no marker, or no marker of ours
        found = None
    if found == marker:
        return True
    what = "something else than a demo set"
    if isinstance(found, dict) and "size" in found and "seed" in found:
        what = f"the demo set of size {found['size']}, seed {found['seed']}, version {found.get('version')}"
    raise CatalogError(
        f"{out} holds {what}, not the set of size {marker['size']}, seed {marker['seed']}, "
        f"version {marker['version']}: choose another folder or remove that one"
    )


@contextmanager
def _partial_folder(out: Path) -> Iterator[Path]:
    """An empty folder beside `out`, locked, and removed at the end if it still has this name.

    The lock ends with the process, so what a killed run left behind is found and cleared by the next one.
    """
    partial = out.with_name(f".{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(descriptor, out)
        _clear(partial)
        try:
            yield partial
        finally:
            if partial.exists():  # not renamed: this run failed or was stopped
                shutil.rmtree(partial)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CatalogError(f"another process is drawing {out}: wait for it or choose another folder") from error


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
