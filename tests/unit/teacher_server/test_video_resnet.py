"""The 18-layer networks against torchvision's published structure, written out here a second time.

torchvision itself is not needed: `reference` computes with plain functions on a state dict by torchvision's names, and
`published_shapes` lists these names and shapes by its rules.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teacher_server.zoo.names import TORCHVISION_ARCHITECTURES
from teacher_server.zoo.registry import build_backbone

SMALL = 0.125
CHANNELS = (64, 128, 256, 512)
Shapes = dict[str, tuple[int, ...]]


def conv_and_norm(shapes: Shapes, conv: str, norm: str, weight: tuple[int, ...]) -> None:
    shapes[f"{conv}.weight"] = weight
    shapes |= {f"{norm}.{leaf}": (weight[0],) for leaf in ("weight", "bias", "running_mean", "running_var")}
    shapes[f"{norm}.num_batches_tracked"] = ()


def published_shapes(name: str) -> Shapes:
    """The state dict of torchvision's `name` without `fc`."""
    shapes: Shapes = {}
    if name == "r2plus1d_18":
        conv_and_norm(shapes, "stem.0", "stem.1", (45, 3, 1, 7, 7))
        conv_and_norm(shapes, "stem.3", "stem.4", (64, 45, 3, 1, 1))
    else:
        conv_and_norm(shapes, "stem.0", "stem.1", (64, 3, 3, 7, 7))
    for layer, planes in enumerate(CHANNELS, 1):
        before = CHANNELS[max(0, layer - 2)]
        for block in range(2):
            inplanes = planes if block else before
            middle = (inplanes * planes * 27) // (inplanes * 9 + 3 * planes)
            for conv, inputs in (("conv1", inplanes), ("conv2", planes)):
                path = f"layer{layer}.{block}.{conv}"
                if name == "r2plus1d_18":
                    conv_and_norm(shapes, f"{path}.0.0", f"{path}.0.1", (middle, inputs, 1, 3, 3))
                    conv_and_norm(shapes, f"{path}.0.3", f"{path}.1", (planes, middle, 3, 1, 1))
                else:
                    time = 1 if name == "mc3_18" and layer > 1 else 3
                    conv_and_norm(shapes, f"{path}.0", f"{path}.1", (planes, inputs, time, 3, 3))
            if layer > 1 and block == 0:
                path = f"layer{layer}.0.downsample"
                conv_and_norm(shapes, f"{path}.0", f"{path}.1", (planes, inplanes, 1, 1, 1))
    return shapes


def reference(name: str, state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Features of the network in evaluation mode, from its tensors alone."""

    def conv(path: str, x: Tensor, stride: tuple[int, int, int] = (1, 1, 1)) -> Tensor:
        weight = state[f"{path}.weight"]
        return F.conv3d(x, weight, None, stride, tuple(size // 2 for size in weight.shape[2:]))

    def norm(path: str, x: Tensor) -> Tensor:
        mean, var, gamma, beta = (
            state[f"{path}.{leaf}"].view(1, -1, 1, 1, 1) for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * gamma + beta

    def unit(path: str, x: Tensor, stride: int, time_stride: int) -> Tensor:
        """One of a block's two convolutions with its batch-norm."""
        if name != "r2plus1d_18":
            return norm(f"{path}.1", conv(f"{path}.0", x, (time_stride, stride, stride)))
        x = norm(f"{path}.0.1", conv(f"{path}.0.0", x, (1, stride, stride))).relu()
        return norm(f"{path}.1", conv(f"{path}.0.3", x, (time_stride, 1, 1)))

    x = norm("stem.1", conv("stem.0", x, (1, 2, 2))).relu()
    if name == "r2plus1d_18":
        x = norm("stem.4", conv("stem.3", x)).relu()
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            path = f"layer{layer}.{block}"
            stride = 2 if layer > 1 and block == 0 else 1
            time_stride = 1 if name == "mc3_18" else stride
            y = unit(f"{path}.conv1", x, stride, time_stride).relu()
            y = unit(f"{path}.conv2", y, 1, 1)
            if stride == 2:
                x = norm(f"{path}.downsample.1", conv(f"{path}.downsample.0", x, (time_stride, stride, stride)))
            x = (x + y).relu()
    return x.flatten(2).mean(2)


def randomised(network: nn.Module) -> nn.Module:
    """With batch-norms as far from the identity as training takes them."""
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(0.3 * torch.randn_like(tensor))
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("name", TORCHVISION_ARCHITECTURES)
def test_names_and_shapes_are_those_of_torchvision(name: str) -> None:
    with torch.device("meta"):
        state = build_backbone(name).state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == published_shapes(name)


@pytest.mark.parametrize(
    ("name", "parameters"), [("r3d_18", 33_371_472), ("r2plus1d_18", 31_505_325), ("mc3_18", 11_695_440)]
)
def test_parameters_are_those_that_torchvision_publishes(name: str, parameters: int) -> None:
    with torch.device("meta"):
        network = build_backbone(name)
    fc = 400 * network.feature_size + 400
    assert sum(p.numel() for p in network.parameters()) + fc == parameters


def test_full_networks_give_the_reference_s_features() -> None:
    """At width 1, small clips: torchvision's checkpoints are of this width."""
    for name in TORCHVISION_ARCHITECTURES:
        torch.manual_seed(0)
        network = randomised(build_backbone(name))
        x = torch.randn(1, 3, 8, 32, 32)
        torch.testing.assert_close(network(x), reference(name, network.state_dict(), x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TORCHVISION_ARCHITECTURES)
@pytest.mark.parametrize("shape", [(2, 3, 10, 56, 56), (1, 3, 9, 34, 34)])
def test_small_networks_give_the_reference_s_features(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    network = randomised(build_backbone(name, SMALL)).double()
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(network(x), reference(name, network.state_dict(), x), rtol=1e-9, atol=1e-9)


def test_mixed_convolutions_keep_every_frame() -> None:
    network = build_backbone("mc3_18", SMALL).eval()
    frames = []
    network.layer4.register_forward_hook(lambda _m, _i, output: frames.append(output.shape[2]))
    network(torch.zeros(1, 3, 9, 32, 32))
    assert frames == [9]
