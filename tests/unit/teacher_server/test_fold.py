"""Batch-norm folded into convolutions: the same function, and nothing of it left."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from teacher_server.zoo.fold import fold_batch_norm
from teacher_server.zoo.names import ARCHITECTURES
from teacher_server.zoo.registry import build_backbone


def trained(arch: str) -> nn.Module:
    """A backbone whose batch-norms are as far from the identity as training takes them."""
    torch.manual_seed(3)
    backbone = build_backbone(arch, 0.125)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.2, 2.0)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.05, 4.0)
        if isinstance(module, nn.Conv3d) and module.bias is not None:
            nn.init.normal_(module.bias)
    return backbone.eval().requires_grad_(False)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_folded_network_computes_what_it_computed_before(arch: str) -> None:
    plain = trained(arch)
    folded = copy.deepcopy(plain)
    fold_batch_norm(folded)
    x = torch.randn(2, 3, 8, 32, 32)
    torch.testing.assert_close(folded(x), plain(x), rtol=1e-4, atol=1e-5)
    # In float64 nothing but the rounding of the folded weights to float32 is left.
    exact = copy.deepcopy(plain).double()(x.double())
    torch.testing.assert_close(folded.double()(x.double()), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_batch_norm_is_left(arch: str) -> None:
    folded = trained(arch)
    num_convs = sum(isinstance(module, nn.Conv3d) for module in folded.modules())
    fold_batch_norm(folded)
    kinds = [type(module) for module in folded.modules()]
    assert nn.BatchNorm3d not in kinds
    assert kinds.count(nn.Conv3d) == num_convs
    assert all(module.bias is not None for module in folded.modules() if isinstance(module, nn.Conv3d))


@pytest.mark.parametrize(
    "layers",
    [
        pytest.param([nn.BatchNorm3d(4)], id="no convolution before it"),
        pytest.param([nn.Conv3d(3, 8, 1), nn.BatchNorm3d(4)], id="another width"),
        pytest.param([nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.BatchNorm3d(4)], id="two after one"),
        pytest.param([nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4, track_running_stats=False)], id="no statistics"),
        pytest.param([nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4, affine=False)], id="no weights"),
        pytest.param([nn.Conv3d(3, 4, 1), nn.BatchNorm2d(4)], id="another kind"),
    ],
)
def test_a_batch_norm_that_cannot_be_folded_is_named(layers: list[nn.Module]) -> None:
    network = nn.Sequential(*layers)
    with pytest.raises(ValueError, match=f"^{len(layers) - 1} cannot be folded"):
        fold_batch_norm(network)
