"""What all backbones share: the interface, the width rule, the initialisation and the pooling at the end."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

CHANNEL_MULTIPLE = 8


class Backbone(nn.Module):
    """A network [B,3,T,H,W] -> [B,D], D = `feature_size`, for any T from 8 up and any even H, W from 32 up.

    Every batch-norm is registered right after the convolution that it normalises: frozen ones are folded by that order.
    """

    feature_size: int


def scale_channels(channels: int, width: float) -> int:
    """`width` times as many channels: a multiple of 8, at least 8 (a half goes to the even multiple)."""
    return max(CHANNEL_MULTIPLE, round(width * channels / CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE)


def check_width(width: float) -> None:
    """Raises ValueError for a width that gives no network."""
    if not (math.isfinite(width) and width > 0):
        raise ValueError(f"width must be a positive number (1.0 is the full network), got {width}")


def init_weights(module: nn.Module) -> None:
    """Kaiming normal (fan in, ReLU) for convolutions, zero biases, batch-norm as the identity.

    Draws from torch's global generator in the order of the modules: `torch.manual_seed` fixes every weight.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv3d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm3d):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def to_channels_last(network: nn.Module) -> None:
    """Lays the weights of 3-d convolutions out channels last, in place. Values stay, other tensors too: a plug-in may
    also have convolutions of single frames, which `Module.to(memory_format=torch.channels_last_3d)` refuses."""
    for parameter in network.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.to(memory_format=torch.channels_last_3d)


def global_average(x_BCTHW: Tensor) -> Tensor:
    """[B,C,T,H,W] -> [B,C]. A plain mean: adaptive pooling has no deterministic backward pass on CUDA."""
    return x_BCTHW.mean(dim=(2, 3, 4))
