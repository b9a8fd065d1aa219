"""The manifest of a clip store: a JSON file that says what the segments hold.

    STORE/manifest-000001.json      published last, by a hard link to a name that must not exist
    STORE/segments/<hash>.arrow     see data.segments

A later generation of the same store would be manifest-000002.json; readers take the highest number. The text is
canonical JSON with a checksum over all of it, so a changed byte anywhere is found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from data.errors import StoreDamaged, StoreMissing, StoreUnreadable, may_pass
from data.segments import CODECS

FORMAT = 1
SEGMENTS_FOLDER = "segments"
_MANIFEST_NAME = re.compile(r"manifest-(\d{6})\.json")
SEGMENT_NAME = re.compile(r"[0-9a-f]{32}\.arrow")
_CHECKSUM = re.compile(r"[0-9a-f]{16}")
_STORES_SHOWN = 10


class Skipped(NamedTuple):
    """A listed video that the store does not hold."""

    file: str
    reason: str


class SegmentEntry(NamedTuple):
    """A segment's file name and its size."""

    name: str
    num_bytes: int


@dataclass(frozen=True)
class Content:
    """What the fingerprint covers. The last seven fields have an entry per video, V in all; rows count from 0.

    resize: how frames were brought to frame_size (height, width). subsets: name -> rows, in the order of the list
    file. segment, batch: where the video lies. checksum: xxh3_64 of its stored bytes, 16 hex digits, which is also
    the content hash in view digests.
    """

    codec: str
    frame_size: tuple[int, int]
    resize: str
    classes: tuple[str, ...]
    subsets: Mapping[str, tuple[int, ...]]
    segments: tuple[SegmentEntry, ...]
    key: tuple[str, ...]
    label: tuple[int, ...]
    group: tuple[str, ...]
    num_frames: tuple[int, ...]
    segment: tuple[int, ...]
    batch: tuple[int, ...]
    checksum: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """A store's content, its generation number and the videos that were left out."""

    content: Content
    skipped: tuple[Skipped, ...]
    generation: int

    @property
    def fingerprint(self) -> str:
        """32 hex digits: xxh3_128 over the content. Neither generation nor skipped videos enter."""
        return xxhash.xxh3_128_hexdigest(_canonical(self._content_columns()))

    def to_bytes(self) -> bytes:
        """The file's text."""
        body = {
            "format": FORMAT,
            "generation": self.generation,
            "content": self._content_columns(),
            "skipped": self.skipped,
        }
        return _with_checksum(body)

    def _content_columns(self) -> dict[str, Any]:
        # dataclasses.asdict would copy every entry: 20 times slower.
        return {field.name: getattr(self.content, field.name) for field in fields(Content)}


def manifest_path(store: Path, generation: int) -> Path:
    """Where a generation's manifest lies."""
    return store / f"manifest-{generation:06d}.json"


def latest_generation(store: Path) -> int:
    """The highest generation that was published, 0 for none."""
    if not store.is_dir():
        return 0
    found = (_MANIFEST_NAME.fullmatch(path.name) for path in store.iterdir())
    return max((int(match.group(1)) for match in found if match), default=0)


def _stores_beside(store: Path) -> str:
    """A clause that names the stores in the same folder, for a name that was mistyped; nothing without any."""
    folder = store.parent
    names = [path.name for path in sorted(folder.iterdir()) if latest_generation(path)] if folder.is_dir() else []
    return f", beside it are {', '.join(names[:_STORES_SHOWN])}" if names else ""


def read_manifest(store: Path) -> Manifest:
    """The highest generation. Raises StoreMissing, StoreDamaged.

    A damaged manifest never falls back on an older one: that would be another store than the one asked for.
    """
    generation = latest_generation(store)
    if not generation:
        unfinished = ", only an ingest that was not finished" if (store / SEGMENTS_FOLDER).is_dir() else ""
        raise StoreMissing(
            str(store),
            f"there is none here{unfinished}{_stores_beside(store)}; "
            "`python -m data.ingest --help` says how to make one of your videos, "
            "`preceptor demo-data --size demo` makes a built-in one",
        )
    path = manifest_path(store, generation)
    try:
        return _parse(path.read_bytes())
    except OSError as error:
        kind = StoreUnreadable if may_pass(error) else StoreDamaged
        raise kind(str(store), f"{path.name} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreDamaged(
            str(store), f"{path.name} is damaged ({error}); restore it from a copy, or ingest the videos again"
        ) from error


def _canonical(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no blanks, ASCII (names that are not UTF-8 survive as escapes)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _with_checksum(body: Mapping[str, Any]) -> bytes:
    text = _canonical(body)
    return b'{"checksum":"%s",%s\n' % (xxhash.xxh3_128_hexdigest(text).encode("ascii"), text[1:])


def _parse(blob: bytes) -> Manifest:
    """The inverse of `to_bytes`. Raises ValueError, KeyError, TypeError for anything else."""
    body = json.loads(blob)
    del body["checksum"]
    if _with_checksum(body) != blob:
        raise ValueError("its checksum does not match")
    if body["format"] != FORMAT:
        raise ValueError(f"it has format {body['format']}, this version reads format {FORMAT}")
    content = _content(body["content"])
    return Manifest(content, tuple(Skipped(*entry) for entry in body["skipped"]), int(body["generation"]))


def _content(raw: dict[str, Any]) -> Content:
    columns = {field.name: raw[field.name] for field in fields(Content)}
    columns |= {name: tuple(value) for name, value in columns.items() if isinstance(value, list)}
    columns["segments"] = tuple(SegmentEntry(*entry) for entry in raw["segments"])
    columns["subsets"] = {name: tuple(rows) for name, rows in raw["subsets"].items()}
    content = Content(**columns)
    _check(content)
    return content


def _check(content: Content) -> None:
    """Whatever wrote the file, no name may leave the folder and no number may point outside its table."""
    columns = (content.label, content.group, content.num_frames, content.segment, content.batch, content.checksum)
    if content.codec not in CODECS or len(content.frame_size) != 2 or min(content.frame_size) < 1:
        raise ValueError(f"unknown codec or frame size: {content.codec!r}, {content.frame_size}")
    if any(len(column) != len(content.key) for column in columns) or len(set(content.key)) != len(content.key):
        raise ValueError("its columns do not have one entry for each video")
    if not all(SEGMENT_NAME.fullmatch(entry.name) for entry in content.segments):
        raise ValueError("it names a segment outside its folder")
    if not all(_CHECKSUM.fullmatch(value) for value in content.checksum):
        raise ValueError("a checksum is not 16 hex digits")
    _check_range("label", content.label, 0, len(content.classes))
    _check_range("segment", content.segment, 0, len(content.segments))
    _check_range("batch", content.batch, 0, len(content.key))
    _check_range("num_frames", content.num_frames, 1, 2**31)
    for name, rows in content.subsets.items():
        _check_range(f"subset {name}", rows, 0, len(content.key))


def _check_range(name: str, values: tuple[int, ...], low: int, end: int) -> None:
    column = np.array(values, dtype=np.int64)
    if column.size and not (column.min() >= low and column.max() < end):
        raise ValueError(f"{name} must lie in {low} to {end - 1}")
