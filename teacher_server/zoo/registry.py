"""From an architecture's name to a network."""

from __future__ import annotations

from collections.abc import Callable

from teacher_server.zoo.c3d import C3D
from teacher_server.zoo.layers import Backbone
from teacher_server.zoo.names import UnknownArchitecture
from teacher_server.zoo.resnet3d import r2plus1d, r3d

_BUILDERS: dict[str, Callable[[float], Backbone]] = {"c3d": C3D, "r3d": r3d, "r2plus1d": r2plus1d}


def build_backbone(name: str, width: float = 1.0) -> Backbone:
    """A freshly initialised backbone [B,3,T,H,W] -> [B,feature_size]; `torch.manual_seed` fixes its weights.

    Raises UnknownArchitecture for a name that is not in ARCHITECTURES, ValueError for a width that is not positive.
    """
    if name not in _BUILDERS:
        raise UnknownArchitecture(name)
    return _BUILDERS[name](width)
