"""The roster: which version each name means, which version each run was bound to, and who still needs the service.

    RosterState   pure and frozen; every change is a method that returns a new state
    RosterFile    the same on disk, under a lock
    RosterLeases  who needs which app, and for how long
    Roster        the rest: aliases and bindings of one teacher library

An alias moves in two steps, `begin` and `commit` (or `abort`), between which the replicas prepare the new version; a
replica that starts in between loads it too. One JSON file in the teacher library's folder holds everything that must
outlive a crash. Needs neither Ray nor torch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from teacher_server.card import Card, signature_differences
from teacher_server.errors import (
    AliasMoved,
    BadQuery,
    LibraryError,
    OtherFiles,
    TeacherInUse,
    TeacherMismatch,
    UnknownTeacher,
)
from teacher_server.library import CARD, TeacherEntry, TeacherLibrary
from teacher_server.promotion import AliasRequest
from teacher_server.protocol import Binding, TeacherId, TeacherRef
from teacher_server.roster.leases import LEASE_TTL_S, RosterLeases
from teacher_server.roster.state import AliasChange, Pending, RosterState, Span, Timeline

BLOCK_STEPS = 8  # optimiser steps that share one binding
ROSTER_FILE = "roster.json"


@dataclass(frozen=True)
class Proposal:
    """A version that an alias may point to, prepared by an app. previous: None for a new alias. settled: it points
    there already."""

    request: AliasRequest
    teacher: TeacherId
    digest: str
    previous: TeacherId | None
    settled: bool
    app: str = ""


class Roster(RosterLeases):
    """The roster file of one teacher library. Reading it never writes; a missing file is an empty roster."""

    def __init__(
        self, library: TeacherLibrary, path: Path | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(path if path is not None else library.root / ROSTER_FILE, clock)
        self.library = library
        self._entries: dict[TeacherId, tuple[TeacherEntry, tuple[tuple[int, ...], ...]]] = {}

    def resolve(self, ref: TeacherRef) -> TeacherId:
        """The version that `ref` means now. The first use of a name imports the bundled teachers and makes the alias.

        Raises UnknownTeacher, which lists the known ones.
        """
        self._resolve(self.state(), ref)  # files are hashed here: under the lock that would hold up everybody
        return self._file.change(lambda state: self._resolve(state, ref))

    def begin_with(self, teachers: Sequence[TeacherId], who: str) -> None:
        """Makes aliases that point to these, for names that have none yet; the others stay where they point.

        Raises UnknownTeacher, LibraryError; then none is made.
        """
        if any(teacher.name not in self.state().aliases for teacher in teachers):
            self.library.add_bundled()
        for teacher in teachers:
            self._entry(teacher)

        def change(state: RosterState) -> tuple[RosterState, None]:
            for teacher in teachers:
                if teacher.name not in state.aliases:
                    state = self._with_first_use(state, teacher, who)
            return state, None

        self._file.change(change)

    def aliases(self) -> dict[str, TeacherId]:
        """Every name in use and the version that it points to."""
        return {name: TeacherId(name, version) for name, version in sorted(self.state().aliases.items())}

    def begin(self, request: AliasRequest, app: str) -> Proposal:
        """Notes that the replicas of an app are to prepare a version; settled when there is nothing to do.

        Raises AliasMoved, UnknownTeacher; TeacherMismatch, with every difference, unless the version has the signature
        of the present one; BadQuery for a rollback of an alias that never moved.
        """

        def change(state: RosterState) -> tuple[RosterState, Proposal]:
            proposal = self._propose(state, request, app)
            if proposal.settled:
                return state, proposal
            return state.with_pending(request.name, Pending(version=proposal.teacher.version, app=app)), proposal

        self._propose(self.state(), request, app)  # as in `resolve`
        return self._file.change(change)

    def commit(self, proposal: Proposal) -> None:
        """The alias points to the version from here on; bound blocks keep theirs. Raises AliasMoved."""

        def change(state: RosterState) -> tuple[RosterState, None]:
            name, found = proposal.request.name, state.aliases.get(proposal.request.name)
            expected = None if proposal.previous is None else proposal.previous.version
            if found != expected:
                raise AliasMoved(name, expected, found)
            return self._moved(state, proposal).without_pending(name, proposal.app), None

        self._file.change(change)

    def abort(self, name: str, app: str | None = None) -> None:
        """Nothing is being prepared for this alias on this app any more, None for all apps; it is as it was."""
        self._file.change(lambda state: (state.without_pending(name, app), None))

    def abort_all(self, app: str) -> None:
        """The same for all aliases that this app was preparing versions for."""
        self._file.change(lambda state: (state.without_pending(app=app), None))

    def promote(self, name: str, version: int, who: str) -> TeacherId:
        """`begin` and `commit` in one, for when no replica must prepare. Raises as `begin`."""

        def change(state: RosterState) -> tuple[RosterState, TeacherId]:
            proposal = self._propose(state, AliasRequest(name, version, who), "")
            return self._moved(state, proposal), proposal.teacher

        return self._file.change(change)

    def bind(self, run: str, ref: TeacherRef, block: int) -> Binding:
        """The version that a block of a run's steps uses. The first call decides and is durable before it returns;
        later ones get the same answer. It also renews the run's lease.

        Raises LibraryError when the version's files are no longer those that the run was bound to.
        """
        if block < 0:
            raise BadQuery(f"blocks count from 0, got {block}")

        def change(state: RosterState) -> tuple[RosterState, Binding]:
            state = state.with_renewal(run, self._clock() + LEASE_TTL_S, block)
            span = state.span_of(run, block)
            if span is None:
                state, teacher = self._resolve(state, ref)
                bound = Span(from_block=block, teacher=str(teacher), digest=self._entry(teacher).digest)
                state = state.with_block(run, block, bound, self._clock())
                span = state.span_of(run, block)
            assert span is not None
            return state, self._binding(span, block)

        state = self.state()  # files are hashed here, as in `resolve`
        known = state.span_of(run, block)
        self._resolve(state, ref if known is None else TeacherRef.parse(known.teacher))
        return self._file.change(change)

    def preview(self, run: str, ref: TeacherRef) -> Binding:
        """What the run's next unbound block would be bound to now; nothing is recorded but a new alias."""
        timeline = self.state().timelines.get(run)
        teacher = self.resolve(ref)
        block = 0 if timeline is None else timeline.highest_block + 1
        return Binding(teacher, self._entry(teacher).digest, block)

    def timeline(self, run: str) -> list[Binding]:
        """The spans of a run, oldest first; `block` is the first of each. Empty for a run that was never bound."""
        timeline = self.state().timelines.get(run)
        spans = timeline.spans if timeline is not None else ()
        return [Binding(TeacherId.parse(span.teacher), span.digest, span.from_block) for span in spans]

    def restore(self, run: str, bindings: Sequence[Binding], highest_block: int) -> None:
        """Puts a run's timeline back from its checkpoint, unless there is a record of the run here, which outranks it.

        bindings: as `timeline` gave them. highest_block: the last block that was bound. Raises BadQuery for a timeline
        that no run can have had; an empty one changes nothing.
        """
        blocks = [binding.block for binding in bindings]
        if not blocks:
            return
        if blocks[0] != 0 or blocks != sorted(set(blocks)) or highest_block < blocks[-1]:
            raise BadQuery(
                f"a timeline starts at block 0 and ascends, got {blocks} and {highest_block} as the last one"
            )
        spans = tuple(Span(from_block=b.block, teacher=str(b.teacher), digest=b.digest) for b in bindings)
        timeline = Timeline(spans=spans, highest_block=highest_block, bound_at=self._clock())
        self._file.change(lambda state: (state.with_timeline(run, timeline), None))

    def is_bound(self, run: str, teacher: TeacherId) -> bool:
        """Whether any block of a run was ever bound to this version."""
        return any(binding.teacher == teacher for binding in self.timeline(run))

    def required(self, app: str | None = None) -> list[TeacherId]:
        """What every replica of an app must have loaded before it is ready, None for any app: versions that an alias
        points to, that a live run asked for or was last bound to, and last, each once, those that an alias is about to
        point to: they must not take the room of the others."""
        return [TeacherId.parse(text) for text in self.state().required(self._clock(), app)]

    def check_unused(self, teacher: TeacherId, app: str | None = None) -> None:
        """Raises TeacherInUse, which names everybody who needs this version on an app, None for any app, by itself or
        in an ensemble."""
        users = []
        for needed, user in self.state().needs(self._clock(), app):
            if needed == str(teacher):
                users.append(user)
            elif str(teacher) in self._members(TeacherId.parse(needed)):
                users.append(f"{user} (in {needed})")
        if users:
            raise TeacherInUse(str(teacher), tuple(users))

    def _members(self, teacher: TeacherId) -> set[str]:
        """Of an ensemble. One that cannot be read is not served either, so it needs nobody."""
        with contextlib.suppress(UnknownTeacher, LibraryError):
            return {str(member.teacher) for member in self._entry(teacher).members}
        return set()

    def _resolve(self, state: RosterState, ref: TeacherRef) -> tuple[RosterState, TeacherId]:
        if ref.name not in state.aliases:
            self.library.add_bundled()
            if ref.version is None:  # a pinned version needs no alias that keeps it
                state = self._with_first_use(state, self.library.first(ref), "roster")
        version = state.aliases[ref.name] if ref.version is None else ref.version
        teacher = TeacherId(ref.name, version)
        self._entry(teacher)  # raises for a version that is not there
        return state, teacher

    def _with_first_use(self, state: RosterState, teacher: TeacherId, who: str) -> RosterState:
        return state.with_change(
            AliasChange(when=self._clock(), who=who, name=teacher.name, old=None, new=teacher.version, kind="first use")
        )

    def _propose(self, state: RosterState, request: AliasRequest, app: str) -> Proposal:
        name, current = request.name, state.aliases.get(request.name)
        done = state.change(request.change_id)
        if done is not None:  # the call is a repeated one, and was carried out
            previous = None if done.old is None else TeacherId(name, done.old)
            return Proposal(request, TeacherId(name, done.new), "", previous, settled=True)
        if request.expected is not None and current != request.expected:
            raise AliasMoved(name, request.expected, current)
        version = state.version_before(name) if request.version is None else request.version
        if version is None:
            self.library.first(TeacherRef(name))  # raises for a name that there is no teacher of
            raise BadQuery(f"alias {name} has no promotion left to take back; `teacher list --log` shows its changes")
        if current is None:
            self.library.add_bundled()
        target = TeacherId(name, version)
        standing = self.library.first(TeacherRef(name)) if current is None else TeacherId(name, current)
        entry = self._entry(target)
        check_same_signature(self._entry(standing).card, entry.card, str(standing), str(target))
        previous = None if current is None else standing
        return Proposal(request, target, entry.digest, previous, settled=current == version, app=app)

    def _moved(self, state: RosterState, proposal: Proposal) -> RosterState:
        request = proposal.request
        return state.with_change(
            AliasChange(
                when=self._clock(),
                who=request.who,
                name=request.name,
                old=state.aliases.get(request.name),
                new=proposal.teacher.version,
                kind="promote" if request.version is not None else "rollback",
                change_id=request.change_id,
            )
        )

    def _entry(self, teacher: TeacherId) -> TeacherEntry:
        """The library's entry; the weights are hashed again only when a file is another one than before."""
        entry, stamps = self._entries.get(teacher, (None, ()))
        if entry is None or stamps != _stamps(entry):
            entry = self.library.entry(teacher)  # says what is wrong
            self._entries[teacher] = entry, _stamps(entry)
        return entry

    def _binding(self, span: Span, block: int) -> Binding:
        teacher = TeacherId.parse(span.teacher)
        entry = self._entry(teacher)
        if entry.digest != span.digest:
            raise OtherFiles(
                str(entry.folder),
                f"the run was bound to {teacher} with digest {span.digest[:12]} at block {span.from_block}, these "
                f"files have {entry.digest[:12]}: put the old files back or start a new run",
            )
        return Binding(teacher, span.digest, block)


def _stamps(entry: TeacherEntry) -> tuple[tuple[int, ...], ...]:
    """What changes when one of its files is replaced; empty when one is gone."""
    own = [entry.folder / CARD, *([] if entry.members else [entry.weights])]
    try:
        stats = [path.stat() for path in own]
    except OSError:
        return ()
    members = (stamp for member in entry.members for stamp in _stamps(member))
    return (*((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats), *members)


def check_same_signature(old: Card, new: Card, old_name: str, new_name: str) -> None:
    """An alias's signature never changes, because running students rely on it. Raises TeacherMismatch."""
    fields = ("head", "classes", "min_clip_len", "crop", "resize", "feature_size")
    differences = signature_differences(new, old, old_name, fields)
    if differences:
        raise TeacherMismatch(new_name, differences)


__all__ = ["BLOCK_STEPS", "LEASE_TTL_S", "Proposal", "Roster", "check_same_signature"]
