"""Random native networks, and the names that other projects' code gives the same tensors, written out by hand.

Test folders are no packages, so conftest.py loads this by path.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

from teacher_server.engine.teacher import FrozenTeacher
from teacher_server.zoo.network import VideoNetwork

# Ours -> theirs, as regular expressions: the opposite direction of the tables under test.
THEIR_NAMES = [
    (r"^backbone\.stem_bn\.", "bn1."),
    (r"^backbone\.stem\.", "conv1.<conv>."),
    (r"^backbone\.stages\.0\.", "conv2.block1."),
    (r"^backbone\.stages\.1\.", "conv3.block1."),
    (r"^backbone\.stages\.2\.", "conv4.block1."),
    (r"^backbone\.stages\.3\.", "conv5.block1."),
    (r"\.shortcut\.1\.", ".downsamplebn."),
    (r"\.shortcut\.0\.", ".downsampleconv.<conv>."),
    (r"\.block1\.(conv[12])\.", r".block1.\1.<conv>."),
    (r"<conv>\.spatial\.", "spatial_conv."),
    (r"<conv>\.temporal\.", "temporal_conv."),
    (r"<conv>\.bn\.", "bn."),
    (r"<conv>\.", "temporal_spatial_conv."),
    (r"^backbone\.", ""),
    (r"^(pretext|action)_head\.linear\.", "fc."),
]


def vcop_name(ours: str) -> str:
    for pattern, theirs in THEIR_NAMES:
        ours = re.sub(pattern, theirs, ours)
    return ours


def random_network(arch: str, *, width: float = 0.125, seed: int = 0, **heads: int | bool) -> VideoNetwork:
    """Random in every tensor, batch-norm statistics included, so that no two can be mistaken for each other."""
    torch.manual_seed(seed)
    network = VideoNetwork(arch, width, **heads).eval()  # type: ignore[arg-type]
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(0.1 * torch.randn_like(tensor))
    return network


def vcop_tensors(network: VideoNetwork, prefix: str = "base_network.") -> dict[str, Tensor]:
    """The state dict that VCOP's code would have saved."""
    return {
        (prefix if name.startswith("backbone.") else "") + vcop_name(name): tensor
        for name, tensor in network.state_dict().items()
    }


def torchvision_tensors(network: VideoNetwork) -> dict[str, Tensor]:
    """The state dict that torchvision's network of the same kind has; its head is the action head."""
    return {
        name.replace("backbone.", "").replace("action_head.linear.", "fc."): tensor
        for name, tensor in network.state_dict().items()
    }


def pcl_tensors(network: VideoNetwork) -> dict[str, Tensor]:
    """The state dict of PCL's classifier around a torchvision network, whose children it numbers."""
    children = {"stem": "0", "layer1": "1", "layer2": "2", "layer3": "3", "layer4": "4"}
    tensors = {}
    for name, tensor in torchvision_tensors(network).items():
        first, _, rest = name.partition(".")
        theirs = f"base_network.{children[first]}.{rest}" if first in children else name.replace("fc.", "linear.")
        tensors[theirs] = tensor
    return tensors


def shapes_of(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """What a layout is chosen by."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def some_pixels(teacher: FrozenTeacher, seed: int = 0) -> np.ndarray:
    """uint8 [one chunk of clips, 8, 32, 32, 3]."""
    clips = teacher.card.chunk_items * teacher.card.views_per_item
    return np.random.default_rng(seed).integers(0, 256, (clips, 8, 32, 32, 3), dtype=np.uint8)
