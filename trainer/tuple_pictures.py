"""A few training tuples as pictures: what a student is shown, and which operation was done to the middle clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from data.draw import draw_tuples, long_enough
from data.render import render_batch
from data.store import ClipStore
from data.views import (
    OWN,
    QUADRANT_ORDERS,
    REMOTE,
    SEGMENT_COPY,
    SEGMENT_SWAPS,
    VIEWS_PER_TUPLE,
    Augment,
    ClipSpec,
    Pretext,
    ViewBatch,
)

_CANDIDATES = 64  # videos among which one per operation is looked for
_FRAMES_SHOWN = 10
_GAP = 2  # pixels between frames
_GAP_GREY = 128  # seen on light and on dark ground
_QUALITY = 82


@dataclass(frozen=True)
class TuplePicture:
    """A tuple: the video's key and class, the operation in words, and its three clips as JPEG strips of frames."""

    video: str
    action: str
    operation: str
    label: int
    strips: tuple[bytes, bytes, bytes]
    size: tuple[int, int]  # width and height of a strip, pixels


def tuple_pictures(store: ClipStore, config: Mapping[str, Any]) -> list[TuplePicture]:
    """One tuple per operation, as epoch 0 of a run with these settings draws them; fewer when the list is short.

    Raises DataError when the store does not fit the settings, or when the run's own operation is not allowed here.
    """
    rows = _candidates(store, config)
    if len(rows) == 0:
        return []
    own = str(config.get("pretext_operation", ""))
    tuples = draw_tuples(
        store.videos,
        rows,
        view_seed=int(config.get("view_seed", 0)),
        epoch=0,
        spec=_spec(config),
        augment=Augment(enabled=bool(config.get("augment", True))),
        any_swap=bool(config.get("any_swap", False)),
        shuffle=_shuffle(config, own),
        operation=own,
    )
    labels = tuples.pretext_labels
    chosen = [int(np.flatnonzero(labels == label)[0]) for label in Pretext if (labels == label).any()]
    return [_picture(store, tuples.items(item, item + 1), own) for item in chosen]


def operation_in_words(pretext: int, variant: int, own: str = "") -> str:
    """What was done to a clip, with its variant. own: the name of the user's operation, where the run has one.

    >>> operation_in_words(Pretext.ROTATION, 2)
    'rotation by 180° to the left'
    """
    match Pretext(pretext):
        case Pretext.UNCHANGED:
            return "unchanged"
        case Pretext.ROTATION:
            return f"rotation by {90 * variant}° to the left"
        case Pretext.SPATIAL_PERMUTATION:
            order = " ".join(str(i + 1) for i in QUADRANT_ORDERS[variant])
            return f"spatial permutation: quarters {order}"
        case Pretext.TEMPORAL_SWAP:
            first, second = SEGMENT_SWAPS[variant]
            return f"temporal swap: segments {first + 1} and {second + 1} of 4"
        case Pretext.TEMPORAL_SHUFFLE if variant == REMOTE:
            return "temporal shuffle: a clip from elsewhere in the video"
        case Pretext.TEMPORAL_SHUFFLE if variant == OWN:
            return f"your own operation {own}"
        case _:
            return "temporal shuffle: segment 2 of 4 shows segment 4"


def _shuffle(config: Mapping[str, Any], own: str) -> int:
    if own:
        return OWN
    return REMOTE if config.get("shuffle") == "remote" else SEGMENT_COPY


def _spec(config: Mapping[str, Any]) -> ClipSpec:
    return ClipSpec(int(config.get("clip_len", 10)), int(config.get("interval", 8)), int(config.get("crop", 56)))


def _candidates(store: ClipStore, config: Mapping[str, Any]) -> NDArray[np.int64]:
    """Training videos that hold a tuple, taken evenly over the list so that they show different actions."""
    rows = store.subset(str(config.get("train_subset", "train01")))
    rows = rows[long_enough(store.videos, rows, _spec(config).tuple_span)]
    return rows[:: max(1, len(rows) // _CANDIDATES)][:_CANDIDATES]


def _picture(store: ClipStore, item: ViewBatch, own: str) -> TuplePicture:
    pixels_NTHW3 = render_batch(store.gather(item), item)
    middle = item.records[VIEWS_PER_TUPLE // 2]
    row = int(middle["video"])
    strips = [_strip(clip) for clip in pixels_NTHW3]
    height, width, _ = strips[0].shape
    first, second, third = (simplejpeg.encode_jpeg(strip, quality=_QUALITY, colorspace="RGB") for strip in strips)
    return TuplePicture(
        video=store.videos.keys[row],
        action=store.classes[int(store.labels[row])],
        operation=operation_in_words(int(middle["pretext"]), int(middle["variant"]), own),
        label=int(middle["pretext"]),
        strips=(first, second, third),
        size=(width, height),
    )


def _strip(clip_THW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, n * (W + gap) - gap, 3]: evenly spaced frames side by side."""
    num_frames, height, width, _ = clip_THW3.shape
    shown = np.unique(np.linspace(0, num_frames - 1, min(_FRAMES_SHOWN, num_frames)).round().astype(int))
    strip = np.full((height, len(shown) * (width + _GAP) - _GAP, 3), _GAP_GREY, dtype=np.uint8)
    for place, frame in enumerate(shown):
        left = place * (width + _GAP)
        strip[:, left : left + width] = clip_THW3[frame]
    return strip
