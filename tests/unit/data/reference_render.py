"""The renderer's numeric contract, operation by operation in torch: torchvision's formulas for float images.

The tests hold `data.render` against it and the benchmark times it. It shares nothing with the renderer but the
definition; all T frames of a clip go through each operation together. The pretext operation is not in here.

Axis letters: T frames, H, W; images are [T, 3, H, W] float32 in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.views import JITTER_ORDERS


def render_reference(
    frames_THW3: NDArray[np.uint8], view: np.void, hue: Callable[[Tensor, float], Tensor] | None = None
) -> NDArray[np.uint8]:
    """[T, crop_h, crop_w, 3] uint8: crop, jitter, gray, blur, flip, one rounding. hue: another `adjust_hue`."""
    top, left, height, width = (int(view[name]) for name in ("crop_y", "crop_x", "crop_h", "crop_w"))
    crop = torch.from_numpy(frames_THW3)[:, top : top + height, left : left + width]
    x = crop.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    if view["jitter"]:
        operations = (adjust_brightness, adjust_contrast, adjust_saturation, hue or adjust_hue)
        for i in JITTER_ORDERS[view["jitter_order"]]:
            x = operations[i](x, float(view[("brightness", "contrast", "saturation", "hue")[i]]))
    if view["gray"]:
        x = gray(x).expand_as(x)
    if view["blur_sigma"] > 0:
        x = gaussian_blur(x, float(view["blur_sigma"]))
    if view["flip"]:
        x = x.flip(-1)
    return x.mul(255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def gray(x: Tensor) -> Tensor:
    """[T, 1, H, W]; the weights are torchvision's rgb_to_grayscale."""
    r, g, b = x.unbind(1)
    return (r * 0.2989).add_(g, alpha=0.587).add_(b, alpha=0.114).unsqueeze(1)


def adjust_brightness(x: Tensor, factor: float) -> Tensor:
    return (x * factor).clamp_(0, 1)


def adjust_contrast(x: Tensor, factor: float) -> Tensor:
    mean = gray(x).mean(dim=(1, 2, 3), keepdim=True)
    return (x * factor).add_(mean, alpha=1 - factor).clamp_(0, 1)


def adjust_saturation(x: Tensor, factor: float) -> Tensor:
    return (x * factor).add_(gray(x), alpha=1 - factor).clamp_(0, 1)


def adjust_hue(x: Tensor, turn: float) -> Tensor:
    h, s, v = rgb_to_hsv(x)
    return hsv_to_rgb((h + turn) % 1.0, s, v)


def rgb_to_hsv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """H, S, V [T, H, W], each in [0, 1]; H and S are 0 where a pixel is gray."""
    r, g, b = x.unbind(1)
    v = x.amax(dim=1)
    spread = v - x.amin(dim=1)
    one = torch.ones(())
    s = spread / torch.where(spread == 0, one, v)
    divisor = torch.where(spread == 0, one, spread)
    rc, gc, bc = (v - r) / divisor, (v - g) / divisor, (v - b) / divisor
    h = torch.where(v == r, bc - gc, torch.where(v == g, 2.0 + rc - bc, 4.0 + gc - rc))
    return torch.fmod(h / 6.0 + 1.0, 1.0), s, v


def hsv_to_rgb(h: Tensor, s: Tensor, v: Tensor) -> Tensor:
    """[T, 3, H, W]: in each sixth of the colour circle every channel is one of v, p, q, t."""
    sixth = torch.floor(h * 6.0)
    f = h * 6.0 - sixth
    p = (v * (1.0 - s)).clamp_(0, 1)
    q = (v * (1.0 - s * f)).clamp_(0, 1)
    t = (v * (1.0 - s * (1.0 - f))).clamp_(0, 1)
    index = (sixth.to(torch.int64) % 6).unsqueeze(0)
    channels = ((v, q, p, p, t, v), (t, v, v, q, p, p), (p, p, t, v, v, q))
    return torch.stack([torch.stack(choices).gather(0, index)[0] for choices in channels], dim=1)


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Separable, radius ceil(3 sigma), reflected border; a sum of shifted images, torch's fastest way on a CPU."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.softmax(-0.5 * (offsets / sigma) ** 2, dim=0).tolist()
    height, width = x.shape[-2:]
    padded = torch.nn.functional.pad(x, [radius] * 4, mode="reflect")
    rows = padded[..., :width] * weights[0]
    for i in range(1, len(weights)):
        rows.add_(padded[..., i : i + width], alpha=weights[i])
    blurred = rows[..., :height, :] * weights[0]
    for i in range(1, len(weights)):
        blurred.add_(rows[..., i : i + height, :], alpha=weights[i])
    return blurred
