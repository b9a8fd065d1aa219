"""An alias moves: begin, commit, abort, rollback, and what stays because somebody needs it."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from types import ModuleType

import pytest

from teacher_server.errors import AliasMoved, BadQuery, LibraryError, TeacherInUse, TeacherMismatch, UnknownTeacher
from teacher_server.library import WEIGHTS, TeacherEntry, TeacherLibrary
from teacher_server.promotion import AliasRequest
from teacher_server.protocol import TeacherId, TeacherRef
from teacher_server.roster.roster import LEASE_TTL_S, Roster
from teacher_server.roster.state import RosterState

pytestmark = pytest.mark.usefixtures("no_bundled")

ALPHA = TeacherRef("alpha")
ONE, TWO, THREE, FOUR = (TeacherId("alpha", version) for version in (1, 2, 3, 4))


class Clock:
    """Seconds since 1970, moved by the test."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def four_versions(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> TeacherLibrary:
    """alpha@1 to alpha@4, of one signature."""
    scratch = tmp_path_factory.mktemp("scratch")
    library = tiny.build_library(tmp_path_factory.mktemp("library"), scratch)
    card = tiny.make_card()
    for seed in (11, 12):
        library.add("alpha", card, tiny.save_random_weights(card, scratch / f"{seed}.safetensors", seed))
    return library


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def roster(four_versions: TeacherLibrary, tmp_path: Path, clock: Clock) -> Roster:
    """The alias alpha points to alpha@1."""
    roster = Roster(four_versions, tmp_path / "roster.json", clock)
    roster.resolve(ALPHA)
    return roster


def promote(roster: Roster, version: int | None, **fields: object) -> TeacherId:
    proposal = roster.begin(AliasRequest("alpha", version, "ann", **fields), "here/app")  # type: ignore[arg-type]
    roster.commit(proposal)
    return proposal.teacher


def rollback(roster: Roster) -> TeacherId:
    return promote(roster, None)


def test_a_version_that_is_being_prepared_is_loaded_by_replicas_that_start_meanwhile(roster: Roster) -> None:
    proposal = roster.begin(AliasRequest("alpha", 2, "ann"), "here/app")
    assert (proposal.teacher, proposal.previous) == (TWO, ONE)
    assert Roster(roster.library, roster.path).required() == [ONE, TWO]
    assert roster.resolve(ALPHA) == ONE


def test_committing_moves_the_alias_and_nothing_is_pending_any_more(roster: Roster) -> None:
    assert promote(roster, 2) == TWO
    state = Roster(roster.library, roster.path).state()
    assert state.aliases == {"alpha": 2}
    assert state.pending == {}


def test_an_aborted_move_leaves_everything_as_it_was(roster: Roster) -> None:
    before = roster.state()
    roster.begin(AliasRequest("alpha", 2, "ann"), "here/app")
    roster.abort("alpha")
    assert roster.state() == before


def test_only_the_cluster_that_prepares_a_version_gives_it_up(roster: Roster) -> None:
    roster.begin(AliasRequest("alpha", 2, "ann"), "here/app")
    roster.abort_all("elsewhere/app")
    assert "alpha" in roster.state().pending
    roster.abort_all("here/app")
    assert roster.state().pending == {}


def test_two_clusters_that_prepare_versions_of_one_alias_do_not_give_up_each_others(roster: Roster) -> None:
    here, there = AliasRequest("alpha", 2, "ann"), AliasRequest("alpha", 3, "bob")
    roster.begin(here, "here/app")
    proposal = roster.begin(there, "there/app")
    assert roster.required("here/app") == [ONE, TWO]
    assert roster.required("there/app") == [ONE, THREE]
    assert roster.required() == [ONE, TWO, THREE]
    roster.abort("alpha", "here/app")
    assert roster.required() == [ONE, THREE]
    roster.begin(here, "here/app")
    roster.commit(proposal)
    assert roster.required() == [THREE, TWO]


def test_what_is_only_being_prepared_is_loaded_last(roster: Roster) -> None:
    promote(roster, 3)
    roster.begin(AliasRequest("alpha", 1, "ann"), "here/app")
    roster.acquire("run", "here/app", TWO, deploying=True)
    assert roster.required() == [TWO, THREE, ONE]  # what runs need comes first
    roster.acquire("run", "here/app", ONE, deploying=True)
    assert roster.required() == [ONE, THREE]


def test_no_file_is_hashed_under_the_lock(
    roster: Roster, monkeypatch: pytest.MonkeyPatch, four_versions: TeacherLibrary
) -> None:
    """Every run's bind would wait for it."""
    read_entry, hashed = four_versions.entry, []

    def entry(teacher: TeacherId) -> TeacherEntry:
        with roster.path.with_suffix(".lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while somebody holds it
        hashed.append(teacher)
        return read_entry(teacher)

    monkeypatch.setattr(four_versions, "entry", entry)
    roster.begin(AliasRequest("alpha", 2, "ann"), "here/app")
    fresh = Roster(four_versions, roster.path)
    fresh.resolve(TeacherRef("alpha", 3))
    assert hashed == [TWO, THREE]
    for ref, block in ((TeacherRef("alpha", 2), 0), (ALPHA, 0)):  # a run's own block, and again once it is bound
        Roster(four_versions, roster.path).bind("run", ref, block)
    assert hashed == [TWO, THREE, TWO, TWO]


def test_an_alias_that_was_made_meanwhile_is_not_overwritten(four_versions: TeacherLibrary, tmp_path: Path) -> None:
    roster = Roster(four_versions, tmp_path / "new.json")
    proposal = roster.begin(AliasRequest("alpha", 2, "ann"), "here/app")
    assert proposal.previous is None
    roster.resolve(ALPHA)  # a run's first use
    with pytest.raises(AliasMoved, match="alias alpha was expected not to exist yet, it points to 1"):
        roster.commit(proposal)
    assert roster.state().aliases == {"alpha": 1}


def test_an_alias_that_moved_meanwhile_is_not_moved_again(roster: Roster) -> None:
    with pytest.raises(AliasMoved) as caught:
        roster.begin(AliasRequest("alpha", 2, "ann", expected=3), "here/app")
    assert caught.value.args == ("alpha", 3, 1)
    proposal = roster.begin(AliasRequest("alpha", 2, "ann", expected=1), "here/app")
    roster.promote("alpha", 3, "bob")
    with pytest.raises(AliasMoved) as caught:
        roster.commit(proposal)
    assert caught.value.args == ("alpha", 1, 3)
    assert roster.resolve(ALPHA) == THREE


def test_a_repeated_request_is_carried_out_once(roster: Roster) -> None:
    """As after a crash between the record and the reply."""
    request = AliasRequest("alpha", 2, "ann", expected=1)
    roster.commit(roster.begin(request, "here/app"))
    again = roster.begin(request, "here/app")
    assert (again.teacher, again.previous, again.settled) == (TWO, ONE, True)
    back = AliasRequest("alpha", None, "ann")
    roster.commit(roster.begin(back, "here/app"))
    assert roster.begin(back, "here/app").settled
    assert roster.resolve(ALPHA) == ONE
    assert len(roster.state().log) == 3


def test_a_move_to_where_it_points_already_is_settled(roster: Roster) -> None:
    before = roster.state()
    assert roster.begin(AliasRequest("alpha", 1, "ann"), "here/app").settled
    assert roster.state() == before


def test_another_signature_is_refused_and_nothing_is_pending(roster: Roster, tiny: ModuleType, tmp_path: Path) -> None:
    library = tiny.build_library(tmp_path / "library", tmp_path)
    card = tiny.make_card(crop=24)
    library.add("alpha", card, tiny.save_random_weights(card, tmp_path / "w.safetensors", 7))
    roster = Roster(library)
    with pytest.raises(TeacherMismatch, match="crop is 24, alpha@1 has 32"):
        roster.begin(AliasRequest("alpha", 3, "ann"), "here/app")
    assert roster.state() == RosterState()


@pytest.mark.parametrize("name", ["nobody", "../alpha", "a" * 300, "alpha\0"])
def test_names_that_no_teacher_has_are_refused(roster: Roster, name: str) -> None:
    before = roster.state()
    with pytest.raises(UnknownTeacher):
        roster.begin(AliasRequest(name, 1, "ann"), "here/app")
    assert roster.state() == before


def test_the_first_promotion_of_a_name_makes_its_alias(roster: Roster, tmp_path: Path) -> None:
    fresh = Roster(roster.library, tmp_path / "fresh.json")
    proposal = fresh.begin(AliasRequest("alpha", 2, "ann"), "here/app")
    assert proposal.previous is None
    fresh.commit(proposal)
    assert [(entry.old, entry.new) for entry in fresh.state().log] == [(None, 2)]


def test_rolling_back_undoes_promotions_one_by_one(roster: Roster) -> None:
    for version in (2, 3):
        promote(roster, version)
    assert [rollback(roster), rollback(roster)] == [TWO, ONE]
    with pytest.raises(BadQuery, match="no promotion left to take back"):
        rollback(roster)
    assert [entry.kind for entry in roster.state().log] == ["first use", "promote", "promote", "rollback", "rollback"]


def test_a_promotion_after_a_rollback_can_be_undone_too(roster: Roster) -> None:
    promote(roster, 2)
    rollback(roster)
    promote(roster, 3)
    promote(roster, 4)
    assert [rollback(roster), rollback(roster)] == [THREE, ONE]


def test_versions_that_somebody_needs_are_named_with_who_needs_them(roster: Roster, clock: Clock) -> None:
    roster.acquire("pinned", "here/app", THREE, deploying=True)
    roster.acquire("follows", "here/app", ONE, deploying=True)
    roster.bind("follows", ALPHA, 0)
    roster.begin(AliasRequest("alpha", 2, "ann"), "here/app")
    users = {}
    for teacher in (ONE, TWO, THREE):
        with pytest.raises(TeacherInUse) as caught:
            roster.check_unused(teacher)
        users[teacher] = caught.value.args[1]
    assert users[ONE] == ("run follows", "alias alpha")
    assert users[TWO] == ("a promotion of alpha that is under way",)
    assert users[THREE] == ("run pinned",)
    roster.check_unused(FOUR)
    clock.now += LEASE_TTL_S
    roster.check_unused(THREE)


def test_a_member_of_an_ensemble_that_somebody_needs_stays(roster: Roster, four_versions: TeacherLibrary) -> None:
    four_versions.add_ensemble("both", [(THREE, 1.0), (FOUR, 1.0)])
    roster.check_unused(FOUR)
    roster.resolve(TeacherRef("both"))
    with pytest.raises(TeacherInUse, match=r"alpha@4 is needed by alias both \(in both@1\): it stays"):
        roster.check_unused(FOUR)


def test_an_ensemble_is_bound_by_a_digest_that_its_members_share_in(tiny: ModuleType, tmp_path: Path) -> None:
    library = tiny.build_library(tmp_path / "library", tmp_path)
    library.add_ensemble("both", [(ONE, 1.0), (TWO, 1.0)])
    roster = Roster(library)
    roster.bind("run", TeacherRef("both"), 0)
    tiny.replace_weights(library.root / "alpha" / "2", (library.root / "alpha" / "1" / WEIGHTS).read_bytes())
    with pytest.raises(LibraryError, match="both"):
        roster.bind("run", TeacherRef("both"), 0)


def test_a_run_that_went_on_to_another_version_no_longer_needs_the_old_one(roster: Roster) -> None:
    roster.acquire("run", "here/app", ONE, deploying=True)
    roster.bind("run", ALPHA, 0)
    promote(roster, 2)
    for block in (1, 2):
        with pytest.raises(TeacherInUse, match="run run"):
            roster.check_unused(ONE)
        roster.bind("run", ALPHA, block)
    roster.check_unused(ONE)
    assert roster.is_bound("run", ONE)  # it would be loaded again for a resumed run


def test_a_file_of_an_earlier_version_can_be_read(roster: Roster) -> None:
    promote(roster, 2)
    content = json.loads(roster.path.read_bytes())
    del content["pending"], content["apps"]
    for entry in content["log"]:
        del entry["kind"], entry["change_id"]
    roster.path.write_text(json.dumps(content))
    assert roster.resolve(ALPHA) == TWO
    assert rollback(roster) == ONE
