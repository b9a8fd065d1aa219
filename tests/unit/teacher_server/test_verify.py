"""Verifying a teacher and choosing its precision."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.torch import load_file

from teacher_server.engine import verify as verify_module
from teacher_server.engine.teacher import FrozenTeacher
from teacher_server.engine.verify import PrecisionReport, choose_precision, compare_precisions, verify_teacher
from teacher_server.errors import BadQuery, LibraryError
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId

GOOD = PrecisionReport(float32_ms=3.0, bfloat16_ms=2.0, max_difference=0.01, agreement=1.0, items=8)


@pytest.mark.parametrize(
    ("change", "objection"),
    [
        ({"bfloat16_ms": 2.9}, "bfloat16 is 1.03 times as fast, at least 1.2 is asked"),
        ({"max_difference": 0.05}, "a probability is off by 0.0500, at most 0.02 is asked"),
        ({"agreement": 0.5}, "50.0% of 8 items agree, 99% is asked"),
        ({"max_difference": float("nan")}, "a probability is off by nan"),
        ({"problem": "not repeatable"}, "not repeatable"),
    ],
)
def test_bfloat16_must_be_faster_and_close(
    library: TeacherLibrary, monkeypatch: pytest.MonkeyPatch, change: dict[str, float], objection: str
) -> None:
    card = library.entry(TeacherId("alpha", 1)).card
    monkeypatch.setattr(verify_module, "compare_precisions", lambda *_: GOOD)
    assert choose_precision(card, {}).precision == "bfloat16"
    bad = dataclasses.replace(GOOD, **change)
    monkeypatch.setattr(verify_module, "compare_precisions", lambda *_: bad)
    assert choose_precision(card, {}).precision == "float32"
    assert len(bad.objections()) == 1
    assert objection in bad.objections()[0]


def test_the_difference_is_that_of_the_two_teachers(library: TeacherLibrary, tiny: ModuleType, tmp_path: Path) -> None:
    entry = library.entry(TeacherId("beta", 1))
    pixels = np.random.default_rng(7).integers(0, 256, (11, 8, 32, 32, 3), dtype=np.uint8)
    report = compare_precisions(entry.card, load_file(entry.weights), pixels=pixels)
    own, probabilities = TeacherLibrary(tmp_path / "library"), []
    for precision in ("float32", "bfloat16"):
        card = tiny.make_card("r2plus1d", "action", precision=precision)
        teacher = FrozenTeacher.load(own.entry(own.add("beta", card, entry.weights)))
        noise = np.random.default_rng(1).integers(0, 256, (4, 8, 32, 32, 3), dtype=np.uint8)
        exps = np.exp(np.concatenate([teacher.answer(noise).logits, teacher.answer(pixels).logits]).astype(np.float64))
        probabilities.append(exps / exps.sum(axis=1, keepdims=True))
    p, q = probabilities
    assert report.items == 15
    assert report.max_difference == pytest.approx(np.abs(p - q).max(), rel=1e-9)
    assert 0 < report.max_difference < 0.02
    assert report.agreement == np.mean(p.argmax(axis=1) == q.argmax(axis=1))
    assert report.speed_up == report.float32_ms / report.bfloat16_ms > 0


def test_the_weights_are_left_as_they_were(library: TeacherLibrary) -> None:
    entry = library.entry(TeacherId("alpha", 1))
    weights, before = load_file(entry.weights), load_file(entry.weights)
    choose_precision(entry.card, weights)
    assert weights.keys() == before.keys()
    for name, tensor in before.items():
        assert weights[name].dtype == tensor.dtype
        np.testing.assert_array_equal(weights[name].numpy(), tensor.numpy())


def test_a_network_that_fails_its_self_test_in_bfloat16_stays_in_float32(
    library: TeacherLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, test = library.entry(TeacherId("alpha", 1)), FrozenTeacher.self_test

    def fail_half(teacher: FrozenTeacher, path: str) -> None:
        test(teacher, path)
        if teacher.card.precision == "bfloat16":
            raise LibraryError(path, "other numbers the second time")

    monkeypatch.setattr(FrozenTeacher, "self_test", fail_half)
    choice = choose_precision(entry.card, load_file(entry.weights))
    assert choice.precision == "float32"
    assert "other numbers the second time" in choice.report.objections()[0]


def test_weights_or_pixels_that_do_not_fit_are_refused(library: TeacherLibrary) -> None:
    entry = library.entry(TeacherId("alpha", 1))
    weights = load_file(entry.weights)
    with pytest.raises(BadQuery, match="whole items of 3 clips"):
        choose_precision(entry.card, weights, pixels=np.zeros((4, 8, 32, 32, 3), dtype=np.uint8))
    weights.pop("pretext_head.linear.bias")
    with pytest.raises(LibraryError, match=r"1 tensors are missing \['pretext_head.linear.bias'\]"):
        choose_precision(entry.card, weights)


def test_verifying_names_the_teacher_and_reports_on_every_network(library: TeacherLibrary, tmp_path: Path) -> None:
    own = TeacherLibrary(tmp_path / "library")
    ids = [own.add("alpha", entry.card, entry.weights) for entry in map(library.entry, (TeacherId("alpha", 1),) * 2)]
    verified = verify_teacher(own.entry(ids[0]))
    assert (verified.teacher, verified.digest, verified.engine) == (ids[0], own.entry(ids[0]).digest, "cpu")
    assert verified.num_bytes == FrozenTeacher.load(own.entry(ids[0])).num_bytes
    assert verified.ms_per_clip > 0
    assert len(verified.reports) == 1
    both = verify_teacher(own.entry(own.add_ensemble("both", [(each, 1.0) for each in ids])))
    assert (len(both.reports), both.num_bytes) == (2, 2 * verified.num_bytes)


def test_a_damaged_teacher_is_not_verified(library: TeacherLibrary, tmp_path: Path) -> None:
    own = TeacherLibrary(tmp_path / "library")
    sound = library.entry(TeacherId("alpha", 1))
    entry = own.entry(own.add("alpha", sound.card, sound.weights))
    entry.weights.write_bytes(entry.weights.read_bytes()[:-1])
    with pytest.raises(LibraryError, match="it was changed since"):
        verify_teacher(entry)
