"""HMDB51's official layout (Kuehne et al., ICCV 2011), which the second built-in data set shares.

    VIDEOS/<class>/<name>.avi
    LISTS/<class>_test_split1.txt        April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1
                                         1 train, 2 test, 0 not used in this split; and split2, split3, where they exist

Class names contain `_`, and file names hold almost anything: blanks, brackets, `#`, quotes, bytes that are not UTF-8.

Group: the film that a clip was cut from. HMDB51 has no gNN, but its names end in the action and six tags,
<film>_<action>_<body>_<camera>_np<people>_<viewpoint>_<quality>_<number>, so the group is what stands before
them: with the tags cut off, and then the name of the class if it comes next. A name without those tags is a
group of its own. The same film in two classes is one group.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data.catalogs import Catalog, CatalogEntry
from data.catalogs.files import (
    VideoFolder,
    add_entry,
    check_disjoint,
    check_folder,
    is_plain,
    lines,
    some,
    unique_keys,
    visible,
)
from data.errors import CatalogError

NUM_TRAIN, NUM_TEST = 70, 30  # of each class in each of HMDB51's own splits
_LIST = re.compile(r"(?P<name>.+)_test_split(?P<split>[123])\.txt", re.DOTALL)
_LISTED = re.compile(r"(?P<name>.*\S)\s+(?P<part>[012])")
_TAGS = re.compile(r"_[fuhl]_(?:cm|nm)_np\d+_(?:fr|ba|le|ri)_(?:goo|med|bad)_\d+$")
_PARTS = {"1": "train", "2": "test"}


@dataclass(frozen=True)
class _Line:
    """A line of a list. place: where it is, for messages; part: 1 train, 2 test, 0 neither."""

    place: str
    name: str
    part: str


def read_catalog(videos: Path, lists: Path) -> Catalog:
    """The videos that the lists use in a split. Raises CatalogError when folders or lists are not as the layout says.

    Each split becomes two subsets, train01 and test01 for the first.
    """
    check_folder(videos, "videos")
    check_folder(lists, "lists")
    by_class = _list_files(lists)
    folder = VideoFolder(videos)
    entries: dict[str, CatalogEntry] = {}
    subsets: dict[str, list[str]] = {}
    for label, (name, files) in enumerate(by_class.items()):
        for split, path in files.items():
            listed = list(_read_list(path))
            unique_keys(str(path), [line.name for line in listed])
            for part in _PARTS.values():
                subsets.setdefault(f"{part}0{split}", [])
            for line in listed:
                if line.part in _PARTS:
                    entry = _entry(name, label, line, folder)
                    add_entry(entries, entry, line.place)
                    subsets[f"{_PARTS[line.part]}0{split}"].append(entry.key)
    named = {name: unique_keys(str(lists), keys) for name, keys in sorted(subsets.items(), key=_by_split)}
    for split in sorted({name[-2:] for name in named}):
        check_disjoint(str(lists), named, f"train{split}", f"test{split}")
    warnings = (*_odd_sizes(tuple(by_class), entries, named), *_unlisted(videos, by_class))
    return Catalog(tuple(by_class), tuple(entries[key] for key in sorted(entries)), named, warnings)


def group_of(stem: str, class_name: str) -> str:
    """The film that a clip comes from, by the rule above.

    >>> group_of("Veoh_Alpha_Dog_1_fall_floor_f_cm_np1_le_bad_29", "fall_floor")
    'Veoh_Alpha_Dog_1'
    >>> group_of("holiday-03", "walk")
    'holiday-03'
    """
    film = _TAGS.sub("", stem)
    without_class = film.removesuffix(f"_{class_name}")
    return without_class if film != stem and without_class else film


def _by_split(subset: tuple[str, list[str]]) -> tuple[str, bool]:
    """train01, test01, train02, ..."""
    return subset[0][-2:], subset[0].startswith("test")


def _list_files(lists: Path) -> dict[str, dict[str, Path]]:
    """class -> split -> list file, both in order. Every class needs the same splits."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(lists.iterdir()):
        match = _LIST.fullmatch(path.name)
        if match is not None:
            found.setdefault(match["name"], {})[match["split"]] = path
    if not found:
        raise CatalogError(f"{lists} has no <class>_test_split1.txt: name the folder of the official lists")
    splits = sorted({split for files in found.values() for split in files})
    for name, files in found.items():
        absent = [split for split in splits if split not in files]
        if absent:
            raise CatalogError(f"{lists} has no {name}_test_split{absent[0]}.txt, which other classes have")
    return dict(sorted(found.items()))


def _read_list(path: Path) -> Iterator[_Line]:
    for place, text in lines(path):
        match = _LISTED.fullmatch(text)
        if match is None:
            raise CatalogError(f"{place}: 'name.avi' and 0, 1 or 2 were expected, got {text!r}")
        if not is_plain(match["name"]):
            raise CatalogError(f"{place}: a file name without a folder was expected, got {match['name']!r}")
        yield _Line(place, match["name"], match["part"])


def _entry(class_name: str, label: int, line: _Line, folder: VideoFolder) -> CatalogEntry:
    stem = PurePosixPath(line.name).stem
    return CatalogEntry(folder.find(class_name, line.name), f"{class_name}/{stem}", label, group_of(stem, class_name))


def _odd_sizes(
    classes: tuple[str, ...], entries: Mapping[str, CatalogEntry], subsets: Mapping[str, tuple[str, ...]]
) -> Iterator[str]:
    """A sentence for each split with classes that have other than 70 training and 30 test videos."""
    for split in sorted({name[-2:] for name in subsets}):
        counts = {label: [0, 0] for label in range(len(classes))}
        for i, part in enumerate(_PARTS.values()):
            for key in subsets[part + split]:
                counts[entries[key].label][i] += 1
        odd = [f"{classes[label]} {a}/{b}" for label, (a, b) in counts.items() if (a, b) != (NUM_TRAIN, NUM_TEST)]
        if odd:
            yield (
                f"split {int(split)}: HMDB51 lists {NUM_TRAIN} training and {NUM_TEST} test videos of each class, "
                f"here {len(odd)} of {len(classes)} classes have other numbers: {some(odd)}"
            )


def _unlisted(videos: Path, by_class: Mapping[str, object]) -> Iterator[str]:
    unlisted = [path.name for path in visible(videos) if path.is_dir() and path.name not in by_class]
    if unlisted:
        yield f"no list names the folders {some(unlisted)}: their videos are left out"
