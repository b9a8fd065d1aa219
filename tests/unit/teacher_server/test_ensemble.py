"""Ensembles: the mean of probabilities, one signature, one digest, and members that are those they were."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from data.store import ClipStore
from teacher_server.card import EnsembleCard
from teacher_server.clients.inprocess import InProcessTeacherClient
from teacher_server.engine.ensemble import FrozenEnsemble, load_teacher, mean_probability
from teacher_server.engine.teacher import FrozenTeacher
from teacher_server.errors import BadQuery, LibraryError, UnknownTeacher
from teacher_server.library import CARD, TeacherLibrary
from teacher_server.protocol import TeacherId

ONE, TWO, WIDE = TeacherId("alpha", 1), TeacherId("alpha", 2), TeacherId("wide", 1)
BOTH = TeacherId("both", 1)


@pytest.fixture
def own(library: TeacherLibrary, tiny: ModuleType, tmp_path: Path) -> TeacherLibrary:
    """alpha@1 and alpha@2; wide@1, a pretext teacher of twice the features, another modality and longer clips; and
    both@1, an ensemble of alpha@1 (three quarters) and wide@1."""
    own = TeacherLibrary(tmp_path / "library")
    for teacher in (ONE, TWO):
        entry = library.entry(teacher)
        own.add("alpha", entry.card, entry.weights)
    card = tiny.make_card(
        "c3d", width=0.25, feature_size=128, modality="res", clip_len=10, min_clip_len=10, chunk_items=3
    )
    own.add("wide", card, tiny.save_random_weights(card, tmp_path / "wide", 5))
    assert own.add_ensemble("both", [(ONE, 3.0), (WIDE, 1.0)]) == BOTH
    return own


def clips(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, 10, 32, 32, 3), dtype=np.uint8)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    exps = np.exp(logits.astype(np.float64))
    return exps / exps.sum(axis=1, keepdims=True)


def test_an_ensemble_answers_the_logarithm_of_the_mean_probability(own: TeacherLibrary) -> None:
    pixels = clips(15)
    answer = load_teacher(own.entry(BOTH)).answer(pixels)
    one, wide = (FrozenTeacher.load(own.entry(teacher)).answer(pixels) for teacher in (ONE, WIDE))
    probabilities = 0.75 * softmax(one.logits) + 0.25 * softmax(wide.logits)
    np.testing.assert_array_equal(answer.logits, np.log(probabilities).astype(np.float32))
    np.testing.assert_array_equal(answer.features, np.concatenate([one.features, wide.features], axis=1))
    assert answer.logits.dtype == answer.features.dtype == np.float32


def test_an_ensembles_answer_does_not_depend_on_its_neighbours(own: TeacherLibrary) -> None:
    teacher, pixels = load_teacher(own.entry(BOTH)), clips(21)
    together = teacher.answer(pixels)
    for i in range(7):
        assert together.take([i]).equals(teacher.answer(pixels[3 * i : 3 * i + 3]))


@given(
    raw=st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3), min_size=2, max_size=4),
    seed=st.integers(0, 100),
)
def test_no_probability_is_lost_however_small(raw: list[list[float]], seed: int) -> None:
    weights = np.random.default_rng(seed).dirichlet(np.ones(len(raw)))
    found = mean_probability([np.asarray([row], dtype=np.float32) for row in raw], weights.tolist())
    wide = np.asarray(raw, dtype=np.longdouble)  # its exponents reach to 1e-4932
    exps = np.exp(wide - wide.max(axis=1, keepdims=True))
    with np.errstate(divide="ignore"):
        expected = np.log((weights[:, None] * exps / exps.sum(axis=1, keepdims=True)).sum(axis=0))
    assert np.isfinite(found).all()
    seen = np.isfinite(expected)
    np.testing.assert_allclose(found[0][seen], expected[seen].astype(np.float64), rtol=1e-6, atol=1e-6)


def test_the_card_has_the_signature_that_its_members_share(own: TeacherLibrary) -> None:
    card = own.entry(BOTH).card
    assert isinstance(card, EnsembleCard)
    one = own.entry(ONE).card
    assert (card.head, card.classes, card.crop, card.resize) == (one.head, one.classes, one.crop, one.resize)
    assert (card.arch, card.modality, card.views_per_item) == ("ensemble", "mixed", 3)
    assert (card.clip_len, card.min_clip_len, card.feature_size, card.chunk_items) == (10, 10, 192, 4)
    assert [member.weight for member in card.members] == [0.75, 0.25]
    twins = own.entry(own.add_ensemble("twins", [(ONE, 1e-3), (TWO, 1e-3)])).card
    assert (twins.modality, twins.feature_size) == ("rgb", 128)


def test_the_digest_is_that_of_the_card_and_the_members(own: TeacherLibrary) -> None:
    entry = own.entry(BOTH)
    card = json.dumps(entry.card.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    assert entry.digest == hashlib.sha256(b"ensemble\n" + card.encode()).hexdigest()
    assert own.entry(ONE).digest in card
    others = [[(ONE, 1.0), (WIDE, 1.0)], [(WIDE, 1.0), (ONE, 3.0)], [(TWO, 3.0), (WIDE, 1.0)]]
    digests = {own.entry(own.add_ensemble("both", members)).digest for members in others}
    assert len({*digests, entry.digest}) == 4
    again = own.add_ensemble("both", [(ONE, 300.0), (WIDE, 100.0)])
    assert (again.version, own.entry(again).digest) == (5, entry.digest)


def test_its_memory_is_that_of_all_members(own: TeacherLibrary) -> None:
    parts = [FrozenTeacher.load(own.entry(teacher)).num_bytes for teacher in (ONE, WIDE)]
    ensemble = load_teacher(own.entry(BOTH))
    assert isinstance(ensemble, FrozenEnsemble)
    assert (ensemble.num_bytes, ensemble.engine) == (sum(parts), "cpu")


def test_a_client_asks_it_as_any_teacher(own: TeacherLibrary, tiny: ModuleType, store: ClipStore) -> None:
    client = InProcessTeacherClient(own)
    try:
        query = tiny.views_query(store, tiny.draw(store, 5), teacher=BOTH, pixels=None, want_features=True)
        with pytest.raises(BadQuery, match="both@1 takes clips of at least 10 frames, got 8"):
            client.submit(query).result(60)
        twins = own.add_ensemble("twins", [(ONE, 1.0), (TWO, 1.0)])
        query = tiny.views_query(store, tiny.draw(store, 5), teacher=twins, want_features=True, temperature=1.0)
        reply = client.submit(query).result(60)
    finally:
        client.close()
    assert (reply.teacher, reply.digest) == (twins, own.entry(twins).digest)
    assert reply.features.shape == (5, 128)
    np.testing.assert_allclose(np.exp(reply.logits).sum(axis=1), 1, rtol=1e-5)  # log-probabilities, at temperature 1


@pytest.mark.parametrize("weights", [(0, 1), (-1, 1), (float("nan"), 1), (float("inf"), 1), (1e300, 1), (1, 1e-9)])
def test_a_weight_that_cannot_be_is_refused(own: TeacherLibrary, weights: tuple[float, float]) -> None:
    with pytest.raises(BadQuery, match="weights must be numbers > 0"):
        own.add_ensemble("odd", list(zip((ONE, TWO), weights, strict=True)))
    assert "odd" not in own.names()


def test_members_that_do_not_go_together_are_refused(own: TeacherLibrary, tiny: ModuleType, tmp_path: Path) -> None:
    for name, changes in (("action", {"head": "action"}), ("large", {"crop": 40, "resize": True})):
        card = tiny.make_card(**changes)
        own.add(name, card, tiny.save_random_weights(card, tmp_path / name, 1))
    with pytest.raises(
        BadQuery, match=r"action@1 cannot be .*: head is action, alpha@1 has pretext; classes is .*kick"
    ):
        own.add_ensemble("odd", [(ONE, 1.0), (TeacherId("action", 1), 1.0)])
    with pytest.raises(BadQuery, match="crop is 40, alpha@1 has 32; resize is True, alpha@1 has False"):
        own.add_ensemble("odd", [(ONE, 1.0), (TeacherId("large", 1), 1.0)])
    with pytest.raises(BadQuery, match="both@1 is an ensemble itself"):
        own.add_ensemble("odd", [(ONE, 1.0), (BOTH, 1.0)])
    with pytest.raises(BadQuery, match="members repeat"):
        own.add_ensemble("odd", [(ONE, 1.0), (ONE, 1.0)])
    for few in ([], [(ONE, 1.0)]):
        with pytest.raises(BadQuery, match=f"at least two members, got {len(few)}"):
            own.add_ensemble("odd", few)
    with pytest.raises(UnknownTeacher, match="alpha@9"):
        own.add_ensemble("odd", [(ONE, 1.0), (TeacherId("alpha", 9), 1.0)])
    assert "odd" not in own.names()


@pytest.mark.parametrize("change", ["weights", "card", "gone"])
def test_a_member_that_is_not_what_it_was_is_named(own: TeacherLibrary, tiny: ModuleType, change: str) -> None:
    folder = own.root / "alpha" / "1"
    if change == "weights":
        tiny.replace_weights(folder, own.entry(TWO).weights.read_bytes())
    elif change == "card":
        (folder / CARD).write_text((folder / CARD).read_text().replace('"chunk_items": 4', '"chunk_items": 5'))
    else:
        shutil.rmtree(folder)
    with pytest.raises(LibraryError, match=r"made with alpha@1 of digest|its member is gone: no teacher 'alpha@1'"):
        own.entry(BOTH)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"classes": ["a", "b"]}, "classes is .* its members make it"),
        ({"min_clip_len": 8}, "min_clip_len is 8, its members make it 10"),
        ({"feature_size": 64}, "feature_size is 64, its members make it 192"),
        ({"crop": 64}, "crop is 64, its members make it 32"),
        ({"modality": "rgb"}, "modality is 'rgb', its members make it 'mixed'"),
        ({"arch": "r3d"}, "arch: "),
        ({"members": []}, "members: "),
        ({"kind": "teacher"}, "modality: "),
    ],
)
def test_a_card_that_its_members_do_not_bear_out_is_refused(
    own: TeacherLibrary, changes: dict[str, object], match: str
) -> None:
    path = own.root / "both" / "1" / CARD
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(LibraryError, match=match):
        own.entry(BOTH)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"teacher": "../alpha@1"}, "is no teacher name"),
        ({"teacher": "alpha"}, "names no version"),
        ({"teacher": "a\0b@1"}, "is no teacher name"),
        ({"teacher": "x" * 300 + "@1"}, "is no teacher name"),
        ({"teacher": "both@1"}, "both@1 is an ensemble itself"),
        ({"teacher": "nobody@1"}, "its member is gone"),
        ({"teacher": 7}, "members.0.teacher: "),
        ({"digest": "0" * 63}, "64 hex digits"),
        ({"digest": "0" * 64}, "made with alpha@1 of digest 000000000000"),
        ({"weight": 0.5}, "weights sum to 0.75, expected 1"),
        ({"weight": -0.75}, "members.0.weight: "),
        ({"weight": float("nan")}, "members.0.weight: |JSON"),
    ],
)
def test_a_member_that_cannot_be_is_refused(own: TeacherLibrary, changes: dict[str, object], match: str) -> None:
    path = own.root / "both" / "1" / CARD
    card = json.loads(path.read_text())
    card["members"][0] |= changes
    path.write_text(json.dumps(card))
    with pytest.raises(LibraryError, match=match):
        own.entry(BOTH)
