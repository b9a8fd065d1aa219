"""Aliases, timelines and leases, in memory and on disk."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from teacher_server.errors import (
    BadQuery,
    LibraryError,
    TeacherInUse,
    TeacherMismatch,
    TeacherUnavailable,
    UnknownTeacher,
)
from teacher_server.library import WEIGHTS, TeacherLibrary
from teacher_server.protocol import Binding, TeacherId, TeacherRef
from teacher_server.roster import file as roster_file
from teacher_server.roster.leases import FORGET_TIMELINE_AFTER_S
from teacher_server.roster.roster import LEASE_TTL_S, Roster
from teacher_server.roster.state import RosterState, Span

pytestmark = pytest.mark.usefixtures("no_bundled")

ALPHA = TeacherRef("alpha")
ONE, TWO = TeacherId("alpha", 1), TeacherId("alpha", 2)


class Clock:
    """Seconds since 1970, moved by the test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def roster(library: TeacherLibrary, tmp_path: Path, clock: Clock) -> Roster:
    return Roster(library, tmp_path / "roster.json", clock)


def reread(roster: Roster) -> Roster:
    """What another process would see."""
    return Roster(roster.library, roster.path)


def test_the_first_use_of_a_name_makes_an_alias_for_its_lowest_version(roster: Roster) -> None:
    assert roster.aliases() == {}
    assert roster.resolve(ALPHA) == ONE
    assert reread(roster).aliases() == {"alpha": ONE}


def test_a_pinned_version_does_not_follow_the_alias(roster: Roster) -> None:
    roster.promote("alpha", 2, who="ann")
    assert roster.resolve(ALPHA) == TWO
    assert roster.resolve(TeacherRef("alpha", 1)) == ONE


@pytest.mark.parametrize("ref", [TeacherRef("nobody"), TeacherRef("alpha", 9)])
def test_an_unknown_teacher_is_refused_with_the_known_ones_and_leaves_no_alias(roster: Roster, ref: TeacherRef) -> None:
    with pytest.raises(UnknownTeacher, match="known are alpha"):
        roster.resolve(ref)
    assert not roster.path.exists()


def test_an_initial_state_makes_aliases_and_moves_none(roster: Roster) -> None:
    roster.promote("alpha", 2, who="ann")
    beta = TeacherId("beta", 1)
    roster.begin_with([ONE, beta], who="user_config")
    assert reread(roster).aliases() == {"alpha": TWO, "beta": beta}
    assert [(entry.who, entry.name, entry.new) for entry in roster.state().log] == [
        ("ann", "alpha", 2), ("user_config", "beta", 1)
    ]  # fmt: skip
    with pytest.raises(UnknownTeacher, match="known are gamma@1"):
        roster.begin_with([TeacherId("gamma", 9)], who="user_config")
    with pytest.raises(UnknownTeacher):
        roster.begin_with([TeacherId("gamma", 1), TeacherId("alpha", 9)], who="user_config")
    assert "gamma" not in roster.aliases()


def test_every_change_of_an_alias_is_in_the_log(roster: Roster, clock: Clock) -> None:
    roster.resolve(ALPHA)
    clock.now = 2000.0
    roster.promote("alpha", 2, who="ann")
    roster.promote("alpha", 2, who="bob")  # changes nothing
    log = [
        (entry.when, entry.who, entry.kind, entry.name, entry.old, entry.new) for entry in reread(roster).state().log
    ]
    assert log == [(1000.0, "roster", "first use", "alpha", None, 1), (2000.0, "ann", "promote", "alpha", 1, 2)]


def test_an_alias_keeps_its_signature(tiny: ModuleType, clock: Clock, tmp_path: Path) -> None:
    library = tiny.build_library(tmp_path / "library", tmp_path)
    other = tiny.make_card(crop=24, classes=("unchanged", "changed"))
    library.add("alpha", other, tiny.save_random_weights(other, tmp_path / "w.safetensors", 7))
    roster = Roster(library, clock=clock)
    with pytest.raises(TeacherMismatch) as caught:
        roster.promote("alpha", 3, who="ann")
    assert caught.value.args == (
        "alpha@3",
        (
            "classes is ('unchanged', 'changed'), alpha@1 has "
            "('unchanged', 'rotation', 'spatial_permutation', 'temporal_swap', 'temporal_shuffle')",
            "crop is 24, alpha@1 has 32",
        ),
    )
    assert roster.resolve(ALPHA) == ONE


def test_a_bound_block_keeps_its_version_when_the_alias_moves(roster: Roster) -> None:
    digests = {version: roster.library.entry(TeacherId("alpha", version)).digest for version in (1, 2)}
    assert roster.bind("run", ALPHA, 0) == Binding(ONE, digests[1], 0)
    assert roster.bind("run", ALPHA, 1) == Binding(ONE, digests[1], 1)
    roster.promote("alpha", 2, who="ann")
    assert roster.bind("run", ALPHA, 1) == Binding(ONE, digests[1], 1)
    assert roster.bind("run", ALPHA, 2) == Binding(TWO, digests[2], 2)
    assert reread(roster).bind("run", ALPHA, 0) == Binding(ONE, digests[1], 0)
    assert reread(roster).timeline("run") == [Binding(ONE, digests[1], 0), Binding(TWO, digests[2], 2)]


def test_blocks_that_were_skipped_had_the_version_before_them(roster: Roster) -> None:
    roster.bind("run", ALPHA, 3)
    roster.promote("alpha", 2, who="ann")
    roster.bind("run", ALPHA, 9)
    assert [roster.bind("run", ALPHA, block).teacher for block in (0, 3, 8, 9)] == [ONE, ONE, ONE, TWO]


def test_a_pinned_run_is_bound_to_its_version_for_good(roster: Roster) -> None:
    pinned = TeacherRef("alpha", 1)
    roster.promote("alpha", 2, who="ann")
    assert {roster.bind("run", pinned, block).teacher for block in range(5)} == {ONE}
    assert len(roster.timeline("run")) == 1


def test_a_preview_binds_nothing(roster: Roster) -> None:
    assert roster.preview("run", ALPHA).block == 0
    roster.bind("run", ALPHA, 4)
    assert roster.preview("run", ALPHA).block == 5
    assert roster.state().timelines["run"].highest_block == 4


def test_a_negative_block_is_refused(roster: Roster) -> None:
    with pytest.raises(BadQuery, match="count from 0"):
        roster.bind("run", ALPHA, -1)


def test_other_weights_under_a_bound_version_are_refused(tiny: ModuleType, tmp_path: Path) -> None:
    library = tiny.build_library(tmp_path / "library", tmp_path)
    roster = Roster(library)
    roster.bind("run", ALPHA, 0)
    tiny.replace_weights(library.root / "alpha" / "1", (library.root / "alpha" / "2" / WEIGHTS).read_bytes())
    with pytest.raises(LibraryError, match="bound to alpha@1 with digest"):
        roster.bind("run", ALPHA, 0)


def test_a_lease_lasts_its_time_and_renewing_or_binding_prolongs_it(roster: Roster, clock: Clock) -> None:
    roster.acquire("a", "app", ONE, deploying=True)
    roster.acquire("b", "app", ONE, deploying=False)
    clock.now += LEASE_TTL_S - 1
    assert roster.renew("a")
    clock.now += 1
    assert roster.expired("app") == ["b"]
    clock.now += LEASE_TTL_S - 2
    roster.bind("a", ALPHA, 0)
    clock.now += LEASE_TTL_S - 1
    assert "a" not in roster.expired("app")
    clock.now += 1
    assert roster.expired("app") == ["a", "b"]
    assert roster.expired("another app") == []


def test_renewing_without_a_lease_says_so(roster: Roster) -> None:
    assert not roster.renew("run")
    assert roster.release("run") is None


def test_runs_that_adopt_an_app_know_that_a_run_started_it(roster: Roster) -> None:
    assert roster.acquire("a", "app", ONE, deploying=True).started_by_run
    assert roster.acquire("b", "app", ONE, deploying=False).started_by_run
    assert roster.release("a") is not None
    assert reread(roster).leases("app")["b"].started_by_run


def test_an_app_without_leases_is_an_operators(roster: Roster) -> None:
    assert not roster.acquire("a", "app", ONE, deploying=False).started_by_run
    assert roster.acquire("b", "elsewhere", ONE, deploying=True).started_by_run
    assert not roster.leases("app")["a"].started_by_run


def test_an_operator_can_take_an_app_over(roster: Roster) -> None:
    roster.acquire("a", "app", ONE, deploying=True)
    roster.hand_to_operator("app")
    assert not roster.leases("app")["a"].started_by_run
    assert not roster.acquire("b", "app", ONE, deploying=False).started_by_run


def test_replicas_need_what_aliases_and_live_runs_name(roster: Roster, clock: Clock) -> None:
    roster.resolve(TeacherRef("beta"))
    assert set(roster.required()) == {TeacherId("beta", 1)}
    roster.acquire("run", "app", TeacherId("gamma", 1), deploying=True)
    assert set(roster.required()) == {TeacherId("beta", 1), TeacherId("gamma", 1)}
    roster.bind("run", TeacherRef("alpha", 2), 0)
    assert set(roster.required()) == {TeacherId("beta", 1), TWO}  # a pinned version makes no alias, which would stay
    clock.now += LEASE_TTL_S
    assert set(roster.required()) == {TeacherId("beta", 1)}


def test_replicas_of_one_cluster_need_nothing_of_another_clusters_runs(roster: Roster) -> None:
    roster.resolve(TeacherRef("beta"))
    roster.acquire("run", "here/app", TeacherId("gamma", 1), deploying=True)
    assert roster.required("here/app") == [TeacherId("gamma", 1), TeacherId("beta", 1)]
    assert roster.required("there/app") == [TeacherId("beta", 1)]
    roster.check_unused(TeacherId("gamma", 1), "there/app")
    with pytest.raises(TeacherInUse, match="run run"):
        roster.check_unused(TeacherId("gamma", 1))


def test_a_lease_that_was_renewed_is_not_released_as_expired(roster: Roster, clock: Clock) -> None:
    roster.acquire("run", "app", ONE, deploying=True)
    clock.now += LEASE_TTL_S
    assert roster.expired("app") == ["run"]
    roster.renew("run")
    assert roster.release("run", only_expired=True) is None
    assert list(roster.leases("app")) == ["run"]
    clock.now += LEASE_TTL_S
    released = roster.release("run", only_expired=True)
    assert released is not None
    assert roster.leases("app") == {}


def test_the_last_block_keeps_its_version_loaded_until_the_next_but_one_is_bound(roster: Roster) -> None:
    """One rank may still ask about a block when another has begun the next."""
    roster.acquire("run", "app", ONE, deploying=True)
    roster.bind("run", ALPHA, 4)
    roster.promote("alpha", 2, who="ann")
    roster.bind("run", ALPHA, 5)
    assert set(roster.required()) == {ONE, TWO}
    roster.bind("run", ALPHA, 6)
    assert set(roster.required()) == {TWO}


def test_a_run_that_repeats_a_timeline_keeps_what_it_comes_to_later(roster: Roster) -> None:
    """Its versions are needed from the block that it asks about; what lies behind it is not."""
    bound = [Binding(teacher, roster.library.entry(teacher).digest, block) for block, teacher in enumerate([ONE, TWO])]
    gamma = TeacherId("gamma", 1)
    bound.append(Binding(gamma, roster.library.entry(gamma).digest, 4))
    roster.restore("run", bound, 6)
    roster.acquire("run", "app", ONE, deploying=True)
    roster.resolve(TeacherRef("beta"))
    roster.bind("run", ALPHA, 0)
    assert roster.required() == [ONE, TeacherId("beta", 1), TWO, gamma]  # the later ones have the last claim on room
    with pytest.raises(TeacherInUse, match="run run, later in its timeline"):
        roster.check_unused(gamma)
    roster.acquire("run", "app", TWO, deploying=True)
    roster.bind("run", ALPHA, 3)
    roster.check_unused(ONE)
    assert roster.required() == [TWO, TeacherId("beta", 1), gamma]
    roster.bind("run", ALPHA, 2)  # it went back to a checkpoint
    assert roster.required() == [TWO, TeacherId("beta", 1), gamma]


def test_timelines_of_runs_that_nobody_heard_of_for_a_month_are_forgotten(roster: Roster, clock: Clock) -> None:
    roster.acquire("live", "app", ONE, deploying=True)
    for run in ("live", "old", "new"):
        roster.bind(run, ALPHA, 0)
    clock.now += FORGET_TIMELINE_AFTER_S
    roster.renew("live")
    roster.bind("new", ALPHA, 1)
    clock.now += 1
    roster.expired("app")
    assert set(roster.state().timelines) == {"live", "new"}


def test_a_timeline_is_put_back_from_a_checkpoint(roster: Roster, tmp_path: Path) -> None:
    roster.bind("run", ALPHA, 2)
    roster.promote("alpha", 2, who="ann")
    roster.bind("run", ALPHA, 5)
    saved = roster.timeline("run")
    empty = Roster(roster.library, tmp_path / "other.json")
    empty.restore("run", saved, 6)
    assert empty.timeline("run") == saved
    assert [empty.bind("run", ALPHA, block).teacher for block in (0, 4, 5, 6)] == [ONE, ONE, TWO, TWO]
    assert empty.bind("run", ALPHA, 7).teacher == ONE  # decided now: there, the alias was never moved


def test_the_rosters_record_outranks_the_checkpoints(roster: Roster) -> None:
    bound = roster.bind("run", ALPHA, 3)
    roster.restore("run", [Binding(TWO, "d" * 64, 0)], 9)
    assert roster.timeline("run") == [Binding(ONE, bound.digest, 0)]
    assert roster.state().timelines["run"].highest_block == 3


def test_an_empty_timeline_restores_nothing(roster: Roster) -> None:
    roster.restore("run", [], -1)
    assert roster.state() == RosterState()


@pytest.mark.parametrize(("blocks", "highest"), [((1,), 4), ((0, 3, 3), 4), ((0, 5, 2), 6), ((0, 3), 2)])
def test_a_timeline_that_no_run_can_have_had_is_refused(roster: Roster, blocks: tuple[int, ...], highest: int) -> None:
    with pytest.raises(BadQuery, match="starts at block 0 and ascends"):
        roster.restore("run", [Binding(ONE, "d" * 64, block) for block in blocks], highest)
    assert roster.state() == RosterState()


def test_the_cluster_that_serves_a_library_can_be_found(roster: Roster, clock: Clock) -> None:
    roster.acquire("run", "one/app", ONE, deploying=True, cluster_address="10.0.0.1:6379")
    roster.note_app("one/app", "10.0.0.1:6379")
    roster.note_app("two/app", "10.0.0.2:6379")
    state = roster.state()
    assert state.addresses(clock.now) == ["10.0.0.1:6379", "10.0.0.2:6379"]
    assert {key: app.owner for key, app in state.apps.items()} == {"one/app": "run", "two/app": "operator"}
    roster.forget_app("one/app")
    clock.now += LEASE_TTL_S - 1
    roster.note_app("two/app", "10.0.0.2:6379")
    clock.now += 1
    assert roster.state().addresses(clock.now) == ["10.0.0.2:6379"]
    clock.now += LEASE_TTL_S
    assert roster.state().addresses(clock.now) == []


def test_an_app_that_was_noted_lately_is_not_written_again(roster: Roster, clock: Clock) -> None:
    roster.note_app("app", "here")
    before = roster.path.stat().st_ino
    clock.now += LEASE_TTL_S / 2 - 1
    roster.note_app("app", "here")
    assert roster.path.stat().st_ino == before
    clock.now += 1
    roster.note_app("app", "here")
    assert roster.path.stat().st_ino != before


def test_leases_of_clusters_that_are_gone_are_forgotten(roster: Roster, clock: Clock) -> None:
    roster.acquire("old", "gone/app", ONE, deploying=True)
    roster.note_app("gone/app", "gone")
    clock.now += 2 * 24 * 3600
    assert roster.expired("here/app") == []
    assert roster.leases("gone/app") == {}
    assert roster.state().apps == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "EOF"),
        ("{", "EOF"),
        ('{"format":2}', "format"),
        ('{"aliases":{"alpha":"one"}}', "aliases.alpha"),
        ('{"wrong":1}', "wrong"),
    ],
)
def test_a_damaged_file_is_named_and_left_alone(roster: Roster, text: str, reason: str) -> None:
    roster.path.write_text(text)
    for use in (roster.aliases, lambda: roster.bind("run", ALPHA, 0), lambda: roster.release("run")):
        with pytest.raises(LibraryError, match=rf"roster.json: the roster is damaged \(.*{reason}"):
            use()
    assert roster.path.read_text() == text


def test_the_file_is_json_that_reads_back_as_the_same_state(roster: Roster) -> None:
    roster.acquire("run", "app", ONE, deploying=True)
    roster.bind("run", ALPHA, 2)
    roster.promote("alpha", 2, who="ann")
    state = roster.state()
    assert RosterState.model_validate(json.loads(roster.path.read_text())) == state
    assert RosterState.model_validate_json(state.to_bytes()) == state


def test_a_state_never_changes() -> None:
    state = RosterState()
    changed = state.with_block("run", 4, Span(from_block=4, teacher="alpha@1", digest="d"), now=1.0)
    assert state == RosterState()
    assert changed.timelines["run"].spans[0].from_block == 0


_BIND_MANY = """
import sys
from pathlib import Path
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherRef
from teacher_server.roster.roster import Roster
roster = Roster(TeacherLibrary(Path(sys.argv[1])), Path(sys.argv[2]))
for block in range(20):
    roster.bind(sys.argv[3], TeacherRef("alpha"), block)
"""


def test_processes_that_share_the_file_lose_no_change(library: TeacherLibrary, tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    command = [sys.executable, "-c", _BIND_MANY, str(library.root), str(path)]
    repository = Path(__file__).parents[3]
    writers = [subprocess.Popen([*command, f"run{i}"], cwd=repository) for i in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    state = Roster(library, path).state()
    assert {run: timeline.highest_block for run, timeline in state.timelines.items()} == {
        f"run{i}": 19 for i in range(3)
    }
    assert len(state.log) == 1
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []


@pytest.mark.parametrize("call", ["mkdir", "write"])
def test_a_disk_that_takes_no_more_is_told_as_unavailable_and_the_file_stays(
    roster: Roster, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_args: object, **_more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    roster.bind("run", ALPHA, 0)
    before = roster.path.read_bytes()
    with monkeypatch.context() as patched:
        if call == "mkdir":
            patched.setattr(roster_file.Path, "mkdir", full)
        else:
            patched.setattr(roster_file, "write_atomic", full)
        with pytest.raises(TeacherUnavailable, match=r"roster did not answer .* cannot be written: No space left"):
            roster.bind("run", ALPHA, 1)
    assert roster.path.read_bytes() == before
    roster.bind("run", ALPHA, 1)
