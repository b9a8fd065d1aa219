"""A plain folder for each class, with a split of its own making.

    VIDEOS/<class>/<file>                           split by a seed, file by file, into train01 and test01
    VIDEOS/train/<class>/<file>, VIDEOS/test/...    split as the folders say

Every visible file of a class folder is taken for a video; ingest lists those that are none as skipped. Nothing tells
which files show the same scene, so each is a group of its own: whoever cut several clips from one recording should sort
them into train/ and test/ by recording.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.catalogs import Catalog, CatalogEntry
from data.catalogs.files import check_folder, some, visible
from data.errors import CatalogError
from data.philox import Slot, uniform
from data.subsets import count_of
from data.views import key_hash

_SIDES = ("train", "test")


@dataclass(frozen=True)
class _Files:
    """Files by class, and what was left out."""

    by_class: dict[str, tuple[Path, ...]]
    warnings: tuple[str, ...]


def read_catalog(videos: Path, *, seed: int = 0, test_percent: float = 30.0) -> Catalog:
    """All videos of the folder, with the subsets train01 and test01.

    seed and test_percent (of each class, rounded half up) count where the folders name no split. A class of two or
    more files has one at least on each side; a single file is trained on. Raises CatalogError.
    """
    check_folder(videos, "videos")
    if not 0 < test_percent < 100 or not 0 <= seed < 2**63:
        raise CatalogError(
            f"test_percent must lie between 0 and 100 and the seed between 0 and 2**63, got {test_percent} and {seed}"
        )
    present = [side for side in _SIDES if (videos / side).is_dir()]
    if len(present) == 2:
        return _split_by_folders(videos)
    files = _read_classes(videos)
    classes = tuple(files.by_class)
    entries = [
        CatalogEntry(path, f"{name}/{path.name}", label, f"{name}/{path.name}")
        for label, name in enumerate(classes)
        for path in files.by_class[name]
    ]
    test = {key for name in classes for key in _drawn(name, files.by_class[name], seed, test_percent)}
    single = [name for name in classes if len(files.by_class[name]) == 1]
    warnings = [*files.warnings]
    if single:
        warnings.append(f"classes with a single video have none to test on: {_quoted(single)}")
    subsets = {
        "train01": tuple(entry.key for entry in entries if entry.key not in test),
        "test01": tuple(entry.key for entry in entries if entry.key in test),
    }
    return Catalog(classes, tuple(entries), subsets, tuple(warnings))


def _split_by_folders(videos: Path) -> Catalog:
    sides = {side: _read_classes(videos / side) for side in _SIDES}
    classes = tuple(sorted({name for files in sides.values() for name in files.by_class}))
    entries: list[CatalogEntry] = []
    subsets: dict[str, tuple[str, ...]] = {}
    for side, files in sides.items():
        of_side = [
            CatalogEntry(path, f"{side}/{name}/{path.name}", classes.index(name), f"{side}/{name}/{path.name}")
            for name, paths in files.by_class.items()
            for path in paths
        ]
        subsets[f"{side}01"] = tuple(entry.key for entry in of_side)
        entries += of_side
    untrained = [name for name in classes if name not in sides["train"].by_class]
    warnings = [warning for files in sides.values() for warning in files.warnings]
    if untrained:
        warnings.append(f"classes without a training video: {_quoted(untrained)}")
    return Catalog(classes, tuple(entries), subsets, tuple(warnings))


def _read_classes(folder: Path) -> _Files:
    """The class folders in the order of their names, without those that hold no file."""
    by_class: dict[str, tuple[Path, ...]] = {}
    ignored: list[str] = []
    for path in visible(folder):
        if not path.is_dir() or "\n" in path.name:
            ignored.append(path.name)
            continue
        inside = visible(path)
        # A list file has a name in each line.
        files = tuple(file for file in inside if not file.is_dir() and "\n" not in file.name)
        ignored += [f"{path.name}/{file.name}" for file in inside if file not in files]
        if files:
            by_class[path.name] = files
    if not by_class:
        raise CatalogError(f"{folder} holds no folder with videos: a folder for each class was expected")
    warnings = (f"not read, since each class is one flat folder of files: {_quoted(ignored)}",) if ignored else ()
    return _Files(by_class, warnings)


def _drawn(name: str, files: tuple[Path, ...], seed: int, test_percent: float) -> list[str]:
    """Keys of the class's test videos: those with the smallest drawn places."""
    if len(files) < 2:
        return []
    keys = [f"{name}/{path.name}" for path in files]
    hashes = np.array([key_hash(key) for key in keys], dtype=np.uint64)
    order = np.lexsort((hashes, uniform(seed, hashes, 0, Slot.FOLDER_SPLIT, 0)))
    count = min(count_of(len(files), test_percent), len(files) - 1)
    return [keys[i] for i in order[:count]]


def _quoted(names: list[str]) -> str:
    return some([repr(name) for name in names])
