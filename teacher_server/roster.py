"""The roster: which version each name means, which version each run was bound to, and who still needs the service.

    RosterState   pure and frozen; every change is a method that returns a new state
    Roster        the same on disk: read, change, write under a lock file, so that several processes may share it

One JSON file in the teacher library's folder holds everything that must outlive a crash. A change is durable (fsync,
rename, fsync of the folder) before the method that makes it returns. Needs neither Ray nor torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import TypeVar

from data.atomic import write_atomic
from teacher_server.card import TeacherCard
from teacher_server.errors import BadQuery, LibraryError, TeacherMismatch, TeacherUnavailable
from teacher_server.library import CARD, WEIGHTS, TeacherEntry, TeacherLibrary
from teacher_server.protocol import Binding, TeacherId, TeacherRef
from teacher_server.roster_state import AliasChange, Lease, RosterState, Span, parse_state

BLOCK_STEPS = 8  # optimiser steps that share one binding
LEASE_TTL_S = 120.0
LOCK_TIMEOUT_S = 10.0
FORGET_AFTER_S = 24 * 3600.0  # by then the cluster of an expired lease is gone, or it would have swept it
ROSTER_FILE = "roster.json"

_Result = TypeVar("_Result")


class Roster:
    """The roster file of one teacher library. Reading it never writes; a missing file is an empty roster."""

    def __init__(
        self, library: TeacherLibrary, path: Path | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.library = library
        self.path = path if path is not None else library.root / ROSTER_FILE
        self._clock = clock
        self._entries: dict[Hashable, TeacherEntry] = {}

    def state(self) -> RosterState:
        """What the file says now. Raises LibraryError when it is damaged; it is never replaced in silence."""
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return RosterState()
        except OSError as error:
            raise LibraryError(str(self.path), f"cannot be read: {error.strerror}") from None
        return parse_state(str(self.path), text)

    def resolve(self, ref: TeacherRef) -> TeacherId:
        """The version that `ref` means now. The first use of a name imports the bundled teachers and makes the alias.

        Raises UnknownTeacher, which lists the known ones.
        """
        return self._change(lambda state: self._resolve(state, ref))

    def aliases(self) -> dict[str, TeacherId]:
        """Every name in use and the version that it points to."""
        return {name: TeacherId(name, version) for name, version in sorted(self.state().aliases.items())}

    def promote(self, name: str, version: int, who: str) -> TeacherId:
        """Points the alias at another version; bound blocks keep theirs. Raises as check_promotion."""

        def change(state: RosterState) -> tuple[RosterState, TeacherId]:
            state, target = self._promotable(state, name, version)
            return state.with_alias(name, version, who, self._clock()), target

        return self._change(change)

    def check_promotion(self, name: str, version: int) -> TeacherId:
        """The version, if the alias may point to it. Raises UnknownTeacher; TeacherMismatch, with every difference,
        unless it has the signature of the present one."""
        return self._change(lambda state: self._promotable(state, name, version))

    def bind(self, run: str, ref: TeacherRef, block: int) -> Binding:
        """The version that a block of a run's steps uses. The first call decides and is durable before it returns;
        later ones get the same answer. It also renews the run's lease.

        Raises LibraryError when the version's files are no longer those that the run was bound to.
        """
        if block < 0:
            raise BadQuery(f"blocks count from 0, got {block}")

        def change(state: RosterState) -> tuple[RosterState, Binding]:
            state = state.with_renewal(run, self._clock() + LEASE_TTL_S)
            span = state.span_of(run, block)
            if span is None:
                state, teacher = self._resolve(state, ref)
                state = state.with_block(
                    run, block, Span(from_block=block, teacher=str(teacher), digest=self._entry(teacher).digest)
                )
                span = state.span_of(run, block)
            assert span is not None
            return state, self._binding(span, block)

        return self._change(change)

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

    def acquire(self, run: str, app: str, teacher: TeacherId, *, deploying: bool) -> Lease:
        """Notes that a run needs an app and a teacher for the next LEASE_TTL_S seconds.

        deploying: whether the app is about to be started for this run; the last lease then ends it. An app that runs
        already keeps its origin, and one without any lease is an operator's, which no run ever ends.
        """

        def change(state: RosterState) -> tuple[RosterState, Lease]:
            others = [lease for lease in state.leases.values() if lease.app == app]
            started = deploying or any(lease.started_by_run for lease in others)
            expires_at = self._clock() + LEASE_TTL_S
            lease = Lease(app=app, teacher=str(teacher), started_by_run=started, expires_at=expires_at)
            return state.with_lease(run, lease).with_origin(app, started_by_run=started), lease

        return self._change(change)

    def hand_to_operator(self, app: str) -> None:
        """The app is an operator's from now on: no run's release ends it."""
        self._change(lambda state: (state.with_origin(app, started_by_run=False), None))

    def renew(self, run: str) -> bool:
        """Keeps a lease for another LEASE_TTL_S seconds; False when there is none, and then it must be acquired."""
        return self._change(lambda state: (state.with_renewal(run, self._clock() + LEASE_TTL_S), run in state.leases))

    def release(self, run: str) -> Lease | None:
        """Ends a lease and returns it; None when there was none."""
        return self._change(lambda state: (state.without_lease(run), state.leases.get(run)))

    def leases(self, app: str) -> dict[str, Lease]:
        """The leases on one app, expired ones included."""
        return {run: lease for run, lease in self.state().leases.items() if lease.app == app}

    def expired(self, app: str) -> list[str]:
        """The runs whose leases on this app ran out. Leases of a day ago are forgotten, whatever their app."""
        now = self._clock()
        self._change(lambda state: (state.without_stale(now - FORGET_AFTER_S), None))
        return sorted(run for run, lease in self.leases(app).items() if lease.expires_at <= now)

    def required(self) -> set[TeacherId]:
        """What every replica must have loaded before it is ready: versions that an alias points to, that a live run
        asked for, or that a live run was last bound to."""
        state = self.state()
        return {TeacherId.parse(text) for text in state.required(self._clock())}

    def _resolve(self, state: RosterState, ref: TeacherRef) -> tuple[RosterState, TeacherId]:
        if ref.name not in state.aliases:
            self.library.add_bundled()
            first = self.library.first(TeacherRef(ref.name))
            state = state.with_alias(ref.name, first.version, "first use", self._clock())
        version = state.aliases[ref.name] if ref.version is None else ref.version
        teacher = TeacherId(ref.name, version)
        self._entry(teacher)  # raises for a version that is not there
        return state, teacher

    def _promotable(self, state: RosterState, name: str, version: int) -> tuple[RosterState, TeacherId]:
        state, current = self._resolve(state, TeacherRef(name))
        target = TeacherId(name, version)
        check_same_signature(self._entry(current).card, self._entry(target).card, str(current), str(target))
        return state, target

    def _entry(self, teacher: TeacherId) -> TeacherEntry:
        """The library's entry; the weights are hashed again only when a file is another one than before."""
        folder = self.library.root / teacher.name / str(teacher.version)
        try:
            stats = [(folder / name).stat() for name in (CARD, WEIGHTS)]
        except OSError:
            return self.library.entry(teacher)  # says what is wrong
        key = (teacher, *((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats))
        if key not in self._entries:
            self._entries[key] = self.library.entry(teacher)
        return self._entries[key]

    def _binding(self, span: Span, block: int) -> Binding:
        teacher = TeacherId.parse(span.teacher)
        entry = self._entry(teacher)
        if entry.digest != span.digest:
            raise LibraryError(
                str(entry.folder),
                f"the run was bound to {teacher} with digest {span.digest[:12]} at block {span.from_block}, these "
                f"files have {entry.digest[:12]}: put the old files back or start a new run",
            )
        return Binding(teacher, span.digest, block)

    def _change(self, change: Callable[[RosterState], tuple[RosterState, _Result]]) -> _Result:
        """Read, change, write under the lock; nothing is written when nothing changed or `change` raises."""
        with self._locked():
            before = self.state()
            after, result = change(before)
            if after != before:
                write_atomic(self.path, after.to_bytes())
        return result

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the lock file. It is never deleted: two processes could then hold locks on two files of one name."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock_within(descriptor, LOCK_TIMEOUT_S, str(self.path))
            yield
        finally:
            os.close(descriptor)  # also unlocks


def check_same_signature(old: TeacherCard, new: TeacherCard, old_name: str, new_name: str) -> None:
    """An alias's signature never changes, because running students rely on it. Raises TeacherMismatch."""
    fields = ("head", "classes", "min_clip_len", "crop", "resize", "feature_size")
    differences = tuple(
        f"{field} is {getattr(new, field)}, {old_name} has {getattr(old, field)}"
        for field in fields
        if getattr(old, field) != getattr(new, field)
    )
    if differences:
        raise TeacherMismatch(new_name, differences)


def _lock_within(descriptor: int, timeout_s: float, path: str) -> None:
    """flock has no timeout of its own, so it is tried without blocking."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TeacherUnavailable("roster", timeout_s, f"another process holds the lock of {path}") from None
        time.sleep(0.005)


__all__ = ["BLOCK_STEPS", "LEASE_TTL_S", "AliasChange", "Lease", "Roster", "RosterState", "check_same_signature"]
