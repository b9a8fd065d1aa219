"""What the user says about weights that are imported. Needs neither torch nor Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from teacher_server.card import CHUNK_ITEMS
from teacher_server.importers.layout import Triple
from teacher_server.importers.layouts import AUTO


@dataclass(frozen=True)
class Wishes:
    """What the user said; None and auto: from the tensors, or the layout's default.

    classes: names in the order of the head's rows. precision: auto measures it on this machine. resize, compile and
    chunk_items: as on a card. allow_unused: go on although the network has no place for some tensors.
    """

    layout: str = AUTO
    arch: str | None = None
    width: float | None = None
    head: Literal["auto", "pretext", "action"] = "auto"
    classes: tuple[str, ...] | None = None
    modality: Literal["rgb", "res"] | None = None
    crop: int | None = None
    resize: bool = False
    clip_len: int | None = None
    mean: Triple | None = None
    std: Triple | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    chunk_items: int = CHUNK_ITEMS
    allow_unused: bool = False
