"""Students as files for other programs: the names in them, and the numbers that they give elsewhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from teacher_server.importers.plan import make_plan
from teacher_server.importers.source import read_source
from teacher_server.importers.wishes import Wishes
from teacher_server.zoo.names import ARCHITECTURES, TORCHVISION_ARCHITECTURES
from teacher_server.zoo.network import VideoNetwork
from trainer.config import ConfigError, RunConfig
from trainer.export_files import write_onnx, write_pth
from trainer.student_files import LoadedStudent


def student(arch: str, **heads: int) -> LoadedStudent:
    """Random in every tensor, batch-norm statistics included."""
    torch.manual_seed(0)
    network = VideoNetwork(arch, 0.125, **heads).eval()
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(0.1 * torch.randn_like(tensor))
    config = RunConfig(teacher="none", student=arch, width=0.125, clip_len=8, crop=32)
    return LoadedStudent(network, config, "0" * 64, Path("runs/mine"), ("a", "b", "c"))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_state_dict_is_read_without_trust_and_imported_with_the_same_weights(tmp_path: Path, arch: str) -> None:
    made = student(arch, action_classes=3)
    write_pth(made, tmp_path / "mine.pth")
    assert len(torch.load(tmp_path / "mine.pth", weights_only=True)) == len(made.network.state_dict())
    plan = make_plan(read_source(tmp_path / "mine.pth"), Wishes(head="action"))
    assert (plan.card.arch, plan.card.head) == (arch, "action")
    for name, tensor in plan.tensors.items():
        assert torch.equal(tensor, made.network.state_dict()[name]), name


@pytest.mark.parametrize("arch", TORCHVISION_ARCHITECTURES)
def test_torchvision_s_networks_have_its_names(tmp_path: Path, arch: str) -> None:
    write_pth(student(arch, pretext_classes=0, action_classes=3), tmp_path / "mine.pth")
    names = torch.load(tmp_path / "mine.pth", weights_only=True).keys()
    assert {"stem.0.weight", "layer4.1.conv2.1.running_var", "fc.weight", "fc.bias"} <= names
    ours = {name for name in names if name.split(".")[0] not in ("stem", "layer1", "layer2", "layer3", "layer4", "fc")}
    assert ours == {f"projector.mlp.{i}.{leaf}" for i in (0, 2) for leaf in ("weight", "bias")}


def test_other_networks_keep_their_own_names(tmp_path: Path) -> None:
    made = student("r3d")
    write_pth(made, tmp_path / "mine.pth")
    assert torch.load(tmp_path / "mine.pth", weights_only=True).keys() == made.network.state_dict().keys()


def answers_of(path: Path, clips: dict[str, torch.Tensor]) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """What another runtime says, by the names of the outputs, and the model's metadata."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    values = session.run(None, {name: clip.numpy() for name, clip in clips.items()})
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["preceptor"])
    return dict(zip(names, values, strict=True)), metadata


@pytest.mark.parametrize("arch", ["c3d", "r2plus1d", "mc3_18"])
def test_a_clip_s_answers_are_the_same_in_another_runtime(tmp_path: Path, arch: str) -> None:
    made = student(arch, action_classes=3)
    write_onnx(made, tmp_path / "mine.onnx")
    clip = torch.randn(5, 3, 8, 32, 32)
    answers, metadata = answers_of(tmp_path / "mine.onnx", {"clip": clip})
    network = made.network
    with torch.no_grad():
        features = network.features(clip)
        expected = {
            "features": features,
            "action_logits": network.action_head(features),
            "projection": network.projector(features),
        }
    assert answers.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(answers[name], value.numpy(), rtol=1e-4, atol=1e-5)
    assert metadata["classes"] == ["a", "b", "c"]
    assert (metadata["arch"], metadata["clip_len"], metadata["crop"], metadata["modality"]) == (arch, 8, 32, "res")
    assert metadata["mean"] == [0.485, 0.456, 0.406]


def test_a_tuple_s_pretext_answer_is_the_same_in_another_runtime(tmp_path: Path) -> None:
    made = student("r3d_18")
    write_onnx(made, tmp_path / "mine.onnx", "tuple")
    clips = tuple(torch.randn(3, 3, 8, 32, 32) for _ in range(3))
    answers, metadata = answers_of(tmp_path / "mine.onnx", dict(zip(("first", "middle", "last"), clips, strict=True)))
    with torch.no_grad():
        expected = made.network.forward_tuple(clips).pretext_logits
    assert answers.keys() == {"pretext_logits"}
    np.testing.assert_allclose(answers["pretext_logits"], expected.numpy(), rtol=1e-4, atol=1e-5)
    assert metadata["takes"] == "tuple"


def test_a_tuple_needs_a_pretext_head(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no pretext head: export it with --takes clip"):
        write_onnx(student("c3d", pretext_classes=0), tmp_path / "mine.onnx", "tuple")
    assert not (tmp_path / "mine.onnx").exists()


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r'pip install "preceptor\[onnx\]"'):
        write_onnx(student("c3d"), tmp_path / "mine.onnx")
