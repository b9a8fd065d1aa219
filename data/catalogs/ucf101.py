"""UCF101's official layout (Soomro, Zamir, Shah, CRCV-TR-12-01), which other data sets share.

    VIDEOS/<Class>/v_<Class>_gNN_cNN.avi
    LISTS/classInd.txt          1 ApplyEyeMakeup
    LISTS/trainlist01.txt       ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1
    LISTS/testlist01.txt        ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi
                                and 02, 03, where they exist

A video's class is its folder, never its file name: HandstandPushups holds v_HandStandPushups_*. Where a listed file is
absent, one of the same name with another extension takes its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data.catalogs import Catalog, CatalogEntry
from data.catalogs.files import VideoFolder, add_entry, check_disjoint, check_folder, is_plain, lines, unique_keys
from data.errors import CatalogError

_SPLITS = ("01", "02", "03")
_LISTED = re.compile(r"(?P<name>.*?\S)(?:\s+(?P<number>\d+))?")
_CLASS = re.compile(r"(?P<number>\d+)\s+(?P<name>\S.*)")
_GROUP = re.compile(r"_(g\d+)_c\d+$")


@dataclass(frozen=True)
class _Line:
    """A line of a list file. place: where it is, for messages; number: the class number beside it, if any."""

    place: str
    name: PurePosixPath
    number: int | None


def read_catalog(videos: Path, lists: Path) -> Catalog:
    """The videos that the list files name. Raises CatalogError when folders or lists are not as the layout says."""
    check_folder(videos, "videos")
    check_folder(lists, "lists")
    classes = _read_classes(lists / "classInd.txt")
    labels = {name: label for label, name in enumerate(classes)}
    entries: dict[str, CatalogEntry] = {}
    subsets: dict[str, tuple[str, ...]] = {}
    folder = VideoFolder(videos)
    for path in _list_files(lists):
        listed = [_entry(line, labels, folder) for line in _read_list(path)]
        subsets[path.stem.replace("list", "")] = unique_keys(str(path), [entry.key for entry in listed])
        for entry in listed:
            add_entry(entries, entry, str(path))
    for split in _SPLITS:
        check_disjoint(str(lists), subsets, f"train{split}", f"test{split}")
    return Catalog(classes, tuple(entries[key] for key in sorted(entries)), subsets)


def _list_files(lists: Path) -> list[Path]:
    """train and test lists, split by split. A split has both or neither; at least one is needed."""
    found: list[Path] = []
    for split in _SPLITS:
        pair = [lists / f"trainlist{split}.txt", lists / f"testlist{split}.txt"]
        present = [path for path in pair if path.is_file()]
        if len(present) == 1:
            absent = next(path for path in pair if path not in present)
            raise CatalogError(f"{lists} has {present[0].name} but no {absent.name}: a split needs both")
        found += present
    if not found:
        raise CatalogError(f"{lists} has no trainlist01.txt and testlist01.txt: name the folder of the official lists")
    return found


def _read_classes(path: Path) -> tuple[str, ...]:
    names: list[str] = []
    for place, text in lines(path):
        match = _CLASS.fullmatch(text)
        if not match or int(match["number"]) != len(names) + 1:
            raise CatalogError(f"{place}: '{len(names) + 1} ClassName' was expected, got {text!r}")
        if match["name"] in names or not is_plain(match["name"]):
            raise CatalogError(f"{place}: class {match['name']!r} is listed twice or is no folder name")
        names.append(match["name"])
    if not names:
        raise CatalogError(f"{path} lists no class")
    return tuple(names)


def _read_list(path: Path) -> Iterator[_Line]:
    for place, text in lines(path):
        match = _LISTED.fullmatch(text)
        if match is None:
            raise CatalogError(f"{place}: a file name was expected, got {text!r}")
        parts = match["name"].split("/")
        if len(parts) != 2 or not all(is_plain(part) for part in parts):
            raise CatalogError(f"{place}: 'Class/file' was expected, got {match['name']!r}")
        yield _Line(place, PurePosixPath(*parts), int(match["number"]) if match["number"] else None)


def _entry(line: _Line, labels: dict[str, int], folder: VideoFolder) -> CatalogEntry:
    class_name, stem = line.name.parent.name, line.name.stem
    if class_name not in labels:
        raise CatalogError(f"{line.place}: class {class_name!r} is not in classInd.txt")
    label = labels[class_name]
    if line.number is not None and line.number != label + 1:
        raise CatalogError(f"{line.place}: {class_name} has number {line.number} here and {label + 1} in classInd.txt")
    group = _GROUP.search(stem)
    if group is None:
        raise CatalogError(f"{line.place}: a name that ends in _gNN_cNN was expected, got {line.name.name!r}")
    return CatalogEntry(folder.find(class_name, line.name.name), f"{class_name}/{stem}", label, group[1])
