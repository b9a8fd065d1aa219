"""Segments: immutable Arrow IPC files that hold the frames of many videos.

A segment is an uncompressed Arrow IPC file with one record batch per video and one column `frame`, a row per frame:

    codec raw    fixed_size_binary(H*W*3)   the pixels themselves; read without a copy from the mapped file
    codec jpeg   binary                     a JPEG (quality 95, 4:4:4) per frame

Arrow checks structure, not content, so each video carries a checksum over its stored bytes, which the manifest keeps.
Files are written under a temporary name, fsynced, renamed to the hash of their bytes, and never changed afterwards.
Shrinking a mapped file in place kills its readers (SIGBUS): no reader can guard against that.

Axis letters: T frames, H, W.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import simplejpeg
import xxhash
from numpy.typing import NDArray

from data.atomic import sync_file, temporary_beside

CODECS = ("raw", "jpeg")
JPEG_QUALITY = 95
_COLUMN = "frame"


class SegmentDamaged(ValueError):
    """A segment's bytes are not what was written. The store turns it into StoreDamaged, which names the store."""


@dataclass(frozen=True)
class Payload:
    """One video as it is stored.

    data: uint8 [bytes], the frames one after the other. offsets: int32 [T + 1], where each JPEG begins in `data`;
    None for raw frames, which all have the same size. checksum: xxh3_64 over offsets and data, 16 hex digits.
    """

    num_frames: int
    data: NDArray[np.uint8]
    offsets: NDArray[np.int32] | None
    checksum: str


def encode(frames: NDArray[np.uint8], codec: str) -> Payload:
    """Frames [T, H, W, 3] in RGB as they will be stored. Raises ValueError for anything else."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise ValueError(f"frames must be uint8 [T, H, W, 3] with T > 0, got {frames.dtype} {frames.shape}")
    frames = np.ascontiguousarray(frames)
    if codec == "raw":
        data = frames.reshape(-1)
        return Payload(len(frames), data, None, checksum(data, None))
    if codec != "jpeg":
        raise ValueError(f"codec must be one of {', '.join(CODECS)}, got {codec!r}")
    images = [simplejpeg.encode_jpeg(frame, JPEG_QUALITY, "RGB", "444") for frame in frames]
    offsets = np.cumsum([0, *map(len, images)], dtype=np.int32)
    data = np.frombuffer(b"".join(images), dtype=np.uint8)
    return Payload(len(frames), data, offsets, checksum(data, offsets))


def checksum(data: NDArray[np.uint8], offsets: NDArray[np.int32] | None) -> str:
    """xxh3_64 of a video's stored bytes, 16 hex digits."""
    digest = xxhash.xxh3_64()
    if offsets is not None:
        digest.update(offsets.data)
    digest.update(data.data)
    return digest.hexdigest()


def decode_jpegs(payload: Payload, start: int, stop: int, frame_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Frames start to stop (not included) of a jpeg payload, [T, H, W, 3] RGB. Raises SegmentDamaged."""
    if payload.offsets is None:
        raise ValueError("this payload holds raw frames, there is nothing to decode")
    frames = np.empty((stop - start, *frame_size, 3), dtype=np.uint8)
    bounds = payload.offsets[start : stop + 1].tolist()
    for i, frame in enumerate(frames):
        try:
            simplejpeg.decode_jpeg(payload.data[bounds[i] : bounds[i + 1]], "RGB", buffer=frame)
        except ValueError as error:
            raise SegmentDamaged(f"frame {start + i} is not a JPEG of {frame_size}: {error}") from error
    return frames


def _schema(codec: str, frame_size: tuple[int, int]) -> pa.Schema:
    kind = pa.binary(frame_size[0] * frame_size[1] * 3) if codec == "raw" else pa.binary()
    return pa.schema([pa.field(_COLUMN, kind, nullable=False)])


class SegmentWriter:
    """Writes one segment. `finish` gives it its lasting name; until then only a temporary file exists."""

    def __init__(self, folder: Path, codec: str, frame_size: tuple[int, int]) -> None:
        self._folder = folder
        self._schema = _schema(codec, frame_size)
        self._temporary = temporary_beside(folder / "segment.arrow")
        self._sink = pa.OSFile(str(self._temporary), "wb")
        self._writer = pa.ipc.new_file(self._sink, self._schema)
        self.num_bytes = 0
        self.num_videos = 0

    def add(self, payload: Payload) -> None:
        """Append a video as the next record batch."""
        buffers = [None, pa.py_buffer(payload.data)]
        if payload.offsets is not None:
            buffers.insert(1, pa.py_buffer(payload.offsets))
        column = pa.Array.from_buffers(self._schema.field(0).type, payload.num_frames, buffers)
        self._writer.write_batch(pa.record_batch([column], schema=self._schema))
        self.num_bytes += payload.data.nbytes
        self.num_videos += 1

    def finish(self) -> Path:
        """Close, fsync and rename; returns the path. The name is the hash of the bytes, so equal files share it."""
        self._writer.close()
        self._sink.close()
        sync_file(self._temporary)
        return self._temporary.rename(self._folder / f"{_hash_file(self._temporary)}.arrow")

    def abandon(self) -> None:
        """Close without writing the footer, and remove the temporary file."""
        self._sink.close()
        self._temporary.unlink(missing_ok=True)


def _hash_file(path: Path) -> str:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return xxhash.xxh3_128_hexdigest(mapped)


class Segment:
    """A mapped segment. Arrays taken from it are read-only views of the file and keep the mapping alive."""

    def __init__(self, path: Path, num_bytes: int, codec: str, frame_size: tuple[int, int]) -> None:
        """Raises SegmentDamaged when the file is absent, has another size or is not such a segment."""
        check_size(path, num_bytes)
        self._codec = codec
        self._frame_bytes = frame_size[0] * frame_size[1] * 3
        try:
            with pa.memory_map(str(path), "r") as mapped:
                contents = mapped.read_buffer()  # outlives the file object: no descriptor stays open
            self._reader = pa.ipc.open_file(pa.BufferReader(contents))
            same_schema = self._reader.schema.equals(_schema(codec, frame_size))
        except _ARROW_ERRORS as error:
            raise SegmentDamaged(f"segment {path.name} is not a sound Arrow file ({_brief(error)})") from error
        if not same_schema:
            raise SegmentDamaged(f"segment {path.name} does not hold {codec} frames of {frame_size}")
        self._name = path.name

    def payload(self, batch: int, num_frames: int, expected_checksum: str) -> Payload:
        """A video's stored bytes, not copied. Raises SegmentDamaged when they are not those that were written."""
        try:
            column = self._reader.get_batch(batch).column(0)
            found = self._views(column, num_frames)
        except _ARROW_ERRORS as error:
            raise SegmentDamaged(f"batch {batch} of segment {self._name} cannot be read ({_brief(error)})") from error
        if found is None or found.checksum != expected_checksum:
            raise SegmentDamaged(f"batch {batch} of segment {self._name} does not match its checksum")
        return found

    def _views(self, column: pa.Array, num_frames: int) -> Payload | None:
        """The column's buffers as arrays, or None when they cannot hold the video."""
        if len(column) != num_frames or column.offset or column.null_count:
            return None
        *_, offset_buffer, data_buffer = column.buffers()
        if data_buffer is None:
            return None
        data = np.frombuffer(data_buffer, dtype=np.uint8)
        offsets = None
        size = num_frames * self._frame_bytes
        if self._codec == "jpeg":
            if offset_buffer is None or offset_buffer.size < 4 * (num_frames + 1):
                return None
            offsets = np.frombuffer(offset_buffer, dtype=np.int32, count=num_frames + 1)
            size = int(offsets[-1])
        if not 0 < size <= len(data):
            return None
        return Payload(num_frames, data[:size], offsets, checksum(data[:size], offsets))


def check_size(path: Path, num_bytes: int) -> None:
    """Raise SegmentDamaged unless the file exists with this size: pages past the end of a mapped file are fatal."""
    try:
        found = path.stat().st_size
    except OSError as error:
        raise SegmentDamaged(f"segment {path.name} cannot be read ({error.strerror})") from error
    if found != num_bytes:
        raise SegmentDamaged(f"segment {path.name} has {found} bytes, {num_bytes} are recorded")


# What pyarrow raises on damaged bytes: its own tree, and plain errors for I/O, sizes, batch numbers and columns.
_ARROW_ERRORS = (pa.ArrowException, OSError, MemoryError, ValueError, IndexError)


def _brief(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
