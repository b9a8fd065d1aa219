"""The teachers of a library and the roster's record, as the gateway and the `preceptor` command show them. Reads only;
needs no Ray. Threads may share it.
"""

from __future__ import annotations

from pydantic import BaseModel

from teacher_server.card import Card
from teacher_server.errors import TeacherError, UnknownTeacher
from teacher_server.library import TeacherEntry, TeacherLibrary
from teacher_server.protocol import TeacherId, TeacherRef
from teacher_server.roster.roster import Roster
from teacher_server.roster.state import AliasChange, RosterState


class CardSummary(BaseModel):
    """What a caller must know of a teacher's input and output."""

    arch: str
    head: str
    classes: tuple[str, ...]
    views_per_item: int
    min_clip_len: int
    crop: int
    resize: bool
    modality: str

    @classmethod
    def of(cls, card: Card) -> CardSummary:
        """The summary of a card."""
        return cls.model_validate({name: getattr(card, name) for name in cls.model_fields})


class VersionInfo(BaseModel):
    """One version; `problem` instead of digest and card when its files are damaged."""

    version: int
    digest: str | None = None
    card: CardSummary | None = None
    problem: str | None = None


class TeacherInfo(BaseModel):
    """One name; `alias` is the version that it means now."""

    name: str
    alias: int
    versions: list[VersionInfo]


class Teachers(BaseModel):
    """Every teacher of the library."""

    teachers: list[TeacherInfo]


class AliasInfo(BaseModel):
    """digest: null when the version's files are damaged."""

    name: str
    version: int
    digest: str | None


class Aliases(BaseModel):
    """log: the newest changes, oldest first; `when` in seconds since 1970."""

    aliases: list[AliasInfo]
    log: list[AliasChange]


class Directory:
    """Names to entries. A version's files never change, so each is read and hashed once; the roster's file is read
    again when it is another one."""

    def __init__(self, library: TeacherLibrary) -> None:
        self._library = library
        self._roster = Roster(library)
        self._entries: dict[TeacherId, TeacherEntry] = {}
        self._state: tuple[tuple[int, int, int], RosterState] | None = None

    def resolve(self, text: str) -> TeacherEntry:
        """The entry that `name` or `name@version` means now. Raises BadQuery, UnknownTeacher, LibraryError."""
        ref = TeacherRef.parse(text)
        version = self.state().aliases.get(ref.name) if ref.version is None else ref.version
        # A name that nobody used yet has no alias: the first use will point it to the lowest version.
        teacher = self._library.first(ref) if version is None else TeacherId(ref.name, version)
        return self.entry(teacher)

    def state(self) -> RosterState:
        """What the roster's file says now. Raises LibraryError when it is damaged."""
        try:
            stat = self._roster.path.stat()
        except FileNotFoundError:
            return RosterState()
        key = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        known = self._state
        if known is None or known[0] != key:
            # Read after the look at it: a change in between is seen as one more change by the next call.
            self._state = known = (key, self._roster.state())
        return known[1]

    def teachers(self) -> list[TeacherInfo]:
        """All of them, sorted by name. Raises LibraryError when the roster's file is damaged."""
        aliases = self.state().aliases
        return [self._info(name, aliases.get(name)) for name in self._library.names()]

    def entry(self, teacher: TeacherId) -> TeacherEntry:
        """One exact version. Raises UnknownTeacher, LibraryError."""
        if teacher not in self._entries:
            self._entries[teacher] = self._library.entry(teacher)
        return self._entries[teacher]

    def versions(self, name: str) -> tuple[int, ...]:
        """As TeacherLibrary.versions."""
        return self._library.versions(name)

    def version(self, teacher: TeacherId) -> VersionInfo:
        """What is known of one version, a damaged one too. Raises UnknownTeacher."""
        try:
            entry = self.entry(teacher)
        except UnknownTeacher:
            raise
        except TeacherError as error:
            return VersionInfo(version=teacher.version, problem=str(error))
        return VersionInfo(version=teacher.version, digest=entry.digest, card=CardSummary.of(entry.card))

    def _info(self, name: str, alias: int | None) -> TeacherInfo:
        versions = self._library.versions(name)
        infos = [self.version(TeacherId(name, version)) for version in versions]
        return TeacherInfo(name=name, alias=versions[0] if alias is None else alias, versions=infos)
