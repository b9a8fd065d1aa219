"""Pictures of the second built-in data set: drawn by pen, before landscapes, with a camera that zooms and rolls.

    joints [T, 3] each -> strokes between joints -> a similarity of the camera -> frames uint8 [T, H, W, 3], RGB

In the first set solid, coloured people with faces stand before walls; here a figure is a few strokes of one or two
inks. A `Sketch` (backdrop, inks, body) belongs to a film and knows nothing of the action; a `Shot` is what differs from
clip to clip. Coordinates of the canvas are pixels; the picture is a window of it. Axis letter: T frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from data.demo_backgrounds import Array, Frames, hsv
from data.demo_figures import Action, Body, joints_of
from data.demo_scenes import FPS

HEIGHT, WIDTH = 128, 176  # of the picture, pixels
MIN_FRAMES, MAX_FRAMES = 64, 80  # of a clip: like HMDB51's, they differ in length
_CANVAS_HEIGHT, _CANVAS_WIDTH = 184, 240
_GROUND = 142  # row of the canvas that the feet stand on
_SUBPIXEL_BITS = 4
_PITCH = 6.0  # degrees that the camera looks down
_STROKES = (  # from joint, to joint; the far side of the body takes the second ink
    ("hip", "knee"),
    ("knee", "ankle"),
    ("ankle", "toe"),
    ("shoulder", "elbow"),
    ("elbow", "hand"),
)


@dataclass(frozen=True)
class Sketch:
    """Who and where. canvas: uint8 [rows, columns, 3]; ink: RGB of the near and of the far side; pen: width of a
    stroke, pixels; head_filled: the head is a disc and not a ring."""

    body: Body
    canvas: Frames
    ink: Array
    pen: int
    head_filled: bool


@dataclass(frozen=True)
class Shot:
    """How one clip is shot. phase: radians [T]; yaw: degrees; mirrored: the figure is; camera: [T, 2, 3], canvas to
    picture; place: canvas column where the figure stands; moving: whether the camera is."""

    phase: Array
    yaw: float
    mirrored: bool
    camera: Array
    place: float
    moving: bool


def draw_sketch(rng: np.random.Generator) -> Sketch:
    """A random figure in a random landscape; the ink is dark on a pale one and pale on a dark one."""
    night = bool(rng.random() < 0.4)
    body = Body(
        height=rng.uniform(80, 94),
        shoulder=rng.uniform(0.085, 0.115),
        hip=rng.uniform(0.04, 0.06),
        torso=rng.uniform(0.27, 0.31),
        arm=rng.uniform(0.17, 0.2),
        leg=rng.uniform(0.225, 0.25),
        girth=1.0,
    )
    canvas = _landscape(rng, night)
    value = rng.uniform(0.9, 1.0) if night else rng.uniform(0.05, 0.3)
    near = hsv(rng.random(), rng.uniform(0.05, 0.6), value)
    far = 0.62 * near + 0.38 * (60 if night else 150)
    return Sketch(body, canvas, np.stack([near, far]), int(rng.integers(3, 7)), bool(rng.random() < 0.5))


def draw_shot(rng: np.random.Generator, action: Action) -> Shot:
    """Everything random about one clip of an action."""
    num_frames = int(rng.integers(MIN_FRAMES, MAX_FRAMES + 1))
    seconds = np.arange(num_frames) / FPS
    phase = 2 * np.pi * (action.rate * rng.uniform(0.85, 1.2) * seconds + rng.random())
    moving = bool(rng.random() < 0.6)

    def drift(size: float) -> Array:
        """A slow swing of the camera around a resting place of the same size."""
        swing = np.sin(2 * np.pi * (rng.uniform(0.1, 0.35) * seconds + rng.random()))
        return size * (rng.uniform(-1, 1) + (swing if moving else 0 * swing))

    zoom, roll = 1 + drift(0.06), np.radians(drift(2.5))
    centre = (_CANVAS_WIDTH / 2 + drift(5), _CANVAS_HEIGHT / 2 + 4 + drift(3))
    camera = _similarities(zoom, roll, *centre)
    yaw = action.yaw + rng.uniform(-20, 20)
    return Shot(phase, yaw, bool(rng.random() < 0.5), camera, _CANVAS_WIDTH / 2 + rng.uniform(-14, 14), moving)


def draw_frames(action: Action, sketch: Sketch, shot: Shot) -> Frames:
    """The clip as uint8 [T, H, W, 3], RGB. The same arguments give the same pixels."""
    joints = joints_of(action.pose(shot.phase), sketch.body, len(shot.phase))
    points = {name: _on_canvas(point, sketch, shot) for name, point in joints.items()}
    right_is_near = _depth(joints["shoulder_r"], shot) > _depth(joints["shoulder_l"], shot)
    frames = np.empty((len(shot.phase), HEIGHT, WIDTH, 3), dtype=np.uint8)
    for t, camera in enumerate(shot.camera):
        frame = cv2.warpAffine(sketch.canvas, camera, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT_101)
        seen = {name: camera[:, :2] @ point[t] + camera[:, 2] for name, point in points.items()}
        near, far = ("r", "l") if right_is_near[t] else ("l", "r")
        _draw_figure(frame, sketch, seen, near, far, zoom=float(np.hypot(camera[0, 0], camera[1, 0])))
        frames[t] = frame
    return frames


def _similarities(zoom: Array, roll: Array, x: Array, y: Array) -> Array:
    """[T, 2, 3]: the canvas point (x, y) comes to the middle of the picture, enlarged by zoom and turned by roll."""
    c, s = zoom * np.cos(roll), zoom * np.sin(roll)
    rows = (
        np.stack([c, -s, WIDTH / 2 - c * x + s * y], axis=1),
        np.stack([s, c, HEIGHT / 2 - s * x - c * y], axis=1),
    )
    return np.stack(rows, axis=1)


def _on_canvas(points: Array, sketch: Sketch, shot: Shot) -> Array:
    """Points [T, 3] of the body, in body heights, to [T, 2] of the canvas: turned, pitched, mirrored."""
    yaw, pitch = np.radians(shot.yaw), np.radians(_PITCH)
    across = points[:, 0] * np.cos(yaw) + points[:, 2] * np.sin(yaw)
    up = points[:, 1] * np.cos(pitch) - _depth(points, shot) * np.sin(pitch)
    x = shot.place + sketch.body.height * (-across if shot.mirrored else across)
    return np.stack([x, _GROUND - sketch.body.height * up], axis=1)


def _depth(points: Array, shot: Shot) -> Array:
    """[T] how near points [T, 3] of the body are to the viewer, body heights."""
    yaw = np.radians(shot.yaw)
    return points[:, 2] * np.cos(yaw) - points[:, 0] * np.sin(yaw)


def _draw_figure(frame: Frames, sketch: Sketch, seen: dict[str, Array], near: str, far: str, zoom: float) -> None:
    """Far limbs, trunk, head, near limbs: strokes with round ends."""
    ink_near, ink_far = sketch.ink.tolist()
    _draw_limbs(frame, seen, far, ink_far, sketch.pen)
    trunk = [seen[name] for name in ("shoulder_l", "shoulder_r", "hip_r", "hip_l")]
    cv2.fillPoly(frame, [_fixed(np.stack(trunk))], ink_near, cv2.LINE_AA, _SUBPIXEL_BITS)
    _draw_stroke(frame, seen["neck"], seen["pelvis"], ink_near, sketch.pen + 1)
    chin = seen["neck"] + 0.4 * (seen["head"] - seen["neck"])  # a ring stays empty
    _draw_stroke(frame, seen["neck"], chin, ink_near, sketch.pen)
    radius = round(0.082 * sketch.body.height * zoom * 2**_SUBPIXEL_BITS)
    centre = tuple(_fixed(seen["head"]).tolist())
    width = -1 if sketch.head_filled else 2
    cv2.circle(frame, centre, radius, ink_near, width, cv2.LINE_AA, _SUBPIXEL_BITS)
    _draw_limbs(frame, seen, near, ink_near, sketch.pen)


def _draw_limbs(frame: Frames, seen: dict[str, Array], side: str, ink: list[float], pen: int) -> None:
    for start, end in _STROKES:
        _draw_stroke(frame, seen[f"{start}_{side}"], seen[f"{end}_{side}"], ink, pen)


def _draw_stroke(frame: Frames, a: Array, b: Array, ink: list[float], pen: int) -> None:
    start, end = (tuple(_fixed(point).tolist()) for point in (a, b))
    cv2.line(frame, start, end, ink, pen, cv2.LINE_AA, _SUBPIXEL_BITS)


def _fixed(points: Array) -> NDArray[np.int32]:
    return np.rint(points * 2**_SUBPIXEL_BITS).astype(np.int32)


# ------------------------------------------------------------------------------------------------ landscapes


def _landscape(rng: np.random.Generator, night: bool) -> Frames:
    """A sky with sun or moon, two ranges of hills, a meadow with tufts: an upright world, all in flat colours."""
    hue = rng.random()
    low, high = (0.08, 0.34) if night else (0.72, 0.98)
    top = hsv(hue, rng.uniform(0.15, 0.6), rng.uniform(low, high))
    bottom = hsv(hue + rng.uniform(-0.12, 0.12), rng.uniform(0.05, 0.35), rng.uniform(low, high))
    share = np.linspace(0, 1, _CANVAS_HEIGHT)[:, None, None]
    bands = int(rng.integers(4, 40))  # from posterised to smooth
    share = np.floor(share * bands) / bands
    canvas = np.ascontiguousarray(np.broadcast_to(top + (bottom - top) * share, (_CANVAS_HEIGHT, _CANVAS_WIDTH, 3)))
    disc = (int(rng.integers(10, _CANVAS_WIDTH - 10)), int(rng.integers(20, 70)))
    cv2.circle(canvas, disc, int(rng.integers(7, 18)), (top * 0.4 + 150).clip(0, 255).tolist(), -1, cv2.LINE_AA)
    for horizon, depth in ((rng.uniform(84, 112), 0.9), (rng.uniform(108, 128), 0.78)):
        _hills(rng, canvas, horizon, bottom * depth)
    _meadow(rng, canvas, hue, night)
    grain = rng.normal(0, rng.uniform(0, 4), (_CANVAS_HEIGHT, _CANVAS_WIDTH, 1))  # of the paper: it does not flicker
    return (canvas + grain).clip(0, 255).round().astype(np.uint8)


def _hills(rng: np.random.Generator, canvas: Array, horizon: float, colour: Array) -> None:
    x = np.arange(_CANVAS_WIDTH)
    ridge = np.full(_CANVAS_WIDTH, horizon)
    for _ in range(3):
        ridge += rng.uniform(2, 8) * np.sin(2 * np.pi * (x / rng.uniform(50, 190) + rng.random()))
    edge = np.stack([x, ridge], axis=1)
    corners = [[_CANVAS_WIDTH - 1, _CANVAS_HEIGHT], [0, _CANVAS_HEIGHT]]
    cv2.fillPoly(canvas, [_fixed(np.concatenate([edge, corners]))], colour.tolist(), cv2.LINE_AA, _SUBPIXEL_BITS)


def _meadow(rng: np.random.Generator, canvas: Array, hue: float, night: bool) -> None:
    top = _GROUND - int(rng.integers(8, 18))
    value = rng.uniform(0.14, 0.3) if night else rng.uniform(0.6, 0.85)
    meadow = hsv(hue + rng.uniform(0.2, 0.6), rng.uniform(0.1, 0.5), value)
    cv2.rectangle(canvas, (0, top), (_CANVAS_WIDTH, _CANVAS_HEIGHT), meadow.tolist(), -1)
    tuft = (meadow * rng.choice([0.75, 1.25])).clip(0, 255).tolist()
    for _ in range(int(rng.integers(20, 70))):
        x, y = int(rng.integers(_CANVAS_WIDTH)), int(rng.integers(top + 4, _CANVAS_HEIGHT))
        cv2.line(canvas, (x, y), (x + int(rng.integers(-3, 4)), y - int(rng.integers(2, 7))), tuft, 1, cv2.LINE_AA)
