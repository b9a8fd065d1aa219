"""A frozen teacher: the same numbers as the plain network, whatever shares its chunks, and damaged files refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from data.prepare import InputSpec, prepare
from teacher_server.answering import answer_together
from teacher_server.errors import BadQuery, LibraryError
from teacher_server.library import TeacherEntry, TeacherLibrary
from teacher_server.protocol import TeacherId
from teacher_server.teacher import FrozenTeacher, build_teacher_network


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


def test_merged_questions_get_the_answers_that_they_would_get_alone(teacher: FrozenTeacher) -> None:
    questions = [clips(3 * items, seed=items) for items in (1, 5, 2, 4)]
    for merged, question in zip(answer_together(teacher, questions), questions, strict=True):
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
    entry = library.entry(TeacherId("alpha", 1))
    bad = _damaged(entry.weights, tmp_path / "model.safetensors", damage)
    with pytest.raises(LibraryError, match=match) as caught:
        FrozenTeacher.load(dataclasses.replace(entry, folder=bad.parent))
    assert str(bad) in str(caught.value)


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
