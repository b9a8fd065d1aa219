"""The roster's content as one frozen value, and its JSON form. No file, no clock, no Ray.

aliases    name -> version, with a log of every change
pending    name -> the versions that are being prepared for it, at most one for each app
timelines  run -> spans of blocks and the version each was bound to
leases     run -> the app that it needs, and until when
apps       app -> the cluster that it runs on, and until when that is believed
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from teacher_server.errors import LibraryError

ChangeKind = Literal["first use", "promote", "rollback"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AliasChange(_Record):
    """One entry of the audit log; `when` in seconds since 1970, `old` None for a new alias.

    change_id: of the call that asked for it, so that a call which is repeated after a crash is known again.
    """

    when: float
    who: str
    name: str
    old: int | None
    new: int
    kind: ChangeKind = "promote"
    change_id: str = ""


class Pending(_Record):
    """A version that the replicas of an app are loading, because an alias is to point to it."""

    version: int
    app: str


class Span(_Record):
    """From this block on, until the next span, a run uses this teacher (`name@version`) with this digest."""

    from_block: int = Field(ge=0)
    teacher: str
    digest: str


class Timeline(_Record):
    """Spans in ascending order, the first from block 0, the highest block that was bound, and when that was, in
    seconds since 1970."""

    spans: tuple[Span, ...] = Field(min_length=1)
    highest_block: int
    bound_at: float

    def span_at(self, block: int) -> Span:
        """The span that covers a block."""
        return max((span for span in self.spans if span.from_block <= block), key=lambda span: span.from_block)

    def recent(self, block: int) -> list[str]:
        """The teachers of a block and the one before it: one rank may still ask about that."""
        return list(dict.fromkeys(self.span_at(b).teacher for b in (max(0, block - 1), block)))

    def later(self, block: int) -> list[str]:
        """The teachers of the blocks after this one, each once: of a run that repeats a recorded timeline."""
        return list(dict.fromkeys(span.teacher for span in self.spans if span.from_block > block))


class Lease(_Record):
    """A run's claim on an app, `cluster/app name`, and on a teacher; `expires_at` in seconds since 1970.

    block: that the run asked about last, None before its first. cluster_address: where the app's cluster is reached,
    as RAY_ADDRESS takes it.
    """

    app: str
    teacher: str
    started_by_run: bool
    expires_at: float
    block: int | None = None
    cluster_address: str = ""


class App(_Record):
    """A teacher app that runs, and where. The roster of its cluster says so again and again: what it no longer says
    at `expires_at` is not believed any more."""

    cluster_address: str
    owner: Literal["operator", "run"]
    expires_at: float


class RosterState(_Record):
    """Everything that the roster knows. Methods return new states; self never changes."""

    format: Literal[1] = 1
    aliases: dict[str, int] = Field(default_factory=dict)
    log: tuple[AliasChange, ...] = ()
    pending: dict[str, tuple[Pending, ...]] = Field(default_factory=dict)
    timelines: dict[str, Timeline] = Field(default_factory=dict)
    leases: dict[str, Lease] = Field(default_factory=dict)
    apps: dict[str, App] = Field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """JSON for the file."""
        return self.model_dump_json(indent=1).encode() + b"\n"

    def with_change(self, change: AliasChange) -> RosterState:
        """The alias points to `change.new`; the log grows unless it did already."""
        if self.aliases.get(change.name) == change.new:
            return self
        aliases = {**self.aliases, change.name: change.new}
        return self.model_copy(update={"aliases": aliases, "log": (*self.log, change)})

    def change(self, change_id: str) -> AliasChange | None:
        """The entry that this call made; None when it made none."""
        return next((entry for entry in self.log if change_id and entry.change_id == change_id), None)

    def version_before(self, name: str) -> int | None:
        """The version that a rollback goes to; None when there is none.

        Promotions pile up and a rollback takes the topmost off, so rolling back twice goes back two promotions; the
        way forward again is a promotion.
        """
        pile: list[int] = []
        for entry in self.log:
            if entry.name == name and entry.kind == "rollback":
                pile = pile[:-1]
            elif entry.name == name:
                pile.append(entry.new)
        return pile[-2] if len(pile) > 1 else None

    def with_pending(self, name: str, pending: Pending) -> RosterState:
        """Replicas that start from now on load this version too."""
        others = self.without_pending(name, pending.app).pending
        return self.model_copy(update={"pending": {**others, name: (*others.get(name, ()), pending)}})

    def without_pending(self, name: str | None = None, app: str | None = None) -> RosterState:
        """Nothing is being prepared for this alias on this app; None: for any alias, on any app."""
        kept = {
            n: tuple(p for p in pending if not (name in (None, n) and app in (None, p.app)))
            for n, pending in self.pending.items()
        }
        return self.model_copy(update={"pending": {n: pending for n, pending in kept.items() if pending}})

    def span_of(self, run: str, block: int) -> Span | None:
        """The span that covers a bound block; None for a block that was not decided yet.

        A block that was skipped counts as bound to what the blocks before it had.
        """
        timeline = self.timelines.get(run)
        if timeline is None or block > timeline.highest_block:
            return None
        return timeline.span_at(block)

    def with_block(self, run: str, block: int, span: Span, now: float) -> RosterState:
        """Binds a block beyond the highest one. A span like the last one only moves the highest block."""
        timeline = self.timelines.get(run)
        if timeline is None:
            # The first span reaches back to block 0, so that every block below the highest has an answer.
            spans: tuple[Span, ...] = (span.model_copy(update={"from_block": 0}),)
        elif (timeline.spans[-1].teacher, timeline.spans[-1].digest) == (span.teacher, span.digest):
            spans = timeline.spans
        else:
            spans = (*timeline.spans, span)
        after = Timeline(spans=spans, highest_block=block, bound_at=now)
        state = self.model_copy(update={"timelines": {**self.timelines, run: after}})
        # From its first block on, a run needs what it is bound to, not what it was told when it asked for its lease.
        return state._with_leased(run, teacher=span.teacher)

    def with_timeline(self, run: str, timeline: Timeline) -> RosterState:
        """The run's timeline, unless there is one: what was recorded here outranks a copy."""
        if run in self.timelines:
            return self
        return self.model_copy(update={"timelines": {**self.timelines, run: timeline}})

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

    def with_renewal(self, run: str, expires_at: float, block: int | None = None) -> RosterState:
        """The run's lease lasts until `expires_at`; unchanged when it has none. block: that the run asks about."""
        asked = {} if block is None else {"block": block}
        return self._with_leased(run, expires_at=expires_at, **asked)

    def without_stale(self, before: float, unbound_since: float) -> RosterState:
        """Without the leases and apps that ended before this time, those of clusters that are gone, and without the
        timelines of runs without a lease to which nothing was bound since the other time."""
        leases = {run: lease for run, lease in self.leases.items() if lease.expires_at >= before}
        apps = {key: app for key, app in self.apps.items() if app.expires_at >= before}
        kept = {run: x for run, x in self.timelines.items() if run in leases or x.bound_at >= unbound_since}
        return self.model_copy(update={"leases": leases, "apps": apps, "timelines": kept})

    def without_lease(self, run: str) -> RosterState:
        """The run holds no lease."""
        return self.model_copy(update={"leases": {r: lease for r, lease in self.leases.items() if r != run}})

    def with_app(self, key: str, app: App) -> RosterState:
        """Adds or replaces an app."""
        return self.model_copy(update={"apps": {**self.apps, key: app}})

    def without_app(self, key: str) -> RosterState:
        """The app is gone."""
        return self.model_copy(update={"apps": {k: app for k, app in self.apps.items() if k != key}})

    def required(self, now: float, app: str | None = None) -> list[str]:
        """`name@version` of what live runs asked for or are bound to, of all alias targets and of what is being
        prepared; each once, in the order of `needs`. app: as there."""
        return list(dict.fromkeys(teacher for teacher, _ in self.needs(now, app)))

    def needs(self, now: float, app: str | None = None) -> Iterator[tuple[str, str]]:
        """Every `name@version` that must stay, and who needs it, for people: first what runs need, because a replica
        loads in this order and may have no room for all; then what aliases mean, what is only being prepared, and what
        runs that repeat a timeline come to later.

        app: whose leases and promotions count, None for all. Aliases count for every app.
        """
        live = {
            run: lease
            for run, lease in sorted(self.leases.items())
            if lease.expires_at > now and app in (None, lease.app)
        }
        for run, lease in live.items():
            for teacher in dict.fromkeys([lease.teacher, *self._bound(run, Timeline.recent)]):
                yield teacher, f"run {run}"
        for name, version in sorted(self.aliases.items()):
            yield f"{name}@{version}", f"alias {name}"
        for name, pending in sorted(self.pending.items()):
            for one in pending:
                if app in (None, one.app):
                    yield f"{name}@{one.version}", f"a promotion of {name} that is under way"
        for run in live:
            for teacher in self._bound(run, Timeline.later):
                yield teacher, f"run {run}, later in its timeline"

    def addresses(self, now: float) -> list[str]:
        """The addresses of the clusters on which teachers of this library are served now, sorted."""
        leases = {x.cluster_address for x in self.leases.values() if x.expires_at > now}
        apps = {x.cluster_address for x in self.apps.values() if x.expires_at > now}
        return sorted((leases | apps) - {""})

    def _bound(self, run: str, part: Callable[[Timeline, int], list[str]]) -> list[str]:
        """What a leased run is bound to around the block that it asked about last, or was bound to last."""
        timeline, block = self.timelines.get(run), self.leases[run].block
        return [] if timeline is None else part(timeline, timeline.highest_block if block is None else block)

    def _with_leased(self, run: str, **fields: str | float) -> RosterState:
        """The run's lease with other fields; unchanged when it has none."""
        if run not in self.leases:
            return self
        return self.with_lease(run, self.leases[run].model_copy(update=fields))


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
