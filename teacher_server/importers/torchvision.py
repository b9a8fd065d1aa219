"""The layouts of torchvision's 18-layer video networks, and of PCL's release (Tao et al. 2021) of the same networks.

torchvision: `stem.*`, `layer1.*` to `layer4.*` and `fc.*`, an action head (Kinetics-400). Its weights were trained on
16 frames of 112x112 with a normalisation of their own. A student that is exported with these names keeps its pretext
head and its projector under ours.

PCL puts the same modules into a Sequential, `base_network.0` (the stem) to `base_network.4` (layer4), behind `module.`
of DataParallel, and adds `linear` (or `fc`) and `projector`. What its networks are fed is said in
teacher_server.importers.vcop. Its pretext networks of two clips (`fc_seq`, `fc_speed`) have no head that a teacher
serves, and are refused.

r3d_18 and mc3_18 have the same names: a kernel of layer2 tells them apart.
"""

from __future__ import annotations

import dataclasses

from data.views import REMOTE
from teacher_server.importers.layout import ACTION_HEAD, HEAD, PRETEXT_HEAD, Layout, Sign

NAME = "torchvision"
KINETICS_MEAN = (0.43216, 0.394666, 0.37645)
KINETICS_STD = (0.22803, 0.22145, 0.216989)
_PROJECTOR = {name: name for name in ("projector.mlp.0", "projector.mlp.2")}
_FULL, _FRAMES = (3, 3, 3), (1, 3, 3)


def exported_name(ours: str) -> str:
    """The name under which torchvision knows a tensor of ours; heads that it does not have keep their names."""
    if ours.startswith(f"{ACTION_HEAD}."):
        return ours.replace(ACTION_HEAD, "fc", 1)
    return ours.removeprefix("backbone.")


def _modules(*, factorised: bool) -> list[str]:
    """The paths of all convolutions and batch-norms of a backbone."""
    conv = ["0.0", "0.1", "0.3"] if factorised else ["0"]  # convolution, batch-norm and convolution for one
    names = [f"stem.{i}" for i in ((0, 1, 3, 4) if factorised else (0, 1))]
    for layer in range(1, 5):
        for block in range(2):
            names += [f"layer{layer}.{block}.{part}.{x}" for part in ("conv1", "conv2") for x in (*conv, "1")]
            if layer > 1 and block == 0:
                names += [f"layer{layer}.0.downsample.{x}" for x in "01"]
    return names


def _torchvision(arch: str, sign: Sign) -> Layout:
    names = _modules(factorised=arch == "r2plus1d_18")
    return Layout(
        name=NAME,
        arch=arch,
        modules={name: f"backbone.{name}" for name in names}
        | {"fc": ACTION_HEAD, PRETEXT_HEAD: PRETEXT_HEAD}
        | _PROJECTOR,
        last_norm="backbone.layer4.1.conv2.1",
        mean=KINETICS_MEAN,
        std=KINETICS_STD,
        crop=112,
        clip_len=16,
        modality="rgb",
        sign=sign,
    )


def _pcl(layout: Layout) -> Layout:
    """The same modules in a Sequential: the stem and the four layers are its children 0 to 4."""

    def numbered(name: str) -> str:
        first, _, rest = name.partition(".")
        return f"{0 if first == 'stem' else first.removeprefix('layer')}.{rest}"

    backbone = {numbered(name): ours for name, ours in layout.modules.items() if ours.startswith("backbone.")}
    assert layout.sign is not None
    return dataclasses.replace(
        layout,
        name="pcl",
        modules=backbone | {"fc": HEAD, "linear": HEAD} | _PROJECTOR,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        prefix="base_network.",
        backward_residual=True,
        shuffle=REMOTE,
        sign=dataclasses.replace(layout.sign, name=numbered(layout.sign.name)),
    )


LAYOUTS = (
    _torchvision("r3d_18", Sign("layer2.0.conv1.0.weight", _FULL)),
    _torchvision("mc3_18", Sign("layer2.0.conv1.0.weight", _FRAMES)),
    _torchvision("r2plus1d_18", Sign("layer2.0.conv1.0.0.weight", _FRAMES)),
)
PCL_LAYOUTS = tuple(_pcl(layout) for layout in LAYOUTS)
