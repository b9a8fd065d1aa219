"""C3D with batch-norm and without fc6/fc7 (Tran et al. 2015, in the form of VCOP, Xu et al. 2019)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from teacher_server.zoo.layers import Backbone, check_width, global_average, init_weights, scale_channels

_CONVS = (("1", 64), ("2", 128), ("3a", 256), ("3b", 256), ("4a", 512), ("4b", 512), ("5a", 512), ("5b", 512))
# Time is halved three times and space four times: 8 frames of 32x32 still leave 1 x 2 x 2 for the last two.
_POOL_AFTER = {"1": (1, 2, 2), "2": (2, 2, 2), "3b": (2, 2, 2), "4b": (2, 2, 2)}


class C3D(Backbone):
    """Eight 3x3x3 convolutions with bias, each with batch-norm and ReLU; max-pooling after 1, 2, 3b and 4b."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        check_width(width)
        in_channels = 3
        for name, full in _CONVS:
            channels = scale_channels(full, width)
            self.add_module(f"conv{name}", nn.Conv3d(in_channels, channels, kernel_size=3, padding=1))
            self.add_module(f"bn{name}", nn.BatchNorm3d(channels))
            in_channels = channels
        self.feature_size = in_channels
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,T,H,W] -> [B,D]."""
        for name, _ in _CONVS:
            x = self.get_submodule(f"conv{name}")(x)
            x = F.relu(self.get_submodule(f"bn{name}")(x), inplace=True)
            if name in _POOL_AFTER:
                x = F.max_pool3d(x, _POOL_AFTER[name])
        return global_average(x)
