"""What the layouts share: reading list files line by line, and finding the video that a list names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from data.catalogs import CatalogEntry
from data.errors import CatalogError

_SHOWN = 5  # names in a warning


def check_folder(path: Path, what: str) -> None:
    """Raise CatalogError when there is no such folder; what: which one it should be."""
    if not path.is_dir():
        raise CatalogError(f"there is no folder {path}: name the folder of the {what}")


def read_text(path: Path) -> str:
    """The whole file; a byte order mark does not matter, and bytes that are not UTF-8 survive as file names do."""
    try:
        return path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise CatalogError(f"{path} cannot be read ({error.strerror})") from error


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of each line that is not blank; CRLF and a byte order mark do not matter."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", line.strip()


def is_plain(name: str) -> bool:
    """Whether a name stays in its folder."""
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")


def visible(folder: Path) -> list[Path]:
    """What lies in a folder, in the order of the names; hidden things are left out."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def unique_keys(place: str, keys: Sequence[str]) -> tuple[str, ...]:
    """The keys of one list. Raises CatalogError when one is there twice."""
    if len(set(keys)) != len(keys):
        [(twice, _)] = Counter(keys).most_common(1)
        raise CatalogError(f"{place} lists {twice} twice")
    return tuple(keys)


def check_disjoint(place: str, subsets: Mapping[str, Sequence[str]], one: str, other: str) -> None:
    """Raise CatalogError when a video is in both of two subsets; one that does not exist is empty."""
    both = set(subsets.get(one, ())) & set(subsets.get(other, ()))
    if both:
        raise CatalogError(f"{place}: {min(both)} is in both {one} and {other}")


def some(names: Sequence[str]) -> str:
    """The first few names for a warning, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def add_entry(entries: dict[str, CatalogEntry], entry: CatalogEntry, place: str) -> None:
    """Note an entry under its key. Raises CatalogError when another file has the same key."""
    if entries.setdefault(entry.key, entry).file != entry.file:
        raise CatalogError(f"{place}: {entry.file.name} and {entries[entry.key].file.name} have the same name")


class VideoFolder:
    """Finds listed videos. Each folder is read once, which is far quicker than asking for every file."""

    def __init__(self, videos: Path) -> None:
        self._videos = videos
        self._names: dict[str, dict[str, list[str]]] = {}  # folder -> stem -> file names

    def find(self, folder: str, name: str) -> Path:
        """The file of this name, else the one with the same stem, else the path where it should be."""
        candidates = self._of(folder).get(Path(name).stem, [])
        chosen = name if name in candidates or len(candidates) != 1 else candidates[0]
        return self._videos / folder / chosen

    def find_stem(self, folder: str, stem: str) -> Path | None:
        """The file with this stem, whatever its extension; the first by name if there are several."""
        candidates = self._of(folder).get(stem, [])
        return self._videos / folder / candidates[0] if candidates else None

    def _of(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._names:
            names: dict[str, list[str]] = {}
            if (self._videos / folder).is_dir():
                for path in sorted((self._videos / folder).iterdir()):
                    names.setdefault(path.stem, []).append(path.name)
            self._names[folder] = names
        return self._names[folder]
