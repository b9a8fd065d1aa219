"""Networks that users bring along: the documented example as it stands there, and what is refused."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data.plugins import PluginError, PluginNotAllowed
from data.prepare import prepare
from teacher_server.engine.teacher import FrozenTeacher
from teacher_server.errors import LibraryError
from teacher_server.library import TeacherLibrary
from teacher_server.zoo.names import UnknownArchitecture, is_architecture_name
from teacher_server.zoo.network import VideoNetwork
from teacher_server.zoo.registry import build_backbone

DOCUMENT = Path(__file__).parents[3] / "docs" / "plugins.md"
MODULE, NAME = "mynets", "mynets:Small"


def documented_example() -> str:
    section = DOCUMENT.read_text(encoding="utf-8").split("\n## Architectures\n")[1].split("\n## ")[0]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example as mynets.py, importable; nobody has allowed cards to name it."""
    path = tmp_path / "code" / f"{MODULE}.py"
    path.parent.mkdir()
    path.write_text(documented_example())
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.delenv("PRECEPTOR_PLUGINS", raising=False)
    sys.modules.pop(MODULE, None)
    yield path
    sys.modules.pop(MODULE, None)


def test_the_documented_example_has_at_most_15_lines() -> None:
    assert 1 <= len(documented_example().splitlines()) <= 15


@pytest.mark.usefixtures("example")
def test_the_documented_network_trains_with_all_heads() -> None:
    torch.manual_seed(0)
    network = VideoNetwork(NAME, 0.25, action_classes=4, trusted=True).train()
    clips = tuple(torch.randn(3, 3, 8, 32, 32) for _ in range(3))
    output = network.forward_tuple(clips)
    assert network.feature_size == 16
    (output.pretext_logits.square().sum() + output.z1.sum() + output.z2.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.backbone.parameters())
    assert network.backbone.conv.weight.grad.abs().sum() > 0


@pytest.mark.usefixtures("example")
def test_the_documented_network_teaches_once_it_is_allowed(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = VideoNetwork(NAME, 0.25, projector=False, trusted=True).eval()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    library = TeacherLibrary(tmp_path / "library")
    card = tiny.make_card(NAME, width=0.25, feature_size=16)
    entry = library.entry(library.add("small", card, tmp_path / "weights.safetensors"))
    with pytest.raises(LibraryError, match=f"start every process with PRECEPTOR_PLUGINS={NAME}"):
        FrozenTeacher.load(entry)

    monkeypatch.setenv("PRECEPTOR_PLUGINS", NAME)
    frozen = FrozenTeacher.load(entry)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 32, 32, 3), dtype=np.uint8)
    with torch.inference_mode():
        features = network.features(prepare(pixels, frozen.input_spec)).unflatten(0, (-1, 3))
        expected = network.pretext_logits(features.unbind(dim=1)).numpy()
    np.testing.assert_allclose(frozen.answer(pixels).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_name_from_a_file_does_not_import_its_module(example: Path) -> None:
    example.write_text(f"open({str(example.with_suffix('.ran'))!r}, 'w').close()\n")
    with pytest.raises(PluginNotAllowed):
        build_backbone(NAME)
    with pytest.raises(PluginNotAllowed):
        VideoNetwork(NAME)
    assert MODULE not in sys.modules
    assert not example.with_suffix(".ran").exists()


def test_a_card_may_name_a_plug_in_but_no_unknown_word(tiny: ModuleType) -> None:
    assert tiny.make_card(NAME).arch == NAME
    for name in ("resnet", "os.system", "a:b:c", "../mynets:Small", ""):
        assert not is_architecture_name(name)
        with pytest.raises(ValueError, match="is not one of"):
            tiny.make_card(name)
        with pytest.raises(UnknownArchitecture):
            build_backbone(name, trusted=True)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("Small = 7", r"expected a function\(width\), got int"),
        ("def Small(width): raise RuntimeError('no licence')", "calling it with width 1 failed with RuntimeError: no"),
        ("def Small(width): return 7", "expected an nn.Module with a whole number feature_size, got int with None"),
        ("from torch import nn\ndef Small(width): return nn.Identity()", "got Identity with None"),
    ],
)
def test_what_gives_no_network_is_refused(example: Path, code: str, message: str) -> None:
    example.write_text(code)
    with pytest.raises(PluginError, match=message):
        build_backbone(NAME, trusted=True)


@pytest.mark.usefixtures("example")
def test_a_width_that_gives_no_network_is_refused_before_the_plug_in_is_asked() -> None:
    with pytest.raises(ValueError, match="width must be a positive number"):
        build_backbone(NAME, 0.0, trusted=True)


FRAME_BY_FRAME = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.feature_size = 16
        self.conv, self.norm = nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16)
        self.register_buffer("weights", torch.linspace(0, 1, 8), persistent=False)

    def forward(self, clip):
        frames = clip.transpose(1, 2)
        maps = self.norm(self.conv(frames.flatten(0, 1))).relu().mean(dim=(2, 3))
        return (maps.unflatten(0, frames.shape[:2]) * self.weights[:, None]).mean(dim=1)
"""


def test_a_network_of_single_frames_with_a_constant_of_its_own_teaches(
    example: Path, tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example.write_text(FRAME_BY_FRAME)
    monkeypatch.setenv("PRECEPTOR_PLUGINS", NAME)
    torch.manual_seed(0)
    network = VideoNetwork(NAME, projector=False).eval()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    library = TeacherLibrary(tmp_path / "library")
    entry = library.entry(library.add("small", tiny.make_card(NAME, feature_size=16), tmp_path / "weights.safetensors"))
    before = torch.get_rng_state()
    frozen = FrozenTeacher.load(entry)
    assert torch.equal(torch.get_rng_state(), before)  # a student in the same process draws what it drew without it
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 32, 32, 3), dtype=np.uint8)
    with torch.inference_mode():
        features = network.features(prepare(pixels, frozen.input_spec)).unflatten(0, (-1, 3))
        expected = network.pretext_logits(features.unbind(dim=1)).numpy()
    np.testing.assert_allclose(frozen.answer(pixels).logits, expected, rtol=1e-4, atol=1e-5)


def test_what_a_network_raises_when_it_is_tried_becomes_one_sentence(
    example: Path, tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example.write_text(
        FRAME_BY_FRAME.replace("frames = clip", "raise KeyError('no such layer')\n        frames = clip")
    )
    monkeypatch.setenv("PRECEPTOR_PLUGINS", NAME)
    save_file(VideoNetwork(NAME, projector=False).state_dict(), tmp_path / "weights.safetensors")
    library = TeacherLibrary(tmp_path / "library")
    entry = library.entry(library.add("small", tiny.make_card(NAME, feature_size=16), tmp_path / "weights.safetensors"))
    with pytest.raises(LibraryError, match="cannot be computed on cpu: KeyError: 'no such layer'"):
        FrozenTeacher.load(entry)
