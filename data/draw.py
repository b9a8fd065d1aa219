"""Drawing views: from (seed, epoch, video key) to the numbers of a view. Nothing here touches a pixel.

    training     draw_tuples, draw_clips      every number from data.philox, keyed by seed, epoch, video, slot and field
    evaluation   eval_tuples, uniform_clips   even places, centre crops

No number depends on which other videos are drawn, in what order, or by how many workers.

Axis letters: N views, V videos of a store.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from data.errors import VideoTooShort, ViewError
from data.philox import Slot, uniform
from data.views import (
    JITTER_ORDERS,
    MIDDLE,
    NUM_PRETEXT,
    QUADRANT_ORDERS,
    REMOTE,
    SEGMENT_COPY,
    SEGMENT_SWAPS,
    VIEW_DTYPE,
    VIEWS_PER_TUPLE,
    Augment,
    ClipSpec,
    Pretext,
    VideoTable,
    ViewBatch,
)

_Ints = NDArray[np.int64]


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


_Draw = Callable[[int, Field], NDArray[np.float64]]  # (slot, field) -> a number in [0, 1) per video


def long_enough(videos: VideoTable, rows: NDArray[np.int64], needed: int) -> NDArray[np.bool_]:
    """[len(rows)] which videos have at least `needed` frames; callers count and report the others."""
    return videos.num_frames[rows] >= needed


def epoch_order(videos: VideoTable, rows: NDArray[np.int64], *, view_seed: int, epoch: int) -> NDArray[np.int64]:
    """The rows in this epoch's order. Each video draws its own place, so the order of a subset is the same subset
    of the order of all."""
    hashes = videos.key_hashes[rows]
    place = uniform(view_seed, hashes, epoch, Slot.TUPLE, Field.ORDER)
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
    operation: str = "",
) -> ViewBatch:
    """One training tuple of 3 views for each row, every number drawn from (view_seed, epoch, video key, slot, field).

    any_swap: TEMPORAL_SWAP takes any two segments (preset pcl) instead of adjacent ones. shuffle: the run's one
    variant of TEMPORAL_SHUFFLE; for OWN, operation is its name. Raises VideoTooShort for a video that cannot hold a
    tuple.
    """
    _check_rows(videos, rows, spec, spec.tuple_span)
    hashes = videos.key_hashes[rows]

    def draw(slot: int, field: Field) -> NDArray[np.float64]:
        return uniform(view_seed, hashes, epoch, slot, field)

    records = np.zeros((len(rows), VIEWS_PER_TUPLE), dtype=VIEW_DTYPE)
    room = videos.num_frames[rows] - spec.tuple_span + 1
    start = np.floor(draw(Slot.TUPLE, Field.START) * room).astype(np.int64)
    _place_clips(records, rows, start, spec)
    for clip in range(VIEWS_PER_TUPLE):
        _draw_crop(records[:, clip], videos.frame_size, spec.crop, clip, draw)
        if augment.enabled:
            _draw_augment(records[:, clip], augment, clip, draw)
    label = _choice(draw(Slot.TUPLE, Field.PRETEXT), NUM_PRETEXT)
    if shuffle == REMOTE:
        label = _without_room_for_remote(label, draw(Slot.TUPLE, Field.PRETEXT), start, videos.num_frames[rows], spec)
    middle = records[:, MIDDLE]
    middle["pretext"] = label
    middle["variant"] = _variant(label, draw(Slot.TUPLE, Field.VARIANT), any_swap, shuffle)
    if shuffle == REMOTE:
        _move_remote(middle, draw(Slot.TUPLE, Field.VARIANT), start, videos.num_frames[rows], spec)
    return ViewBatch(records.reshape(-1), VIEWS_PER_TUPLE, videos.fingerprint, operation)


def draw_clips(
    videos: VideoTable, rows: NDArray[np.int64], *, view_seed: int, epoch: int, spec: ClipSpec, augment: Augment
) -> ViewBatch:
    """One training clip for each row, anywhere in the video, without a pretext operation; items of one view.

    Every number is drawn from (view_seed, epoch, video key, field). Raises VideoTooShort.
    """
    _check_rows(videos, rows, spec, spec.clip_len)
    hashes = videos.key_hashes[rows]

    def draw(slot: int, field: Field) -> NDArray[np.float64]:
        return uniform(view_seed, hashes, epoch, slot, field)

    records = np.zeros(len(rows), dtype=VIEW_DTYPE)
    records["video"] = rows
    records["start"] = np.floor(draw(Slot.SINGLE_CLIP, Field.START) * (videos.num_frames[rows] - spec.clip_len + 1))
    records["clip_len"] = spec.clip_len
    _draw_crop(records, videos.frame_size, spec.crop, Slot.SINGLE_CLIP, draw)
    if augment.enabled:
        _draw_augment(records, augment, Slot.SINGLE_CLIP, draw)
    return ViewBatch(records, 1, videos.fingerprint)


def eval_tuples(
    videos: VideoTable,
    rows: NDArray[np.int64],
    *,
    view_seed: int,
    spec: ClipSpec,
    tuples_per_video: int,
    any_swap: bool = False,
    shuffle: int = SEGMENT_COPY,
    operation: str = "",
) -> ViewBatch:
    """Every video under all five operations at `tuples_per_video` evenly spaced starts; centre crop, no augmentation.

    Items are ordered by row, then start, then operation. Only the operations' variants are drawn; any_swap,
    shuffle and operation as in `draw_tuples`. With REMOTE a tuple whose video has no room for a remote clip is not
    tried under TEMPORAL_SHUFFLE.
    """
    _check_rows(videos, rows, spec, spec.tuple_span)
    shape = (len(rows), tuples_per_video, NUM_PRETEXT)
    records = np.zeros((*shape, VIEWS_PER_TUPLE), dtype=VIEW_DTYPE)
    num_frames = videos.num_frames[rows]
    starts = _even_starts(num_frames - spec.tuple_span, tuples_per_video)
    all_rows = np.broadcast_to(rows[:, None, None], shape).reshape(-1)
    _place_clips(
        records.reshape(-1, VIEWS_PER_TUPLE), all_rows, np.broadcast_to(starts[:, :, None], shape).reshape(-1), spec
    )
    _centre_crop(records, videos.frame_size, spec.crop)
    hashes = videos.key_hashes[rows]
    possible = np.ones(shape, dtype=bool)
    for i in range(tuples_per_video):
        for op in Pretext:
            # The slot keeps this draw apart from those of training and of the other tuples and operations.
            u = uniform(view_seed, hashes, 0xFFFFFFFF, i * NUM_PRETEXT + op, Field.VARIANT)
            middle = records[:, i, op, MIDDLE]
            middle["pretext"] = op
            middle["variant"] = _variant(np.full(len(rows), int(op)), u, any_swap, shuffle)
            if op == Pretext.TEMPORAL_SHUFFLE and shuffle == REMOTE:
                _move_remote(middle, u, starts[:, i], num_frames, spec)
                possible[:, i, op] = np.add(*_remote_room(starts[:, i], num_frames, spec)) > 0
    return ViewBatch(records[possible].reshape(-1), VIEWS_PER_TUPLE, videos.fingerprint, operation)


def uniform_clips(videos: VideoTable, rows: NDArray[np.int64], *, spec: ClipSpec, clips_per_video: int) -> ViewBatch:
    """`clips_per_video` evenly spaced clips of each video, centre crop, nothing random; items of one view, by row."""
    _check_rows(videos, rows, spec, spec.clip_len)
    records = np.zeros((len(rows), clips_per_video), dtype=VIEW_DTYPE)
    records["video"] = rows[:, None]
    records["start"] = _even_starts(videos.num_frames[rows] - spec.clip_len, clips_per_video)
    records["clip_len"] = spec.clip_len
    _centre_crop(records, videos.frame_size, spec.crop)
    return ViewBatch(records.reshape(-1), 1, videos.fingerprint)


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
