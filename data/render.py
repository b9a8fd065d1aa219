"""Views to pixels on the CPU: `(stored frames, view) -> uint8 [T, H, W, 3]`, a pure function.

The numeric contract is torchvision's definition for float images, written here for values in [0, 255]:

    crop -> brightness, contrast, saturation, hue in the view's order -> gray -> Gaussian blur -> flip
         -> one rounding to uint8, half to even -> pretext operation

- Brightness, contrast and saturation are `clamp(factor * x + (1 - factor) * y)`, y being black, the mean gray of
  the frame, the gray of the pixel. Every clamp that can matter is taken where torchvision takes it.
- Gray is .2989 R + .587 G + .114 B; hue turns H of HSV and leaves S and V.
- Blur is separable with radius ceil(3 sigma); the border is reflected and the edge pixel is not repeated.
- All arithmetic is float32 and nothing is rounded before the end, so pixels are within one grey level of the same
  definition computed in any other way. The pretext operation only moves pixels and commutes with the rounding.

Every frame is worked on by itself, because a float32 frame of 112x112 stays in the core's own cache. No function
used here sums over pixels in an order that depends on OpenCV's thread count, so the bytes do not either, and that
count, which belongs to the whole process, is left alone.

Axis letters: N views, T frames, H, W.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from data.errors import ViewError
from data.operations import apply_operation
from data.views import JITTER_ORDERS, OWN, QUADRANT_ORDERS, SEGMENT_SWAPS, Pretext, ViewBatch, frame_order

Frame = NDArray[np.float32]  # [H, W, 3], after graying [H, W]; values in [0, 255]
Step = Callable[[Frame], Frame]

RENDERER = "cpu-1"  # recorded with answers: give it another number with every change that changes any pixel
_WHITE = 255.0
_LUMA = np.array([[0.2989, 0.587, 0.114]], dtype=np.float32)  # torchvision's rgb_to_grayscale
_JITTER_FIELDS = ("brightness", "contrast", "saturation", "hue")  # in the numbering of JITTER_ORDERS
_QUARTER_TURNS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}
_VARIANTS = {
    Pretext.UNCHANGED: range(1),
    Pretext.ROTATION: range(1, 4),
    Pretext.SPATIAL_PERMUTATION: range(1, len(QUADRANT_ORDERS)),
    Pretext.TEMPORAL_SWAP: range(len(SEGMENT_SWAPS)),
    Pretext.TEMPORAL_SHUFFLE: range(2),
}  # and OWN, of which only a batch says what it is


def render(frames_THW3: NDArray[np.uint8], view: np.void) -> NDArray[np.uint8]:
    """[T, crop_h, crop_w, 3] uint8: the pixels of one view.

    frames_THW3: the clip's stored frames in RGB, `view["clip_len"]` of them; may be read-only, is never written to.
    view: one record of VIEW_DTYPE. Raises ViewError for frames or a view that cannot be rendered.
    """
    _check(frames_THW3, view)
    out = np.empty((len(frames_THW3), int(view["crop_h"]), int(view["crop_w"]), 3), dtype=np.uint8)
    _render_into(out, frames_THW3, view)
    return out


def render_batch(frames: Sequence[NDArray[np.uint8]], batch: ViewBatch) -> NDArray[np.uint8]:
    """[N, T, crop_h, crop_w, 3] uint8: the pixels of all views, the same bytes as `render` gives one by one.

    frames: for each view its stored frames. Raises ViewError when their number is not the batch's, or the views
    differ in clip length or crop size.
    """
    out = np.empty((len(batch), *check_renderable(frames, batch), 3), dtype=np.uint8)
    for clip, stored, view in zip(out, frames, batch.records, strict=True):
        _render_into(clip, stored, view)
    for row in own_views(batch):
        out[row] = apply_operation(batch.operation, out[row])
    return out


def own_views(batch: ViewBatch) -> NDArray[np.int64]:
    """Positions of the views that an operation of the user's own changes."""
    if not batch.operation:
        return np.zeros(0, dtype=np.int64)
    shuffled = batch.records["pretext"] == Pretext.TEMPORAL_SHUFFLE
    return np.flatnonzero(shuffled & (batch.records["variant"] == OWN))


def check_renderable(frames: Sequence[NDArray[np.uint8]], batch: ViewBatch) -> tuple[int, int, int]:
    """(clip_len, crop_h, crop_w) of all views. Raises ViewError as render_batch does."""
    if len(frames) != len(batch):
        raise ViewError(f"{len(batch)} views need as many clips of stored frames, got {len(frames)}")
    shapes = np.unique(batch.records[["clip_len", "crop_h", "crop_w"]])
    if len(shapes) != 1:
        raise ViewError(f"views rendered together share (clip_len, crop_h, crop_w), got {shapes.tolist()}")
    for stored, view in zip(frames, batch.records, strict=True):
        _check(stored, view, has_operation=bool(batch.operation))
    clip_len, crop_h, crop_w = shapes[0].item()
    return clip_len, crop_h, crop_w


def _render_into(out_THW3: NDArray[np.uint8], frames_THW3: NDArray[np.uint8], view: np.void) -> None:
    top, left, height, width = (int(view[name]) for name in ("crop_y", "crop_x", "crop_h", "crop_w"))
    crop = frames_THW3[:, top : top + height, left : left + width]
    steps = _steps(view)
    pretext, variant, flip = int(view["pretext"]), int(view["variant"]), bool(view["flip"])
    # A temporal operation only says which frame is shown where, so it costs no copy.
    for frame, source in zip(out_THW3, frame_order(pretext, variant, len(out_THW3)), strict=True):
        pixels = _photometric(crop[source], steps) if steps else crop[source]
        _arrange(frame, cv2.flip(pixels, 1) if flip else pixels, pretext, variant)


def _check(frames_THW3: NDArray[np.uint8], view: np.void, has_operation: bool = False) -> None:
    """Views also arrive from other processes: refuse what would read outside the frame or is not a number."""
    if frames_THW3.dtype != np.uint8 or frames_THW3.ndim != 4 or frames_THW3.shape[3] != 3:
        raise ViewError(f"stored frames must be uint8 [T, H, W, 3], got {frames_THW3.dtype} {frames_THW3.shape}")
    num_frames, height, width, _ = frames_THW3.shape
    if num_frames != view["clip_len"] or num_frames == 0:
        raise ViewError(f"the view has clip_len {view['clip_len']}, got {num_frames} stored frames")
    top, left, crop_h, crop_w = (int(view[name]) for name in ("crop_y", "crop_x", "crop_h", "crop_w"))
    if not (0 < crop_h <= height - top and 0 < crop_w <= width - left):
        raise ViewError(f"crop {crop_h}x{crop_w} at ({top}, {left}) does not lie in stored frames of {height}x{width}")
    _check_colour(view)
    _check_pretext(view, crop_h, crop_w, has_operation)


def _check_colour(view: np.void) -> None:
    if view["jitter"]:
        factors = [float(view[name]) for name in _JITTER_FIELDS[:3]]
        if not all(0.0 <= factor < math.inf for factor in factors) or not abs(float(view["hue"])) <= 0.5:
            raise ViewError(f"factors must be at least 0 and hue in [-.5, .5], got {factors} and {view['hue']}")
        if view["jitter_order"] >= len(JITTER_ORDERS):
            raise ViewError(f"jitter_order must be below {len(JITTER_ORDERS)}, got {view['jitter_order']}")
    limit = min(int(view["crop_h"]), int(view["crop_w"]))
    # A border can be reflected by one pixel less than the picture has.
    if not 0.0 <= 3 * float(view["blur_sigma"]) <= limit - 1:
        raise ViewError(f"blur_sigma must be in [0, {(limit - 1) / 3:.2f}] for this crop, got {view['blur_sigma']}")


def _check_pretext(view: np.void, crop_h: int, crop_w: int, has_operation: bool) -> None:
    pretext, variant = int(view["pretext"]), int(view["variant"])
    if (pretext, variant) == (Pretext.TEMPORAL_SHUFFLE, OWN):
        if not has_operation:
            raise ViewError("the view wants a pretext operation of the user's own, which its batch must name")
        return
    if pretext >= len(Pretext) or variant not in _VARIANTS[Pretext(pretext)]:
        raise ViewError(f"there is no pretext operation {pretext} with variant {variant}")
    if pretext == Pretext.ROTATION and crop_h != crop_w:
        raise ViewError(f"a rotation needs a square crop, got {crop_h}x{crop_w}")
    if pretext == Pretext.SPATIAL_PERMUTATION and (crop_h % 2 or crop_w % 2):
        raise ViewError(f"a permutation of quadrants needs an even crop, got {crop_h}x{crop_w}: choose an even one")


def _steps(view: np.void) -> list[Step]:
    """What is done to the values of each frame, in order; empty when nothing is."""
    steps: list[Step] = []
    if view["jitter"]:
        operations = (_brightness, _contrast, _saturation, _hue)
        for i in JITTER_ORDERS[view["jitter_order"]]:
            steps.append(partial(operations[i], factor=float(view[_JITTER_FIELDS[i]])))
    if view["gray"]:
        steps.append(partial(cv2.transform, m=_LUMA))
    if view["blur_sigma"] > 0:
        steps.append(partial(_blur, kernel=gaussian_kernel(float(view["blur_sigma"]))))
    return steps


def _photometric(pixels_HW3: NDArray[np.uint8], steps: Sequence[Step]) -> NDArray[np.uint8]:
    """[H, W, 3] uint8: the steps in float32, then the one rounding."""
    frame: Frame = pixels_HW3.astype(np.float32, order="C")
    for step in steps:
        frame = step(frame)
    rounded = cv2.convertScaleAbs(frame)  # half to even, saturating
    return cv2.cvtColor(rounded, cv2.COLOR_GRAY2RGB) if rounded.ndim == 2 else rounded


def _brightness(frame: Frame, factor: float) -> Frame:
    np.multiply(frame, np.float32(factor), out=frame)
    return _clamp(frame, factor)


def _contrast(frame: Frame, factor: float) -> Frame:
    mean_gray = float(_LUMA[0] @ cv2.mean(frame)[:3])
    frame *= np.float32(factor)
    frame += np.float32((1.0 - factor) * mean_gray)
    return _clamp(frame, factor)


def _saturation(frame: Frame, factor: float) -> Frame:
    blend = factor * np.eye(3) + (1.0 - factor) * _LUMA
    return _clamp(cv2.transform(frame, blend.astype(np.float32)), factor)


def _hue(frame: Frame, factor: float) -> Frame:
    """OpenCV's H runs from 0 to 360 in float32 and wraps upwards, so a turn back is made a turn forward."""
    hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)
    hsv[:, :, 0] += np.float32(360.0 * (factor % 1.0))
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _clamp(frame: Frame, factor: float) -> Frame:
    """To [0, 255], in place. A factor up to 1 blends two pictures, which cannot leave the range."""
    if factor > 1.0:
        cv2.threshold(frame, _WHITE, 0.0, cv2.THRESH_TRUNC, dst=frame)
        cv2.threshold(frame, 0.0, 0.0, cv2.THRESH_TOZERO, dst=frame)
    return frame


def gaussian_kernel(sigma: float) -> NDArray[np.float32]:
    """[2 * ceil(3 sigma) + 1] float32 samples of a Gaussian, summing to 1; sigma in pixels, above 0."""
    radius = math.ceil(3 * sigma)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return (weights / weights.sum()).astype(np.float32)


def _blur(frame: Frame, kernel: NDArray[np.float32]) -> Frame:
    return cv2.sepFilter2D(frame, cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)


def _arrange(out_HW3: NDArray[np.uint8], pixels_HW3: NDArray[np.uint8], pretext: int, variant: int) -> None:
    """Write the frame to its place, with its pixels moved as a spatial operation says."""
    if pretext == Pretext.ROTATION:
        out_HW3[...] = cv2.rotate(pixels_HW3, _QUARTER_TURNS[variant])
    elif pretext == Pretext.SPATIAL_PERMUTATION:
        for target, source in enumerate(QUADRANT_ORDERS[variant]):
            _quadrant(out_HW3, target)[...] = _quadrant(pixels_HW3, source)
    else:
        out_HW3[...] = pixels_HW3


def _quadrant(frame_HW3: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    """The upper left, upper right, lower left or lower right quarter, as a window into the frame."""
    height, width = frame_HW3.shape[0] // 2, frame_HW3.shape[1] // 2
    top, left = index // 2 * height, index % 2 * width
    return frame_HW3[top : top + height, left : left + width]
