"""The layout of VCOP (Xu et al. 2019), VCP (Luo et al. 2020) and PCL (Tao et al. 2021): C3D, R3D and R(2+1)D.

Their pretext networks put `base_network.` before the backbone's names and add `fc` (and PCL `projector`); their
classifiers have neither prefix nor `fc` but `linear`. They feed pixels in [0, 1] without normalisation, 16 frames of
112x112; PCL's pretext training feeds residual clips with ImageNet's normalisation. PCL's residual clips are
`roll(x, 1) - x`: frame t-1 minus frame t, and frame 0 against the last one. VCP and PCL tell the same five operations
apart, in our order, the fifth a remote clip; VCP's residual pretext training feeds half of `roll(x, 1) - x` plus one
half, which is no input that a card can say.
"""

from __future__ import annotations

from data.views import REMOTE
from teacher_server.importers.layout import HEAD, Layout

_C3D_LAYERS = ("1", "2", "3a", "3b", "4a", "4b", "5a", "5b")
_NUM_STAGES = 4
_HEADS = {"fc": HEAD, "linear": HEAD, "projector.mlp.0": "projector.mlp.0", "projector.mlp.2": "projector.mlp.2"}
# What stands for one convolution: their parts and ours.
_FULL = {".temporal_spatial_conv": ""}
_FACTORISED = {".spatial_conv": ".spatial", ".bn": ".bn", ".temporal_conv": ".temporal"}
_BLOCK_CONVS = {"conv1": "conv1", "conv2": "conv2", "downsampleconv": "shortcut.0"}
_BLOCK_NORMS = {"bn1": "bn1", "bn2": "bn2", "downsamplebn": "shortcut.1"}


def _c3d() -> dict[str, str]:
    names = [f"{kind}{layer}" for layer in _C3D_LAYERS for kind in ("conv", "bn")]
    return {name: f"backbone.{name}" for name in names} | _HEADS


def _residual(conv: dict[str, str]) -> dict[str, str]:
    table = {f"conv1{theirs}": f"backbone.stem{ours}" for theirs, ours in conv.items()}
    table["bn1"] = "backbone.stem_bn"
    for stage in range(_NUM_STAGES):
        their_block, our_block = f"conv{stage + 2}.block1", f"backbone.stages.{stage}"
        for theirs, ours in _BLOCK_CONVS.items():
            table |= {f"{their_block}.{theirs}{a}": f"{our_block}.{ours}{b}" for a, b in conv.items()}
        table |= {f"{their_block}.{theirs}": f"{our_block}.{ours}" for theirs, ours in _BLOCK_NORMS.items()}
    return table | _HEADS


def _layout(arch: str, modules: dict[str, str], last_norm: str) -> Layout:
    return Layout(
        name="vcop",
        arch=arch,
        modules=modules,
        last_norm=last_norm,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        crop=112,
        clip_len=16,
        modality="rgb",
        prefix="base_network.",
        backward_residual=True,
        shuffle=REMOTE,
    )


LAYOUTS = (
    _layout("c3d", _c3d(), "backbone.bn5b"),
    _layout("r3d", _residual(_FULL), "backbone.stages.3.bn2"),
    _layout("r2plus1d", _residual(_FACTORISED), "backbone.stages.3.bn2"),
)
