"""The roster's content as one frozen value, and its JSON form. No file, no clock, no Ray.

aliases    name -> version, with a log of every change
timelines  run -> spans of blocks and the version each was bound to
leases     run -> the app that it needs, and until when
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from teacher_server.errors import LibraryError


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AliasChange(_Record):
    """One entry of the audit log; `when` in seconds since 1970, `old` None for a new alias."""

    when: float
    who: str
    name: str
    old: int | None
    new: int


class Span(_Record):
    """From this block on, until the next span, a run uses this teacher (`name@version`) with this digest."""

    from_block: int = Field(ge=0)
    teacher: str
    digest: str


class Timeline(_Record):
    """Spans in ascending order, the first from block 0, and the highest block that was bound."""

    spans: tuple[Span, ...]
    highest_block: int


class Lease(_Record):
    """A run's claim on an app, `cluster/app name`, and on a teacher; `expires_at` in seconds since 1970."""

    app: str
    teacher: str
    started_by_run: bool
    expires_at: float


class RosterState(_Record):
    """Everything that the roster knows. Methods return new states; self never changes."""

    format: Literal[1] = 1
    aliases: dict[str, int] = Field(default_factory=dict)
    log: tuple[AliasChange, ...] = ()
    timelines: dict[str, Timeline] = Field(default_factory=dict)
    leases: dict[str, Lease] = Field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """JSON for the file."""
        return self.model_dump_json(indent=1).encode() + b"\n"

    def with_alias(self, name: str, version: int, who: str, when: float) -> RosterState:
        """The alias points to `version`; unchanged if it does already."""
        old = self.aliases.get(name)
        if old == version:
            return self
        entry = AliasChange(when=when, who=who, name=name, old=old, new=version)
        return self.model_copy(update={"aliases": {**self.aliases, name: version}, "log": (*self.log, entry)})

    def span_of(self, run: str, block: int) -> Span | None:
        """The span that covers a bound block; None for a block that was not decided yet.

        A block that was skipped counts as bound to what the blocks before it had.
        """
        timeline = self.timelines.get(run)
        if timeline is None or block > timeline.highest_block:
            return None
        return max((s for s in timeline.spans if s.from_block <= block), key=lambda s: s.from_block)

    def with_block(self, run: str, block: int, span: Span) -> RosterState:
        """Binds a block beyond the highest one. A span like the last one only moves the highest block."""
        timeline = self.timelines.get(run)
        if timeline is None:
            # The first span reaches back to block 0, so that every block below the highest has an answer.
            after = Timeline(spans=(span.model_copy(update={"from_block": 0}),), highest_block=block)
        elif (timeline.spans[-1].teacher, timeline.spans[-1].digest) == (span.teacher, span.digest):
            after = timeline.model_copy(update={"highest_block": block})
        else:
            after = Timeline(spans=(*timeline.spans, span), highest_block=block)
        return self.model_copy(update={"timelines": {**self.timelines, run: after}})

    def with_lease(self, run: str, lease: Lease) -> RosterState:
        """Adds or replaces a run's lease."""
        return self.model_copy(update={"leases": {**self.leases, run: lease}})

    def with_origin(self, app: str, *, started_by_run: bool) -> RosterState:
        """All leases on `app` agree on who started it."""
        leases = {
            run: lease.model_copy(update={"started_by_run": started_by_run}) if lease.app == app else lease
            for run, lease in self.leases.items()
        }
        return self.model_copy(update={"leases": leases})

    def with_renewal(self, run: str, expires_at: float) -> RosterState:
        """The run's lease lasts until `expires_at`; unchanged when it has none."""
        if run not in self.leases:
            return self
        return self.with_lease(run, self.leases[run].model_copy(update={"expires_at": expires_at}))

    def without_stale(self, before: float) -> RosterState:
        """Without the leases that ended before this time: those of clusters that are gone."""
        return self.model_copy(update={"leases": {r: x for r, x in self.leases.items() if x.expires_at >= before}})

    def without_lease(self, run: str) -> RosterState:
        """The run holds no lease."""
        return self.model_copy(update={"leases": {r: lease for r, lease in self.leases.items() if r != run}})

    def required(self, now: float) -> set[str]:
        """`name@version` of all alias targets, and of what live runs asked for or were last bound to."""
        wanted = {f"{name}@{version}" for name, version in self.aliases.items()}
        for run, lease in self.leases.items():
            if lease.expires_at > now:
                wanted.add(lease.teacher)
                if run in self.timelines:
                    wanted.add(self.timelines[run].spans[-1].teacher)
        return wanted


def parse_state(path: str, text: bytes) -> RosterState:
    """The state in `text`. Raises LibraryError that names the file and the first thing that is wrong with it."""
    try:
        return RosterState.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise LibraryError(
            path, f"the roster is damaged ({where}: {first['msg']}): restore it from a copy, or move it away"
        ) from None
