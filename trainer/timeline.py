"""Which teacher version each step uses: the timeline, its file, and the binding of blocks of steps.

    roster ──bind(block)──────────► Binding          the last one is kept in case the roster is away
    --teacher-timeline FILE ──────► Binding          then the roster decides nothing
    checkpoint's timeline ──restore──► roster        unless it has a record of the run, which outranks a checkpoint's

A roster that is away is asked until it answers or the budget of a question is spent. Needs neither torch nor Ray.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from teacher_server.clients.retry import RetryPolicy
from teacher_server.errors import BadQuery, RetryableTeacherError, TeacherError, TeacherUnavailable
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import Binding, TeacherId, TeacherRef
from teacher_server.roster.roster import BLOCK_STEPS
from trainer.config import ConfigError, RunConfig

ROSTER_PAUSE_S = 60.0  # after a failure: asking a roster that is away takes its whole time limit
_DIGEST = re.compile(r"[0-9a-f]{64}")
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class TimelineEntry:
    """From this step (counted from 0) on, this teacher version was bound."""

    first_step: int
    teacher: str
    digest: str


class BlockControl(Protocol):
    """What binding needs of a roster: contract.RunControl and roster.Roster have it."""

    def bind(self, run: str, ref: TeacherRef, block: int) -> Binding:
        """Which version the steps of a block use."""
        ...

    def restore(self, run: str, bindings: Sequence[Binding], highest_block: int) -> None:
        """Puts a run's timeline back, unless the roster has a record of that run."""
        ...


class Binder:
    """Binds the blocks of one run, in ascending order.

    recorded: the timeline to follow; empty: the roster decides. keep_last: when the roster cannot be reached, blocks
    get the last version that was bound, as the roster itself records it for blocks that it was not asked about. A
    roster that is away while there is no version to keep is asked again for budget_s.

    clock and sleep are for tests; sleep returns true when waiting is to end.
    """

    def __init__(
        self,
        control: BlockControl,
        run: str,
        ref: TeacherRef,
        *,
        recorded: Sequence[TimelineEntry] = (),
        keep_last: bool = False,
        budget_s: float = RetryPolicy.budget_s,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], bool | None] | None = None,
    ) -> None:
        self._control = control
        self._run = run
        self._ref = ref
        self._recorded = to_bindings(recorded)
        self._keep_last = keep_last
        self._policy = RetryPolicy(budget_s=budget_s)
        self._rng = random.Random(run)  # spreads the workers' tries; it takes no part in any result
        self._clock = clock
        self._stopped = threading.Event()
        self._sleep = sleep if sleep is not None else self._stopped.wait
        self._last: Binding | None = None
        self._ask_again_at = float("-inf")
        self._digests: dict[TeacherId, str] = {binding.teacher: binding.digest for binding in self._recorded}

    def bind(self, block: int) -> Binding:
        """The version of a block. Raises TeacherUnavailable when the roster stays away and nothing is kept, and what
        the roster refuses."""
        if self._recorded:
            source = max((b for b in self._recorded if b.block <= block), key=lambda b: b.block)
            self._last = dataclasses.replace(source, block=block)
        else:
            self._last = self._ask(block)
        self._digests[self._last.teacher] = self._last.digest
        return self._last

    def restore(self, timeline: Sequence[TimelineEntry], steps_done: int) -> None:
        """Tells the roster what the first `steps_done` steps were bound to, or the timeline that is followed.

        Raises TeacherUnavailable when the roster stays away and nothing can be kept instead.
        """
        bindings, highest_block = to_bindings(timeline), (steps_done - 1) // BLOCK_STEPS
        if bindings:
            self._last = bindings[-1]
            self._digests |= {binding.teacher: binding.digest for binding in bindings}
        if self._recorded:
            bindings, highest_block = self._recorded, max(highest_block, self._recorded[-1].block)
        if not bindings or highest_block < 0:
            return
        try:
            self._until_answered(lambda: self._control.restore(self._run, bindings, highest_block))
        except TeacherUnavailable:
            if self._kept is None:
                raise

    def ask_again(self) -> None:
        """Ends the pause after a failure, because somebody has reached the roster: the next block asks it."""
        self._ask_again_at = float("-inf")

    def stop(self) -> None:
        """Ends the waiting for a roster that is away, now and later; any thread may call it."""
        self._stopped.set()

    def digest_of(self, teacher: TeacherId) -> str:
        """The digest that a version was bound with. Raises BadQuery for a version that no block was bound to."""
        if teacher not in self._digests:
            raise BadQuery(f"no block of run {self._run} was bound to {teacher}")
        return self._digests[teacher]

    def _ask(self, block: int) -> Binding:
        kept = self._kept
        if kept is not None and self._clock() < self._ask_again_at:
            return dataclasses.replace(kept, block=block)
        try:
            return self._until_answered(lambda: self._control.bind(self._run, self._ref, block))
        except TeacherUnavailable:
            if kept is None:
                raise
            self._ask_again_at = self._clock() + ROSTER_PAUSE_S
            return dataclasses.replace(kept, block=block)

    @property
    def _kept(self) -> Binding | None:
        """What blocks are bound to while the roster is away."""
        return self._last if self._keep_last else None

    def _until_answered(self, ask: Callable[[], _Answer]) -> _Answer:
        """Asks the roster; again and again while nothing is kept. Raises TeacherUnavailable with the last reason."""
        began, failures = self._clock(), 0
        while True:
            try:
                return ask()
            except RetryableTeacherError as error:
                failures += 1
                waited_s = self._clock() - began
                pause_s = self._policy.pause_s(failures, self._rng)
                is_last = self._kept is not None or waited_s + pause_s >= self._policy.budget_s
                if is_last or self._sleep(pause_s):
                    reason = error.args[2] if isinstance(error, TeacherUnavailable) else str(error)
                    raise TeacherUnavailable(str(self._ref), waited_s, reason) from error


def to_bindings(timeline: Sequence[TimelineEntry]) -> list[Binding]:
    """One binding for each change, `block` its first block."""
    return [Binding(TeacherId.parse(e.teacher), e.digest, e.first_step // BLOCK_STEPS) for e in timeline]


def recorded_timeline(config: RunConfig, library: TeacherLibrary | None) -> tuple[TimelineEntry, ...]:
    """The timeline that --teacher-timeline names, checked; empty without one.

    library: where the versions must lie with the digests of the file; None when they are on another cluster. Raises
    ConfigError that names the file and what is wrong with it.
    """
    if not config.teacher_timeline:
        return ()
    path = Path(config.teacher_timeline)
    try:
        timeline = _parse(path.read_bytes())
        for entry in timeline:
            _check_entry(entry, config, library)
    except OSError as error:
        raise ConfigError(f"teacher timeline {path} cannot be read: {error.strerror}") from None
    except (ValueError, TeacherError) as error:
        raise ConfigError(f"teacher timeline {path}: {error}") from None
    return timeline


def _parse(text: bytes) -> tuple[TimelineEntry, ...]:
    """Raises ValueError with a sentence."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"this is not JSON: {error}") from None
    entries = content.get("teacher_timeline") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not entries:
        raise ValueError("expected a run's result.json under a teacher, or a list of {first_step, teacher, digest}")
    timeline = tuple(_parse_entry(entry) for entry in entries)
    steps = [entry.first_step for entry in timeline]
    if steps[0] != 0 or any(a >= b for a, b in itertools.pairwise(steps)):
        raise ValueError(f"first_step must begin at 0 and ascend, got {', '.join(map(str, steps))}")
    for step in steps:
        if step % BLOCK_STEPS:
            raise ValueError(
                f"first_step {step} is not on a block boundary: versions change every {BLOCK_STEPS} steps at most, "
                f"as at {step // BLOCK_STEPS * BLOCK_STEPS} or {(step // BLOCK_STEPS + 1) * BLOCK_STEPS}"
            )
    return timeline


def _parse_entry(entry: Any) -> TimelineEntry:
    fields = {"first_step": int, "teacher": str, "digest": str}
    if not isinstance(entry, dict) or any(type(entry.get(name)) is not kind for name, kind in fields.items()):
        raise ValueError(f"expected entries {{first_step: number, teacher: text, digest: text}}, got {entry!r}")
    if not _DIGEST.fullmatch(entry["digest"]):
        raise ValueError(f"a digest is 64 hex digits, got {entry['digest']!r}")
    return TimelineEntry(**{name: entry[name] for name in fields})


def _check_entry(entry: TimelineEntry, config: RunConfig, library: TeacherLibrary | None) -> None:
    """Raises ValueError or TeacherError unless the run may learn from this version."""
    teacher, ref = TeacherId.parse(entry.teacher), config.teacher_ref
    if ref is None or teacher.name != ref.name or ref.version not in (None, teacher.version):
        raise ValueError(f"it names {teacher}, this run learns from {config.teacher}")
    if library is None:
        return
    found = library.entry(teacher)
    if found.digest != entry.digest:
        raise ValueError(
            f"{teacher} had digest {entry.digest[:12]} then, in {library.root} it has {found.digest[:12]}: "
            "put the old files back"
        )
    found.card.check_fits(
        entry.teacher, config.clip_spec, operation=config.pretext_operation, shuffle=config.shuffle_variant
    )
