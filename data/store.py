"""The clip store: decoded videos on disk, mapped read-only by everyone on the machine.

    StoreWriter: add(video) ... commit(subsets)  ->  STORE/segments/*.arrow, then STORE/manifest-000001.json
    ClipStore:   open(path)  ->  videos, labels, subsets; gather(views) -> frames

A store is whole or absent: the manifest is published after everything else lies safely on disk, and nothing that a
manifest names changes afterwards. Each video's checksum is compared when a process touches it for the first time.

Axis letters: V videos, T frames, H, W.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import StoreDamaged, StoreError, StoreMismatch, StoreMissing, ViewError
from data.manifest import SEGMENTS_FOLDER, Content, Manifest, Skipped, read_manifest
from data.segments import Payload, Segment, SegmentDamaged, check_size, decode_jpegs
from data.store_writer import StoreWriter
from data.views import VideoTable, ViewBatch, key_hash

__all__ = ["ClipStore", "Skipped", "StoreWriter"]


class ClipStore:
    """A store opened for reading. Pickles by path: the copy opens the store again and must find the same one."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Use `ClipStore.open`. Raises StoreDamaged when a segment is absent or has another size."""
        content = manifest.content
        self.path = path
        self.fingerprint = manifest.fingerprint
        self.skipped: tuple[Skipped, ...] = manifest.skipped
        self.frame_size: tuple[int, int] = (content.frame_size[0], content.frame_size[1])
        self.classes: tuple[str, ...] = content.classes
        self.groups: tuple[str, ...] = content.group
        self.labels: NDArray[np.int64] = _read_only(np.array(content.label, dtype=np.int64))
        self.videos = _video_table(content, self.fingerprint)
        self._content = content
        self._segments: dict[int, Segment] = {}
        self._payloads: dict[int, Payload] = {}  # videos whose checksum was compared
        self._frames: dict[int, NDArray[np.uint8]] = {}  # of those, with codec raw, the mapped frames
        self._check_sizes()

    @classmethod
    def open(cls, path: Path | str) -> ClipStore:
        """Raises StoreMissing, or StoreDamaged when manifest or segments are not as they were written."""
        try:
            absolute = Path(path).expanduser().resolve()
        except (ValueError, RuntimeError) as error:  # a NUL in it, or the home of a user that is not known
            raise StoreMissing(repr(str(path)), f"this is no path: {error}") from None
        return cls(absolute, read_manifest(absolute))

    def __len__(self) -> int:
        return len(self._content.key)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return _reopen, (str(self.path), self.fingerprint)

    @property
    def codec(self) -> str:
        """How frames are stored: raw or jpeg."""
        return self._content.codec

    @property
    def num_bytes(self) -> int:
        """Size of all segments."""
        return sum(entry.num_bytes for entry in self._content.segments)

    @property
    def subsets(self) -> tuple[str, ...]:
        """Names that `subset` takes, such as train01 and test01."""
        return tuple(self._content.subsets)

    def subset(self, name: str) -> NDArray[np.int64]:
        """Rows of a subset, in the order of its list file. Raises StoreError for a name that is not known."""
        if name not in self._content.subsets:
            known = ", ".join(self.subsets) or "none"
            raise StoreError(str(self.path), f"there is no subset {name!r}; known are: {known}")
        return np.array(self._content.subsets[name], dtype=np.int64)

    def gather(self, batch: ViewBatch) -> list[NDArray[np.uint8]]:
        """The frames [T, H, W, 3] of every view, in order: views of the mapped file for raw, decoded for jpeg.

        Raises StoreMismatch for views of another store, ViewError for frames that a video does not have,
        StoreDamaged.
        """
        rows, starts, stops = self._checked_ranges(batch)
        if self.codec == "raw":
            return [self._mapped(row)[a:b] for row, a, b in zip(rows, starts, stops, strict=True)]
        return [self._decoded(row, a, b) for row, a, b in zip(rows, starts, stops, strict=True)]

    def verify(self) -> list[str]:
        """Read every video again and compare its checksum; a sentence for each that is damaged."""
        problems = []
        for row, key in enumerate(self._content.key):
            try:
                self._read(row)
            except StoreDamaged as error:
                problems.append(f"{key}: {error.reason}")
        return problems

    def _checked_ranges(self, batch: ViewBatch) -> tuple[list[int], list[int], list[int]]:
        """Row, first frame and end of each view."""
        if batch.store_fingerprint != self.fingerprint:
            raise StoreMismatch(
                str(self.path), f"the views were drawn from store {batch.store_fingerprint}, this is {self.fingerprint}"
            )
        rows = batch.records["video"].astype(np.int64)
        starts = batch.records["start"].astype(np.int64)
        stops = starts + batch.records["clip_len"]
        if rows.size and rows.max() >= len(self):
            raise ViewError(f"a view names video {rows.max()}, the store has {len(self)}")
        outside = np.flatnonzero(stops > self.videos.num_frames[rows])
        if outside.size:
            i = outside[0]
            raise ViewError(
                f"a view wants frames {starts[i]} to {stops[i] - 1} of video {self.videos.keys[rows[i]]}, "
                f"which has {self.videos.num_frames[rows[i]]}"
            )
        return rows.tolist(), starts.tolist(), stops.tolist()

    def _mapped(self, row: int) -> NDArray[np.uint8]:
        frames = self._frames.get(row)
        if frames is None:
            frames = self._verified(row).data.reshape(-1, *self.frame_size, 3)
            self._frames[row] = frames
        return frames

    def _decoded(self, row: int, start: int, stop: int) -> NDArray[np.uint8]:
        try:
            return decode_jpegs(self._verified(row), start, stop, self.frame_size)
        except SegmentDamaged as error:
            raise self._damaged(error) from error

    def _verified(self, row: int) -> Payload:
        payload = self._payloads.get(row)
        if payload is None:
            payload = self._payloads[row] = self._read(row)
        return payload

    def _read(self, row: int) -> Payload:
        content = self._content
        number = content.segment[row]
        try:
            if number not in self._segments:
                entry = content.segments[number]
                file = self.path / SEGMENTS_FOLDER / entry.name
                self._segments[number] = Segment(file, entry.num_bytes, content.codec, self.frame_size)
            return self._segments[number].payload(content.batch[row], content.num_frames[row], content.checksum[row])
        except SegmentDamaged as error:
            raise self._damaged(error) from error

    def _check_sizes(self) -> None:
        for entry in self._content.segments:
            try:
                check_size(self.path / SEGMENTS_FOLDER / entry.name, entry.num_bytes)
            except SegmentDamaged as error:
                raise self._damaged(error) from error

    def _damaged(self, error: SegmentDamaged) -> StoreDamaged:
        return StoreDamaged(str(self.path), f"{error}; restore it from a copy, or ingest the videos again")


def _reopen(path: str, fingerprint: str) -> ClipStore:
    """What unpickling calls."""
    store = ClipStore.open(path)
    if store.fingerprint != fingerprint:
        raise StoreMismatch(path, f"store {fingerprint} was expected here, this is {store.fingerprint}")
    return store


def _video_table(content: Content, fingerprint: str) -> VideoTable:
    return VideoTable(
        fingerprint=fingerprint,
        keys=content.key,
        key_hashes=_read_only(np.array([key_hash(key) for key in content.key], dtype=np.uint64)),
        content_hashes=_read_only(np.array([int(value, 16) for value in content.checksum], dtype=np.uint64)),
        num_frames=_read_only(np.array(content.num_frames, dtype=np.int64)),
        frame_size=(content.frame_size[0], content.frame_size[1]),
    )


def _read_only(array: NDArray) -> NDArray:
    array.flags.writeable = False
    return array
