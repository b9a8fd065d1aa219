"""Prepare, gate, commit: what a promotion decides. The roster is real, the replicas are fakes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from teacher_server.errors import (
    AliasMoved,
    GateRefused,
    LibraryError,
    OverBudget,
    TeacherError,
    TeacherUnavailable,
)
from teacher_server.library import TeacherLibrary
from teacher_server.promotion import NO_ITEMS, AliasRequest, GateFloors, GateReport, Promotion
from teacher_server.protocol import TeacherId, TeacherRef
from teacher_server.roster.roster import Roster
from teacher_server.serve.promoter import RECHECK_S, Promoter
from teacher_server.serve.replica_state import ReplicaState

pytestmark = pytest.mark.usefixtures("no_bundled")

ONE, TWO = TeacherId("alpha", 1), TeacherId("alpha", 2)
KEY = "here/app"
GOOD = GateReport(items=32, agreement=0.9, kl=0.1, old_ms=2.0, new_ms=3.0)


class FakeReplicas:
    """Replicas by number and what each holds. Every call is noted with what the roster has pending at that time."""

    def __init__(self, roster: Roster, count: int = 2) -> None:
        self.roster = roster
        self.held: dict[int, dict[str, str]] = {number: {} for number in range(count)}
        self.calls: list[tuple[str, bool]] = []
        self.prepare_error: TeacherError | None = None
        self.digest: str | None = None
        self.on_describe: Callable[[], None] = lambda: None
        self.reports = [GOOD] * count
        self.verify_error: TeacherError | None = None

    def is_deployed(self) -> bool:
        return bool(self.held)

    def prepare(self, teacher: TeacherId, deadline: float) -> set[str]:  # noqa: ARG002 the real one's signature
        self._note("prepare")
        if self.prepare_error is not None:
            raise self.prepare_error
        digest = self.digest or self.roster.library.entry(teacher).digest
        for held in self.held.values():
            held[str(teacher)] = digest
        return {digest}

    def describe(self, deadline: float) -> list[ReplicaState]:  # noqa: ARG002 as above
        self._note("describe")
        self.on_describe()
        return [ReplicaState(pid, "", "cpu", "", held, {}, 0, 0, 0, 0, 0, 0, 0) for pid, held in self.held.items()]

    def compare(self, old: TeacherId, new: TeacherId, items: int, deadline: float) -> list[GateReport]:  # noqa: ARG002
        assert (old, new) == (ONE, TWO)
        self._note("compare")
        return self.reports

    def evict(self, teacher: TeacherId, deadline: float, *, keep_out: bool) -> int:  # noqa: ARG002 as above
        assert not keep_out
        self._note("evict")
        return sum(held.pop(str(teacher), None) is not None for held in self.held.values())

    def verify(self, teacher: TeacherId, deadline: float) -> str:  # noqa: ARG002 as above
        self._note("verify")
        if self.verify_error is not None:
            raise self.verify_error
        return self.roster.library.entry(teacher).digest

    def _note(self, call: str) -> None:
        self.calls.append((call, bool(self.roster.state().pending)))


class Clock:
    """Sleeping moves it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def roster(library: TeacherLibrary, tmp_path: Path) -> Roster:
    """The alias alpha points to alpha@1."""
    roster = Roster(library, tmp_path / "roster.json")
    roster.resolve(TeacherRef("alpha"))
    return roster


@pytest.fixture
def replicas(roster: Roster) -> FakeReplicas:
    return FakeReplicas(roster)


def move(
    replicas: FakeReplicas, version: int | None = 2, floors: GateFloors | None = None, clock: Clock | None = None
) -> Promotion:
    clock = clock if clock is not None else Clock()
    promoter = Promoter(replicas.roster, KEY, replicas, clock=clock, sleep=clock.sleep)
    return promoter.move(AliasRequest("alpha", version, "ann"), floors if floors is not None else GateFloors(), 60.0)


def assert_nothing_changed(replicas: FakeReplicas) -> None:
    state = replicas.roster.state()
    assert state.aliases == {"alpha": 1}
    assert state.pending == {}
    assert len(state.log) == 1
    assert all("alpha@2" not in held for held in replicas.held.values())


def test_a_version_is_prepared_and_compared_before_the_alias_moves(replicas: FakeReplicas) -> None:
    promotion = move(replicas)
    assert (promotion.teacher, promotion.previous, promotion.gate) == (TWO, ONE, dataclasses.replace(GOOD, items=64))
    assert list(promotion.seconds) == ["prepare", "gate", "commit"]
    assert replicas.calls == [("prepare", True), ("describe", True), ("compare", True)]
    assert replicas.roster.state().aliases == {"alpha": 2}
    assert replicas.roster.state().pending == {}


@pytest.mark.parametrize(
    "error",
    [
        LibraryError("w", "the self-test gave numbers that are not finite"),
        OverBudget("alpha@2", 1, 1, 1),
        TeacherUnavailable("alpha@2", 1.0, "a replica died"),
    ],
)
def test_nothing_changes_when_a_replica_cannot_prepare(replicas: FakeReplicas, error: TeacherError) -> None:
    replicas.prepare_error = error
    with pytest.raises(type(error)):
        move(replicas)
    assert_nothing_changed(replicas)


def test_nothing_changes_when_replicas_serve_other_files(replicas: FakeReplicas) -> None:
    replicas.digest = "0" * 64
    with pytest.raises(LibraryError, match="replicas serve it as 000000000000"):
        move(replicas)
    assert_nothing_changed(replicas)


def test_a_replica_that_started_meanwhile_is_waited_for(replicas: FakeReplicas) -> None:
    """It loads what is pending, so it holds the version a moment later."""

    def start() -> None:
        if replicas.calls.count(("describe", True)) == 1:
            replicas.held[7] = {}
        elif replicas.calls.count(("describe", True)) == 3:
            replicas.held[7] = dict(replicas.held[0])

    replicas.on_describe = start
    assert move(replicas).teacher == TWO
    assert replicas.calls.count(("describe", True)) == 3


def test_nothing_changes_when_a_new_replica_does_not_get_the_version(replicas: FakeReplicas) -> None:
    replicas.on_describe = lambda: replicas.held.setdefault(7, {}) and None
    clock = Clock()
    with pytest.raises(TeacherUnavailable, match=r"replicas \[7\] have not loaded it"):
        move(replicas, clock=clock)
    assert RECHECK_S - 1 < clock.now < RECHECK_S + 1
    assert_nothing_changed(replicas)


def test_nothing_changes_when_the_only_replica_dies_after_preparing(roster: Roster) -> None:
    replicas = FakeReplicas(roster, count=1)

    def die() -> None:
        raise TeacherUnavailable("service", 1.0, "ActorDiedError")

    replicas.on_describe = die
    with pytest.raises(TeacherUnavailable, match="ActorDiedError"):
        move(replicas)
    assert_nothing_changed(replicas)


def test_a_floor_that_is_not_reached_keeps_the_old_version(replicas: FakeReplicas) -> None:
    reason = r"agrees on 90.0% of 64 items, 95.0% asked; it takes 1.50 times as long.*; measured: agreement 90.0% on 64"
    with pytest.raises(GateRefused, match=reason):
        move(replicas, floors=GateFloors(min_agreement=0.95, max_kl=0.2, max_latency_ratio=1.2))
    assert_nothing_changed(replicas)
    assert move(replicas, floors=GateFloors(min_agreement=0.85)).teacher == TWO


def test_answers_that_are_not_finite_are_refused_without_any_floor(replicas: FakeReplicas) -> None:
    replicas.reports = [GOOD, GateReport(32, 0.9, float("nan"), 2.0, 3.0)]
    with pytest.raises(GateRefused, match="not finite"):
        move(replicas)
    assert_nothing_changed(replicas)


def test_without_recorded_views_a_version_passes_unless_a_floor_is_set(replicas: FakeReplicas) -> None:
    replicas.reports = [NO_ITEMS, NO_ITEMS]
    with pytest.raises(GateRefused, match="no views were recorded"):
        move(replicas, floors=GateFloors(max_kl=1.0))
    assert_nothing_changed(replicas)
    assert move(replicas).gate == NO_ITEMS


def test_without_replicas_the_version_is_tested_by_itself(roster: Roster) -> None:
    replicas = FakeReplicas(roster, count=0)
    with pytest.raises(GateRefused, match="no views were recorded"):
        move(replicas, floors=GateFloors(max_kl=1.0))
    assert move(replicas).gate is None
    assert {call for call, _ in replicas.calls} == {"verify"}
    assert roster.state().aliases == {"alpha": 2}


def test_a_version_that_fails_its_test_without_replicas_is_refused(roster: Roster) -> None:
    replicas = FakeReplicas(roster, count=0)
    replicas.verify_error = LibraryError("w", "not finite")
    with pytest.raises(LibraryError, match="not finite"):
        move(replicas)
    assert_nothing_changed(replicas)


def test_a_rollback_passes_no_gate_but_all_replicas_hold_the_version(replicas: FakeReplicas) -> None:
    move(replicas)
    replicas.calls.clear()
    promotion = move(replicas, version=None)
    assert (promotion.teacher, promotion.previous, promotion.gate) == (ONE, TWO, None)
    assert [call for call, _ in replicas.calls] == ["prepare", "describe"]
    assert "alpha@1" in replicas.held[0]


def test_a_move_to_where_the_alias_points_asks_nobody(replicas: FakeReplicas) -> None:
    assert move(replicas, version=1) == Promotion(ONE, ONE)
    assert replicas.calls == []


def test_nothing_changes_when_the_alias_moves_meanwhile(replicas: FakeReplicas) -> None:
    library = replicas.roster.library

    def interfere() -> None:
        Roster(library, replicas.roster.path).promote("alpha", 2, "bob")

    replicas.on_describe = interfere
    with pytest.raises(AliasMoved):
        move(replicas)
    assert replicas.roster.state().aliases == {"alpha": 2}
    assert [entry.who for entry in replicas.roster.state().log] == ["roster", "bob"]


def test_a_move_whose_time_is_up_before_it_begins_asks_nobody(replicas: FakeReplicas) -> None:
    clock = Clock()
    clock.now = 61.0
    with pytest.raises(TeacherUnavailable, match="the time for moving the alias is up"):
        move(replicas, clock=clock)
    assert replicas.calls == []
    assert_nothing_changed(replicas)


def test_nothing_changes_when_the_time_is_up_before_the_commit(replicas: FakeReplicas) -> None:
    clock = Clock()
    replicas.on_describe = lambda: clock.sleep(61.0)
    with pytest.raises(TeacherUnavailable, match="the time for moving the alias is up"):
        move(replicas, clock=clock)
    assert_nothing_changed(replicas)


def test_a_refused_version_that_a_run_is_bound_to_stays_loaded(replicas: FakeReplicas) -> None:
    replicas.roster.acquire("pinned", KEY, TWO, deploying=False)
    with pytest.raises(GateRefused):
        move(replicas, floors=GateFloors(min_agreement=1.0))
    assert "evict" not in {call for call, _ in replicas.calls}
    assert all("alpha@2" in held for held in replicas.held.values())
