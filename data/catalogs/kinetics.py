"""Kinetics' layout: CSV lists (Kay et al., arXiv 1705.06950), and videos as the usual download scripts name them.

    LISTS   a CSV file, or a folder of them: train.csv, validate.csv (or val.csv), test.csv
            label,youtube_id,time_start,time_end,split
            clay pottery making,---0dWlqevI,19,29,train
    VIDEOS  <id>_<start>_<end>.mp4 with six digits each (---0dWlqevI_000019_000029.mp4), or with plain numbers, or
            <id>.mp4; any extension; in a folder <label>, <split>/<label> or <split>, or in VIDEOS itself, where blanks
            of a label may be underscores

Subsets: train01 is the split train, val01 the split validate. test01 is the split test where its rows have labels
(Kinetics publishes none for a while), else it is the same as val01. Group: the YouTube id.
Many listed videos are gone from the net: ingest lists what is not in the folder as skipped.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.catalogs import Catalog, CatalogEntry
from data.catalogs.files import VideoFolder, add_entry, check_disjoint, check_folder, is_plain, read_text, unique_keys
from data.errors import CatalogError

_COLUMNS = ("label", "youtube_id", "time_start", "time_end")
_TRAIN, _VALIDATION, _TEST = "train01", "val01", "test01"
_SPLITS = {"train": _TRAIN, "validate": _VALIDATION, "val": _VALIDATION, "test": _TEST}


@dataclass(frozen=True)
class _Row:
    """A line of a list. start, end: seconds in the source video; split: as the list spells it; place: for messages."""

    place: str
    label: str
    youtube_id: str
    start: int
    end: int
    split: str

    @property
    def stem(self) -> str:
        """The usual name of its file."""
        return f"{self.youtube_id}_{self.start:06d}_{self.end:06d}"


def read_catalog(videos: Path, lists: Path) -> Catalog:
    """The videos that the lists name with a label. Raises CatalogError when a list is not as the layout says."""
    check_folder(videos, "videos")
    rows: list[_Row] = []
    num_unlabelled = 0
    for path in _list_files(lists):
        for row in _read_rows(path):
            num_unlabelled += not row.label
            rows += [row] if row.label else []
    classes = tuple(sorted({row.label for row in rows}))
    if not classes:
        raise CatalogError(f"{lists} lists no video with a label")
    labels = {name: label for label, name in enumerate(classes)}
    folder = VideoFolder(videos)
    entries: dict[str, CatalogEntry] = {}
    subsets: dict[str, list[str]] = {}
    for row in rows:
        key = f"{row.label}/{row.stem}"
        entry = CatalogEntry(_find(folder, videos, row), key, labels[row.label], row.youtube_id)
        add_entry(entries, entry, row.place)
        subsets.setdefault(_SPLITS[row.split], []).append(key)
    for held_out in (_VALIDATION, _TEST):
        check_disjoint(str(lists), subsets, _TRAIN, held_out)
    if _TEST not in subsets and _VALIDATION in subsets:
        subsets[_TEST] = subsets[_VALIDATION]
    named = {name: unique_keys(f"{lists}, {name},", keys) for name, keys in subsets.items()}
    warnings = (f"{num_unlabelled} listed videos have no label and are left out",) if num_unlabelled else ()
    return Catalog(classes, tuple(entries[key] for key in sorted(entries)), named, warnings)


def _list_files(lists: Path) -> list[Path]:
    if lists.is_file():
        return [lists]
    check_folder(lists, "CSV lists")
    found = sorted(path for path in lists.iterdir() if path.suffix.lower() == ".csv")
    if not found:
        raise CatalogError(f"{lists} holds no CSV file: name the folder of train.csv and validate.csv, or one file")
    return found


def _read_rows(path: Path) -> Iterator[_Row]:
    """Rows without a split column have the file's name for one."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), restval="")
    try:
        absent = [name for name in _COLUMNS[1:] if name not in (reader.fieldnames or ())]
        if absent:
            raise CatalogError(
                f"{path} has no column {absent[0]}: label,youtube_id,time_start,time_end,split was expected"
            )
        for fields in reader:
            yield _row(f"{path}, line {reader.line_num}", fields, path.stem)
    except csv.Error as error:
        raise CatalogError(f"{path}, after line {reader.line_num}: it is not CSV ({error})") from error


def _row(place: str, fields: dict[str, str], default_split: str) -> _Row:
    label, youtube_id = (fields.get("label") or "").strip(), fields["youtube_id"].strip()
    split = (fields.get("split") or default_split).strip().lower()
    if not is_plain(youtube_id) or (label and not is_plain(label)) or "\n" in label + youtube_id:
        raise CatalogError(f"{place}: a label and a YouTube id were expected, got {label!r} and {youtube_id!r}")
    if split not in _SPLITS:
        raise CatalogError(f"{place}: split must be one of {', '.join(_SPLITS)}, got {split!r}")
    try:
        start, end = (round(float(fields[name])) for name in _COLUMNS[2:])
    except (ValueError, OverflowError):
        start = end = -1
    if not 0 <= start < end:
        raise CatalogError(
            f"{place}: time_start and a later time_end in seconds were expected, "
            f"got {fields['time_start']!r} and {fields['time_end']!r}"
        )
    return _Row(place, label, youtube_id, start, end, split)


def _find(folder: VideoFolder, videos: Path, row: _Row) -> Path:
    """The file under any of the usual names, else the path of the commonest one."""
    names = dict.fromkeys((row.label, row.label.replace(" ", "_")))
    folders = (*names, *(f"{row.split}/{name}" for name in names), row.split, ".")
    for stem in (row.stem, f"{row.youtube_id}_{row.start}_{row.end}", row.youtube_id):
        for name in folders:
            found = folder.find_stem(name, stem)
            if found is not None:
                return found
    return videos / row.label / f"{row.stem}.mp4"
