"""The figures of the built-in data set: what a body does, as angles, and where its joints then are.

    Action.pose(phase) -> Pose (angles) -> joints_of -> joints [T, 3] each

Lengths are in body heights, with x to the right of a viewer, y up and z towards the viewer. Axis letter: T frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Limb:
    """Directions of the two segments of an arm or leg, in degrees: 0, 0 hangs down; abduct lifts it sideways, flex
    forwards. Numbers or arrays [T]."""

    abduct: Array | float = 4
    flex: Array | float = 0
    lower_abduct: Array | float = 4
    lower_flex: Array | float = 0


_ARM = Limb(12, -4, 9, 14)
_LEG = Limb()


@dataclass(frozen=True)
class Pose:
    """A body through time. lean: degrees forwards; twist: of the shoulders, degrees; lift: height of a jump.

    planted: the feet stay where they are and the hips move; otherwise the hips stay.
    """

    right_arm: Limb = _ARM
    left_arm: Limb = _ARM
    right_leg: Limb = _LEG
    left_leg: Limb = _LEG
    lean: Array | float = 0
    twist: Array | float = 0
    lift: Array | float = 0
    planted: bool = False


def pulse(phase: Array, skew: float = 0.0) -> Array:
    """0 to 1 and back once a turn; a positive skew rises slowly and falls fast, so that time has a direction."""
    return (1 - np.cos(phase + skew * np.cos(phase))) / 2


def _wave_one_hand(phase: Array) -> Pose:
    return Pose(right_arm=Limb(112, 10, 165 + 48 * np.sin(phase), 12), lean=2 * np.sin(phase))


def _wave_both_hands(phase: Array) -> Pose:
    arm = Limb(112, 10, 165 + 48 * np.sin(phase), 12)
    return Pose(right_arm=arm, left_arm=arm)


def _clap(phase: Array) -> Pose:
    apart = pulse(phase, 0.5)
    arm = Limb(22 + 38 * apart, 42, 85 * apart - 42, 62 - 10 * apart)
    return Pose(right_arm=arm, left_arm=arm, lean=3)


def _jumping_jack(phase: Array) -> Pose:
    open_ = pulse(phase, 0.3)
    arm = Limb(14 + 138 * open_, 8, 12 + 156 * open_, 8)
    leg = Limb(3 + 24 * open_, 0, 3 + 24 * open_, 0)
    return Pose(arm, arm, leg, leg, lift=0.07 * np.sin(phase) ** 2)


def _squat(phase: Array) -> Pose:
    down = pulse(phase, 0.5)
    arm = Limb(10, 88 * down, 8, 8 + 80 * down)
    leg = Limb(10, 92 * down, 8 - 2 * down, -38 * down)
    return Pose(arm, arm, leg, leg, lean=32 * down, planted=True)


def _bow(phase: Array) -> Pose:
    down = pulse(phase, 0.5)
    leg = Limb(4, 12 * down, 4, 8 * down)
    return Pose(right_leg=leg, left_leg=leg, lean=82 * down, planted=True)


def _kick(phase: Array) -> Pose:
    up = pulse(phase, -0.7)
    chamber = np.sin(phase) ** 2
    leg = Limb(6, 96 * up - 14, 6, 96 * up - 14 - 55 * chamber)
    guard = Limb(28, 30, -10, 105 - 25 * up)
    return Pose(right_arm=replace(guard, flex=30 - 50 * up), left_arm=guard, right_leg=leg, lean=-16 * up)


def _punch(phase: Array) -> Pose:
    def arm(p: Array) -> Limb:
        out = np.clip(np.sin(p), 0, 1) ** 0.7
        return Limb(26 - 20 * out, 18 + 72 * out, -14 + 14 * out, 128 - 36 * out)

    right_leg, left_leg = Limb(10, -12, 10, -22), Limb(10, 12, 10, -8)
    return Pose(arm(phase), arm(phase + np.pi), right_leg, left_leg, lean=6, twist=28 * np.sin(phase))


def _gait(phase: Array, swing: float, knee: float, elbow: float, lean: float, hop: float) -> Pose:
    def leg(p: Array) -> Limb:
        thigh = swing * np.sin(p) + 0.25 * swing
        return Limb(2, thigh, 2, thigh - 8 - knee * np.clip(np.cos(p + 0.5), 0, 1))

    def arm(p: Array) -> Limb:
        upper = 0.95 * swing * np.sin(p) - 6
        return Limb(8, upper, 6, upper + elbow)

    other = phase + np.pi
    lift = hop * np.sin(phase - 0.3) ** 2
    return Pose(
        arm(other), arm(phase), leg(phase), leg(other), lean=lean, twist=-0.3 * swing * np.sin(phase), lift=lift
    )


def _walk(phase: Array) -> Pose:
    return _gait(phase, swing=28, knee=45, elbow=22, lean=3, hop=0)


def _run(phase: Array) -> Pose:
    return _gait(phase, swing=44, knee=88, elbow=88, lean=13, hop=0.05)


def _step_left(phase: Array) -> Pose:
    open_ = pulse(phase)
    leg = Limb(3 + 21 * open_, 0, 3 + 21 * open_, 0)
    arm = Limb(22 + 30 * open_, 0, 20 + 34 * open_, 14)
    return Pose(arm, arm, leg, leg, lift=0.03 * np.sin(phase / 2) ** 2)


def _circle_out(phase: Array) -> Pose:
    turn = np.degrees(phase)
    arm = Limb(turn, 18, turn, 18)
    return Pose(arm, arm)


def _circle_in(phase: Array) -> Pose:
    """The same circles backwards in time: no single frame tells the two apart."""
    return _circle_out(-phase)


@dataclass(frozen=True)
class Action:
    """One class. rate: cycles a second; yaw: degrees that the body is turned; glide: pixels a second that it moves
    in the picture; scroll: pixels a second that the background moves the other way, since the camera follows.

    sided: left and right mean something, so the class is never mirrored.
    """

    name: str
    pose: Callable[[Array], Pose]
    rate: float
    yaw: float = 0.0
    glide: float = 0.0
    scroll: float = 0.0
    sided: bool = False


ACTIONS: tuple[Action, ...] = (
    Action("Bow", _bow, 0.75, yaw=50),
    Action("CircleIn", _circle_in, 0.95),
    Action("CircleOut", _circle_out, 0.95),
    Action("Clap", _clap, 1.7),
    Action("JumpingJack", _jumping_jack, 1.15),
    Action("Kick", _kick, 0.95, yaw=55),
    Action("Punch", _punch, 1.25, yaw=50),
    Action("Run", _run, 1.5, yaw=72, glide=13, scroll=105),
    Action("Squat", _squat, 0.8, yaw=40),
    Action("StepLeft", _step_left, 1.2, glide=-15, scroll=-22, sided=True),
    Action("StepRight", _step_left, 1.2, glide=15, scroll=22, sided=True),
    Action("Walk", _walk, 0.95, yaw=72, glide=13, scroll=55),
    Action("WaveBothHands", _wave_both_hands, 1.6),
    Action("WaveOneHand", _wave_one_hand, 1.6),
)


@dataclass(frozen=True)
class Body:
    """Proportions in body heights; height in pixels."""

    height: float
    shoulder: float
    hip: float
    torso: float
    arm: float
    leg: float
    girth: float


FEET = ("ankle_r", "ankle_l", "toe_r", "toe_l")


def _direction(abduct: Array | float, flex: Array | float, side: int) -> Array:
    """[..., 3] unit vectors; side -1 is the body's right, which a viewer in front of it sees on the left."""
    a, f = np.radians(abduct), np.radians(flex)
    return np.stack(np.broadcast_arrays(side * np.sin(a) * np.cos(f), -np.cos(a) * np.cos(f), np.sin(f)), axis=-1)


def _turn(points: Array, degrees: Array | float) -> Array:
    """Points [..., 3] turned about the vertical axis; a positive angle turns the front of the body to +x."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    return np.stack(np.broadcast_arrays(x * c + z * s, y, z * c - x * s), axis=-1)


def joints_of(pose: Pose, body: Body, num_frames: int) -> dict[str, Array]:
    """Every joint as [T, 3] in body heights, the lowest foot on the ground (y = 0) but for `pose.lift`."""
    spine = np.stack(np.broadcast_arrays(0.0, np.cos(np.radians(pose.lean)), np.sin(np.radians(pose.lean))), axis=-1)
    back = np.stack([spine[..., 0], spine[..., 2], -spine[..., 1]], axis=-1)
    neck = body.torso * spine
    head = neck + 0.13 * spine
    joints = {"pelvis": np.zeros(3), "waist": 0.05 * spine, "neck": neck, "head": head}
    joints["hair"] = head + 0.026 * spine + 0.034 * back
    limbs = (("r", -1, pose.right_arm, pose.right_leg), ("l", 1, pose.left_arm, pose.left_leg))
    for name, side, arm, leg in limbs:
        shoulder = neck + _turn(np.array([side * body.shoulder, -0.02, 0.0]), pose.twist)
        elbow = shoulder + _turn(body.arm * _direction(arm.abduct, arm.flex, side), pose.twist)
        reach = _turn(_direction(arm.lower_abduct, arm.lower_flex, side), pose.twist)
        wrist = elbow + 0.9 * body.arm * reach
        hip = np.array([side * body.hip, 0.0, 0.0])
        knee = hip + body.leg * _direction(leg.abduct, leg.flex, side)
        ankle = knee + body.leg * _direction(leg.lower_abduct, leg.lower_flex, side)
        toe = ankle + 0.075 * _direction(leg.lower_abduct, np.asarray(leg.lower_flex) + 84, side)
        chest = neck + _turn(np.array([side * (body.shoulder - 0.035), -0.045, 0.0]), pose.twist)
        waist, eye = hip + 0.05 * spine, head - 0.07 * back + np.array([side * 0.033, 0.0, 0.0])
        values = (shoulder, elbow, wrist, wrist + 0.03 * reach, hip, knee, ankle, toe, chest, waist, eye)
        names = ("shoulder", "elbow", "wrist", "hand", "hip", "knee", "ankle", "toe", "chest", "waist", "eye")
        joints |= {f"{joint}_{name}": value for joint, value in zip(names, values, strict=True)}
    whole = {joint: np.broadcast_to(value, (num_frames, 3)) for joint, value in joints.items()}
    return _on_the_ground(whole, pose)


def _on_the_ground(joints: dict[str, Array], pose: Pose) -> dict[str, Array]:
    """The same joints with the lower foot at the ground, and the feet kept in place where the pose says so."""
    feet = np.stack([joints[name] for name in FEET])
    shift = np.zeros(feet.shape[1:])
    shift[:, 1] = pose.lift - feet[..., 1].min(axis=0)
    if pose.planted:
        shift[:, 2] = -feet[:2, :, 2].mean(axis=0)
    return {name: points + shift for name, points in joints.items()}
