"""Writing a clip store: all of it appears at once, with the manifest, or none of it.

with StoreWriter(path, frame_size=(64, 86), codec="raw", classes=("Bow", "Wave")) as writer:
    writer.add("Bow/v_Bow_g01_c01", label=0, group="g01", frames=frames)
    writer.commit({"train01": ["Bow/v_Bow_g01_c01"]})
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from data.atomic import TEMPORARY_SUFFIX, publish_new, sync_folder
from data.errors import StoreError
from data.manifest import (
    SEGMENT_NAME,
    SEGMENTS_FOLDER,
    Content,
    Manifest,
    SegmentEntry,
    Skipped,
    latest_generation,
    manifest_path,
)
from data.segments import CODECS, Payload, SegmentWriter, encode

SEGMENT_BYTES = 256 * 1024 * 1024
_LOCK_NAME = ".write-lock"
_FIRST_GENERATION = 1


class StoreWriter:
    """Writes a new store; one writer at a time. Leaving the `with` block before `commit` removes what was written.

    The same videos in the same order make the same bytes and the same fingerprint.
    """

    def __init__(
        self,
        path: Path | str,
        frame_size: tuple[int, int],
        codec: str = "raw",
        classes: Sequence[str] = (),
        *,
        resize: str = "none",
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """frame_size: height and width of all frames, pixels. resize: how they were brought to it, for the record.

        Raises StoreError when a store lies there already or another process is writing one.
        """
        if codec not in CODECS:
            raise StoreError(str(path), f"codec must be one of {', '.join(CODECS)}, got {codec!r}")
        self.path = Path(path).expanduser().resolve()
        self._folder = self.path / SEGMENTS_FOLDER
        self._frame_size = frame_size
        self._codec = codec
        self._classes = tuple(classes)
        self._resize = resize
        self._segment_bytes = segment_bytes
        self._segment: SegmentWriter | None = None
        self._segments: list[SegmentEntry] = []
        self._rows: dict[str, int] = {}
        self._videos: list[tuple[str, int, str, int, int, int, str]] = []  # the columns of Content from key on
        self._lock: int | None = self._claim()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()

    def add(self, key: str, label: int, group: str, frames: NDArray[np.uint8]) -> None:
        """Append a video: frames [T, H, W, 3] uint8 RGB. Raises StoreError for a wrong size, label or a second key."""
        if frames.shape[1:] != (*self._frame_size, 3):
            raise StoreError(str(self.path), f"video {key} has frames {frames.shape[1:]}, not {(*self._frame_size, 3)}")
        try:
            payload = encode(frames, self._codec)
        except ValueError as error:
            raise StoreError(str(self.path), f"video {key}: {error}") from error
        self.add_payload(key, label, group, payload)

    def add_payload(self, key: str, label: int, group: str, payload: Payload) -> None:
        """Append a video that `data.segments.encode` has already encoded with this store's codec."""
        if self._lock is None:
            raise StoreError(str(self.path), "this writer has ended, make a new one")
        if key in self._rows:
            raise StoreError(str(self.path), f"video {key} was added twice")
        if not 0 <= label < len(self._classes):
            raise StoreError(str(self.path), f"video {key} has label {label}, there are {len(self._classes)} classes")
        self._check_payload(key, payload)
        if self._segment and self._segment.num_bytes + payload.data.nbytes > self._segment_bytes:
            self._finish_segment()
        if self._segment is None:
            self._segment = SegmentWriter(self._folder, self._codec, self._frame_size)
        place = (len(self._segments), self._segment.num_videos)
        self._segment.add(payload)
        self._rows[key] = len(self._rows)
        self._videos.append((key, label, group, payload.num_frames, *place, payload.checksum))

    def commit(self, subsets: Mapping[str, Iterable[str]], skipped: Iterable[Skipped] = ()) -> str:
        """Publish the store and return its fingerprint. subsets: name -> keys; keys that were not added are left out.

        Raises StoreError when nothing was added or another writer published first.
        """
        if self._lock is None or not self._videos:
            raise StoreError(str(self.path), "no video was added, there is nothing to commit")
        self._finish_segment()
        sync_folder(self._folder)
        sync_folder(self.path.parent)
        manifest = Manifest(self._content(subsets), tuple(Skipped(*entry) for entry in skipped), _FIRST_GENERATION)
        if not publish_new(manifest_path(self.path, _FIRST_GENERATION), manifest.to_bytes()):
            raise StoreError(str(self.path), "another writer has published a store here")
        self._release()
        return manifest.fingerprint

    def abandon(self) -> None:
        """Remove what was written; after `commit` this does nothing."""
        if self._lock is None:
            return
        if self._segment is not None:
            self._segment.abandon()
            self._segment = None
        if not latest_generation(self.path):
            self._clear()
        self._release()

    def _content(self, subsets: Mapping[str, Iterable[str]]) -> Content:
        return Content(
            self._codec,
            self._frame_size,
            self._resize,
            self._classes,
            {name: tuple(self._rows[key] for key in keys if key in self._rows) for name, keys in subsets.items()},
            tuple(self._segments),
            *zip(*self._videos, strict=True),
        )

    def _check_payload(self, key: str, payload: Payload) -> None:
        """Arrow takes buffers on trust: a wrong size here would make a store that cannot be read."""
        if self._codec == "raw":
            height, width = self._frame_size
            sound = payload.offsets is None and payload.data.nbytes == payload.num_frames * height * width * 3
        else:
            sound = payload.offsets is not None and len(payload.offsets) == payload.num_frames + 1
        if not sound or payload.num_frames < 1:
            raise StoreError(str(self.path), f"video {key} does not hold {self._codec} frames of {self._frame_size}")

    def _finish_segment(self) -> None:
        if self._segment is None:
            return
        file = self._segment.finish()
        self._segments.append(SegmentEntry(file.name, file.stat().st_size))
        self._segment = None

    def _claim(self) -> int:
        """Make the folder, take its lock, refuse an existing store and clear what an interrupted writer left."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise StoreError(str(self.path), "a file lies in the way: name a folder that is new or empty") from error
        lock = os.open(self.path / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if latest_generation(self.path):
                raise StoreError(str(self.path), "a store lies here already: name another folder or remove this one")
            self._clear()
        except BlockingIOError as error:
            os.close(lock)
            raise StoreError(str(self.path), "another process is writing here: wait for it or end it") from error
        except BaseException:
            os.close(lock)
            raise
        return lock

    def _clear(self) -> None:
        """Remove segments that no manifest names. Only called with the lock held and nothing published."""
        for file in self._folder.iterdir():
            if SEGMENT_NAME.fullmatch(file.name) or file.name.endswith(TEMPORARY_SUFFIX):
                file.unlink()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
