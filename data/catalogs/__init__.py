"""Catalogs: what a data set's own folder layout and list files say. One module per layout, one record for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CatalogEntry:
    """A listed video. key: its name in the store; label: index into the classes; group: videos that share a scene."""

    file: Path
    key: str
    label: int
    group: str


@dataclass(frozen=True)
class Catalog:
    """Everything that ingest needs to know of a data set. subsets: name -> keys in the order of the list file.

    Entries may name files that do not exist: ingest lists them as skipped. warnings: sentences about what is odd in the
    folders or lists, and does not stop anybody.
    """

    classes: tuple[str, ...]
    entries: tuple[CatalogEntry, ...]
    subsets: Mapping[str, tuple[str, ...]]
    warnings: tuple[str, ...] = ()
