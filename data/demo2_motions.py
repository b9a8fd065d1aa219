"""The actions of the second built-in data set: other motions than the first has, by the same skeleton.

None of them goes anywhere in the picture, and each is a cycle. crawl_back and crawl_front are each other backwards in
time, so that no single frame tells the two apart. Axis letter of the phases: T frames.
"""

from __future__ import annotations

import numpy as np

from data.demo_figures import Action, Array, Limb, Pose, pulse


def _chop_wood(phase: Array) -> Pose:
    up = pulse(phase, 0.8)
    arm = Limb(4, 28 + 140 * up, -6, 42 + 158 * up)
    leg = Limb(12, 8 * (1 - up), 12, -10 * (1 - up))
    return Pose(arm, arm, leg, leg, lean=48 - 56 * up, planted=True)


def _crawl_back(phase: Array) -> Pose:
    def arm(turn: Array) -> Limb:
        return Limb(9, turn, 9, turn)

    return Pose(right_arm=arm(np.degrees(phase)), left_arm=arm(np.degrees(phase) + 180), lean=14)


def _crawl_front(phase: Array) -> Pose:
    """The same circles backwards in time."""
    return _crawl_back(-phase)


def _drum_air(phase: Array) -> Pose:
    def arm(p: Array) -> Limb:
        return Limb(16, 24 + 10 * np.sin(p), 4, 82 + 42 * np.sin(p))

    leg = Limb(9, 14, 9, -10)
    return Pose(arm(phase), arm(phase + np.pi), leg, leg, lean=10, planted=True)


def _high_knees(phase: Array) -> Pose:
    def leg(p: Array) -> Limb:
        up = np.clip(np.sin(p), 0, 1) ** 0.8
        return Limb(4, 98 * up, 4, 4 * up)

    hands = Limb(30, -22, -38, 48)  # on the hips
    return Pose(hands, hands, leg(phase), leg(phase + np.pi), lean=-4)


def _pick_fruit(phase: Array) -> Pose:
    def arm(p: Array) -> Limb:
        up = pulse(p, 0.5)
        return Limb(18 + 146 * up, 8, 14 + 160 * up, 18 - 10 * up)

    return Pose(arm(phase), arm(phase + np.pi), twist=10 * np.sin(phase), lift=0.02 * np.sin(phase) ** 2)


def _skip_rope(phase: Array) -> Pose:
    low = pulse(2 * phase)
    arm = Limb(26, 4, 68 + 20 * np.cos(2 * phase), 20 * np.sin(2 * phase))
    leg = Limb(3, 22 * low, 3, -20 * low)
    return Pose(arm, arm, leg, leg, lift=0.1 * (1 - low))


def _twist_waist(phase: Array) -> Pose:
    arm = Limb(80, 6, 84, 6)
    leg = Limb(12, 0, 12, 0)
    return Pose(arm, arm, leg, leg, twist=64 * np.sin(phase))


ACTIONS: tuple[Action, ...] = (
    Action("chop_wood", _chop_wood, 0.8, yaw=60),
    Action("crawl_back", _crawl_back, 0.9, yaw=58),
    Action("crawl_front", _crawl_front, 0.9, yaw=58),
    Action("drum_air", _drum_air, 1.7, yaw=45),
    Action("high_knees", _high_knees, 1.0, yaw=52),
    Action("pick_fruit", _pick_fruit, 0.8),
    Action("skip_rope", _skip_rope, 0.75, yaw=15),
    Action("twist_waist", _twist_waist, 0.85),
)
