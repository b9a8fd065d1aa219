"""A frozen teacher: the same numbers as the plain network, whatever shares its chunks, and damaged files refused."""

from __future__ import annotations

import dataclasses
import gc
import shutil
import threading
import weakref
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from data.prepare import InputSpec, prepare
from teacher_server.answering import answer_together
from teacher_server.batching.batcher import Part
from teacher_server.engine.teacher import FrozenTeacher, TeacherAnswer, build_teacher_network
from teacher_server.errors import BadQuery, LibraryError, LibraryUnreadable
from teacher_server.library import TeacherEntry, TeacherLibrary
from teacher_server.protocol import TeacherId


def clips(count: int, seed: int = 0, frames: int = 8, side: int = 32) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, frames, side, side, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def teacher(library: TeacherLibrary) -> FrozenTeacher:
    return FrozenTeacher.load(library.entry(TeacherId("alpha", 1)))


def plain_network(entry: TeacherEntry, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The reference: one item at a time, through the module as torch knows it."""
    network = build_teacher_network(entry.card).eval()
    network.load_state_dict(load_file(entry.weights))
    card = entry.card
    x = prepare(pixels, InputSpec(mean=card.mean, std=card.std, modality=card.modality, crop=card.crop))
    views = card.views_per_item
    logits, features = [], []
    with torch.no_grad():
        for i in range(0, len(x), views):
            each = [network.backbone(x[i + v : i + v + 1]) for v in range(views)]
            head = network.action_head(each[0]) if network.action_head else network.pretext_head(each)
            logits.append(head[0].numpy())
            features.append(torch.cat(each).mean(dim=0).numpy())
    return np.stack(logits), np.stack(features)


@pytest.mark.parametrize(("name", "side"), [("alpha", 32), ("beta", 32), ("gamma", 24)])
def test_answers_are_those_of_the_plain_network(library: TeacherLibrary, name: str, side: int) -> None:
    entry = library.entry(TeacherId(name, 1))
    pixels = clips(5 * entry.card.views_per_item, side=side)
    answer = FrozenTeacher.load(entry).answer(pixels)
    logits, features = plain_network(entry, pixels)
    np.testing.assert_allclose(answer.logits, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(answer.features, features, rtol=1e-4, atol=1e-5)


def test_an_answer_does_not_depend_on_its_neighbours_or_its_place(teacher: FrozenTeacher) -> None:
    pixels = clips(33)  # 11 items, chunks of 4
    together = teacher.answer(pixels)
    alone = [teacher.answer(pixels[3 * i : 3 * i + 3]) for i in range(11)]
    np.testing.assert_array_equal(together.logits, np.concatenate([answer.logits for answer in alone]))
    np.testing.assert_array_equal(together.features, np.concatenate([answer.features for answer in alone]))


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_an_answer_does_not_depend_on_its_row_in_the_head_s_matrix(library: TeacherLibrary, name: str) -> None:
    """Some CPUs' matrix products give a row other bits at another place. A head that does so on every CPU stands in."""
    teacher = FrozenTeacher.load(library.entry(TeacherId(name, 1)))
    network = teacher._network
    head = network.pretext_head or network.action_head
    assert head is not None
    head.register_forward_hook(lambda _head, _inputs, logits: logits + 0.01 * torch.arange(len(logits))[:, None])
    teacher.self_test("the head of another CPU")
    views = teacher.card.views_per_item
    pixels = clips(4 * views)
    answer = teacher.answer(np.roll(pixels, views, axis=0))
    assert answer.equals(teacher.answer(pixels).take([3, 0, 1, 2]))


def test_merged_questions_get_the_answers_that_they_would_get_alone(teacher: FrozenTeacher) -> None:
    questions = [clips(3 * items, seed=items) for items in (1, 5, 2, 4)]
    parts = [Part(question, 0, len(question) // 3) for question in questions]
    for merged, question in zip(answer_together(teacher, parts), questions, strict=True):
        alone = teacher.answer(question)
        np.testing.assert_array_equal(merged.logits, alone.logits)
        np.testing.assert_array_equal(merged.features, alone.features)


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_answers_do_not_depend_on_the_number_of_threads(library: TeacherLibrary, name: str) -> None:
    entry, before = library.entry(TeacherId(name, 1)), torch.get_num_threads()
    pixels, answers = clips(9 * entry.card.views_per_item), []
    try:
        for torch_threads, num_threads in ((1, 1), (4, 1), (4, 3)):
            torch.set_num_threads(torch_threads)
            answers.append(FrozenTeacher.load(entry, num_threads=num_threads).answer(pixels))
            assert torch.get_num_threads() == torch_threads  # the caller keeps its own number
    finally:
        torch.set_num_threads(before)
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer.logits, answers[0].logits)
        np.testing.assert_array_equal(answer.features, answers[0].features)


def test_longer_clips_than_it_was_trained_with_are_answered(teacher: FrozenTeacher) -> None:
    assert teacher.answer(clips(3, frames=16)).logits.shape == (1, 5)


def test_read_only_pixels_are_answered_and_left_as_they_are(teacher: FrozenTeacher) -> None:
    pixels = clips(3)
    before = pixels.copy()
    pixels.flags.writeable = False
    teacher.answer(pixels)
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize(
    ("pixels", "match"),
    [
        (clips(4), r"whole items of 3 clips, got \[4, 8, 32, 32, 3\]"),
        (clips(3)[:0], "whole items of 3"),
        (clips(3, frames=4), "at least 8 frames, got 4"),
        (clips(3, side=40), "takes 32x32 pixels, got 40x40"),
    ],
)
def test_pixels_that_do_not_fit_are_refused(teacher: FrozenTeacher, pixels: NDArray[np.uint8], match: str) -> None:
    with pytest.raises(BadQuery, match=match):
        teacher.answer(pixels)


def test_the_weights_are_frozen(teacher: FrozenTeacher) -> None:
    parameters = list(teacher._network.parameters())
    assert parameters
    assert not any(parameter.requires_grad for parameter in parameters)
    assert not teacher._network.training


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        ("missing", "1 tensors are missing .'backbone"),
        ("extra", "1 are unknown .'surplus'"),
        ("shape", "pretext_head.linear.bias is torch.float32 .6., the card's network has torch.float32 .5."),
        ("dtype", "pretext_head.linear.bias is torch.float64"),
        ("nan", "pretext_head.linear.bias holds values that are not finite"),
        ("bytes", "cannot be read as safetensors"),
        ("pickle", "cannot be read as safetensors"),
    ],
)
def test_damaged_weights_are_named(library: TeacherLibrary, tmp_path: Path, damage: str, match: str) -> None:
    own = TeacherLibrary(tmp_path / "library")
    entry = library.entry(TeacherId("alpha", 1))
    own.add("alpha", entry.card, _damaged(entry.weights, tmp_path / "damaged", damage))
    bad = own.entry(TeacherId("alpha", 1))
    with pytest.raises(LibraryError, match=match) as caught:
        FrozenTeacher.load(bad)
    assert str(bad.weights) in str(caught.value)


def test_weights_that_change_after_they_were_hashed_are_refused(library: TeacherLibrary, tmp_path: Path) -> None:
    own = TeacherLibrary(tmp_path / "library")
    sound = library.entry(TeacherId("alpha", 1))
    entry = own.entry(own.add("alpha", sound.card, sound.weights))
    shutil.copyfile(library.entry(TeacherId("alpha", 2)).weights, entry.weights)  # sound too, but another teacher
    with pytest.raises(LibraryError, match="it was changed since"):
        FrozenTeacher.load(entry)


def test_the_memory_of_a_teacher_is_that_of_its_parameters(library: TeacherLibrary) -> None:
    entry = library.entry(TeacherId("alpha", 1))
    network = build_teacher_network(entry.card)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm3d)]
    # Folding leaves one bias of a batch-norm's four vectors, and no counter of batches.
    plain = sum(tensor.nbytes for tensor in network.state_dict().values())
    assert FrozenTeacher.load(entry).num_bytes == plain - sum(3 * 4 * norm.num_features + 8 for norm in norms)


class Forgetful(FrozenTeacher):
    """A teacher with a fault of some kind."""

    fault = ""

    def answer(self, pixels_NTHW3: NDArray[np.uint8]) -> TeacherAnswer:
        answer = super().answer(pixels_NTHW3)
        self.calls = getattr(self, "calls", 0) + 1
        if self.fault == "second" and self.calls == 2:
            answer.logits[-1, -1] += 1e-6
        if self.fault == "place":
            answer.features[:] += 1e-6 * np.arange(len(answer.features))[:, None]
        if self.fault == "neighbours" and len(answer.logits) == 1:
            answer.logits[0, 0] = np.nextafter(answer.logits[0, 0], np.float32(9))
        if self.fault == "nan":
            answer.features[0, 0] = np.nan
        return answer


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("second", "other numbers the second time"),
        ("neighbours", "other numbers for the first item alone"),
        ("place", "other numbers in another place of the chunk"),
        ("nan", "numbers that are not finite"),
    ],
)
def test_the_self_test_finds_answers_that_depend_on_anything_else(
    library: TeacherLibrary, monkeypatch: pytest.MonkeyPatch, fault: str, match: str
) -> None:
    entry = library.entry(TeacherId("alpha", 1))
    monkeypatch.setattr(Forgetful, "fault", "")
    Forgetful.load(entry)  # the control
    monkeypatch.setattr(Forgetful, "fault", fault)
    with pytest.raises(LibraryError, match=match):
        Forgetful.load(entry)


def no_room_on_the_machine() -> Exception:
    """As torch itself says it."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    return caught.value


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError("no room"), LibraryUnreadable),
        (torch.OutOfMemoryError("CUDA out of memory"), LibraryUnreadable),
        (no_room_on_the_machine(), LibraryUnreadable),
        (RuntimeError("could not create a primitive"), LibraryError),
    ],
)
def test_a_self_test_that_found_too_little_memory_may_be_tried_again(
    library: TeacherLibrary, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[LibraryError]
) -> None:
    def fail(*_: object) -> TeacherAnswer:
        raise error

    monkeypatch.setattr(FrozenTeacher, "answer", fail)
    with pytest.raises(LibraryError, match=f"cannot be computed on cpu: {type(error).__name__}") as caught:
        FrozenTeacher.load(library.entry(TeacherId("alpha", 1)))
    assert type(caught.value) is kind


def test_a_teacher_that_is_gone_leaves_its_threads_to_the_next(library: TeacherLibrary) -> None:
    def load() -> FrozenTeacher:
        return FrozenTeacher.load(library.entry(TeacherId("alpha", 1)), num_threads=2)

    first, second = load(), load()
    assert first._threads is not second._threads
    left, before = first._threads, threading.active_count()
    del first
    third = load()
    assert third._threads is left
    for _ in range(5):
        del third
        third = load()
    assert threading.active_count() == before
    assert third.answer(clips(30)).equals(second.answer(clips(30)))


def test_batch_norm_is_folded_away(teacher: FrozenTeacher) -> None:
    assert not any(isinstance(module, torch.nn.BatchNorm3d) for module in teacher._network.modules())


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_bfloat16_answers_are_close_and_as_independent(library: TeacherLibrary, tmp_path: Path, name: str) -> None:
    full = library.entry(TeacherId(name, 1))
    own = TeacherLibrary(tmp_path / "library")
    half = own.entry(own.add(name, full.card.model_copy(update={"precision": "bfloat16"}), full.weights))
    teacher, views = FrozenTeacher.load(half), half.card.views_per_item
    pixels = clips(9 * views)
    answer, expected = teacher.answer(pixels), FrozenTeacher.load(full).answer(pixels)
    assert answer.logits.dtype == answer.features.dtype == np.float32
    assert not answer.equals(expected)
    np.testing.assert_allclose(answer.logits, expected.logits, atol=0.05)
    assert answer.take([8]).equals(teacher.answer(pixels[8 * views :]))
    assert FrozenTeacher.load(half, num_threads=3).answer(pixels).equals(answer)
    assert half.digest != full.digest


def _damaged(weights: Path, target: Path, damage: str) -> Path:
    tensors = load_file(weights)
    bias = tensors["pretext_head.linear.bias"]
    if damage == "missing":
        del tensors[next(name for name in sorted(tensors) if name.startswith("backbone"))]
    elif damage == "extra":
        tensors["surplus"] = torch.zeros(1)
    elif damage == "shape":
        tensors["pretext_head.linear.bias"] = torch.zeros(6)
    elif damage == "dtype":
        tensors["pretext_head.linear.bias"] = bias.double()
    elif damage == "nan":
        tensors["pretext_head.linear.bias"] = torch.full_like(bias, float("nan"))
    save_file(tensors, target)
    if damage == "bytes":
        target.write_bytes(target.read_bytes()[:100])
    elif damage == "pickle":
        torch.save(tensors, target)
    return target


@pytest.mark.parametrize(
    ("change", "match"),
    [({"arch_version": 99}, "made for version 99 of r3d"), ({"feature_size": 63}, "feature_size is 63, r3d has 64")],
)
def test_a_card_that_does_not_fit_the_program_is_refused(
    library: TeacherLibrary, tiny: ModuleType, change: dict[str, int], match: str
) -> None:
    entry = dataclasses.replace(library.entry(TeacherId("alpha", 1)), card=tiny.make_card(**change))
    with pytest.raises(LibraryError, match=match):
        FrozenTeacher.load(entry)


def test_a_teacher_that_nobody_holds_is_gone_at_once(library: TeacherLibrary) -> None:
    """A replica's memory budget counts on it: replicas seldom collect garbage."""
    entry = library.entry(TeacherId("alpha", 1))
    # At the first one, torch imports more, and keeps what called it until the next collection.
    FrozenTeacher.load(entry)
    gc.disable()
    try:
        teacher = FrozenTeacher.load(entry)
        alive = weakref.ref(teacher)
        del teacher
        assert alive() is None
    finally:
        gc.enable()
