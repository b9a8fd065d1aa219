"""What it takes to read another project's checkpoint: a table from its module paths to ours, and its habits.

    their tensor   module.base_network.conv3.block1.downsampleconv.temporal_spatial_conv.weight
    table          conv3.block1.downsampleconv.temporal_spatial_conv -> backbone.stages.1.shortcut.0
    our tensor     backbone.stages.1.shortcut.0.weight

Pure: names and numbers only. A new layout is a module with such a table and a line in teacher_server.importers.layouts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

HEAD = "head"  # a table maps a head to this where only its shape tells whether it is a pretext or an action head
PRETEXT_HEAD, ACTION_HEAD = "pretext_head.linear", "action_head.linear"

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Layout:
    """How one project names the tensors of one architecture.

    modules: their module path -> ours; the first is the stem, by which the layout is recognised. last_norm: our name
    of the batch-norm at the backbone's end, whose length is the feature size: full_features at width 1. prefix: may
    stand before their names. The rest is what that project's networks were trained on, unless the user says otherwise.
    backward_residual: its residual clips are frame t-1 minus frame t, where ours are frame t minus frame t-1.
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

    @property
    def stem(self) -> tuple[str, str]:
        """Their name of the first convolution's weight, and ours."""
        theirs, ours = next(iter(self.modules.items()))
        return f"{theirs}.weight", f"{ours}.weight"

    def recognises(self, names: Iterable[str]) -> bool:
        """Whether the stem is there."""
        return self.stem[0] in {self._bare(name) for name in names}

    def ours(self, name: str) -> str | None:
        """Our name of their tensor; None for one that the table does not know."""
        module, _, leaf = self._bare(name).rpartition(".")
        return f"{self.modules[module]}.{leaf}" if module in self.modules else None

    def _bare(self, name: str) -> str:
        return name.removeprefix(self.prefix)
