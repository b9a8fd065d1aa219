"""The frozen backbone: precision, compiling, and which inputs a recorded pass serves."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from teacher_server.engine import backbone as backbone_module
from teacher_server.engine.backbone import Forward, FrozenBackbone, GraphCache
from teacher_server.engine.teacher import FrozenTeacher
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId
from teacher_server.zoo.registry import build_backbone

CPU = torch.device("cpu")


def test_bfloat16_is_close_to_float32_and_half_its_size() -> None:
    torch.manual_seed(0)
    network = build_backbone("r2plus1d", 0.125).eval().requires_grad_(False)
    x = torch.randn(2, 3, 8, 32, 32)
    expected = network(x)
    half = copy.deepcopy(network)
    features = FrozenBackbone(half, CPU, "bfloat16")(x)
    assert features.dtype == torch.float32
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.bfloat16}
    assert not torch.equal(features, expected)
    torch.testing.assert_close(features, expected, rtol=0.05, atol=0.02)


def test_a_cpu_never_records_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Forward:
        raise AssertionError("a graph was recorded")

    monkeypatch.setattr(backbone_module, "_record", refuse)
    network = build_backbone("c3d", 0.125).eval().requires_grad_(False)
    assert FrozenBackbone(network, CPU)(torch.zeros(1, 3, 8, 32, 32)).shape == (1, 64)


def test_a_shape_is_recorded_once_and_the_least_recently_used_one_is_dropped() -> None:
    recorded: list[int] = []

    def record(forward: Forward, example: Tensor) -> Forward:
        length = len(example)
        recorded.append(length)

        def replay(x: Tensor) -> Tensor:
            assert len(x) == length  # a recording serves its own shape only
            return forward(x)

        return replay

    cache = GraphCache(record, max_graphs=2)
    for length in (1, 2, 1, 3, 1, 2):  # 3 drops 2, which was not used for longest, and 2 then drops 3
        x = torch.arange(float(length))
        assert torch.equal(cache(lambda x: x + 1, x), x + 1)
    assert recorded == [1, 2, 3, 2]


# torch's own compiler uses things that torch deprecates.
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
def test_a_compiled_teacher_gives_nearly_the_same_answers_and_disturbs_no_other(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    library, weights = TeacherLibrary(tmp_path / "library"), tmp_path / "weights"
    card = tiny.make_card("c3d")
    tiny.save_random_weights(card, weights, 0)
    for compiled in (False, True):
        library.add("alpha", card.model_copy(update={"compile": compiled}), weights)
    pixels = np.random.default_rng(0).integers(0, 256, (15, 8, 32, 32, 3), dtype=np.uint8)
    plain = FrozenTeacher.load(library.entry(TeacherId("alpha", 1)))
    expected = plain.answer(pixels)
    loaded, others = threading.Event(), []

    def go_on() -> None:
        while not loaded.wait(0.02):  # compiling needs the processor too
            others.append(plain.answer(pixels[:3]))

    beside = threading.Thread(target=go_on)
    beside.start()
    try:
        compiled_teacher = FrozenTeacher.load(library.entry(TeacherId("alpha", 2)))
    finally:
        loaded.set()
        beside.join()
    assert others
    assert all(answer.equals(expected.take([0])) for answer in others)
    answer = compiled_teacher.answer(pixels)
    np.testing.assert_allclose(answer.logits, expected.logits, rtol=1e-4, atol=1e-5)
    assert answer.take([4]).equals(compiled_teacher.answer(pixels[12:]))
    longer = np.repeat(pixels, 2, axis=1)  # another shape runs uncompiled, as it would without compiling
    assert compiled_teacher.answer(longer).equals(plain.answer(longer))
    assert compiled_teacher.digest != plain.digest
