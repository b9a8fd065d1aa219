"""Views to pixels in torch, for GPUs: the numeric contract of data.render, all clips of a batch at once.

    stored frames -> crop (CPU) -> device -> jitter, gray, blur, flip -> one rounding -> pretext -> uint8 pixels

Clips differ in which operation comes first and in every factor. So each of the four places in the jitter's order
takes the clips of one operation together, with a factor per clip, and the blur is one grouped convolution with a
kernel per clip. Pixels are within one grey level of data.render's (tests/bench/gpu.py prints how many differ). Nothing
but that bench uses it yet: students and teachers both render on the CPU, so that they see the same bytes.

Axis letters: N clips, T frames, H, W; pictures are [N, 3, T, H, W] float32 in [0, 255].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from data.operations import apply_operation
from data.render import check_renderable, gaussian_kernel, own_views
from data.views import JITTER_ORDERS, QUADRANT_ORDERS, Pretext, ViewBatch, frame_order

_WHITE = 255.0
_LUMA = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale
_JITTER_FIELDS = ("brightness", "contrast", "saturation", "hue")  # in the numbering of JITTER_ORDERS


def render_on_device(frames: Sequence[NDArray[np.uint8]], batch: ViewBatch, device: torch.device) -> Tensor:
    """uint8 [N, T, crop_h, crop_w, 3] on `device`. frames and errors: as data.render.render_batch."""
    height, width = check_renderable(frames, batch)[1:]
    views = batch.records
    crops = np.stack(
        [
            stored[:, int(v["crop_y"]) : int(v["crop_y"]) + height, int(v["crop_x"]) : int(v["crop_x"]) + width]
            for stored, v in zip(frames, views, strict=True)
        ]
    )
    x = torch.from_numpy(crops).to(device).permute(0, 4, 1, 2, 3).to(torch.float32)
    _jitter(x, views)
    _where(x, views["gray"] > 0, lambda clips, _: _gray(clips).expand_as(clips), views)
    _blur(x, views["blur_sigma"])
    _where(x, views["flip"] > 0, lambda clips, _: clips.flip(-1), views)
    pixels = x.round_().clamp_(0, _WHITE).to(torch.uint8)  # half to even, as data.render
    pixels_NTHW3 = _arranged(pixels, views).permute(0, 2, 3, 4, 1).contiguous()
    for row in own_views(batch).tolist():  # a function over arrays: through the CPU
        changed = apply_operation(batch.operation, pixels_NTHW3[row].cpu().numpy())
        pixels_NTHW3[row] = torch.from_numpy(changed.copy()).to(device)
    return pixels_NTHW3


def _where(
    x: Tensor,
    chosen: NDArray[np.bool_],
    operation: Callable[[Tensor, NDArray[np.void]], Tensor],
    views: NDArray[np.void],
) -> None:
    """Replaces the chosen clips by what the operation makes of them."""
    rows = np.flatnonzero(chosen)
    if len(rows) == 0:
        return
    index = torch.from_numpy(rows).to(x.device)
    x[index] = operation(x[index], views[rows])


def _jitter(x: Tensor, views: NDArray[np.void]) -> None:
    orders = np.array(JITTER_ORDERS)[np.minimum(views["jitter_order"], len(JITTER_ORDERS) - 1)]
    for place in range(len(_JITTER_FIELDS)):
        for number in range(len(_JITTER_FIELDS)):
            _where(x, (views["jitter"] > 0) & (orders[:, place] == number), partial(_jittered, number=number), views)


def _jittered(clips: Tensor, views: NDArray[np.void], number: int) -> Tensor:
    factors = torch.from_numpy(np.ascontiguousarray(views[_JITTER_FIELDS[number]]))
    return _OPERATIONS[number](clips, factors.to(clips.device).view(-1, 1, 1, 1, 1))


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp_(0, _WHITE)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    mean = _gray(x).mean(dim=(3, 4), keepdim=True)  # of each frame
    return (x * factor + (1 - factor) * mean).clamp_(0, _WHITE)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor + (1 - factor) * _gray(x)).clamp_(0, _WHITE)


def _hue(x: Tensor, turn: Tensor) -> Tensor:
    """H of HSV turned by `turn` of the circle; S and V stay. H counts sixths of the circle."""
    value, spread = x.amax(dim=1, keepdim=True), x.amax(dim=1, keepdim=True) - x.amin(dim=1, keepdim=True)
    r, g, b = x.split(1, dim=1)
    safe = torch.where(spread > 0, spread, torch.ones_like(spread))
    hue = torch.where(value == r, (g - b) / safe, torch.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe))
    hue = hue + 6 * turn
    # V - spread * max(0, min(k, 4 - k, 1)) with k = (n + H) mod 6 and n = 5, 3, 1 for R, G, B.
    n = torch.tensor([5.0, 3.0, 1.0], device=x.device).view(1, 3, 1, 1, 1)
    k = torch.remainder(n + hue, 6)
    return value - spread * torch.minimum(k, 4 - k).clamp_(0, 1)


_OPERATIONS = (_brightness, _contrast, _saturation, _hue)


def _gray(x: Tensor) -> Tensor:
    """[N, 1, T, H, W]."""
    r, g, b = x.split(1, dim=1)
    return r * _LUMA[0] + g * _LUMA[1] + b * _LUMA[2]


def _blur(x: Tensor, sigmas: NDArray[np.float32]) -> None:
    """Separable, the border reflected without its edge pixel. All kernels get the longest one's length, with zeros."""
    rows = np.flatnonzero(sigmas > 0)
    if len(rows) == 0:
        return
    kernels = [gaussian_kernel(float(sigma)) for sigma in sigmas[rows]]
    radius = max(len(kernel) for kernel in kernels) // 2
    padded = np.stack([np.pad(kernel, radius - len(kernel) // 2) for kernel in kernels])
    weights = torch.from_numpy(padded).to(x.device)
    index = torch.from_numpy(rows).to(x.device)
    clips = x[index]
    planes = clips.flatten(1, 2).transpose(0, 1)  # [3 T, N, H, W]: a group of the convolution per clip
    groups = len(rows)
    planes = F.pad(planes, (radius, radius, radius, radius), mode="reflect")
    planes = F.conv2d(planes, weights.view(groups, 1, 1, -1), groups=groups)
    planes = F.conv2d(planes, weights.view(groups, 1, -1, 1), groups=groups)
    x[index] = planes.transpose(0, 1).reshape_as(clips)


def _arranged(pixels_N3THW: Tensor, views: NDArray[np.void]) -> Tensor:
    """The pretext operations: they only move pixels, so bytes are moved."""
    out = pixels_N3THW.clone()
    for i in np.flatnonzero(views["pretext"] != Pretext.UNCHANGED):
        pretext, variant = int(views["pretext"][i]), int(views["variant"][i])
        clip = pixels_N3THW[i]
        if pretext == Pretext.ROTATION:
            out[i] = clip.rot90(variant, dims=(2, 3))
        elif pretext == Pretext.SPATIAL_PERMUTATION:
            out[i] = _quadrants_moved(clip, variant)
        else:
            order = frame_order(pretext, variant, clip.shape[1])
            out[i] = clip[:, torch.from_numpy(order).to(clip.device)]
    return out


def _quadrants_moved(clip_3THW: Tensor, variant: int) -> Tensor:
    rows = [half.chunk(2, dim=3) for half in clip_3THW.chunk(2, dim=2)]
    quadrants = [part for row in rows for part in row]
    a, b, c, d = (quadrants[i] for i in QUADRANT_ORDERS[variant])
    return torch.cat([torch.cat([a, b], dim=3), torch.cat([c, d], dim=3)], dim=2)
