"""What a client and a teacher replica say to each other. Needs neither torch, Ray nor fastapi.

    TeacherQuery  {request id, teacher@version, views and/or pixels, temperature, run}  client -> replica
    TeacherReply  {request id, teacher@version, digest, engine, temperature, logits, seconds}  replica -> client

Axis letters: N clips, I items (N = I * views per item), K classes, D features.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data.errors import ViewError
from data.views import ViewBatch
from teacher_server.errors import BadQuery, BadReply

LogitsDtype = Literal["float32", "float16"]
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 1000.0  # between them float32 logits neither overflow nor vanish
MAX_TIMEOUT_S = 600.0  # longer than any question takes: what nobody waits for must not stay in a queue
MAX_WEIGHT = 100.0
MAX_RUN_NAME = 200  # characters: replicas remember the names of runs

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_REF_PATTERN = re.compile(rf"({NAME_PATTERN.pattern})(?:@([1-9][0-9]{{0,8}}))?")


@dataclass(frozen=True, order=True)
class TeacherId:
    """One exact version of a teacher.

    >>> str(TeacherId("r2plus1d", 3))
    'r2plus1d@3'
    """

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    @classmethod
    def parse(cls, text: str) -> TeacherId:
        """Reads `name@version`. Raises BadQuery for anything else."""
        ref = TeacherRef.parse(text)
        if ref.version is None:
            raise BadQuery(f"{text!r} names no version: expected name@version, for example {text}@1")
        return cls(ref.name, ref.version)


@dataclass(frozen=True)
class TeacherRef:
    """What a user asks for: an alias to follow (version None) or one pinned version.

    >>> TeacherRef.parse("r2plus1d@3")
    TeacherRef(name='r2plus1d', version=3)
    """

    name: str
    version: int | None = None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"

    @classmethod
    def parse(cls, text: str) -> TeacherRef:
        """Reads `name` or `name@version`. Raises BadQuery for anything else."""
        match = _REF_PATTERN.fullmatch(text)
        if match is None:
            raise BadQuery(
                f"{text!r} is no teacher name: expected letters a-z, digits, - and _, as r2plus1d or r2plus1d@3"
            )
        return cls(match[1], int(match[2]) if match[2] else None)


@dataclass(frozen=True)
class Binding:
    """What the roster bound a block of a run's steps to. `digest` is the teacher digest, 64 hex digits."""

    teacher: TeacherId
    digest: str
    block: int


@dataclass(frozen=True)
class TeacherQuery:
    """A question about items: packed views of a store, rendered pixels, or both.

    views: `ViewBatch.to_bytes()`, with `store` the store's absolute path; they say what the question is about, so that
    equal questions can share an answer and answers can be recorded. pixels: uint8 [N, T, H, W, 3]; where they are
    there they are what is answered, and nothing is rendered. With both, they are the pixels of these views.
    views_per_item: 3 for a pretext head, 1 for an action head. temperature: the reply's logits are
    divided by it. dtype: of the reply's logits. timeout_s: seconds, > 0, after its arrival at which the replica may
    drop the question unanswered. weight: the run's share of a busy replica, relative to those of other runs.
    """

    request_id: str
    teacher: TeacherId
    temperature: float
    views_per_item: int
    run: str = ""
    views: bytes | None = None
    store: str | None = None
    pixels: NDArray[np.uint8] | None = None
    want_features: bool = False
    dtype: LogitsDtype = "float32"
    timeout_s: float = 30.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.views is None and self.pixels is None:
            raise BadQuery("a query carries views, pixels or both, got neither")
        if self.views is not None and not self.store:
            raise BadQuery("a query with views names the store that they were drawn from")
        if not MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE:  # refuses NaN too, like the next one
            raise BadQuery(
                f"temperature must be a number from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}, got {self.temperature}"
            )
        if not 0 < self.timeout_s <= MAX_TIMEOUT_S:
            raise BadQuery(f"timeout_s must be > 0 and at most {MAX_TIMEOUT_S:g}, got {self.timeout_s}")
        if self.dtype not in ("float32", "float16"):
            raise BadQuery(f"dtype must be float32 or float16, got {self.dtype!r}")
        if not 0 < self.weight <= MAX_WEIGHT:
            raise BadQuery(f"weight must be > 0 and at most {MAX_WEIGHT:g}, got {self.weight}")
        if len(self.run) > MAX_RUN_NAME:
            raise BadQuery(f"a run's name has at most {MAX_RUN_NAME} characters, got {len(self.run)}")
        if self.views_per_item < 1:
            raise BadQuery(f"views_per_item must be at least 1, got {self.views_per_item}")
        if self.pixels is not None:
            _check_pixels(self.pixels, self.views_per_item)

    @property
    def num_clips(self) -> int:
        """Clips that answering takes; the unit of all limits."""
        if self.pixels is not None:
            return len(self.pixels)
        return len(self.view_batch())

    def view_batch(self) -> ViewBatch:
        """The packed views as a batch. Raises BadQuery when there are none, when they are damaged, and when they make
        other items than the query says."""
        if self.views is None:
            raise BadQuery("this query carries pixels only, no views")
        try:
            batch = ViewBatch.from_bytes(self.views)
        except ViewError as error:
            raise BadQuery(str(error)) from None
        if len(batch) == 0 or batch.views_per_item != self.views_per_item:
            raise BadQuery(
                f"expected at least one item of {self.views_per_item} views, "
                f"got {len(batch)} views in items of {batch.views_per_item}"
            )
        return batch


def _check_pixels(pixels: NDArray[np.uint8], views_per_item: int) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 5 or pixels.shape[-1] != 3:
        raise BadQuery(f"pixels must be uint8 [clips, T, H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
    if len(pixels) == 0 or len(pixels) % views_per_item:
        raise BadQuery(f"{len(pixels)} clips do not make whole items of {views_per_item}")


@dataclass(frozen=True)
class PhaseSeconds:
    """Where an answer's time went on the replica, in seconds."""

    queue: float = 0.0
    render: float = 0.0
    forward: float = 0.0


@dataclass(frozen=True)
class TeacherReply:
    """Softened logits (raw / temperature) [I, K] in the query's dtype, and who made them.

    digest: sha256 (64 hex digits) over weights, card and architecture version. engine: on what they were computed, for
    example "cpu"; equal questions to one digest on one engine have equal answers. features: float32 [I, D] or None.
    """

    request_id: str
    teacher: TeacherId
    digest: str
    temperature: float
    logits: NDArray[np.float32] | NDArray[np.float16]
    engine: str
    features: NDArray[np.float32] | None = None
    seconds: PhaseSeconds = PhaseSeconds()


def check_reply(query: TeacherQuery, reply: TeacherReply, *, digest: str, num_classes: int) -> TeacherReply:
    """The reply, if it answers exactly this query. Raises BadReply otherwise; a NaN never reaches a loss."""
    num_items = query.num_clips // query.views_per_item
    if reply.request_id != query.request_id or reply.teacher != query.teacher or reply.digest != digest:
        raise BadReply(
            f"asked {query.teacher} ({digest[:12]}) in {query.request_id}, "
            f"got an answer from {reply.teacher} ({reply.digest[:12]}) to {reply.request_id}"
        )
    if reply.temperature != query.temperature:
        raise BadReply(
            f"asked for temperature {query.temperature}, the reply from {reply.teacher} has {reply.temperature}"
        )
    if reply.logits.shape != (num_items, num_classes):
        raise BadReply(f"expected logits [{num_items}, {num_classes}], {reply.teacher} sent {list(reply.logits.shape)}")
    if reply.logits.dtype != query.dtype:
        raise BadReply(f"asked for {query.dtype} logits, {reply.teacher} sent {reply.logits.dtype}")
    if query.want_features and (reply.features is None or len(reply.features) != num_items):
        raise BadReply(f"asked for features of {num_items} items, {reply.teacher} sent none or another number")
    for name, numbers in (("logits", reply.logits), ("features", reply.features)):
        if numbers is not None and not np.isfinite(numbers).all():
            raise BadReply(f"{reply.teacher} answered with {name} that are not finite")
    return reply


def new_request_id() -> str:
    """32 hex digits, unique; it takes no part in any result."""
    return uuid.uuid4().hex
