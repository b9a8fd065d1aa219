"""Views: which frames of which video, and what is done to them, as resolved numbers.

A view holds no random state, so `(store, view) -> pixels` is a pure function: teacher and student render the same
pixels, a view can be hashed, sent in 44 bytes, recorded and replayed.

    draw_tuples / eval_tuples / uniform_clips  ->  ViewBatch  ->  data.render (pixels)
                                                      |
                                                  packed bytes, item digests

An *item* is what one answer is about: `views_per_item` consecutive views (3 for the pretext head, 1 for an action
head or a single clip). A batch never splits an item.

Axis letters: N views, I items, V videos of a store.
"""

from __future__ import annotations

import enum
import itertools
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from data.errors import VideoTooShort, ViewError
from data.philox import uniform

SCHEMA = 1
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
    TEMPORAL_SHUFFLE = 4  # variant: SEGMENT_COPY or REMOTE


NUM_PRETEXT = len(Pretext)
SEGMENT_COPY = 0
REMOTE = 1  # the clip starts elsewhere in the video; its pixels are not changed


_PERMUTATIONS_OF_4 = tuple(itertools.permutations(range(4)))  # lexicographic
JITTER_ORDERS = _PERMUTATIONS_OF_4  # 0 brightness, 1 contrast, 2 saturation, 3 hue
QUADRANT_ORDERS = _PERMUTATIONS_OF_4  # quadrant i of the result is quadrant order[i] of the source; 0 is the identity
SEGMENT_SWAPS = ((0, 1), (1, 2), (2, 3), (0, 2), (0, 3), (1, 3))  # the first three are the adjacent ones


class Field(enum.IntEnum):
    """Numbers of the drawn fields. They are part of every seed's meaning: never renumber, only append."""

    START = 0
    PRETEXT = 1
    VARIANT = 2
    CROP_Y = 3
    CROP_X = 4
    JITTER = 5
    JITTER_ORDER = 6
    BRIGHTNESS = 7
    CONTRAST = 8
    SATURATION = 9
    HUE = 10
    GRAY = 11
    BLUR = 12
    BLUR_SIGMA = 13
    FLIP = 14
    ORDER = 15  # the place of a video in its epoch


_TUPLE_SLOT = 0xFFFF  # fields of the whole tuple; clips use slots 0, 1, 2


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


_Ints = NDArray[np.int64]
_Draw = Callable[[int, Field], NDArray[np.float64]]  # (slot, field) -> a number in [0, 1) per video
_HEADER = struct.Struct("<4sHHI16s")
_MAGIC = b"PCVB"


@dataclass(frozen=True)
class ViewBatch:
    """Views of one store: `records` is a structured array [N] of VIEW_DTYPE, N a multiple of views_per_item.

    >>> ViewBatch(np.zeros(6, VIEW_DTYPE), views_per_item=3, store_fingerprint="00" * 16).num_items
    2
    """

    records: NDArray[np.void]
    views_per_item: int
    store_fingerprint: str

    def __post_init__(self) -> None:
        if self.records.dtype != VIEW_DTYPE or self.records.ndim != 1:
            raise ViewError(f"records must be a 1-d array of VIEW_DTYPE, got {self.records.dtype} {self.records.shape}")
        if self.views_per_item < 1 or len(self.records) % self.views_per_item:
            raise ViewError(f"{len(self.records)} views do not make whole items of {self.views_per_item}")

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
        return ViewBatch(self.records[start * v : stop * v], v, self.store_fingerprint)

    def take(self, index: Sequence[int] | NDArray[np.int64]) -> ViewBatch:
        """The items at these positions, in this order."""
        grid = self.records.reshape(-1, self.views_per_item)
        return ViewBatch(
            grid[np.asarray(index, dtype=np.int64)].reshape(-1), self.views_per_item, self.store_fingerprint
        )

    def to_bytes(self) -> bytes:
        """Header of 28 bytes, then 44 bytes a view, little-endian."""
        header = _HEADER.pack(
            _MAGIC, SCHEMA, self.views_per_item, len(self.records), bytes.fromhex(self.store_fingerprint)
        )
        return header + self.records.tobytes()

    @classmethod
    def from_bytes(cls, blob: bytes) -> ViewBatch:
        """The inverse of `to_bytes`. Raises ViewError for anything else."""
        if len(blob) < _HEADER.size:
            raise ViewError(f"a view batch has at least {_HEADER.size} bytes, got {len(blob)}")
        magic, schema, views_per_item, count, fingerprint = _HEADER.unpack_from(blob)
        if magic != _MAGIC or schema != SCHEMA:
            raise ViewError(f"not a view batch of schema {SCHEMA}: starts with {magic!r}, schema {schema}")
        if len(blob) != _HEADER.size + count * VIEW_DTYPE.itemsize:
            raise ViewError(f"{count} views need {count * VIEW_DTYPE.itemsize} bytes, got {len(blob) - _HEADER.size}")
        records = np.frombuffer(blob, dtype=VIEW_DTYPE, offset=_HEADER.size)
        return cls(records, views_per_item, fingerprint.hex())

    def item_digests(self, videos: VideoTable) -> list[bytes]:
        """16 bytes per item: xxh3_128 over the schema and every field, the video named by key and content hash.

        A row number never enters, so digests stay valid when a store grows.
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
        return [xxhash.xxh3_128_digest(prefix + blob[i * step : (i + 1) * step]) for i in range(self.num_items)]


_DIGEST_FIELDS = tuple(name for name in VIEW_DTYPE.names or () if name != "video")
_DIGEST_DTYPE = np.dtype([("key", "<u8"), ("content", "<u8"), *((name, VIEW_DTYPE[name]) for name in _DIGEST_FIELDS)])


def long_enough(videos: VideoTable, rows: NDArray[np.int64], needed: int) -> NDArray[np.bool_]:
    """[len(rows)] which videos have at least `needed` frames; callers count and report the others."""
    return videos.num_frames[rows] >= needed


def epoch_order(videos: VideoTable, rows: NDArray[np.int64], *, view_seed: int, epoch: int) -> NDArray[np.int64]:
    """The rows in this epoch's order. Each video draws its own place, so the order of a subset is the same subset
    of the order of all."""
    hashes = videos.key_hashes[rows]
    place = uniform(view_seed, hashes, epoch, _TUPLE_SLOT, Field.ORDER)
    return rows[np.lexsort((hashes, place))]


def draw_tuples(
    videos: VideoTable,
    rows: NDArray[np.int64],
    *,
    view_seed: int,
    epoch: int,
    spec: ClipSpec,
    augment: Augment,
    any_swap: bool = False,
    shuffle: int = SEGMENT_COPY,
) -> ViewBatch:
    """One training tuple of 3 views for each row, every number drawn from (view_seed, epoch, video key, slot, field).

    any_swap: TEMPORAL_SWAP takes any two segments (preset pcl) instead of adjacent ones. shuffle: the run's one
    variant of TEMPORAL_SHUFFLE. Raises VideoTooShort for a video that cannot hold a tuple.
    """
    _check_rows(videos, rows, spec, spec.tuple_span)
    hashes = videos.key_hashes[rows]

    def draw(slot: int, field: Field) -> NDArray[np.float64]:
        return uniform(view_seed, hashes, epoch, slot, field)

    records = np.zeros((len(rows), VIEWS_PER_TUPLE), dtype=VIEW_DTYPE)
    room = videos.num_frames[rows] - spec.tuple_span + 1
    start = np.floor(draw(_TUPLE_SLOT, Field.START) * room).astype(np.int64)
    _place_clips(records, rows, start, spec)
    for clip in range(VIEWS_PER_TUPLE):
        _draw_crop(records[:, clip], videos.frame_size, spec.crop, clip, draw)
        if augment.enabled:
            _draw_augment(records[:, clip], augment, clip, draw)
    label = _choice(draw(_TUPLE_SLOT, Field.PRETEXT), NUM_PRETEXT)
    if shuffle == REMOTE:
        label = _without_room_for_remote(label, draw(_TUPLE_SLOT, Field.PRETEXT), start, videos.num_frames[rows], spec)
    middle = records[:, MIDDLE]
    middle["pretext"] = label
    middle["variant"] = _variant(label, draw(_TUPLE_SLOT, Field.VARIANT), any_swap, shuffle)
    if shuffle == REMOTE:
        _move_remote(middle, draw(_TUPLE_SLOT, Field.VARIANT), start, videos.num_frames[rows], spec)
    return ViewBatch(records.reshape(-1), VIEWS_PER_TUPLE, videos.fingerprint)


def eval_tuples(
    videos: VideoTable,
    rows: NDArray[np.int64],
    *,
    view_seed: int,
    spec: ClipSpec,
    tuples_per_video: int,
    any_swap: bool = False,
) -> ViewBatch:
    """Every video under all five operations at `tuples_per_video` evenly spaced starts; centre crop, no augmentation.

    Items are ordered by row, then start, then operation. Only the operations' variants are drawn.
    """
    _check_rows(videos, rows, spec, spec.tuple_span)
    shape = (len(rows), tuples_per_video, NUM_PRETEXT)
    records = np.zeros((*shape, VIEWS_PER_TUPLE), dtype=VIEW_DTYPE)
    starts = _even_starts(videos.num_frames[rows] - spec.tuple_span, tuples_per_video)
    all_rows = np.broadcast_to(rows[:, None, None], shape).reshape(-1)
    _place_clips(
        records.reshape(-1, VIEWS_PER_TUPLE), all_rows, np.broadcast_to(starts[:, :, None], shape).reshape(-1), spec
    )
    _centre_crop(records, videos.frame_size, spec.crop)
    hashes = videos.key_hashes[rows]
    for i in range(tuples_per_video):
        for op in Pretext:
            # The slot keeps this draw apart from those of training and of the other tuples and operations.
            u = uniform(view_seed, hashes, 0xFFFFFFFF, i * NUM_PRETEXT + op, Field.VARIANT)
            middle = records[:, i, op, MIDDLE]
            middle["pretext"] = op
            middle["variant"] = _variant(np.full(len(rows), int(op)), u, any_swap, SEGMENT_COPY)
    return ViewBatch(records.reshape(-1), VIEWS_PER_TUPLE, videos.fingerprint)


def uniform_clips(videos: VideoTable, rows: NDArray[np.int64], *, spec: ClipSpec, clips_per_video: int) -> ViewBatch:
    """`clips_per_video` evenly spaced clips of each video, centre crop, nothing random; items of one view, by row."""
    _check_rows(videos, rows, spec, spec.clip_len)
    records = np.zeros((len(rows), clips_per_video), dtype=VIEW_DTYPE)
    records["video"] = rows[:, None]
    records["start"] = _even_starts(videos.num_frames[rows] - spec.clip_len, clips_per_video)
    records["clip_len"] = spec.clip_len
    _centre_crop(records, videos.frame_size, spec.crop)
    return ViewBatch(records.reshape(-1), 1, videos.fingerprint)


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


def _check_rows(videos: VideoTable, rows: NDArray[np.int64], spec: ClipSpec, needed: int) -> None:
    height, width = videos.frame_size
    if spec.crop > min(height, width):
        raise ViewError(f"crop {spec.crop} does not fit into stored frames of {height}x{width}: choose a smaller crop")
    short = rows[~long_enough(videos, rows, needed)]
    if len(short):
        raise VideoTooShort(videos.keys[short[0]], int(videos.num_frames[short[0]]), needed)


def _place_clips(
    records_N3: NDArray[np.void], rows: NDArray[np.int64], start: NDArray[np.int64], spec: ClipSpec
) -> None:
    records_N3["video"] = rows[:, None]
    records_N3["start"] = start[:, None] + np.arange(VIEWS_PER_TUPLE) * (spec.clip_len + spec.interval)
    records_N3["clip_len"] = spec.clip_len


def _choice(u: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """Uniform over 0 .. n-1."""
    return np.floor(u * n).astype(np.int64)


def _draw_crop(records: NDArray[np.void], frame_size: tuple[int, int], crop: int, clip: int, draw: _Draw) -> None:
    height, width = frame_size
    records["crop_h"] = records["crop_w"] = crop
    records["crop_y"] = _choice(draw(clip, Field.CROP_Y), height - crop + 1)
    records["crop_x"] = _choice(draw(clip, Field.CROP_X), width - crop + 1)


def _centre_crop(records: NDArray[np.void], frame_size: tuple[int, int], crop: int) -> None:
    height, width = frame_size
    records["crop_h"] = records["crop_w"] = crop
    records["crop_y"] = (height - crop) // 2
    records["crop_x"] = (width - crop) // 2


def _draw_augment(records: NDArray[np.void], augment: Augment, clip: int, draw: _Draw) -> None:
    """Fields that do not apply stay zero, so that equal pixels have equal digests."""
    jitter = draw(clip, Field.JITTER) < augment.jitter_p
    records["jitter"] = jitter
    records["jitter_order"] = np.where(jitter, _choice(draw(clip, Field.JITTER_ORDER), len(JITTER_ORDERS)), 0)
    for name, field, strength in (
        ("brightness", Field.BRIGHTNESS, augment.brightness),
        ("contrast", Field.CONTRAST, augment.contrast),
        ("saturation", Field.SATURATION, augment.saturation),
    ):
        low = max(0.0, 1.0 - strength)
        records[name] = np.where(jitter, low + draw(clip, field) * (1.0 + strength - low), 0.0)
    records["hue"] = np.where(jitter, (2 * draw(clip, Field.HUE) - 1) * augment.hue, 0.0)
    records["gray"] = draw(clip, Field.GRAY) < augment.gray_p
    span = augment.blur_sigma_max - augment.blur_sigma_min
    sigma = augment.blur_sigma_min + draw(clip, Field.BLUR_SIGMA) * span
    records["blur_sigma"] = np.where(draw(clip, Field.BLUR) < augment.blur_p, sigma, 0.0)
    records["flip"] = draw(clip, Field.FLIP) < augment.flip_p


def _variant(label: NDArray[np.int64], u: NDArray[np.float64], any_swap: bool, shuffle: int) -> NDArray[np.int64]:
    variant = np.zeros_like(label)
    variant = np.where(label == Pretext.ROTATION, 1 + _choice(u, 3), variant)
    variant = np.where(label == Pretext.SPATIAL_PERMUTATION, 1 + _choice(u, len(QUADRANT_ORDERS) - 1), variant)
    swaps = len(SEGMENT_SWAPS) if any_swap else 3
    variant = np.where(label == Pretext.TEMPORAL_SWAP, _choice(u, swaps), variant)
    return np.where(label == Pretext.TEMPORAL_SHUFFLE, shuffle, variant)


def _remote_room(start: _Ints, num_frames: _Ints, spec: ClipSpec) -> tuple[_Ints, _Ints]:
    """Possible starts of a remote clip: before the tuple and after it, at least clip_len frames away from it."""
    before = np.maximum(start - 2 * spec.clip_len + 1, 0)
    after = np.maximum(num_frames - (start + spec.tuple_span + spec.clip_len) - spec.clip_len + 1, 0)
    return before, after


def _without_room_for_remote(
    label: _Ints, u: NDArray[np.float64], start: _Ints, num_frames: _Ints, spec: ClipSpec
) -> _Ints:
    """Videos without room never get TEMPORAL_SHUFFLE: the other four labels stay equally likely."""
    before, after = _remote_room(start, num_frames, spec)
    return np.where(before + after > 0, label, _choice(u, NUM_PRETEXT - 1))


def _move_remote(
    middle: NDArray[np.void], u: NDArray[np.float64], start: _Ints, num_frames: _Ints, spec: ClipSpec
) -> None:
    before, after = _remote_room(start, num_frames, spec)
    pick = np.floor(u * (before + after)).astype(np.int64)
    after_start = start + spec.tuple_span + spec.clip_len + (pick - before)
    remote = np.where(pick < before, pick, after_start)
    middle["start"] = np.where(middle["pretext"] == Pretext.TEMPORAL_SHUFFLE, remote, middle["start"])


def _even_starts(room: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """[len(room), count] starts from 0 to room, evenly spaced and rounded down; the middle for a count of one."""
    if count == 1:
        return (room // 2)[:, None]
    return room[:, None] * np.arange(count) // (count - 1)
