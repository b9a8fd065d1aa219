"""The networks against method figures: parameters, multiply-accumulates, shapes, and what batch-norm sees."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from teacher_server.zoo.heads import PretextHead, Projector
from teacher_server.zoo.layers import scale_channels
from teacher_server.zoo.names import ARCHITECTURES, UnknownArchitecture
from teacher_server.zoo.network import VideoNetwork
from teacher_server.zoo.registry import build_backbone
from teacher_server.zoo.resnet3d import FactorisedConv, middle_width

SMALL = 0.125  # 8, 16, 32, 64 channels


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(name)


def count_conv_macs(network: nn.Module, clip: torch.Tensor) -> int:
    """Multiply-accumulates of the convolutions: outputs times the weights of one output channel."""
    macs = []

    def hook(module: nn.Module, _: object, output: torch.Tensor) -> None:
        macs.append(output.numel() * module.weight[0].numel())

    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(hook)
    network(clip)
    return sum(macs)


@pytest.mark.parametrize(("name", "parameters"), [("c3d", 27_661_440), ("r3d", 14_361_792), ("r2plus1d", 14_365_303)])
def test_backbone_has_exactly_the_parameters_of_the_method(name: str, parameters: int) -> None:
    network = on_meta(name)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network.feature_size == 512


@pytest.mark.parametrize(
    ("name", "frames", "gmac"),
    [
        ("c3d", 16, 38.5),
        ("c3d", 10, 22.9),
        ("r3d", 16, 19.9),
        ("r3d", 10, 13.1),
        ("r2plus1d", 16, 21.4),
        ("r2plus1d", 10, 13.9),
        ("r3d_18", 16, 40.7),
        ("mc3_18", 16, 43.34),
        ("r2plus1d_18", 16, 40.52),
    ],
)
def test_a_clip_costs_the_multiply_accumulates_of_the_method(name: str, frames: int, gmac: float) -> None:
    macs = count_conv_macs(on_meta(name).eval(), torch.empty(1, 3, frames, 112, 112, device="meta"))
    assert macs / 1e9 == pytest.approx(gmac, rel=0.01)


def test_c3d_cost_follows_from_its_layers_written_out() -> None:
    # (in, out, positions) of the eight convolutions for 16x112x112, pooled after 1, 2, 3b and 4b.
    layers = [
        (3, 64, 16 * 112 * 112),
        (64, 128, 16 * 56 * 56),
        (128, 256, 8 * 28 * 28),
        (256, 256, 8 * 28 * 28),
        (256, 512, 4 * 14 * 14),
        (512, 512, 4 * 14 * 14),
        (512, 512, 2 * 7 * 7),
        (512, 512, 2 * 7 * 7),
    ]
    expected = sum(27 * i * o * positions for i, o, positions in layers)
    assert count_conv_macs(on_meta("c3d").eval(), torch.empty(1, 3, 16, 112, 112, device="meta")) == expected


def test_stem_of_r2plus1d_has_83_channels_in_the_middle() -> None:
    assert middle_width(3, 64, (3, 7, 7)) == 83
    assert on_meta("r2plus1d").stem.spatial.out_channels == 83


def test_every_convolution_of_r2plus1d_is_factorised_the_shortcuts_too() -> None:
    network = build_backbone("r2plus1d", SMALL)
    halves = {id(c) for m in network.modules() if isinstance(m, FactorisedConv) for c in (m.spatial, m.temporal)}
    assert {id(m) for m in network.modules() if isinstance(m, nn.Conv3d)} == halves
    assert len(halves) == 2 * (1 + 4 * 2 + 3)
    # 8 -> 16 channels, 1x1x1: floor(8 * 16 / (8 + 16)) = 5
    assert network.stages[1].shortcut[0].spatial.out_channels == 5


@pytest.mark.parametrize(
    ("channels", "width", "expected"),
    [(64, 1.0, 64), (512, 1.0, 512), (64, 0.125, 8), (64, 0.01, 8), (128, 0.3, 40), (512, 0.25, 128), (64, 2.0, 128)],
)
def test_width_gives_multiples_of_eight(channels: int, width: float, expected: int) -> None:
    assert scale_channels(channels, width) == expected


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("width", [0.01, 0.125, 0.3])
def test_feature_size_is_the_scaled_512(name: str, width: float) -> None:
    network = build_backbone(name, width).eval()
    with torch.no_grad():
        features = network(torch.zeros(1, 3, 8, 32, 32))
    assert network.feature_size == scale_channels(512, width)
    assert features.shape == (1, network.feature_size)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("frames", [8, 9, 10, 16])
@pytest.mark.parametrize("crop", [32, 34, 56, 112])
def test_any_clip_from_8_frames_of_32x32_trains_with_finite_gradients(name: str, frames: int, crop: int) -> None:
    if crop == 112:  # shapes are enough where the numbers are dear
        with torch.device("meta"):
            network = build_backbone(name, SMALL)
        assert network(torch.empty(2, 3, frames, crop, crop, device="meta")).shape == (2, 64)
        return
    torch.manual_seed(0)
    network = build_backbone(name, 0.01).train()
    features = network(torch.randn(2, 3, frames, crop, crop))
    features.square().sum().backward()
    assert features.shape == (2, 8)
    for parameter in network.parameters():
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 0 or parameter.ndim == 1  # a bias before batch-norm has none


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_features_are_the_global_average_of_the_last_map(name: str) -> None:
    torch.manual_seed(1)
    network = build_backbone(name, SMALL).eval()
    maps = []
    last = {"c3d": "bn5b", "r3d": "stages", "r2plus1d": "stages"}.get(name, "layer4")
    network.get_submodule(last).register_forward_hook(lambda _m, _i, output: maps.append(output.detach().clone()))
    with torch.no_grad():
        features = network(torch.randn(2, 3, 10, 56, 56))
    expected = maps[0].relu().flatten(2).sum(2) / maps[0][0, 0].numel()
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_follow_from_the_seed_alone(name: str) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return VideoNetwork(name, SMALL, action_classes=4).state_dict()

    first, again, other = weights(3), weights(3), weights(4)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_convolutions_start_with_kaiming_deviation_and_batch_norm_as_identity() -> None:
    torch.manual_seed(0)
    network = build_backbone("c3d", 0.5)
    weight = network.conv4a.weight
    assert weight.std().item() == pytest.approx((2 / (27 * weight.shape[1])) ** 0.5, rel=0.02)
    assert not network.conv4a.bias.any()
    assert (network.bn4a.weight == 1).all()
    assert not network.bn4a.bias.any()


def test_unknown_architecture_lists_the_known_ones_and_pickles() -> None:
    with pytest.raises(UnknownArchitecture, match=r"'resnet'.*c3d, r3d, r2plus1d") as caught:
        build_backbone("resnet")
    assert isinstance(caught.value, ValueError)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (type(copied), str(copied), copied.name) == (UnknownArchitecture, str(caught.value), "resnet")


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_width_must_be_a_positive_number(name: str, width: float) -> None:
    with pytest.raises(ValueError, match="width must be a positive number"):
        build_backbone(name, width)


def test_registry_builds_every_name_that_is_listed() -> None:
    assert {name: build_backbone(name, 0.01).feature_size for name in ARCHITECTURES} == dict.fromkeys(ARCHITECTURES, 8)


def test_names_load_without_torch() -> None:
    code = "import sys, teacher_server.zoo.names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_pretext_head_reads_the_clips_in_order() -> None:
    torch.manual_seed(0)
    head = PretextHead(4, 5)
    f = [torch.randn(2, 4) for _ in range(3)]
    w = head.linear.weight
    expected = f[0] @ w[:, :4].T + f[1] @ w[:, 4:8].T + f[2] @ w[:, 8:].T + head.linear.bias
    torch.testing.assert_close(head(f), expected)


def test_projector_is_two_layers_with_relu_scaled_to_length_one() -> None:
    torch.manual_seed(0)
    projector = Projector(16)
    features = torch.randn(5, 16)
    first, _, second = projector.mlp
    raw = (features @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias
    torch.testing.assert_close(projector(features), raw / raw.square().sum(1, keepdim=True).sqrt())
    assert raw.shape == (5, 128)


def make_clips(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three clips of clearly different means and spreads."""
    generator = torch.Generator().manual_seed(5)
    first, middle, last = (
        torch.randn(batch, 3, 8, 32, 32, generator=generator) * spread + mean
        for mean, spread in ((0.0, 1.0), (4.0, 0.2), (-2.0, 3.0))
    )
    return first, middle, last


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tuple_forward_equals_three_separate_forwards(name: str) -> None:
    torch.manual_seed(2)
    network = VideoNetwork(name, SMALL, action_classes=7).train()
    reference = copy.deepcopy(network)
    clips = make_clips()
    output = network.forward_tuple(clips)
    features = [reference.backbone(clip) for clip in clips]
    assert torch.equal(output.pretext_logits, reference.pretext_head(features))
    assert torch.equal(output.z1, reference.projector(features[0]))
    assert torch.equal(output.z2, reference.projector(features[2]))
    assert torch.equal(output.action_logits, reference.action_head(features[0]))
    assert output.pretext_logits.shape == (3, 5)
    assert output.action_logits.shape == (3, 7)
    for key, value in reference.state_dict().items():  # running statistics included
        assert torch.equal(network.state_dict()[key], value), key


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_batch_norm_sees_each_clip_position_apart(name: str) -> None:
    torch.manual_seed(2)
    network = VideoNetwork(name, SMALL).train()
    joint = copy.deepcopy(network)
    clips = make_clips()
    output = network.forward_tuple(clips)
    joint_features = joint.backbone(torch.cat(clips)).chunk(3)
    assert not torch.allclose(output.pretext_logits, joint.pretext_head(joint_features), atol=1e-2)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm3d)]
    assert {int(norm.num_batches_tracked) for norm in norms} == {3}
    assert {int(m.num_batches_tracked) for m in joint.modules() if isinstance(m, nn.BatchNorm3d)} == {1}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_running_mean_of_the_first_norm_follows_the_three_clips_in_order(name: str) -> None:
    torch.manual_seed(2)
    network = VideoNetwork(name, SMALL).train()
    backbone = network.backbone
    paths = {"c3d": ("conv1", "bn1"), "r3d": ("stem", "stem_bn"), "r2plus1d": ("stem", "stem_bn")}
    conv, norm = map(backbone.get_submodule, paths.get(name, ("stem.0", "stem.1")))
    reference = copy.deepcopy(conv)
    running = torch.zeros(norm.num_features)
    network.forward_tuple(make_clips())
    for clip in make_clips():
        running = 0.9 * running + 0.1 * reference(clip).mean(dim=(0, 2, 3, 4))
    torch.testing.assert_close(norm.running_mean, running, rtol=1e-4, atol=1e-5)


def test_heads_that_were_not_asked_for_are_none() -> None:
    network = VideoNetwork("r3d", 0.01, projector=False).eval()
    output = network(make_clips(1))
    assert (output.z1, output.z2, output.action_logits) == (None, None, None)
    assert not any(key.startswith(("projector", "action_head")) for key in network.state_dict())


def test_state_dict_names_are_the_ones_checkpoints_hold() -> None:
    keys = set(VideoNetwork("r2plus1d", 0.01, action_classes=2).state_dict())
    assert {key.split(".")[0] for key in keys} == {"backbone", "pretext_head", "action_head", "projector"}
    assert {
        "backbone.stem.spatial.weight",
        "backbone.stem.bn.running_mean",
        "backbone.stem.temporal.weight",
        "backbone.stem_bn.weight",
        "backbone.stages.0.conv1.spatial.weight",
        "backbone.stages.1.shortcut.0.temporal.weight",
        "backbone.stages.1.shortcut.1.running_var",
        "backbone.stages.3.bn2.bias",
        "pretext_head.linear.weight",
        "action_head.linear.bias",
        "projector.mlp.2.weight",
    } <= keys
    assert {"backbone.conv3b.weight", "backbone.bn5b.bias"} <= set(VideoNetwork("c3d", 0.01).state_dict())
    assert {"backbone.stem.weight", "backbone.stages.3.shortcut.0.weight"} <= set(
        VideoNetwork("r3d", 0.01).state_dict()
    )


def test_a_tuple_of_two_clips_is_refused() -> None:
    with pytest.raises(ValueError, match="a tuple has 3 clips, got 2"):
        VideoNetwork("r3d", 0.01).forward_tuple(make_clips(1)[:2])


@pytest.mark.parametrize(("pretext", "action"), [(-1, 0), (5, -1)])
def test_impossible_class_counts_are_refused(pretext: int, action: int) -> None:
    with pytest.raises(ValueError, match=f"got {pretext} and {action}"):
        VideoNetwork("r3d", 0.01, pretext_classes=pretext, action_classes=action)
