"""Backgrounds of the built-in data set: a wall with a pattern and a few things on it, above a floor.

An upright world, so that a turned picture shows, with marks all along it, so that a scrolling camera shows.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 120, 160  # of the picture, pixels
PANORAMA = 360  # columns before the background repeats, mirrored
MARGIN = 8  # rows above and below the picture, for the camera's sway
_HORIZON = 88  # row of the picture where wall and floor meet

Array = NDArray[np.float64]
Frames = NDArray[np.uint8]


def hsv(hue: float, saturation: float, value: float) -> Array:
    """RGB in 0 to 255 of a hue in turns and two numbers in 0 to 1."""
    pixel = np.array([[[hue % 1 * 360, saturation, value]]], dtype=np.float32)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float64) * 255


def draw_background(rng: np.random.Generator, dark: bool) -> Frames:
    """A wall with a pattern and a few things on it above a floor: an upright world, in which a scroll shows."""
    rows = HEIGHT + 2 * MARGIN
    y = np.linspace(0, 1, rows)[:, None, None]
    hue = rng.random()
    value = rng.uniform(0.22, 0.42) if dark else rng.uniform(0.78, 0.95)
    wall = hsv(hue, rng.uniform(0.05, 0.4), value)
    picture = np.broadcast_to(wall * (1.12 - 0.3 * y), (rows, PANORAMA, 3)).astype(np.float32)
    pattern = (_plain, _stripes, _blobs, _texture, _bricks)[rng.integers(5)](rng, rows)
    picture = picture * (1 + rng.uniform(0.1, 0.22) * pattern[..., None])
    picture = np.ascontiguousarray(picture.clip(0, 255))
    _hang_things(rng, picture, hue, dark)
    _lay_floor(rng, picture, dark)
    mirrored = np.concatenate([picture, picture[:, ::-1]], axis=1)
    return np.concatenate([mirrored, mirrored[:, :WIDTH]], axis=1).clip(0, 255).round().astype(np.uint8)


def _plain(rng: np.random.Generator, rows: int) -> NDArray[np.float32]:
    return np.zeros((rows, PANORAMA), dtype=np.float32) + np.float32(rng.uniform(-0.3, 0.3))


def _stripes(rng: np.random.Generator, rows: int) -> NDArray[np.float32]:
    y, x = np.mgrid[:rows, :PANORAMA].astype(np.float32)
    wave = np.sin(2 * np.pi * (x + rng.choice([0, 0, 0.6, -0.6]) * y) / rng.uniform(14, 44))
    return np.clip(wave * 4, -1, 1)


def _blobs(rng: np.random.Generator, rows: int) -> NDArray[np.float32]:
    canvas = np.zeros((rows, PANORAMA), dtype=np.float32)
    for _ in range(24):
        centre = (int(rng.integers(PANORAMA)), int(rng.integers(rows)))
        cv2.circle(canvas, centre, int(rng.integers(6, 22)), float(rng.uniform(-1, 1)), -1, cv2.LINE_AA)
    return cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(1, 4)))


def _texture(rng: np.random.Generator, rows: int) -> NDArray[np.float32]:
    """Value noise: three octaves of random grids, enlarged."""
    total = np.zeros((rows, PANORAMA), dtype=np.float32)
    for cell, weight in ((36, 0.6), (14, 0.4), (6, 0.25)):
        grid = rng.uniform(-1, 1, (rows // cell + 2, PANORAMA // cell + 2)).astype(np.float32)
        total += weight * cv2.resize(grid, (PANORAMA, rows), interpolation=cv2.INTER_CUBIC)
    return total


def _bricks(rng: np.random.Generator, rows: int) -> NDArray[np.float32]:
    high, wide = int(rng.integers(8, 15)), int(rng.integers(18, 34))
    y, x = np.mgrid[:rows, :PANORAMA]
    course = y // high
    brick = (x + course % 2 * (wide // 2)) // wide
    shade = rng.uniform(-0.5, 0.5, (int(course.max()) + 1, int(brick.max()) + 1))[course, brick]
    joint = (y % high == 0) | ((x + course % 2 * (wide // 2)) % wide == 0)
    return np.where(joint, 0.9, shade).astype(np.float32)


def _hang_things(rng: np.random.Generator, picture: NDArray[np.float32], hue: float, dark: bool) -> None:
    """Windows and posters: rectangles in the upper part of the wall, never where every picture has one."""
    x = int(rng.integers(0, 60))
    while x < PANORAMA - 20:
        wide, high = int(rng.integers(16, 40)), int(rng.integers(18, 42))
        top = int(rng.integers(12, 36))
        value = rng.uniform(0.35, 0.6) if dark else rng.uniform(0.55, 0.8)
        colour = hsv(hue + rng.uniform(-0.2, 0.5), rng.uniform(0.1, 0.4), value)
        cv2.rectangle(picture, (x, top), (x + wide, top + high), (colour * 0.75).tolist(), -1)
        cv2.rectangle(picture, (x + 2, top + 2), (x + wide - 2, top + high - 2), colour.tolist(), -1)
        x += wide + int(rng.integers(14, 90))


def _lay_floor(rng: np.random.Generator, picture: NDArray[np.float32], dark: bool) -> None:
    top = _HORIZON + MARGIN
    value = rng.uniform(0.3, 0.5) if dark else rng.uniform(0.5, 0.72)
    floor = hsv(rng.uniform(0.05, 0.45), rng.uniform(0.1, 0.4), value)
    depth = np.linspace(0.85, 1.15, len(picture) - top)[:, None, None]
    grain = rng.uniform(-0.1, 0.1, (1, PANORAMA // int(rng.integers(8, 30)) + 1)).astype(np.float32)
    planks = cv2.resize(grain, (PANORAMA, 1), interpolation=cv2.INTER_NEAREST)[..., None]
    picture[top:] = floor * depth * (1 + planks)
    picture[top - 2 : top] = floor * 0.55  # skirting
