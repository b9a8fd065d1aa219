"""What it takes to read another project's checkpoint: a table from its module paths to ours, and its habits.

    their tensor   module.base_network.conv3.block1.downsampleconv.temporal_spatial_conv.weight
    table          conv3.block1.downsampleconv.temporal_spatial_conv -> backbone.stages.1.shortcut.0
    our tensor     backbone.stages.1.shortcut.0.weight

Pure: names and numbers only. A new layout is a module with such a table and a line in teacher_server.importers.layouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from data.views import SEGMENT_COPY

HEAD = "head"  # a table maps a head to this where only its shape tells whether it is a pretext or an action head
PRETEXT_HEAD, ACTION_HEAD = "pretext_head.linear", "action_head.linear"
PROJECTOR = "projector.mlp.0"  # its first layer

Triple = tuple[float, float, float]


Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sign:
    """A convolution's weight, by their name, and its kernel (time, height, width): what tells two layouts with the same
    stem apart."""

    name: str
    kernel: tuple[int, int, int]


@dataclass(frozen=True)
class Layout:
    """How one project names the tensors of one architecture.

    modules: their module path -> ours; the first is the stem, by which the layout is recognised. last_norm: our name
    of the batch-norm at the backbone's end, whose length is the feature size: full_features at width 1. prefix: may
    stand before their names. The rest is what that project's networks were trained on, unless the user says otherwise.
    backward_residual: its residual clips are frame t-1 minus frame t, where ours are frame t minus frame t-1.
    shuffle: the variant of the fifth pretext operation that its pretext heads know, by the view generator's number.
    sign: what must be there besides the stem. kept: for a plug-in's network, whose names nobody knows beforehand: names
    that begin so are ours already, `modules` has the heads only, and the feature size is asked of the network.
    """

    name: str
    arch: str
    modules: Mapping[str, str]
    last_norm: str
    mean: Triple
    std: Triple
    crop: int
    clip_len: int
    modality: Literal["rgb", "res"]
    prefix: str = ""
    full_features: int = 512
    backward_residual: bool = False
    shuffle: int = SEGMENT_COPY
    sign: Sign | None = None
    kept: str = ""

    @property
    def stem(self) -> tuple[str, str]:
        """Their name of the first convolution's weight, and ours."""
        theirs, ours = next(iter(self.modules.items()))
        return f"{theirs}.weight", f"{ours}.weight"

    def recognises(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether the stem is there, and the sign. shapes: of their tensors."""
        if self.kept:
            return any(name.startswith(self.kept) for name in shapes)
        bare = {self._bare(name): shape for name, shape in shapes.items()}
        if self.sign is not None and bare.get(self.sign.name, ())[2:] != self.sign.kernel:
            return False
        return self.stem[0] in bare

    def ours(self, name: str) -> str | None:
        """Our name of their tensor; None for one that the table does not know."""
        if self.kept and name.startswith(self.kept):
            return name
        module, _, leaf = self._bare(name).rpartition(".")
        return f"{self.modules[module]}.{leaf}" if module in self.modules else None

    def _bare(self, name: str) -> str:
        return name.removeprefix(self.prefix)
