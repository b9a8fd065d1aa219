"""Promotion without a service: the version is tested in this process before the roster's file says so."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from services.offline import OfflineControl
from teacher_server.card import PRETEXT_CLASSES, Provenance, TeacherCard
from teacher_server.engine.weights import build_teacher_network
from teacher_server.errors import (
    AliasMoved,
    BadQuery,
    GateRefused,
    LibraryError,
    TeacherInUse,
    TeacherMismatch,
    UnknownTeacher,
)
from teacher_server.library import CARD, WEIGHTS, TeacherLibrary
from teacher_server.promotion import GateFloors
from teacher_server.protocol import TeacherId, TeacherRef
from teacher_server.roster.roster import Roster
from teacher_server.zoo.names import ARCH_VERSION


def add(library: TeacherLibrary, scratch: Path, seed: int, name: str = "alpha", **changes: object) -> TeacherId:
    """A tiny random network as the next version of `name`."""
    values: dict[str, object] = {
        "arch": "r3d", "arch_version": ARCH_VERSION, "width": 0.125, "head": "pretext", "classes": PRETEXT_CLASSES,
        "clip_len": 8, "crop": 32, "modality": "rgb", "feature_size": 64, "chunk_items": 1,
        "provenance": Provenance(command="random"),
    }  # fmt: skip
    card = TeacherCard.model_validate(values | changes)
    torch.manual_seed(seed)
    save_file(build_teacher_network(card).state_dict(), scratch / "weights")
    return library.add(name, card, scratch / "weights")


@pytest.fixture
def trained(tmp_path: Path) -> TeacherLibrary:
    """alpha@1 to alpha@3; the alias points to 1."""
    library = TeacherLibrary(tmp_path / "teachers")
    for seed in range(3):
        add(library, tmp_path, seed)
    Roster(library).resolve(TeacherRef("alpha"))
    return library


def test_a_sound_version_is_promoted_and_logged(trained: TeacherLibrary) -> None:
    promotion = OfflineControl(trained).promote("alpha", 2, "ann")
    assert (promotion.previous, promotion.teacher) == (TeacherId("alpha", 1), TeacherId("alpha", 2))
    assert set(promotion.seconds) == {"prepare", "commit"}
    state = Roster(trained).state()
    assert state.aliases == {"alpha": 2}
    assert (state.log[-1].who, state.log[-1].old, state.log[-1].new) == ("ann", 1, 2)
    assert state.pending == {}


def test_rolling_back_returns_to_the_version_before(trained: TeacherLibrary) -> None:
    control = OfflineControl(trained)
    control.promote("alpha", 3, "ann")
    promotion = control.rollback("alpha", "bob")
    assert (promotion.previous, promotion.teacher) == (TeacherId("alpha", 3), TeacherId("alpha", 1))
    assert Roster(trained).state().log[-1].kind == "rollback"


def test_an_alias_that_points_there_already_stays(trained: TeacherLibrary) -> None:
    promotion = OfflineControl(trained).promote("alpha", 1, "ann")
    assert promotion.previous == promotion.teacher == TeacherId("alpha", 1)
    assert len(Roster(trained).state().log) == 1


def _damage(library: TeacherLibrary) -> None:
    weights = library.root / "alpha" / "2" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-8])


def _poison(library: TeacherLibrary) -> None:
    path = library.root / "alpha" / "2" / WEIGHTS
    tensors = build_teacher_network(library.entry(TeacherId("alpha", 2)).card).state_dict()  # type: ignore[arg-type]
    tensors["backbone.stem.weight"].fill_(float("nan"))
    save_file(tensors, path)
    card = json.loads(path.with_name(CARD).read_bytes())
    card["weights_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()  # or that alone would be refused
    path.with_name(CARD).write_text(json.dumps(card))


@pytest.mark.parametrize("harm", [_damage, _poison])
def test_a_version_that_cannot_answer_changes_nothing(trained: TeacherLibrary, harm) -> None:
    harm(trained)
    before = Roster(trained).state()
    with pytest.raises(LibraryError):
        OfflineControl(trained).promote("alpha", 2, "ann")
    assert Roster(trained).state() == before


def test_a_floor_without_recorded_views_is_missed(trained: TeacherLibrary) -> None:
    before = Roster(trained).state()
    with pytest.raises(GateRefused, match="no views were recorded yet that it could be compared on"):
        OfflineControl(trained).promote("alpha", 2, "ann", floors=GateFloors(min_agreement=0.9))
    assert Roster(trained).state() == before


def test_what_a_killed_promotion_left_pending_is_gone_after_the_next(
    trained: TeacherLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = add(trained, tmp_path, 4, name="beta")
    roster = Roster(trained)
    roster.resolve(TeacherRef("beta"))
    add(trained, tmp_path, 5, name="beta")
    with monkeypatch.context() as killed:  # neither commit nor abort is reached
        killed.setattr(Roster, "commit", _killed)
        killed.setattr(Roster, "abort", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            OfflineControl(trained).promote("beta", 2, "ann")
    assert set(roster.state().pending) == {"beta"}
    OfflineControl(trained).promote("alpha", 2, "bob")
    assert roster.state().pending == {}
    assert roster.state().aliases == {"alpha": 2, "beta": old.version}


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_wrong_expectation_changes_nothing(trained: TeacherLibrary) -> None:
    with pytest.raises(AliasMoved, match="alias alpha was expected at version 3, it points to 1"):
        OfflineControl(trained).promote("alpha", 2, "ann", expected=3)
    assert Roster(trained).state().aliases == {"alpha": 1}


def test_another_signature_is_refused_with_the_difference(trained: TeacherLibrary, tmp_path: Path) -> None:
    other = add(trained, tmp_path, 3, crop=48)
    with pytest.raises(TeacherMismatch, match="crop is 48, alpha@1 has 32"):
        OfflineControl(trained).promote("alpha", other.version, "ann")


def test_a_rollback_without_a_promotion_is_refused(trained: TeacherLibrary) -> None:
    with pytest.raises(BadQuery, match="no promotion left to take back"):
        OfflineControl(trained).rollback("alpha", "ann")


def test_evicting_refuses_what_an_alias_needs_and_finds_the_rest_nowhere(trained: TeacherLibrary) -> None:
    control = OfflineControl(trained)
    with pytest.raises(TeacherInUse, match="alpha@1 is needed by alias alpha: it stays"):
        control.evict(TeacherId("alpha", 1), "ann")
    with pytest.raises(UnknownTeacher, match="alpha@9"):
        control.evict(TeacherId("alpha", 9), "ann")
    assert control.evict(TeacherId("alpha", 2), "ann") == 0
