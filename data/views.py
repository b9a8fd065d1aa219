"""Views: which frames of which video, and what is done to them, as resolved numbers.

A view holds no random state, so `(store, view) -> pixels` is a pure function: teacher and student render the same
pixels, a view can be hashed, sent in 44 bytes, recorded and replayed.

    data.draw  ->  ViewBatch  ->  data.render (pixels)
                       |
                   packed bytes, item digests

An *item* is what one answer is about: `views_per_item` consecutive views (3 for the pretext head, 1 for an action
head or a single clip). A batch never splits an item.

Axis letters: N views, I items, V videos of a store.
"""

from __future__ import annotations

import enum
import itertools
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import xxhash
from numpy.typing import NDArray

from data.errors import ViewError

SCHEMA = 1
_SCHEMA_NAMED = 2  # of a batch that names an operation of the user's own; all others stay as they were
VIEWS_PER_TUPLE = 3
MIDDLE = 1  # the clip of a tuple that the pretext operation changes

VIEW_DTYPE = np.dtype(
    [
        ("video", "<u4"),  # row in the store; in digests replaced by key and content hash
        ("start", "<u4"),  # first frame
        ("clip_len", "<u2"),  # frames
        ("crop_y", "<u2"),  # pixels of the stored frame
        ("crop_x", "<u2"),
        ("crop_h", "<u2"),
        ("crop_w", "<u2"),
        ("jitter", "u1"),  # 1: the four factors below apply, in JITTER_ORDERS[jitter_order]
        ("jitter_order", "u1"),
        ("brightness", "<f4"),  # factor, 1 = unchanged
        ("contrast", "<f4"),
        ("saturation", "<f4"),
        ("hue", "<f4"),  # turn of the colour circle, in [-.5, .5]
        ("gray", "u1"),
        ("flip", "u1"),
        ("blur_sigma", "<f4"),  # pixels, 0 = no blur
        ("pretext", "u1"),  # Pretext
        ("variant", "u1"),  # which one of the operation's variants
    ]
)


class Pretext(enum.IntEnum):
    """The five pretext operations; the value is the label (method: VCP, Luo et al. 2020)."""

    UNCHANGED = 0
    ROTATION = 1  # variant: quarter turns counter-clockwise, 1 to 3
    SPATIAL_PERMUTATION = 2  # variant: index into QUADRANT_ORDERS, 1 to 23
    TEMPORAL_SWAP = 3  # variant: index into SEGMENT_SWAPS
    TEMPORAL_SHUFFLE = 4  # variant: SEGMENT_COPY, REMOTE or OWN


NUM_PRETEXT = len(Pretext)
SEGMENT_COPY = 0
REMOTE = 1  # the clip starts elsewhere in the video; its pixels are not changed
OWN = 2  # an operation of the user's own takes this one's place: ViewBatch.operation, data.operations


_PERMUTATIONS_OF_4 = tuple(itertools.permutations(range(4)))  # lexicographic
JITTER_ORDERS = _PERMUTATIONS_OF_4  # 0 brightness, 1 contrast, 2 saturation, 3 hue
QUADRANT_ORDERS = _PERMUTATIONS_OF_4  # quadrant i of the result is quadrant order[i] of the source; 0 is the identity
SEGMENT_SWAPS = ((0, 1), (1, 2), (2, 3), (0, 2), (0, 3), (1, 3))  # the first three are the adjacent ones


@dataclass(frozen=True)
class VideoTable:
    """What drawing needs to know of a store: a column per fact, a row per video.

    fingerprint: the store's, 32 hex digits. key_hashes, content_hashes: uint64 [V]. num_frames: int64 [V].
    frame_size: (height, width) of every stored frame.
    """

    fingerprint: str
    keys: tuple[str, ...]
    key_hashes: NDArray[np.uint64]
    content_hashes: NDArray[np.uint64]
    num_frames: NDArray[np.int64]
    frame_size: tuple[int, int]


def key_hash(key: str) -> int:
    """The 64-bit name of a video in the generator and in digests: xxh3_64 of its key in UTF-8."""
    return xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogateescape"))


@dataclass(frozen=True)
class ClipSpec:
    """Length of a clip, frames between the clips of a tuple, side of the square crop; frames and pixels."""

    clip_len: int = 10
    interval: int = 8
    crop: int = 56

    def __post_init__(self) -> None:
        if self.clip_len < 8 or self.interval < 0 or self.crop < 8:
            raise ViewError(f"clip_len >= 8, interval >= 0 and crop >= 8 are needed, got {self}")

    @property
    def tuple_span(self) -> int:
        """Frames from the first of a tuple to its last: 46 for 10 frames and an interval of 8."""
        return VIEWS_PER_TUPLE * self.clip_len + (VIEWS_PER_TUPLE - 1) * self.interval


@dataclass(frozen=True)
class Augment:
    """Strengths and probabilities of the augmentation; each clip gets its own draw."""

    enabled: bool = True
    jitter_p: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    gray_p: float = 0.2
    blur_p: float = 0.5
    blur_sigma_min: float = 0.1
    blur_sigma_max: float = 2.0
    flip_p: float = 0.5


_HEADER = struct.Struct("<4sHHI16s")
_MAGIC = b"PCVB"
_OPERATION = re.compile(r"[!-~]{0,200}")


@dataclass(frozen=True)
class ViewBatch:
    """Views of one store: `records` is a structured array [N] of VIEW_DTYPE, N a multiple of views_per_item.

    operation: name of the user's own pretext operation, which views of variant OWN need; empty without one.

    >>> ViewBatch(np.zeros(6, VIEW_DTYPE), views_per_item=3, store_fingerprint="00" * 16).num_items
    2
    """

    records: NDArray[np.void]
    views_per_item: int
    store_fingerprint: str
    operation: str = ""

    def __post_init__(self) -> None:
        if self.records.dtype != VIEW_DTYPE or self.records.ndim != 1:
            raise ViewError(f"records must be a 1-d array of VIEW_DTYPE, got {self.records.dtype} {self.records.shape}")
        if self.views_per_item < 1 or len(self.records) % self.views_per_item:
            raise ViewError(f"{len(self.records)} views do not make whole items of {self.views_per_item}")
        if not _OPERATION.fullmatch(self.operation):
            raise ViewError(f"an operation's name has at most 200 characters of ASCII, got {self.operation[:200]!r}")

    def __len__(self) -> int:
        return len(self.records)

    @property
    def num_items(self) -> int:
        """Answers that a teacher gives for this batch."""
        return len(self.records) // self.views_per_item

    @property
    def pretext_labels(self) -> NDArray[np.int64]:
        """[I] int64: the operation on the middle clip of each tuple."""
        return self.records["pretext"].reshape(-1, self.views_per_item)[:, self.views_per_item // 2].astype(np.int64)

    def items(self, start: int, stop: int) -> ViewBatch:
        """Items start to stop (not included) as a batch of their own."""
        v = self.views_per_item
        return replace(self, records=self.records[start * v : stop * v])

    def take(self, index: Sequence[int] | NDArray[np.int64]) -> ViewBatch:
        """The items at these positions, in this order."""
        grid = self.records.reshape(-1, self.views_per_item)
        return replace(self, records=grid[np.asarray(index, dtype=np.int64)].reshape(-1))

    def to_bytes(self) -> bytes:
        """Header of 28 bytes, an operation's name if there is one, then 44 bytes a view, little-endian."""
        schema = _SCHEMA_NAMED if self.operation else SCHEMA
        header = _HEADER.pack(
            _MAGIC, schema, self.views_per_item, len(self.records), bytes.fromhex(self.store_fingerprint)
        )
        return header + self._packed_operation() + self.records.tobytes()

    @classmethod
    def from_bytes(cls, blob: bytes) -> ViewBatch:
        """The inverse of `to_bytes`. Raises ViewError for anything else."""
        if len(blob) < _HEADER.size:
            raise ViewError(f"a view batch has at least {_HEADER.size} bytes, got {len(blob)}")
        magic, schema, views_per_item, count, fingerprint = _HEADER.unpack_from(blob)
        if magic != _MAGIC or schema not in (SCHEMA, _SCHEMA_NAMED):
            raise ViewError(f"not a view batch of schema {SCHEMA}: starts with {magic!r}, schema {schema}")
        operation = ""
        offset = _HEADER.size
        if schema == _SCHEMA_NAMED:
            length = blob[offset] if len(blob) > offset else 0
            operation = bytes(blob[offset + 1 : offset + 1 + length]).decode("latin-1")
            offset += 1 + length
            if not length:
                raise ViewError(f"a view batch of schema {_SCHEMA_NAMED} names an operation, this one does not")
        if len(blob) != offset + count * VIEW_DTYPE.itemsize:
            raise ViewError(f"{count} views need {count * VIEW_DTYPE.itemsize} bytes, got {len(blob) - offset}")
        records = np.frombuffer(blob, dtype=VIEW_DTYPE, offset=offset)
        return cls(records, views_per_item, fingerprint.hex(), operation)

    def _packed_operation(self) -> bytes:
        """Length and name; nothing without an operation."""
        return bytes([len(self.operation)]) + self.operation.encode("ascii") if self.operation else b""

    def item_digests(self, videos: VideoTable) -> list[bytes]:
        """16 bytes per item: xxh3_128 over the schema and every field, the video named by key and content hash.

        A row number never enters, so digests stay valid when a store grows. Items with the user's own operation also
        count its name; all others have the digests that they have without one.
        """
        named = np.empty(len(self.records), dtype=_DIGEST_DTYPE)
        rows = self.records["video"]
        named["key"] = videos.key_hashes[rows]
        named["content"] = videos.content_hashes[rows]
        for name in _DIGEST_FIELDS:
            named[name] = self.records[name]
        prefix = struct.pack("<HH", SCHEMA, self.views_per_item)
        step = self.views_per_item * _DIGEST_DTYPE.itemsize
        blob = named.tobytes()
        own = (self.records["pretext"] == Pretext.TEMPORAL_SHUFFLE) & (self.records["variant"] == OWN)
        names = [self._packed_operation() if any_ else b"" for any_ in own.reshape(-1, self.views_per_item).any(axis=1)]
        return [xxhash.xxh3_128_digest(prefix + blob[i * step : (i + 1) * step] + name) for i, name in enumerate(names)]


_DIGEST_FIELDS = tuple(name for name in VIEW_DTYPE.names or () if name != "video")
_DIGEST_DTYPE = np.dtype([("key", "<u8"), ("content", "<u8"), *((name, VIEW_DTYPE[name]) for name in _DIGEST_FIELDS)])


def segment_bounds(num_frames: int, index: int) -> tuple[int, int]:
    """First frame and end of temporal segment `index` of 4: floor(i*T/4); 2, 3, 2, 3 frames for T = 10."""
    return index * num_frames // 4, (index + 1) * num_frames // 4


def frame_order(pretext: int, variant: int, num_frames: int) -> NDArray[np.int64]:
    """[T] which source frame each frame of the transformed clip shows."""
    order = list(range(num_frames))
    segments = [order[slice(*segment_bounds(num_frames, i))] for i in range(4)]
    if pretext == Pretext.TEMPORAL_SWAP:
        a, b = SEGMENT_SWAPS[variant]
        segments[a], segments[b] = segments[b], segments[a]
        order = [frame for segment in segments for frame in segment]
    elif pretext == Pretext.TEMPORAL_SHUFFLE and variant == SEGMENT_COPY:
        # The 2nd segment is overwritten by the 4th, as many frames as both have room for.
        count = min(len(segments[1]), len(segments[3]))
        order[segments[1][0] : segments[1][0] + count] = segments[3][:count]
    return np.array(order, dtype=np.int64)
