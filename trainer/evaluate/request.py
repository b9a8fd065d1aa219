"""A question about a student: which protocol, on which clips, with which numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from data.input_spec import InputSpec
from data.render import RENDERER
from data.views import SEGMENT_COPY, ClipSpec
from trainer.errors import EvaluationError
from trainer.evaluate.finetune_recipe import FinetuneRecipe
from trainer.evaluate.records import ProtocolName

_REVISION = 4  # part of every settings hash: count up with a change that changes any number


@dataclass(frozen=True)
class EvalRequest:
    """A question. splits: such as ("01", "02"); none means all that the store has.

    recipe: of finetune. clips_per_video: even clips for probe and retrieval. tuples_per_video, view_seed, any_swap,
    shuffle, operation: of pretext. seed: of the bootstrap.
    """

    protocol: ProtocolName
    spec: ClipSpec
    input_spec: InputSpec
    splits: tuple[str, ...] = ()
    recipe: FinetuneRecipe = field(default_factory=FinetuneRecipe)
    clips_per_video: int = 10
    tuples_per_video: int = 3
    view_seed: int = 0
    any_swap: bool = False
    shuffle: int = SEGMENT_COPY
    operation: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clips_per_video < 1 or self.tuples_per_video < 1:
            raise EvaluationError(
                f"clips and tuples per video must be at least 1, got {self.clips_per_video}, {self.tuples_per_video}"
            )
        if not 0 <= self.seed < 2**63:
            raise EvaluationError(f"the intervals' seed must lie between 0 and 2**63, got {self.seed}")

    @property
    def num_frames(self) -> int:
        """That a video must have to be asked about."""
        return self.spec.tuple_span if self.protocol == "pretext" else self.spec.clip_len

    def digest(self, store_fingerprint: str, splits: tuple[str, ...]) -> str:
        """16 hex digits that change with the question and with the store that it is put on."""
        facts = [store_fingerprint, self.settings(splits)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def settings(self, splits: tuple[str, ...]) -> dict[str, Any]:
        """All that the numbers depend on besides weights and store, as JSON. splits: those that will be used."""
        facts = {
            "revision": _REVISION,
            "renderer": RENDERER,
            "protocol": self.protocol,
            "splits": list(splits),
            "clip_len": self.spec.clip_len,
            "crop": self.spec.crop,
            "input": {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in dataclasses.asdict(self.input_spec).items()
            },
            "seed": self.seed,
        }
        if self.protocol == "finetune":
            return facts | {"recipe": dataclasses.asdict(self.recipe)}
        if self.protocol == "pretext":
            names = ("tuples_per_video", "view_seed", "any_swap", "shuffle", "operation")
            return facts | {name: getattr(self, name) for name in names} | {"interval": self.spec.interval}
        return facts | {"clips_per_video": self.clips_per_video}
