"""Teachers on disk: <root>/<name>/<version>/{card.json, model.safetensors}; an ensemble has a card only.

Nothing but JSON and safetensors is ever read, in bounded size, and nothing that lies outside the library. A version's
folder is written whole or not at all and never changed afterwards; its digest is computed from the bytes that lie
there. The project's own demo teachers travel with the package and are copied into a library that does not have their
names yet. Needs no torch.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.atomic import sync_folder, write_atomic
from teacher_server.card import EnsembleCard, EnsembleMember, TeacherCard, parse_card
from teacher_server.errors import BadQuery, LibraryError, UnknownTeacher
from teacher_server.files import hash_file, read_file
from teacher_server.protocol import NAME_PATTERN, TeacherId, TeacherRef

CARD = "card.json"
WEIGHTS = "model.safetensors"
BUNDLED = Path(__file__).parent / "bundled"
MAX_CARD_BYTES = 2**20
MAX_WEIGHTS_BYTES = 2**31  # the largest network that a card can describe takes 1.8 GB
MAX_MEMBER_WEIGHT, MIN_SHARE = 1e6, 1e-6  # of an ensemble's member, before and after the weights are made to sum to 1
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class TeacherEntry:
    """One version: where it lies, its card and its digest (64 hex digits).

    weights_sha256: of the safetensors file, 64 hex digits; whoever loads it must find the same. "" for an ensemble.
    members: of an ensemble, in the order of its card; empty for a single network.
    """

    teacher: TeacherId
    folder: Path
    card: TeacherCard | EnsembleCard
    digest: str
    weights_sha256: str
    members: tuple[TeacherEntry, ...] = ()

    @property
    def weights(self) -> Path:
        """The safetensors file; an ensemble has none."""
        return self.folder / WEIGHTS


class TeacherLibrary:
    """A folder of teachers. Reading makes nothing; the methods called `add` write."""

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
            raise UnknownTeacher(name[:80], self.names())
        return versions

    def entry(self, teacher: TeacherId) -> TeacherEntry:
        """Card and digest of one version, read and checked now. Raises UnknownTeacher or LibraryError.

        The weights must be those that the card was written for, by their sha256.
        An ensemble's members must be those that it was made of, byte for byte.
        """
        folder, card = self._card(teacher)
        if isinstance(card, TeacherCard):
            weights_sha256 = hash_file(folder / WEIGHTS, MAX_WEIGHTS_BYTES)
            if weights_sha256 != card.weights_sha256:
                raise _damaged(folder / WEIGHTS, weights_sha256, card.weights_sha256)
            return TeacherEntry(teacher, folder, card, card.digest(weights_sha256), weights_sha256)
        members = tuple(self._member(folder, member) for member in card.members)
        _check_combination(folder, card, members)
        return TeacherEntry(teacher, folder, card, card.digest(), "", members)

    def first(self, ref: TeacherRef) -> TeacherId:
        """The pinned version, or the lowest one there is: what a new alias of that name points to."""
        versions = self.versions(ref.name)
        return TeacherId(ref.name, versions[0] if ref.version is None else ref.version)

    def add(self, name: str, card: TeacherCard, weights: Path) -> TeacherId:
        """Copies a teacher in as the next free version of `name`. Two writers never get the same version."""
        return self._add(name, card.model_copy(update={"weights_sha256": ""}), weights)  # it may be another version's

    def add_ensemble(self, name: str, members: Sequence[tuple[TeacherId, float]]) -> TeacherId:
        """Adds a teacher that answers with the weighted mean of its members' probabilities.

        members: versions in this library and their weights, > 0, of any sum. Raises BadQuery for weights
        or members that cannot be (fewer than two, repeated, of different signatures, ensembles), UnknownTeacher,
        LibraryError.
        """
        if len(members) < 2:
            raise BadQuery(f"an ensemble has at least two members, got {len(members)}")
        weights = [weight for _, weight in members]
        total = math.fsum(weights) if all(0 < weight <= MAX_MEMBER_WEIGHT for weight in weights) else 0.0
        if not total or min(weights) / total < MIN_SHARE:
            raise BadQuery(
                f"weights must be numbers > 0 and at most {MAX_MEMBER_WEIGHT:g}, each at least {MIN_SHARE:g} of their "
                f"sum, got {weights}"
            )
        entries = [self.entry(teacher) for teacher, _ in members]
        cards = [_single(entry) for entry in entries]
        listed = [
            EnsembleMember(teacher=str(entry.teacher), digest=entry.digest, weight=weight / total)
            for entry, weight in zip(entries, weights, strict=True)
        ]
        return self._add(name, EnsembleCard.of(listed, cards), None)

    def add_bundled(self) -> None:
        """Copies those of the package's teachers in whose names the library lacks."""
        for name in _names(BUNDLED):
            if not _versions(self.root / name):
                version = _versions(BUNDLED / name)[0]
                folder = BUNDLED / name / str(version)
                self._publish(name, version, read_card(folder), folder / WEIGHTS)  # False: another process was first

    def _card(self, teacher: TeacherId) -> tuple[Path, TeacherCard | EnsembleCard]:
        known = self.versions(teacher.name)
        if teacher.version not in known:
            raise UnknownTeacher(str(teacher), tuple(f"{teacher.name}@{version}" for version in known))
        root = self.root if (self.root / teacher.name / str(teacher.version)).is_dir() else BUNDLED
        folder = root / teacher.name / str(teacher.version)
        if not folder.resolve().is_relative_to(root.resolve()):
            raise LibraryError(str(folder), "is a symbolic link that leads out of the library")
        return folder, read_card(folder)

    def _member(self, folder: Path, member: EnsembleMember) -> TeacherEntry:
        """Raises LibraryError, naming the ensemble's folder, unless the member is the one that it was made with."""
        try:
            _, card = self._card(member.id)
        except UnknownTeacher as error:
            raise LibraryError(str(folder), f"its member is gone: {error}") from None
        if not isinstance(card, TeacherCard):  # before its members are read: an ensemble may name itself
            raise LibraryError(str(folder), f"its member {member.teacher} is an ensemble itself")
        entry = self.entry(member.id)
        if entry.digest != member.digest:
            raise LibraryError(
                str(folder),
                f"it was made with {member.teacher} of digest {member.digest[:12]}, these files have "
                f"{entry.digest[:12]}: put the old files back or add the ensemble again",
            )
        return entry

    def _add(self, name: str, card: TeacherCard | EnsembleCard, weights: Path | None) -> TeacherId:
        if not NAME_PATTERN.fullmatch(name):
            raise BadQuery(f"{name[:80]!r} is no teacher name: expected letters a-z, digits, - and _")
        version = max(_versions(self.root / name), default=0) + 1
        while not self._publish(name, version, card, weights):
            version += 1
        return TeacherId(name, version)

    def _publish(self, name: str, version: int, card: TeacherCard | EnsembleCard, weights: Path | None) -> bool:
        """Makes the version's folder, whole; False if there is one. Renaming a folder onto one that is not empty
        fails, so of two writers one wins."""
        parent = self.root / name
        parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
        try:
            if weights is not None:
                assert isinstance(card, TeacherCard)  # an ensemble has none
                content = read_file(weights.resolve(), MAX_WEIGHTS_BYTES)
                sha256 = hashlib.sha256(content).hexdigest()
                if card.weights_sha256 not in ("", sha256):
                    raise _damaged(weights, sha256, card.weights_sha256)
                card = card.model_copy(update={"weights_sha256": sha256})
                write_atomic(staging / WEIGHTS, content)
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


def read_card(folder: Path) -> TeacherCard | EnsembleCard:
    """The card in a version's folder. Raises LibraryError; nothing else of the version is looked at."""
    return parse_card(str(folder / CARD), read_file(folder / CARD, MAX_CARD_BYTES))


def _check_combination(folder: Path, card: EnsembleCard, members: Sequence[TeacherEntry]) -> None:
    """Raises LibraryError unless the card says of its members what they are."""
    try:
        expected = EnsembleCard.of(card.members, [_single(member) for member in members])
    except BadQuery as error:
        raise LibraryError(str(folder), str(error)) from None
    names = sorted(set(EnsembleCard.model_fields) - {"provenance"})
    wrong = [name for name in names if getattr(card, name) != getattr(expected, name)]
    if wrong:
        name = wrong[0]
        raise LibraryError(
            str(folder / CARD),
            f"{name} is {getattr(card, name)!r:.80}, its members make it {getattr(expected, name)!r:.80}",
        )


def _damaged(weights: Path, found: str, expected: str) -> LibraryError:
    return LibraryError(
        str(weights), f"its sha256 begins with {found[:12]}, its card says {expected[:12] or 'nothing'}: it was changed"
    )


def _single(entry: TeacherEntry) -> TeacherCard:
    if not isinstance(entry.card, TeacherCard):
        raise BadQuery(f"{entry.teacher} is an ensemble itself: name its members instead")
    return entry.card


def _names(root: Path) -> list[str]:
    if not root.is_dir():
        return []
    return sorted(p.name for p in root.iterdir() if NAME_PATTERN.fullmatch(p.name) and _versions(p))


def _versions(folder: Path) -> tuple[int, ...]:
    if not folder.is_dir():
        return ()
    return tuple(sorted(int(p.name) for p in folder.iterdir() if _VERSION.fullmatch(p.name) and (p / CARD).is_file()))
