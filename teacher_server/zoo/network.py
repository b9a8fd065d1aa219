"""A backbone with its heads: what a student trains and what a teacher's weights file holds.

    clips (0, 1, 2) --backbone, once per clip--> features (0, 1, 2) --> pretext head --> pretext_logits
                                                  |     |     |
                                                  |     +-----|----- (pretext head only)
                                                  +-----------+----> projector --> z1 (clip 0), z2 (clip 2)
                                                  +----------------> action head --> action_logits (clip 0)

The names in the state dict are `backbone.*`, `pretext_head.*`, `action_head.*`, `projector.*`; checkpoints and
teacher cards depend on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from teacher_server.zoo.heads import CLIPS_PER_TUPLE, ActionHead, PretextHead, Projector
from teacher_server.zoo.registry import build_backbone


@dataclass(frozen=True)
class TupleOutput:
    """What a network says about a batch of tuples; None where it has no such head."""

    pretext_logits: Tensor  # [B,K]
    z1: Tensor | None  # [B,128], first clip, L2 norm 1
    z2: Tensor | None  # [B,128], third clip, L2 norm 1
    action_logits: Tensor | None  # [B,K'], first clip
    features: tuple[Tensor, Tensor, Tensor]  # [B,D] each, in the order of the clips


class VideoNetwork(nn.Module):
    """Backbone and, where asked for, pretext head, action head (0 classes: none) and projector.

    trusted: whether the user typed the architecture's name, which may then be any plug-in.
    """

    def __init__(
        self,
        arch: str,
        width: float = 1.0,
        *,
        pretext_classes: int = 5,
        action_classes: int = 0,
        projector: bool = True,
        trusted: bool = False,
    ) -> None:
        super().__init__()
        if pretext_classes < 0 or action_classes < 0:
            raise ValueError(
                f"numbers of classes must be at least 0 (no such head), got {pretext_classes} and {action_classes}"
            )
        self.backbone = build_backbone(arch, width, trusted=trusted)
        size = self.backbone.feature_size
        self.pretext_head = PretextHead(size, pretext_classes) if pretext_classes else None
        self.action_head = ActionHead(size, action_classes) if action_classes else None
        self.projector = Projector(size) if projector else None

    @property
    def feature_size(self) -> int:
        """D, the length of a clip's features."""
        return self.backbone.feature_size

    def features(self, x_BCTHW: Tensor) -> Tensor:
        """[B,3,T,H,W] -> [B,D]."""
        return self.backbone(x_BCTHW)

    def pretext_logits(self, features: Sequence[Tensor]) -> Tensor:
        """Features of the three clips, each [B,D], -> [B,K]. Raises ValueError for a network without that head."""
        if self.pretext_head is None:
            raise ValueError("this network has no pretext head: it was made with pretext_classes=0")
        return self.pretext_head(features)

    def forward_tuple(self, clips: tuple[Tensor, Tensor, Tensor]) -> TupleOutput:
        """Three clips [B,3,T,H,W] in order. The backbone runs once per clip, never on all three as one batch:
        batch-norm takes its statistics of each clip position apart (only the middle clip is transformed).

        Raises ValueError for another number of clips.
        """
        if len(clips) != CLIPS_PER_TUPLE:
            raise ValueError(f"a tuple has {CLIPS_PER_TUPLE} clips, got {len(clips)}")
        first, middle, last = (self.features(clip) for clip in clips)
        return TupleOutput(
            pretext_logits=self.pretext_logits((first, middle, last)),
            z1=None if self.projector is None else self.projector(first),
            z2=None if self.projector is None else self.projector(last),
            action_logits=None if self.action_head is None else self.action_head(first),
            features=(first, middle, last),
        )

    def forward(self, clips: tuple[Tensor, Tensor, Tensor]) -> TupleOutput:
        """The same as `forward_tuple`, so that wrappers for data parallelism find it."""
        return self.forward_tuple(clips)
