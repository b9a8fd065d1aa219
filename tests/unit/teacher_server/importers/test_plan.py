"""From a checkpoint's tensors to a card and a network: what the shapes say, what they refuse."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from data.input_spec import IMAGENET_MEAN, IMAGENET_STD
from data.prepare import prepare
from data.views import REMOTE
from teacher_server.card import pretext_classes
from teacher_server.engine.teacher import FrozenTeacher
from teacher_server.errors import LibraryError
from teacher_server.importers.errors import ImportRefused
from teacher_server.importers.install import install
from teacher_server.importers.plan import make_plan
from teacher_server.importers.source import Source
from teacher_server.importers.wishes import Wishes
from teacher_server.library import TeacherLibrary
from teacher_server.zoo.layers import scale_channels
from teacher_server.zoo.names import ARCHITECTURES, PAPER_ARCHITECTURES, TORCHVISION_ARCHITECTURES

SMALL = {"crop": 32, "clip_len": 8}


def source(tensors: dict[str, Tensor]) -> Source:
    return Source("best.pth", "0" * 64, tensors)


@pytest.mark.parametrize("width", [0.125, 0.25, 0.3125])
@pytest.mark.parametrize("arch", PAPER_ARCHITECTURES)
def test_architecture_width_and_head_are_seen_from_the_tensors(foreign: ModuleType, arch: str, width: float) -> None:
    network = foreign.random_network(arch, width=width, projector=False)
    plan = make_plan(source(foreign.vcop_tensors(network)), Wishes(), "make it")
    card = plan.card
    assert (card.arch, card.width, card.head, card.classes) == (arch, width, "pretext", pretext_classes(shuffle=REMOTE))
    assert card.feature_size == scale_channels(512, width)
    assert (card.crop, card.clip_len, card.modality, card.mean, card.std) == (112, 16, "rgb", (0, 0, 0), (1, 1, 1))
    assert card.provenance.model_dump() == {
        "command": "make it",
        "store_fingerprint": "",
        "steps": 0,
        "metrics": {},
        "source_file": "best.pth",
        "source_sha256": "0" * 64,
        "mapping": f"vcop/{arch}",
    }


@pytest.mark.parametrize("arch", ["c3d", "r3d", "r2plus1d", "r3d_18"])
def test_a_projector_beside_a_pretext_head_means_the_input_of_pcl(foreign: ModuleType, arch: str) -> None:
    """Its pretext training takes residual clips with ImageNet's normalisation unless told otherwise; a classifier,
    and what was trained without PCL, does not."""
    network = foreign.random_network(arch)
    tensors = foreign.pcl_tensors(network) if arch == "r3d_18" else foreign.vcop_tensors(network)
    tensors = {name.replace("pretext_head.linear", "fc"): tensor for name, tensor in tensors.items()}
    plan = make_plan(source(tensors), Wishes())
    assert (plan.card.head, plan.card.modality) == ("pretext", "res")
    assert (plan.card.mean, plan.card.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert plan.notes[0].startswith("its projector shows PCL's pretext training: taken for frame differences")
    assert torch.equal(plan.tensors[plan.layout.stem[1]], -network.state_dict()[plan.layout.stem[1]])

    assert plan.card.classes[4] == "remote_clip"

    told = make_plan(source(tensors), Wishes(modality="rgb", mean=(0, 0, 0), std=(1, 1, 1))).card
    assert (told.modality, told.mean, told.std) == ("rgb", (0, 0, 0), (1, 1, 1))
    without = {name: tensor for name, tensor in tensors.items() if "projector" not in name}
    plain = make_plan(source(without), Wishes()).card
    assert (plain.modality, plain.mean, plain.std) == ("rgb", (0, 0, 0), (1, 1, 1))


def test_what_the_user_says_of_the_input_stands_in_the_card(foreign: ModuleType) -> None:
    wishes = Wishes(
        modality="res", crop=48, resize=True, clip_len=12, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), chunk_items=3
    )
    card = make_plan(source(foreign.random_network("c3d").state_dict()), wishes).card
    assert (card.modality, card.crop, card.resize, card.clip_len, card.chunk_items) == ("res", 48, True, 12, 3)
    assert (card.mean, card.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_projector_and_the_other_head_are_dropped_and_listed(foreign: ModuleType, arch: str) -> None:
    network = foreign.random_network(arch, action_classes=3)
    plan = make_plan(source(network.state_dict()), Wishes(head="action", classes=("a", "b", "c")))
    assert (plan.card.head, plan.card.views_per_item) == ("action", 1)
    gone = {name for name in network.state_dict() if name.startswith(("projector.", "pretext_head."))}
    assert set(plan.dropped) == gone
    assert plan.tensors.keys() == network.state_dict().keys() - gone


@pytest.mark.parametrize("arch", PAPER_ARCHITECTURES)
def test_an_imported_network_computes_what_the_native_one_does(foreign: ModuleType, tmp_path: Path, arch: str) -> None:
    network = foreign.random_network(arch, projector=False)
    library = TeacherLibrary(tmp_path / "teachers")
    teacher = install(make_plan(source(foreign.vcop_tensors(network)), Wishes(**SMALL)), "mine", library)
    frozen = FrozenTeacher.load(library.entry(teacher))
    pixels = foreign.some_pixels(frozen)
    with torch.inference_mode():
        features = network.features(prepare(pixels, frozen.input_spec)).unflatten(0, (-1, 3))
        expected = network.pretext_logits(features.unbind(dim=1)).numpy()
    np.testing.assert_allclose(frozen.answer(pixels).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", PAPER_ARCHITECTURES)
def test_a_vcop_checkpoint_and_its_native_twin_answer_with_the_same_bytes(
    foreign: ModuleType, tmp_path: Path, arch: str
) -> None:
    network = foreign.random_network(arch, projector=False)
    library = TeacherLibrary(tmp_path / "teachers")
    native = Wishes(mean=(0, 0, 0), std=(1, 1, 1), modality="rgb", **SMALL)
    twins = [
        FrozenTeacher.load(library.entry(install(make_plan(source(tensors), wishes), "mine", library)))
        for tensors, wishes in [(foreign.vcop_tensors(network), Wishes(**SMALL)), (network.state_dict(), native)]
    ]
    pixels = foreign.some_pixels(twins[0])
    assert twins[0].answer(pixels).logits.tobytes() == twins[1].answer(pixels).logits.tobytes()


def test_residual_clips_of_vcop_count_backwards(foreign: ModuleType) -> None:
    """Their first convolution on x[t-1] - x[t] gives what ours gives on x[t] - x[t-1]."""
    theirs = foreign.vcop_tensors(foreign.random_network("r3d", projector=False))
    plan = make_plan(source(theirs), Wishes(modality="res", **SMALL))
    about_vcp, about_operations, about_sign = plan.notes
    assert about_vcp.startswith("VCP's residual pretext training puts its clips in [0, 1] around one half")
    assert about_operations.startswith("taken for the five operations of VCP and PCL, the fifth a remote clip")
    assert about_sign == "the first convolution's sign is turned: that code takes frame t-1 minus frame t"
    clip = torch.rand(1, 3, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    backwards, forwards = clip[:, :, :-1] - clip[:, :, 1:], clip[:, :, 1:] - clip[:, :, :-1]
    expected = torch.nn.functional.conv3d(backwards, theirs["base_network.conv1.temporal_spatial_conv.weight"])
    assert torch.equal(torch.nn.functional.conv3d(forwards, plan.tensors["backbone.stem.weight"]), expected)


def test_half_precision_is_converted_and_said(foreign: ModuleType) -> None:
    network = foreign.random_network("c3d")
    plan = make_plan(source({name: x.half() for name, x in network.state_dict().items()}), Wishes())
    assert plan.notes == (f"{len(plan.tensors)} tensors are converted from float16 to the network's own types",)
    assert plan.tensors["backbone.conv1.weight"].dtype == torch.float32
    assert torch.equal(plan.tensors["backbone.conv1.weight"], network.backbone.conv1.weight.detach().half().float())


def test_old_checkpoints_without_batch_counters_are_complete(foreign: ModuleType) -> None:
    tensors = {n: x for n, x in foreign.random_network("r3d").state_dict().items() if "num_batches" not in n}
    assert make_plan(source(tensors), Wishes()).tensors["backbone.stem_bn.num_batches_tracked"] == 0


def _without(name: str):
    return lambda tensors: tensors.pop(name)


def _reshaped(name: str, *shape: int):
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without("bn1.weight"), r"1 tensors of r3d are missing: backbone.stem_bn.weight"),
        (_without("conv5.block1.bn2.weight"), "conv5.block1.bn2.weight, from which the width is seen, is missing"),
        (_without("fc.weight"), "it has no head, so it has no logits to teach with"),
        (_reshaped("fc.weight", 5, 100), r"its head is \[5, 100\]; \[classes, 64\] \(action, of one clip\) or"),
        (_reshaped("fc.weight", 7, 192), "its pretext head has 7 classes: name them with --classes FILE"),
        (_reshaped("bn1.weight", 9), r"1 tensors have other shapes than r3d of width 0.125; backbone.stem_bn.weight"),
        (_reshaped("conv2.blocks.0.bn1.weight", 8), r"no place for 1 of its tensors \(conv2.blocks.0.bn1.weight\)"),
        (_reshaped("conv1.temporal_spatial_conv.bias", 8), "r3d has no backbone.stem.bias"),
    ],
)
def test_a_network_that_is_not_quite_ours_is_refused(foreign: ModuleType, damage, message: str) -> None:
    tensors = foreign.vcop_tensors(foreign.random_network("r3d"), prefix="")
    damage(tensors)
    with pytest.raises(ImportRefused, match=message):
        make_plan(source(tensors), Wishes())


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"head": "action"}, "it has no action head, its head is for pretext"),
        ({"classes": ("a", "b")}, "its pretext head has 5 classes, --classes names 2"),
        ({"classes": ("a", "a", "b", "c", "d")}, "class names repeat"),
        ({"width": 0.25}, "other shapes than r3d of width 0.25"),
        ({"crop": 2}, "crop: Input should be greater than or equal to 8"),
        ({"std": (0.0, 1.0, 1.0)}, "std must be positive"),
    ],
)
def test_a_wish_that_the_tensors_contradict_is_refused(foreign: ModuleType, wishes, message: str) -> None:
    with pytest.raises(ImportRefused, match=message):
        make_plan(source(foreign.vcop_tensors(foreign.random_network("r3d"))), Wishes(**wishes))


def test_tensors_without_a_place_are_left_out_when_that_is_allowed(foreign: ModuleType) -> None:
    tensors = foreign.vcop_tensors(foreign.random_network("r3d")) | {"memory.bank": torch.zeros(4)}
    assert make_plan(source(tensors), Wishes(allow_unused=True)).unused == ("memory.bank",)


@pytest.mark.parametrize("arch", TORCHVISION_ARCHITECTURES)
@pytest.mark.parametrize("layout", ["torchvision", "pcl"])
def test_a_torchvision_network_is_imported_and_computes_what_it_did(
    foreign: ModuleType, tmp_path: Path, arch: str, layout: str
) -> None:
    network = foreign.random_network(arch, pretext_classes=0, action_classes=3, projector=False)
    theirs = foreign.torchvision_tensors(network) if layout == "torchvision" else foreign.pcl_tensors(network)
    plan = make_plan(source(theirs), Wishes(**SMALL))
    assert (plan.layout.name, plan.card.arch, plan.card.width, plan.card.head) == (layout, arch, 0.125, "action")
    library = TeacherLibrary(tmp_path / "teachers")
    frozen = FrozenTeacher.load(library.entry(install(plan, "mine", library)))
    pixels = foreign.some_pixels(frozen)
    with torch.inference_mode():
        expected = network.action_head(network.features(prepare(pixels, frozen.input_spec))).numpy()
    np.testing.assert_allclose(frozen.answer(pixels).logits, expected, rtol=1e-4, atol=1e-5)


def test_torchvisions_networks_at_full_width_answer_within_1e_5_of_what_they_did(
    foreign: ModuleType, tmp_path: Path
) -> None:
    """As they are served, batch-norm folded; of the largest logit. The reference for the unfolded ones is
    test_video_resnet.py's."""
    library = TeacherLibrary(tmp_path / "teachers")
    for arch in TORCHVISION_ARCHITECTURES:
        network = foreign.random_network(arch, width=1.0, pretext_classes=0, action_classes=400, projector=False)
        plan = make_plan(source(foreign.torchvision_tensors(network)), Wishes(**SMALL, chunk_items=1))
        assert (plan.card.arch, plan.card.width, len(plan.card.classes)) == (arch, 1.0, 400)
        frozen = FrozenTeacher.load(library.entry(install(plan, arch.replace("_", "-"), library)))
        pixels = foreign.some_pixels(frozen)
        with torch.inference_mode():
            expected = network.action_head(network.features(prepare(pixels, frozen.input_spec))).numpy()
        assert np.abs(frozen.answer(pixels).logits - expected).max() <= 1e-5 * np.abs(expected).max()


def test_weights_of_torchvision_get_the_preprocessing_of_kinetics(foreign: ModuleType) -> None:
    network = foreign.random_network("mc3_18", pretext_classes=0, action_classes=400, projector=False)
    plan = make_plan(source(foreign.torchvision_tensors(network)), Wishes())
    card = plan.card
    assert (card.mean, card.std) == ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))
    assert (card.crop, card.clip_len, card.modality) == (112, 16, "rgb")
    assert card.classes[:2] + card.classes[-1:] == ("class_000", "class_001", "class_399")
    of_students, numbered = plan.notes
    assert of_students.startswith("taken for frames with the mean of Kinetics: a student of this project that was fine")
    assert numbered == "its 400 classes are numbered; --classes FILE names them"


def test_residual_clips_of_pcl_count_backwards(foreign: ModuleType) -> None:
    network = foreign.random_network("r3d_18", pretext_classes=0, action_classes=3)
    theirs = foreign.pcl_tensors(network)
    turned = make_plan(source(theirs), Wishes(modality="res", **SMALL)).tensors["backbone.stem.0.weight"]
    assert torch.equal(turned, -theirs["base_network.0.0.weight"])


@pytest.mark.parametrize("layout", ["vcop", "pcl"])
def test_a_classifier_whose_input_nobody_can_see_is_taken_for_rgb_and_says_so(foreign: ModuleType, layout: str) -> None:
    network = foreign.random_network(
        "r3d" if layout == "vcop" else "r3d_18", pretext_classes=0, action_classes=3, projector=False
    )
    theirs = foreign.vcop_tensors(network) if layout == "vcop" else foreign.pcl_tensors(network)
    plan = make_plan(source(theirs), Wishes())
    assert (plan.card.modality, plan.card.mean, plan.card.std) == ("rgb", (0, 0, 0), (1, 1, 1))
    assert "need --modality res" in plan.notes[0]
    assert not any("--modality" in note for note in make_plan(source(theirs), Wishes(modality="rgb")).notes)


def test_a_student_that_was_exported_with_torchvisions_names_keeps_its_own_input(foreign: ModuleType) -> None:
    """Its heads, which torchvision does not have, tell it apart from Kinetics weights."""
    network = foreign.random_network("r3d_18")
    plan = make_plan(source(foreign.torchvision_tensors(network)), Wishes())
    assert (plan.layout.name, plan.card.head, plan.card.modality) == ("torchvision", "pretext", "res")
    assert (plan.card.mean, plan.card.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert plan.card.classes == pretext_classes()
    assert plan.notes[0].startswith("its heads are this project's")


PLUGIN = "preceptor_import_plugin:tiny"
PLUGIN_CODE = """
from torch import nn
class Tiny(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.feature_size = size
        self.norm, self.conv = nn.BatchNorm3d(3), nn.Conv3d(3, size, 3)
    def forward(self, x):
        return self.conv(self.norm(x)).mean(dim=(2, 3, 4))
def tiny(width):
    return Tiny(round(16 * width))
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An importable network whose batch-norm comes before its convolution."""
    (tmp_path / "preceptor_import_plugin.py").write_text(PLUGIN_CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PRECEPTOR_PLUGINS", PLUGIN)
    yield
    sys.modules.pop("preceptor_import_plugin", None)


@pytest.mark.usefixtures("plugin")
def test_a_plug_in_s_weights_are_imported_and_answer_unfolded(foreign: ModuleType, tmp_path: Path) -> None:
    network = foreign.random_network(PLUGIN, width=0.5, pretext_classes=0, action_classes=3)
    plan = make_plan(source(network.state_dict()), Wishes(arch=PLUGIN, width=0.5, **SMALL))
    assert (plan.card.arch, plan.card.width, plan.card.feature_size) == (PLUGIN, 0.5, 8)
    library = TeacherLibrary(tmp_path / "teachers")
    frozen = FrozenTeacher.load(library.entry(install(plan, "mine", library)))
    pixels = foreign.some_pixels(frozen)
    with torch.inference_mode():
        expected = network.action_head(network.features(prepare(pixels, frozen.input_spec))).numpy()
    np.testing.assert_allclose(frozen.answer(pixels).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("plugin")
def test_a_plug_in_s_teacher_is_refused_where_nobody_allows_it(
    foreign: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = foreign.random_network(PLUGIN, width=1.0, pretext_classes=0, action_classes=3)
    library = TeacherLibrary(tmp_path / "teachers")
    plan = make_plan(source(network.state_dict()), Wishes(arch=PLUGIN, **SMALL))
    teacher = install(plan, "mine", library)
    monkeypatch.delenv("PRECEPTOR_PLUGINS")
    sys.modules.pop("preceptor_import_plugin")
    with pytest.raises(LibraryError, match=f"start every process with PRECEPTOR_PLUGINS={PLUGIN}"):
        FrozenTeacher.load(library.entry(teacher))
    with pytest.raises(ImportRefused, match=f"start every process with PRECEPTOR_PLUGINS={PLUGIN}"):
        make_plan(source(network.state_dict()), Wishes(arch=PLUGIN, **SMALL))
    assert "preceptor_import_plugin" not in sys.modules
