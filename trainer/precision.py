"""The student's forward pass in float32 or, on GPUs, in mixed precision: weights float32, convolutions bfloat16.

bfloat16 has float32's range, so that gradients need no scaling.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from teacher_server.zoo.network import TupleOutput, VideoNetwork


def forward_tuple(network: VideoNetwork, clips: tuple[Tensor, Tensor, Tensor], precision: str) -> TupleOutput:
    """As VideoNetwork.forward_tuple; what comes out is float32 in any case, because losses are computed in it."""
    if precision == "float32":
        return network.forward_tuple(clips)
    with torch.autocast(clips[0].device.type, dtype=torch.bfloat16):
        output = network.forward_tuple(clips)
    return TupleOutput(**{field.name: _in_float32(getattr(output, field.name)) for field in dataclasses.fields(output)})


def _in_float32(value: Any) -> Any:
    """A tensor, a tuple of them, or None."""
    if isinstance(value, tuple):
        return tuple(_in_float32(item) for item in value)
    return None if value is None else value.float()
