"""Everything that `data` can refuse.

    DataError(ValueError)
    ├── StoreError            a store that is missing, damaged or of another kind than asked for
    │   ├── StoreMissing
    │   ├── StoreDamaged
    │   │   └── StoreUnreadable   the disk or the memory failed, not the files
    │   └── StoreMismatch     the store is sound, but not the one that the views were drawn from
    ├── VideoError            one video that cannot be used; carries the file and the reason
    ├── CatalogError          a data set's folder or its list files are not as its layout says
    └── ViewError             a view that cannot be drawn or rendered
        └── VideoTooShort

Messages say what was wrong and what to do. Every class pickles: raw arguments go to `super().__init__`,
the text is made in `__str__`.
"""

from __future__ import annotations

import errno


class DataError(ValueError):
    """Base of all errors of this package."""


class StoreError(DataError):
    """A clip store cannot be used. Arguments: path, what is wrong."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"clip store {self.path}: {self.reason}"


class StoreMissing(StoreError):
    """No store lies there."""


class StoreDamaged(StoreError):
    """Bytes on disk are not what the manifest promises."""


class StoreUnreadable(StoreDamaged):
    """The disk or the memory failed, not the files: another try may go well."""


class StoreMismatch(StoreError):
    """A sound store, but not the one that the views name."""


_PASSING = {errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT, errno.EAGAIN}


def may_pass(error: OSError) -> bool:
    """Whether the same reading may go well later: not for a file that is not there, or that nobody may read."""
    return error.errno in _PASSING


class VideoError(DataError):
    """One video file cannot be used. Arguments: file, reason."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(file, reason)
        self.file = file
        self.reason = reason

    def __str__(self) -> str:
        return f"video {self.file}: {self.reason}"


class CatalogError(DataError):
    """A data set's folder or list file is not as its layout says."""


class ViewError(DataError):
    """A view cannot be drawn, packed or rendered."""


class VideoTooShort(ViewError):
    """Arguments: video key, frames it has, frames that are needed."""

    def __init__(self, key: str, num_frames: int, needed: int) -> None:
        super().__init__(key, num_frames, needed)
        self.key = key
        self.num_frames = num_frames
        self.needed = needed

    def __str__(self) -> str:
        return (
            f"video {self.key} has {self.num_frames} frames, {self.needed} are needed: "
            "choose a smaller clip_len or interval, or leave the video out"
        )
