"""A teacher's card: everything about a frozen network but its weights. Canonical JSON of it enters the teacher digest.

    Card             what a run must know of any teacher
    ├── TeacherCard  one network and how it is computed
    └── EnsembleCard several teachers that answer as one

Needs pydantic only.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from data.input_spec import IMAGENET_MEAN, IMAGENET_STD, InputSpec
from data.views import REMOTE, SEGMENT_COPY, ClipSpec
from teacher_server.errors import BadQuery, LibraryError, TeacherMismatch
from teacher_server.protocol import TeacherId
from teacher_server.zoo.names import ARCHITECTURES, is_architecture_name

PRETEXT_CLASSES = ("unchanged", "rotation", "spatial_permutation", "temporal_swap", "temporal_shuffle")
_REMOTE_CLIP = "remote_clip"  # the fifth operation of VCP and PCL
CHUNK_ITEMS = 8
MAX_CHUNK_BYTES = 2**29  # of one forward pass's pixels: 891 clips of 16x112x112
MAX_MEMBERS = 32
_SHARED = ("head", "classes", "crop", "resize")  # what an ensemble's members must have in common
_HEX = re.compile(r"[0-9a-f]{64}")

Precision = Literal["float32", "bfloat16"]


def numbered_classes(count: int) -> tuple[str, ...]:
    """Names for classes that nobody named: class_000, class_001 and so on."""
    return tuple(f"class_{number:03d}" for number in range(count))


def pretext_classes(operation: str = "", shuffle: int = SEGMENT_COPY) -> tuple[str, ...]:
    """What a pretext head tells apart. operation: name of the user's own in the place of the temporal shuffle.
    shuffle: the variant of that, by the view generator's number; who knows one of them does not know the other."""
    fifth = operation or (_REMOTE_CLIP if shuffle == REMOTE else PRETEXT_CLASSES[-1])
    return (*PRETEXT_CLASSES[:-1], fifth)


class Provenance(BaseModel):
    """Where the weights come from; for people, and part of the digest like the rest.

    source_file, source_sha256, mapping: of imported weights, the file's name and hash, and whose tensor names it had;
    absent from the JSON of all others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    command: str
    store_fingerprint: str = ""
    steps: int = 0
    metrics: dict[str, float] = Field(default_factory=dict)
    source_file: str = ""
    source_sha256: str = ""
    mapping: str = ""


class Card(BaseModel):
    """What a run must know of a teacher.

    head: `pretext` classifies a tuple of 3 clips, `action` one clip. clip_len: frames it was trained with; it accepts
    min_clip_len and more. crop: side of its input in pixels; pixels of another size are refused unless `resize`.
    chunk_items: items per forward pass, fixed, so that no answer depends on its neighbours.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal[1] = 1
    kind: str
    arch: str
    head: Literal["pretext", "action"]
    classes: tuple[str, ...] = Field(min_length=2)
    clip_len: int = Field(ge=8)
    min_clip_len: int = Field(default=8, ge=8)
    crop: int = Field(ge=8)
    resize: bool = False
    modality: Literal["rgb", "res", "mixed"]
    feature_size: int = Field(ge=1)
    chunk_items: int = Field(default=CHUNK_ITEMS, ge=1, le=1024)
    provenance: Provenance

    @model_validator(mode="after")
    def _possible(self) -> Card:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("class names repeat")
        chunk_bytes = self.chunk_items * self.views_per_item * self.clip_len * self.crop**2 * 3
        if chunk_bytes > MAX_CHUNK_BYTES:
            raise ValueError(
                f"one pass takes {self.chunk_items} items of {self.views_per_item} clips of "
                f"{self.clip_len}x{self.crop}x{self.crop}, {chunk_bytes} bytes, at most {MAX_CHUNK_BYTES} are allowed"
            )
        return self

    @property
    def views_per_item(self) -> int:
        """Clips that one answer is about."""
        return 3 if self.head == "pretext" else 1

    def canonical(self, without: set[str] | None = None) -> bytes:
        """The one byte string that stands for this card: JSON with sorted keys and no spaces."""
        fields = self.model_dump(mode="json", exclude=without)
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()

    def check_fits(
        self,
        teacher: str,
        spec: ClipSpec,
        *,
        num_action_classes: int | None = None,
        operation: str = "",
        shuffle: int = SEGMENT_COPY,
    ) -> None:
        """Raises TeacherMismatch with every difference spelled out. operation, shuffle: as for `pretext_classes`."""
        differences = []
        if spec.clip_len < self.min_clip_len:
            differences.append(f"it takes clips of at least {self.min_clip_len} frames, the run has {spec.clip_len}")
        if spec.crop != self.crop and not self.resize:
            differences.append(
                f"it takes {self.crop}x{self.crop} pixels, the run crops {spec.crop}x{spec.crop} (--crop)"
            )
        expected = pretext_classes(operation, shuffle)
        if self.head == "pretext" and self.classes != expected:
            flags = " (--shuffle, --pretext-operation)" if self.classes[:-1] == expected[:-1] else ""
            differences.append(f"its classes are {', '.join(self.classes)}, expected {', '.join(expected)}{flags}")
        if self.head == "action" and num_action_classes is not None and len(self.classes) != num_action_classes:
            differences.append(f"it knows {len(self.classes)} classes, the store has {num_action_classes}")
        if differences:
            raise TeacherMismatch(teacher, tuple(differences))


class TeacherCard(Card):
    """One network.

    precision: what its backbone computes in; the head computes in float32. compile: whether the backbone is compiled
    for clips of clip_len frames. Both change the numbers, and so the digest. weights_sha256: of the safetensors file,
    64 hex digits; the library writes it when it takes the weights in, and compares.
    """

    kind: Literal["teacher"] = "teacher"
    arch_version: int
    width: float = Field(gt=0, le=4)
    modality: Literal["rgb", "res"]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    precision: Precision = "float32"
    compile: bool = False
    weights_sha256: str = ""

    @model_validator(mode="after")
    def _known_architecture(self) -> TeacherCard:
        if not is_architecture_name(self.arch):
            raise ValueError(f"architecture {self.arch!r} is not one of {', '.join(ARCHITECTURES)}, and no plug-in")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        return self

    @property
    def input_spec(self) -> InputSpec:
        """How rendered pixels become this teacher's input."""
        return InputSpec(mean=self.mean, std=self.std, modality=self.modality, crop=self.crop)

    def digest(self, weights_sha256: str) -> str:
        """The teacher digest, 64 hex digits: weights, canonical card and architecture version."""
        card = self.canonical(without={"weights_sha256"})  # they are in it already
        text = f"{weights_sha256}\n{self.arch}:{self.arch_version}\n".encode() + card
        return hashlib.sha256(text).hexdigest()


class EnsembleMember(BaseModel):
    """One of an ensemble's teachers, `name@version`, by digest, and its share of the probability."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    teacher: str
    digest: str
    weight: float = Field(gt=0, le=1)

    @model_validator(mode="after")
    def _possible(self) -> EnsembleMember:
        try:
            TeacherId.parse(self.teacher)
        except BadQuery as error:
            raise ValueError(str(error)) from None
        if not _HEX.fullmatch(self.digest):
            raise ValueError("a digest has 64 hex digits")
        return self

    @property
    def id(self) -> TeacherId:
        """The teacher."""
        return TeacherId.parse(self.teacher)


class EnsembleCard(Card):
    """Several teachers of one signature. Its logits are log(sum of weight * softmax(raw)), its features theirs, one
    after the other in the order of the members."""

    kind: Literal["ensemble"] = "ensemble"
    arch: Literal["ensemble"] = "ensemble"
    members: tuple[EnsembleMember, ...] = Field(min_length=2, max_length=MAX_MEMBERS)

    @model_validator(mode="after")
    def _whole(self) -> EnsembleCard:
        if len({member.teacher for member in self.members}) != len(self.members):
            raise ValueError("members repeat")
        total = math.fsum(member.weight for member in self.members)
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the members' weights sum to {total}, expected 1")
        return self

    @classmethod
    def of(cls, members: Sequence[EnsembleMember], cards: Sequence[TeacherCard]) -> EnsembleCard:
        """The card that these members make, `cards` being theirs. Raises BadQuery with what does not go together."""
        for member, card in zip(members, cards, strict=True):
            differences = signature_differences(card, cards[0], members[0].teacher, _SHARED)
            if differences:
                raise BadQuery(f"{member.teacher} cannot be combined with others: {'; '.join(differences)}")
        first, modalities = cards[0], {card.modality for card in cards}
        try:
            return cls(
                head=first.head,
                classes=first.classes,
                clip_len=max(card.clip_len for card in cards),
                min_clip_len=max(card.min_clip_len for card in cards),
                crop=first.crop,
                resize=first.resize,
                modality="mixed" if len(modalities) > 1 else first.modality,
                feature_size=sum(card.feature_size for card in cards),
                chunk_items=max(card.chunk_items for card in cards),
                provenance=Provenance(command=f"ensemble of {', '.join(member.teacher for member in members)}"),
                members=tuple(members),
            )
        except ValidationError as error:
            raise BadQuery(f"these members make no ensemble: {error.errors()[0]['msg']}") from None

    def digest(self) -> str:
        """The teacher digest, 64 hex digits: the canonical card, with the digests of the members in it."""
        return hashlib.sha256(b"ensemble\n" + self.canonical()).hexdigest()


def signature_differences(new: Card, old: Card, old_name: str, fields: Sequence[str]) -> tuple[str, ...]:
    """In which of these fields a card is not as another one, a clause for each."""
    return tuple(
        f"{field} is {getattr(new, field)}, {old_name} has {getattr(old, field)}"
        for field in fields
        if getattr(new, field) != getattr(old, field)
    )


class _Kind(BaseModel):
    """Which card a JSON text is: the first of its fields that is looked at."""

    kind: Literal["teacher", "ensemble"] = "teacher"


def parse_card(path: str, text: bytes) -> TeacherCard | EnsembleCard:
    """The card in `text`. Raises LibraryError that names the file and the first field that is wrong."""
    try:
        kind = _Kind.model_validate_json(text).kind
        card = TeacherCard if kind == "teacher" else EnsembleCard
        return card.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "card"
        raise LibraryError(path, f"{where}: {first['msg']}"[:500]) from None
