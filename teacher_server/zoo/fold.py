"""Batch-norm of a frozen network, folded into the convolutions before it.

    conv -> bn      y = (conv(x) - mean) / sqrt(var + eps) * gamma + beta      is again a convolution with a bias

Which convolution a batch-norm follows is seen from the order in which the modules were registered: in every network
of the zoo a batch-norm comes right after its convolution, in that order as in the data flow. (Tracing the network
with torch.fx would find the pairs too, but it patches every module of the process while other teachers compute.)
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights


def fold_batch_norm(network: nn.Module) -> None:
    """Replaces every BatchNorm3d of a network by its share in the convolution before it, in place.

    The new weights are computed in float64 from the running statistics and rounded once, so the network then computes
    what it computed in evaluation mode but for rounding. Raises ValueError, which names the batch-norm, when one
    follows no convolution of its width.
    """
    previous: nn.Conv3d | None = None
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv3d):
            previous = module
        elif isinstance(module, _BatchNorm):
            if previous is None or not isinstance(module, nn.BatchNorm3d) or not _pair_up(previous, module):
                raise ValueError(
                    f"{name} cannot be folded: expected a BatchNorm3d with weights and running statistics, registered "
                    "right after the convolution that it normalises"
                )
            _fold(previous, module)
            network.set_submodule(name, nn.Identity())
            previous = None


def _pair_up(conv: nn.Conv3d, norm: nn.BatchNorm3d) -> bool:
    return norm.affine and norm.running_mean is not None and norm.num_features == conv.out_channels


def _fold(conv: nn.Conv3d, norm: nn.BatchNorm3d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        conv.weight.detach().double(),
        None if conv.bias is None else conv.bias.detach().double(),
        norm.running_mean.double(),
        norm.running_var.double(),
        norm.eps,
        norm.weight.detach().double(),
        norm.bias.detach().double(),
    )
    dtype = conv.weight.dtype
    conv.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
