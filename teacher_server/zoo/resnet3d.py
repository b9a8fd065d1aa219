"""R3D and R(2+1)D with one basic block per stage (Tran et al. 2018, in the form of VCOP, Xu et al. 2019).

Both are the same residual network; they differ in what stands for one k x k x k convolution:

    r3d       Conv3d(k,k,k)
    r2plus1d  Conv3d(1,k,k) -> batch-norm -> ReLU -> Conv3d(k,1,1)      (the 1x1x1 shortcut too)
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from teacher_server.zoo.layers import Backbone, check_width, global_average, init_weights, scale_channels

Size3 = tuple[int, int, int]  # time, height, width
MakeConv = Callable[[int, int, Size3, Size3], nn.Module]

_STEM_KERNEL, _STEM_STRIDE = (3, 7, 7), (1, 2, 2)
_STAGES = (64, 128, 256, 512)


def _half(kernel: Size3) -> Size3:
    """Padding that keeps the size at stride 1."""
    return kernel[0] // 2, kernel[1] // 2, kernel[2] // 2


def full_conv(in_channels: int, out_channels: int, kernel: Size3, stride: Size3) -> nn.Module:
    """One 3-d convolution without bias (a batch-norm follows)."""
    return nn.Conv3d(in_channels, out_channels, kernel, stride, _half(kernel), bias=False)


def middle_width(in_channels: int, out_channels: int, kernel: Size3) -> int:
    """Channels between the two halves of a factorised convolution, so that it has as many weights as the full one:
    floor(kt*kh*kw*i*o / (kh*kw*i + kt*o)) (Tran et al. 2018, section 3.5); 83 in the full stem."""
    kt, kh, kw = kernel
    return (kt * kh * kw * in_channels * out_channels) // (kh * kw * in_channels + kt * out_channels)


class FactorisedConv(nn.Module):
    """(1,k,k) -> batch-norm -> ReLU -> (k,1,1), without biases; space is strided first, then time."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Size3, stride: Size3) -> None:
        super().__init__()
        middle = middle_width(in_channels, out_channels, kernel)
        (kt, kh, kw), (st, sh, sw) = kernel, stride
        self.spatial = full_conv(in_channels, middle, (1, kh, kw), (1, sh, sw))
        self.bn = nn.BatchNorm3d(middle)
        self.temporal = full_conv(middle, out_channels, (kt, 1, 1), (st, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,T,H,W] -> the same axes, strided."""
        return self.temporal(F.relu(self.bn(self.spatial(x)), inplace=True))


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions and a shortcut; the first block of a stage halves time and space (stride 2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, conv: MakeConv) -> None:
        super().__init__()
        strides = (stride, stride, stride)
        self.conv1 = conv(in_channels, out_channels, (3, 3, 3), strides)
        self.bn1 = nn.BatchNorm3d(out_channels)
        self.conv2 = conv(out_channels, out_channels, (3, 3, 3), (1, 1, 1))
        self.bn2 = nn.BatchNorm3d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            projection = conv(in_channels, out_channels, (1, 1, 1), strides)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm3d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,T,H,W] -> [B,C',T',H',W'], sizes divided by the stride and rounded up."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x), inplace=True)


class ResNet3D(Backbone):
    """Stem 3x7x7 with stride (1,2,2), then four stages of one block, stride 2 from the second on."""

    def __init__(self, conv: MakeConv, width: float = 1.0) -> None:
        super().__init__()
        check_width(width)
        channels = [scale_channels(full, width) for full in _STAGES]
        self.stem = conv(3, channels[0], _STEM_KERNEL, _STEM_STRIDE)
        self.stem_bn = nn.BatchNorm3d(channels[0])
        inputs = [channels[0], *channels[:-1]]
        self.stages = nn.Sequential(
            *(BasicBlock(i, o, 1 if n == 0 else 2, conv) for n, (i, o) in enumerate(zip(inputs, channels, strict=True)))
        )
        self.feature_size = channels[-1]
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,T,H,W] -> [B,D]."""
        x = F.relu(self.stem_bn(self.stem(x)), inplace=True)
        return global_average(self.stages(x))


def r3d(width: float = 1.0) -> ResNet3D:
    """R3D: full 3-d convolutions."""
    return ResNet3D(full_conv, width)


def r2plus1d(width: float = 1.0) -> ResNet3D:
    """R(2+1)D: every convolution factorised, the stem and the shortcuts too."""
    return ResNet3D(FactorisedConv, width)
