"""Pictures of the built-in data set: a figure before a background, seen by a drifting camera.

    joints [T, 3] each -> capsules (two ends, two radii) -> polygons -> frames uint8 [T, H, W, 3], RGB

A `Scene` (background, clothes, body) belongs to a group and knows nothing of the action, so no background tells the
class. A `Take` is what differs from clip to clip. Axis letters: T frames, P capsules, E drawing events.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from data.demo_backgrounds import HEIGHT, MARGIN, PANORAMA, WIDTH, Frames, draw_background, hsv
from data.demo_figures import Action, Array, Body, joints_of

FPS = 15
NUM_FRAMES = 60

_GROUND = 111  # row that the feet stand on
_SUBPIXEL_BITS = 4  # OpenCV's drawing functions take coordinates in sixteenths of a pixel
_ARC_POINTS = 7  # of each round end of a capsule
_OUTLINE = 0.013  # body heights
_CAMERA_PITCH = 9.0  # degrees that the camera looks down


# ------------------------------------------------------------------------------------------------ what is drawn


@dataclass(frozen=True)
class Scene:
    """Who and where. background: uint8 [rows, 2 * PANORAMA + WIDTH, 3], periodic; colours: RGB, one row each of
    skin, hair, shirt, trousers, shoes."""

    body: Body
    colours: Array
    background: Frames


@dataclass(frozen=True)
class Take:
    """How one clip is shot. phase: radians [T]; yaw: degrees; x, y: pixels [T], where the figure stands; pan: pixels
    [T], how far the camera has gone along the background; sway: pixels [T], up and down; gain: brightness [T];
    mirrored: the figure is; noise: int16 [rows, columns, 3], of which each frame takes a window at noise_at [T, 2]."""

    phase: Array
    yaw: float
    x: Array
    y: Array
    pan: Array
    sway: Array
    gain: Array
    mirrored: bool
    noise: NDArray[np.int16]
    noise_at: NDArray[np.int64]


def draw_scene(rng: np.random.Generator) -> Scene:
    """A random actor before a random background. The wall is pale or dark and the clothes are saturated, so that the
    figure stands out."""
    body = Body(
        height=rng.uniform(82, 96),
        shoulder=rng.uniform(0.098, 0.122),
        hip=rng.uniform(0.044, 0.056),
        torso=rng.uniform(0.28, 0.31),
        arm=rng.uniform(0.165, 0.19),
        leg=rng.uniform(0.23, 0.25),
        girth=rng.uniform(0.92, 1.2),
    )
    dark_wall = rng.random() < 0.5
    return Scene(body, _clothes(rng, bright=dark_wall), draw_background(rng, dark_wall))


def draw_take(rng: np.random.Generator, action: Action) -> Take:
    """Everything random about one clip of an action."""
    seconds = np.arange(NUM_FRAMES) / FPS
    speed = rng.uniform(0.85, 1.2)
    phase = 2 * np.pi * (action.rate * speed * seconds + rng.random())
    mirrored = bool(rng.random() < 0.5) and not action.sided
    way = -1 if mirrored else 1
    centred = seconds - seconds.mean()
    drift = rng.uniform(-3.5, 3.5) * centred + rng.uniform(0, 2) * np.sin(2 * np.pi * (0.4 * seconds + rng.random()))
    sway = rng.uniform(0, 2) * np.sin(2 * np.pi * (rng.uniform(0.2, 0.5) * seconds + rng.random()))
    flicker = rng.uniform(0, 0.035) * np.sin(2 * np.pi * (rng.uniform(0.5, 3) * seconds + rng.random()))
    noise = rng.normal(0, rng.uniform(0.5, 2.5), (HEIGHT + 16, WIDTH + 16, 1)).round().astype(np.int16)
    return Take(
        phase=phase,
        yaw=action.yaw + rng.uniform(-22, 22),
        x=WIDTH / 2 + rng.uniform(-9, 9) + drift + way * action.glide * speed * centred,
        y=_GROUND + rng.uniform(-3, 2) + sway,
        pan=rng.uniform(0, 2 * PANORAMA) - drift + way * action.scroll * speed * seconds,
        sway=sway,
        gain=rng.uniform(0.94, 1.06) + flicker,
        mirrored=mirrored,
        noise=np.repeat(noise, 3, axis=2),
        noise_at=rng.integers(0, 17, (NUM_FRAMES, 2)),
    )


def _clothes(rng: np.random.Generator, bright: bool) -> Array:
    low, high = (0.72, 1.0) if bright else (0.38, 0.72)
    hue = rng.random()
    tone = rng.uniform(0.45, 1.0)
    skin = tone * np.array([255, 214, 182]) + (1 - tone) * np.array([88, 52, 34])
    hair = hsv(rng.uniform(0.02, 0.13), rng.uniform(0.2, 0.8), rng.uniform(0.12, 0.6))
    shirt = hsv(hue, rng.uniform(0.65, 0.95), rng.uniform(low, high))
    trousers = hsv(hue + rng.uniform(0.3, 0.7), rng.uniform(0.4, 0.8), rng.uniform(low, high) * 0.85)
    shoes = hsv(rng.random(), rng.uniform(0, 0.5), rng.choice([0.2, 0.95]))
    return np.stack([skin, hair, shirt, trousers, shoes])


# ------------------------------------------------------------------------------------------------ capsules


@dataclass(frozen=True)
class _Capsule:
    """A limb's shape: two joints, the radius at each, the colour's row, and the part. Capsules of a part are drawn
    together, so that no outline runs between them."""

    start: str
    end: str
    radius_start: float
    radius_end: float
    colour: int
    part: int


_SKIN, _HAIR, _SHIRT, _TROUSERS, _SHOES = range(5)
_LEG_R, _LEG_L, _TORSO, _HEAD, _CAP, _EYE_R, _EYE_L, _ARM_R, _ARM_L = range(9)


def _side(side: str, arm: int, leg: int) -> tuple[_Capsule, ...]:
    return (
        _Capsule(f"ankle_{side}", f"toe_{side}", 0.036, 0.030, _SHOES, leg),
        _Capsule(f"knee_{side}", f"ankle_{side}", 0.046, 0.036, _TROUSERS, leg),
        _Capsule(f"hip_{side}", f"knee_{side}", 0.062, 0.048, _TROUSERS, leg),
        _Capsule(f"chest_{side}", f"waist_{side}", 0.060, 0.058, _SHIRT, _TORSO),
        _Capsule(f"elbow_{side}", f"wrist_{side}", 0.036, 0.030, _SKIN, arm),
        _Capsule(f"shoulder_{side}", f"elbow_{side}", 0.044, 0.039, _SHIRT, arm),
        _Capsule(f"wrist_{side}", f"hand_{side}", 0.037, 0.035, _SKIN, arm),
    )


_CAPSULES = (
    _Capsule("hip_r", "hip_l", 0.060, 0.060, _TROUSERS, _TORSO),
    *_side("r", _ARM_R, _LEG_R),
    *_side("l", _ARM_L, _LEG_L),
    _Capsule("neck", "waist", 0.058, 0.060, _SHIRT, _TORSO),
    _Capsule("neck", "head", 0.034, 0.034, _SKIN, _HEAD),
    _Capsule("head", "head", 0.080, 0.080, _SKIN, _HEAD),
    _Capsule("hair", "hair", 0.078, 0.078, _HAIR, _CAP),
    _Capsule("eye_r", "eye_r", 0.001, 0.001, _HAIR, _EYE_R),
    _Capsule("eye_l", "eye_l", 0.001, 0.001, _HAIR, _EYE_L),
)
# The joint whose distance from the viewer says when a part is drawn, and what is added: arms win a tie.
_PART_DEPTH = (
    ("knee_r", -0.03),
    ("knee_l", -0.03),
    ("pelvis", 0.012),
    ("head", 0.020),
    ("hair", 0.014),
    ("eye_r", 0.0),
    ("eye_l", 0.0),
    ("elbow_r", 0.025),
    ("elbow_l", 0.025),
)


def _look(points: Array, take: Take) -> Array:
    """Points [T, 3] of the body as the camera has them, still in body heights: turned, pitched, mirrored."""
    yaw, pitch = np.radians(take.yaw), np.radians(_CAMERA_PITCH)
    x, y, z = points.T
    across, depth = x * np.cos(yaw) + z * np.sin(yaw), z * np.cos(yaw) - x * np.sin(yaw)
    up = y * np.cos(pitch) - depth * np.sin(pitch)
    return np.stack([-across if take.mirrored else across, up, depth], axis=1)


def _outlines(a: Array, b: Array, radius_a: Array, radius_b: Array) -> NDArray[np.int32]:
    """Hulls of two discs: centres a, b [T, P, 2] in pixels, radii [P] -> polygons [T, P, 2 * _ARC_POINTS, 2] in
    OpenCV's fixed point. The straight sides touch both discs, so each arc ends where cos = (r_a - r_b) / distance."""
    axis = b - a
    distance = np.maximum(np.hypot(axis[..., 0], axis[..., 1]), 1e-6)
    half = np.arccos(np.clip((radius_a - radius_b) / distance, -1, 1))[..., None]
    along = np.arctan2(axis[..., 1], axis[..., 0])[..., None]
    steps = np.linspace(-1, 1, _ARC_POINTS)
    angle_b, angle_a = along + half * steps, along + np.pi + (np.pi - half) * steps
    arc_b = b[..., None, :] + radius_b[:, None, None] * np.stack([np.cos(angle_b), np.sin(angle_b)], axis=-1)
    arc_a = a[..., None, :] + radius_a[:, None, None] * np.stack([np.cos(angle_a), np.sin(angle_a)], axis=-1)
    return np.rint(np.concatenate([arc_b, arc_a], axis=-2) * 2**_SUBPIXEL_BITS).astype(np.int32)


@dataclass(frozen=True)
class _Events:
    """What to fill in each frame: polygons [T, E, points, 2], colours [T][E] RGB, order [T, E] from far to near."""

    polygons: NDArray[np.int32]
    colours: list[list[list[float]]]
    order: list[list[int]]


def _events(action: Action, scene: Scene, take: Take) -> _Events:
    body = joints_of(action.pose(take.phase), scene.body, len(take.phase))
    joints = {name: _look(points, take) for name, points in body.items()}
    place = np.stack([take.x, take.y], axis=1)
    pixels = {name: place + scene.body.height * seen[:, :2] * (1, -1) for name, seen in joints.items()}
    a = np.stack([pixels[c.start] for c in _CAPSULES], axis=1)
    b = np.stack([pixels[c.end] for c in _CAPSULES], axis=1)
    unit = scene.body.height * scene.body.girth
    radius_a, radius_b = (
        np.array([getattr(c, end) for c in _CAPSULES]) * unit for end in ("radius_start", "radius_end")
    )
    edge = _OUTLINE * scene.body.height
    polygons = [_outlines(a, b, radius_a + edge, radius_b + edge), _outlines(a, b, radius_a, radius_b)]

    depth = np.stack([joints[name][:, 2] + bias for name, bias in _PART_DEPTH], axis=1)
    parts = np.array([c.part for c in _CAPSULES])
    key = np.concatenate([depth[:, parts], depth[:, parts] + 1e-3], axis=1)
    shade = np.clip(1 + 0.9 * depth[:, parts], 0.72, 1.12)[..., None]
    fill = np.clip(scene.colours[[c.colour for c in _CAPSULES]] * shade, 0, 255)
    colours = np.concatenate([fill * 0.3, fill], axis=1)
    order = np.argsort(key, axis=1, kind="stable")
    return _Events(np.concatenate(polygons, axis=1), colours.tolist(), order.tolist())


def draw_frames(action: Action, scene: Scene, take: Take) -> Frames:
    """The clip as uint8 [T, H, W, 3], RGB. The same arguments give the same pixels."""
    events = _events(action, scene, take)
    frames = np.empty((NUM_FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    for t in range(NUM_FRAMES):
        left = take.pan[t] % (2 * PANORAMA)
        centre = (left + (WIDTH - 1) / 2, MARGIN + (HEIGHT - 1) / 2 - take.sway[t])
        frame = cv2.getRectSubPix(scene.background, (WIDTH, HEIGHT), centre)
        _cast_shadow(frame, scene, take, t)
        for event in events.order[t]:
            cv2.fillConvexPoly(frame, events.polygons[t, event], events.colours[t][event], cv2.LINE_AA, _SUBPIXEL_BITS)
        dy, dx = take.noise_at[t]
        grain = take.noise[dy : dy + HEIGHT, dx : dx + WIDTH]
        frames[t] = cv2.addWeighted(frame, take.gain[t], grain, 1, 0, dtype=cv2.CV_8U)
    return frames


def _cast_shadow(frame: Frames, scene: Scene, take: Take, t: int) -> None:
    """An ellipse of the floor's own colour, darker, under the feet."""
    x, y = int(take.x[t]), int(min(take.y[t], HEIGHT - 2))
    floor = frame[y, min(max(x, 0), WIDTH - 1)] * 0.62
    one = 2**_SUBPIXEL_BITS
    centre = (round(take.x[t] * one), round(take.y[t] * one))
    axes = (round(0.2 * scene.body.height * one), round(0.045 * scene.body.height * one))
    cv2.ellipse(frame, centre, axes, 0, 0, 360, floor.tolist(), -1, cv2.LINE_AA, _SUBPIXEL_BITS)
