"""The 18-layer video networks of torchvision: R3D-18, R(2+1)D-18 and MC3-18 (Tran et al. 2018).

    clip -> stem -> layer1 (64) -> layer2 (128) -> layer3 (256) -> layer4 (512) -> mean      two blocks a layer

At width 1 the names and shapes in the state dict are torchvision's, `fc` left out, so that its checkpoints fit as they
are. The three differ in what stands for a 3x3x3 convolution; the shortcuts are plain 1x1x1 convolutions in all:

    r3d_18       Conv3d(3,3,3)
    r2plus1d_18  Conv3d(1,3,3) -> batch-norm -> ReLU -> Conv3d(3,1,1), middle width once per block; a factorised stem
    mc3_18       Conv3d(3,3,3) in layer1, Conv3d(1,3,3) from layer2 on, which keep every frame
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from teacher_server.zoo.layers import Backbone, check_width, global_average, init_weights, scale_channels
from teacher_server.zoo.resnet3d import full_conv, middle_width

# (inputs, outputs, middle width, stride of space) -> what stands for a 3x3x3 convolution.
MakeConv = Callable[[int, int, int, int], nn.Module]

_STAGES = (64, 128, 256, 512)
_BLOCKS = 2
_STEM_MIDDLE = 45


def simple(in_channels: int, out_channels: int, _middle: int, stride: int) -> nn.Module:
    """One convolution over time and space."""
    return full_conv(in_channels, out_channels, (3, 3, 3), (stride, stride, stride))


def factorised(in_channels: int, out_channels: int, middle: int, stride: int) -> nn.Module:
    """First space, then time; both are strided."""
    return nn.Sequential(
        full_conv(in_channels, middle, (1, 3, 3), (1, stride, stride)),
        nn.BatchNorm3d(middle),
        nn.ReLU(inplace=True),
        full_conv(middle, out_channels, (3, 1, 1), (stride, 1, 1)),
    )


def no_temporal(in_channels: int, out_channels: int, _middle: int, stride: int) -> nn.Module:
    """Space only, every frame by itself."""
    return full_conv(in_channels, out_channels, (1, 3, 3), (1, stride, stride))


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut. The middle width follows from the block's inputs and outputs, for both."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, conv: MakeConv) -> None:
        super().__init__()
        middle = middle_width(in_channels, out_channels, (3, 3, 3))
        self.conv1 = nn.Sequential(
            conv(in_channels, out_channels, middle, stride), nn.BatchNorm3d(out_channels), nn.ReLU(inplace=True)
        )
        self.conv2 = nn.Sequential(conv(out_channels, out_channels, middle, 1), nn.BatchNorm3d(out_channels))
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            strides = (1 if conv is no_temporal else stride, stride, stride)
            projection = full_conv(in_channels, out_channels, (1, 1, 1), strides)
            self.downsample = nn.Sequential(projection, nn.BatchNorm3d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,T,H,W] -> [B,C',T',H',W'], sizes divided by the strides and rounded up."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.conv2(self.conv1(x)) + shortcut)


def _basic_stem(channels: int) -> nn.Sequential:
    conv = full_conv(3, channels, (3, 7, 7), (1, 2, 2))
    return nn.Sequential(conv, nn.BatchNorm3d(channels), nn.ReLU(inplace=True))


def _factorised_stem(channels: int, width: float) -> nn.Sequential:
    middle = max(1, round(_STEM_MIDDLE * width))
    return nn.Sequential(
        full_conv(3, middle, (1, 7, 7), (1, 2, 2)),
        nn.BatchNorm3d(middle),
        nn.ReLU(inplace=True),
        full_conv(middle, channels, (3, 1, 1), (1, 1, 1)),
        nn.BatchNorm3d(channels),
        nn.ReLU(inplace=True),
    )


class VideoResNet(Backbone):
    """Four layers of two blocks, stride 2 from the second layer on. convs: what each layer's convolutions are."""

    def __init__(self, convs: tuple[MakeConv, MakeConv, MakeConv, MakeConv], width: float = 1.0) -> None:
        super().__init__()
        check_width(width)
        channels = [scale_channels(full, width) for full in _STAGES]
        self.stem = _factorised_stem(channels[0], width) if factorised in convs else _basic_stem(channels[0])
        in_channels = channels[0]
        for n, (out_channels, conv) in enumerate(zip(channels, convs, strict=True)):
            blocks = [
                BasicBlock(out_channels if i else in_channels, out_channels, 1 if i or not n else 2, conv)
                for i in range(_BLOCKS)
            ]
            self.add_module(f"layer{n + 1}", nn.Sequential(*blocks))
            in_channels = out_channels
        self.feature_size = in_channels
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,T,H,W] -> [B,D]."""
        x = self.stem(x)
        for n in range(len(_STAGES)):
            x = self.get_submodule(f"layer{n + 1}")(x)
        return global_average(x)


def r3d_18(width: float = 1.0) -> VideoResNet:
    """R3D-18: full 3-d convolutions."""
    return VideoResNet((simple, simple, simple, simple), width)


def r2plus1d_18(width: float = 1.0) -> VideoResNet:
    """R(2+1)D-18: every 3x3x3 convolution factorised, and the stem."""
    return VideoResNet((factorised, factorised, factorised, factorised), width)


def mc3_18(width: float = 1.0) -> VideoResNet:
    """MC3-18: mixed convolutions, full in the first layer, of single frames in the others."""
    return VideoResNet((simple, no_temporal, no_temporal, no_temporal), width)
