"""The teachers of a library as the gateway and the `preceptor` command show them. Reads only; needs no Ray."""

from __future__ import annotations

from pydantic import BaseModel

from teacher_server.card import TeacherCard
from teacher_server.errors import TeacherError
from teacher_server.library import TeacherEntry, TeacherLibrary
from teacher_server.protocol import TeacherId, TeacherRef
from teacher_server.roster import Roster


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
    def of(cls, card: TeacherCard) -> CardSummary:
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


class Directory:
    """Names to entries. A version's files never change, so each is read and hashed once."""

    def __init__(self, library: TeacherLibrary) -> None:
        self._library = library
        self._roster = Roster(library)
        self._entries: dict[TeacherId, TeacherEntry] = {}

    def resolve(self, text: str) -> TeacherEntry:
        """The entry that `name` or `name@version` means now. Raises BadQuery, UnknownTeacher, LibraryError."""
        ref = TeacherRef.parse(text)
        version = self._roster.state().aliases.get(ref.name) if ref.version is None else ref.version
        # A name that nobody used yet has no alias: the first use will point it to the lowest version.
        teacher = self._library.first(ref) if version is None else TeacherId(ref.name, version)
        return self._entry(teacher)

    def teachers(self) -> list[TeacherInfo]:
        """All of them, sorted by name. Raises LibraryError when the roster's file is damaged."""
        aliases = self._roster.state().aliases
        return [self._info(name, aliases.get(name)) for name in self._library.names()]

    def _info(self, name: str, alias: int | None) -> TeacherInfo:
        versions = self._library.versions(name)
        infos = [self._version(TeacherId(name, version)) for version in versions]
        return TeacherInfo(name=name, alias=versions[0] if alias is None else alias, versions=infos)

    def _version(self, teacher: TeacherId) -> VersionInfo:
        try:
            entry = self._entry(teacher)
        except TeacherError as error:
            return VersionInfo(version=teacher.version, problem=str(error))
        return VersionInfo(version=teacher.version, digest=entry.digest, card=CardSummary.of(entry.card))

    def _entry(self, teacher: TeacherId) -> TeacherEntry:
        if teacher not in self._entries:
            self._entries[teacher] = self._library.entry(teacher)
        return self._entries[teacher]
