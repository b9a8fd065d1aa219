"""From an architecture's name to a network: the zoo's own, or a plug-in (docs/plugins.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import nn

from data.plugins import PluginError, resolve
from teacher_server.zoo.c3d import C3D
from teacher_server.zoo.layers import Backbone, check_width
from teacher_server.zoo.names import UnknownArchitecture, is_architecture_name
from teacher_server.zoo.resnet3d import r2plus1d, r3d
from teacher_server.zoo.video_resnet import mc3_18, r2plus1d_18, r3d_18

_BUILDERS: dict[str, Callable[[float], Backbone]] = {
    "c3d": C3D,
    "r3d": r3d,
    "r2plus1d": r2plus1d,
    "r3d_18": r3d_18,
    "r2plus1d_18": r2plus1d_18,
    "mc3_18": mc3_18,
}


def build_backbone(name: str, width: float = 1.0, *, trusted: bool = False) -> Backbone:
    """A freshly initialised backbone [B,3,T,H,W] -> [B,feature_size]; `torch.manual_seed` fixes its weights.

    trusted: whether the user typed the name; one from a file brings no code along that nobody here allowed. Raises
    UnknownArchitecture for a name that means nothing, PluginError for a plug-in that cannot be used, ValueError for a
    width that is not positive.
    """
    if name in _BUILDERS:
        return _BUILDERS[name](width)
    if not is_architecture_name(name):
        raise UnknownArchitecture(name)
    check_width(width)
    return _call(name, resolve("architectures", name, trusted=trusted), width)


def _call(name: str, make: object, width: float) -> Backbone:
    """What the user's function makes, checked; whatever it raises becomes one sentence with its cause."""
    if not callable(make):
        raise PluginError("architectures", name, f"expected a function(width), got {type(make).__name__}")
    try:
        network = make(width)
    except Exception as error:
        raise PluginError(
            "architectures", name, f"calling it with width {width:g} failed with {type(error).__name__}: {error}"
        ) from error
    size = getattr(network, "feature_size", None)
    if not isinstance(network, nn.Module) or not isinstance(size, int) or size < 1:
        raise PluginError(
            "architectures",
            name,
            f"expected an nn.Module with a whole number feature_size, got {type(network).__name__} with {size!r}",
        )
    return cast(Backbone, network)  # it has the interface, whatever its class
