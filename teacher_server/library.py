"""Teachers on disk: <root>/<name>/<version>/{card.json, model.safetensors}.

Nothing but JSON and safetensors is ever read. A version's folder is written whole or not at all and never changed
afterwards; its digest is computed from the bytes that lie there. The project's own demo teachers travel with the
package and are copied into a library that does not have their names yet.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from data.atomic import sync_folder, write_atomic
from teacher_server.card import TeacherCard, parse_card
from teacher_server.errors import BadQuery, LibraryError, UnknownTeacher
from teacher_server.protocol import NAME_PATTERN, TeacherId, TeacherRef

CARD = "card.json"
WEIGHTS = "model.safetensors"
BUNDLED = Path(__file__).parent / "bundled"


@dataclass(frozen=True)
class TeacherEntry:
    """One version: where it lies, its card and its digest (64 hex digits)."""

    teacher: TeacherId
    folder: Path
    card: TeacherCard
    digest: str

    @property
    def weights(self) -> Path:
        """The safetensors file."""
        return self.folder / WEIGHTS


class TeacherLibrary:
    """A folder of teachers. Reading makes nothing; `add` and `add_bundled` write."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def names(self) -> tuple[str, ...]:
        """All teachers, sorted, those of the package included."""
        return tuple(sorted({*_names(self.root), *_names(BUNDLED)}))

    def versions(self, name: str) -> tuple[int, ...]:
        """The versions of a teacher, ascending. Raises UnknownTeacher, which lists the known ones."""
        versions = _versions(self.root / name) if NAME_PATTERN.fullmatch(name) else ()
        versions = versions or (_versions(BUNDLED / name) if NAME_PATTERN.fullmatch(name) else ())
        if not versions:
            raise UnknownTeacher(name, self.names())
        return versions

    def entry(self, teacher: TeacherId) -> TeacherEntry:
        """Card and digest of one version, read and checked now. Raises UnknownTeacher or LibraryError."""
        known = self.versions(teacher.name)
        if teacher.version not in known:
            raise UnknownTeacher(str(teacher), tuple(f"{teacher.name}@{version}" for version in known))
        folder = self.root / teacher.name / str(teacher.version)
        if not folder.is_dir():
            folder = BUNDLED / teacher.name / str(teacher.version)
        card = parse_card(str(folder / CARD), _read(folder / CARD))
        weights_sha256 = hashlib.sha256(_read(folder / WEIGHTS)).hexdigest()
        return TeacherEntry(teacher, folder, card, card.digest(weights_sha256))

    def first(self, ref: TeacherRef) -> TeacherId:
        """The pinned version, or the lowest one there is: what a new alias of that name points to."""
        versions = self.versions(ref.name)
        return TeacherId(ref.name, versions[0] if ref.version is None else ref.version)

    def add(self, name: str, card: TeacherCard, weights: Path) -> TeacherId:
        """Copies a teacher in as the next free version of `name`. Two writers never get the same version."""
        if not NAME_PATTERN.fullmatch(name):
            raise BadQuery(f"{name!r} is no teacher name: expected letters a-z, digits, - and _")
        version = max(_versions(self.root / name), default=0) + 1
        while not self._publish(name, version, card, weights):
            version += 1
        return TeacherId(name, version)

    def add_bundled(self) -> None:
        """Copies those of the package's teachers in whose names the library lacks."""
        for name in _names(BUNDLED):
            if not _versions(self.root / name):
                version = _versions(BUNDLED / name)[0]
                folder = BUNDLED / name / str(version)
                card = parse_card(str(folder / CARD), _read(folder / CARD))
                self._publish(name, version, card, folder / WEIGHTS)  # False: another process was first

    def _publish(self, name: str, version: int, card: TeacherCard, weights: Path) -> bool:
        """Makes the version's folder, whole; False if there is one. Renaming a folder onto one that is not empty
        fails, so of two writers one wins."""
        parent = self.root / name
        parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
        try:
            write_atomic(staging / WEIGHTS, _read(weights))
            write_atomic(staging / CARD, card.model_dump_json(indent=2).encode() + b"\n")
            staging.chmod(0o755)  # mkdtemp makes folders that only their owner can read
            os.rename(staging, parent / str(version))
        except OSError:
            if not (parent / str(version)).exists():
                raise
            return False
        finally:
            shutil.rmtree(staging, ignore_errors=True)  # gone already when it was published
        sync_folder(parent)
        return True


def _names(root: Path) -> list[str]:
    if not root.is_dir():
        return []
    return sorted(p.name for p in root.iterdir() if NAME_PATTERN.fullmatch(p.name) and _versions(p))


def _versions(folder: Path) -> tuple[int, ...]:
    if not folder.is_dir():
        return ()
    return tuple(sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal() and (p / CARD).is_file()))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LibraryError(str(path), f"cannot be read: {error.strerror}") from None
