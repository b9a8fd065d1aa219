"""Rendered pixels to a network's input: scale, resize, normalise, modality, layout.

Rendering is the same for everybody; this part follows from each model's own card. It runs on the device that the
pixels lie on. Every value depends on its own clip only, never on the batch around it.

Axis letters: N clips, T frames, H, W, C channels.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.errors import ViewError
from data.input_spec import InputSpec


def prepare(pixels_NTHW3: NDArray[np.uint8] | Tensor, spec: InputSpec) -> Tensor:
    """[N, 3, T, crop, crop] float32, contiguous, on the device of the pixels.

    pixels_NTHW3: uint8, as `render_batch` gives them; may be read-only, is never written to. In modality `res` frame
    t is frame t minus frame t-1, and frame 0 repeats the difference of frame 1. The bilinear resize is that of
    torch's `interpolate` with align_corners=False, without antialiasing. Raises ViewError for anything but uint8
    clips, and for `res` of a single frame.
    """
    _check(pixels_NTHW3, spec)
    planes = _resize(_planes(pixels_NTHW3), spec.crop)
    std = torch.tensor(spec.std, dtype=torch.float64).view(3, 1, 1, 1)
    scale = (1.0 / (255.0 * std)).to(planes)
    if spec.modality == "res":
        return _difference(planes).mul_(scale)  # the mean is the same in both frames and cancels
    mean = torch.tensor(spec.mean, dtype=torch.float64).view(3, 1, 1, 1)
    # Two operations, not one fused: each is rounded the same in a vector loop, in its tail and on every device.
    return planes.mul_(scale).sub_((mean / std).to(planes))


def _check(pixels_NTHW3: NDArray[np.uint8] | Tensor, spec: InputSpec) -> None:
    shape = tuple(pixels_NTHW3.shape)
    if pixels_NTHW3.dtype not in (np.uint8, torch.uint8) or len(shape) != 5 or shape[4] != 3:
        raise ViewError(f"pixels must be uint8 [N, T, H, W, 3], got {pixels_NTHW3.dtype} {shape}")
    if min(shape[1:4]) < 1:
        raise ViewError(f"clips must have at least one frame and one pixel, got {shape}")
    if spec.modality == "res" and shape[1] < 2:
        raise ViewError(f"modality res needs clips of at least 2 frames, got {shape[1]}")


def _planes(pixels_NTHW3: NDArray[np.uint8] | Tensor) -> Tensor:
    """[N, 3, T, H, W] float32 in [0, 255], memory of its own.

    On the CPU OpenCV takes the channels apart, several times as fast as a strided copy; torch would also warn about
    arrays that are read-only.
    """
    if isinstance(pixels_NTHW3, Tensor) and pixels_NTHW3.device.type != "cpu":
        return pixels_NTHW3.permute(0, 4, 1, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
    clips = np.asarray(pixels_NTHW3)
    num_clips, num_frames, height, width, _ = clips.shape
    planes = torch.empty((num_clips, 3, num_frames, height, width), dtype=torch.float32)
    for clip, target in zip(clips, planes.numpy(), strict=True):
        channels = cv2.split(clip.reshape(num_frames * height, width, 3))
        for channel, plane in enumerate(channels):
            target[channel] = plane.reshape(num_frames, height, width)
    return planes


def _resize(planes_NCTHW: Tensor, side: int) -> Tensor:
    """[N, 3, T, side, side]; the input itself when it has that size."""
    num_clips, channels, num_frames, height, width = planes_NCTHW.shape
    if (height, width) == (side, side):
        return planes_NCTHW
    frames = planes_NCTHW.view(num_clips * channels, num_frames, height, width)
    resized = torch.nn.functional.interpolate(frames, size=(side, side), mode="bilinear", align_corners=False)
    return resized.view(num_clips, channels, num_frames, side, side)


def _difference(planes_NCTHW: Tensor) -> Tensor:
    """Frame t minus frame t-1, in place; frame 0 repeats frame 1."""
    for t in range(planes_NCTHW.shape[2] - 1, 0, -1):
        planes_NCTHW[:, :, t] -= planes_NCTHW[:, :, t - 1]
    planes_NCTHW[:, :, 0] = planes_NCTHW[:, :, 1]
    return planes_NCTHW
