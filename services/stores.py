"""The clip stores that callers may name: folders and links in one folder, never a path."""

from __future__ import annotations

import re
from pathlib import Path

from data.errors import StoreError, StoreMissing

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


class Stores:
    """An operator may link a store in from elsewhere; a caller cannot leave the folder by any name."""

    def __init__(self, root: Path) -> None:
        self._root = Path(root).absolute()

    def path(self, name: str) -> Path:
        """The folder of a store. Raises StoreMissing, which names it and what a name looks like."""
        if not _NAME.fullmatch(name):
            raise StoreMissing(repr(name), "this is no store's name: expected letters, digits, ., _ and -, no path")
        path = self._root / name
        if not path.is_dir():
            raise StoreMissing(name, "the gateway has no store of this name")
        return path


def without_path(error: StoreError, name: str) -> StoreError:
    """The same error with the store's name for its path, which is no caller's business."""
    return type(error)(name, error.reason.replace(error.path, name))
