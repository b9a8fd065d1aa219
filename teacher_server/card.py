"""A teacher's card: everything about a frozen network but its weights. Canonical JSON of it enters the teacher digest.

Needs pydantic only.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data.input_spec import IMAGENET_MEAN, IMAGENET_STD, InputSpec
from data.views import ClipSpec
from teacher_server.errors import LibraryError, TeacherMismatch
from teacher_server.zoo.names import ARCHITECTURES

PRETEXT_CLASSES = ("unchanged", "rotation", "spatial_permutation", "temporal_swap", "temporal_shuffle")


class Provenance(BaseModel):
    """Where the weights come from; for people, and part of the digest like the rest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str
    store_fingerprint: str = ""
    steps: int = 0
    metrics: dict[str, float] = Field(default_factory=dict)


class TeacherCard(BaseModel):
    """What a run must know of a teacher.

    head: `pretext` classifies a tuple of 3 clips, `action` one clip. clip_len: frames it was trained with; it accepts
    min_clip_len and more. crop: side of its input in pixels; pixels of another size are refused unless `resize`.
    chunk_items: items per forward pass, fixed, so that no answer depends on its neighbours.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    arch: str
    arch_version: int
    width: float = Field(gt=0, le=4)
    head: Literal["pretext", "action"]
    classes: tuple[str, ...] = Field(min_length=2)
    clip_len: int = Field(ge=8)
    min_clip_len: int = Field(default=8, ge=8)
    crop: int = Field(ge=8)
    resize: bool = False
    modality: Literal["rgb", "res"]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    feature_size: int = Field(ge=1)
    precision: Literal["float32"] = "float32"
    chunk_items: int = Field(default=8, ge=1, le=1024)
    provenance: Provenance

    @model_validator(mode="after")
    def _known_architecture(self) -> TeacherCard:
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"architecture {self.arch!r} is not one of {', '.join(ARCHITECTURES)}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("class names repeat")
        return self

    @property
    def views_per_item(self) -> int:
        """Clips that one answer is about."""
        return 3 if self.head == "pretext" else 1

    @property
    def input_spec(self) -> InputSpec:
        """How rendered pixels become this teacher's input."""
        return InputSpec(mean=self.mean, std=self.std, modality=self.modality, crop=self.crop)

    def canonical(self) -> bytes:
        """The one byte string that stands for this card: JSON with sorted keys and no spaces."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()

    def digest(self, weights_sha256: str) -> str:
        """The teacher digest, 64 hex digits: weights, canonical card and architecture version."""
        text = f"{weights_sha256}\n{self.arch}:{self.arch_version}\n".encode() + self.canonical()
        return hashlib.sha256(text).hexdigest()

    def check_fits(self, teacher: str, spec: ClipSpec, *, num_action_classes: int | None = None) -> None:
        """Raises TeacherMismatch with every difference spelled out."""
        differences = []
        if spec.clip_len < self.min_clip_len:
            differences.append(f"it takes clips of at least {self.min_clip_len} frames, the run has {spec.clip_len}")
        if spec.crop != self.crop and not self.resize:
            differences.append(
                f"it takes {self.crop}x{self.crop} pixels, the run crops {spec.crop}x{spec.crop} (--crop)"
            )
        if self.head == "pretext" and self.classes != PRETEXT_CLASSES:
            differences.append(f"its classes are {', '.join(self.classes)}, expected {', '.join(PRETEXT_CLASSES)}")
        if self.head == "action" and num_action_classes is not None and len(self.classes) != num_action_classes:
            differences.append(f"it knows {len(self.classes)} classes, the store has {num_action_classes}")
        if differences:
            raise TeacherMismatch(teacher, tuple(differences))


def parse_card(path: str, text: bytes) -> TeacherCard:
    """The card in `text`. Raises LibraryError that names the file and the first field that is wrong."""
    try:
        return TeacherCard.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "card"
        raise LibraryError(path, f"{where}: {first['msg']}") from None
