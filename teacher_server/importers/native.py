"""Our own names, as teacher_server.zoo.network gives them; the other tables lead to the same ones.

A plug-in's backbone has whatever names its author chose, behind `backbone.`: they stay as they are.
"""

from __future__ import annotations

import dataclasses

from data.input_spec import IMAGENET_MEAN, IMAGENET_STD
from data.views import SEGMENT_COPY
from teacher_server.importers import torchvision, vcop
from teacher_server.importers.layout import ACTION_HEAD, HEAD, PRETEXT_HEAD, Layout

_NAME = "native"
_CROP, _CLIP_LEN = 56, 10


def _native(layout: Layout) -> Layout:
    """The same modules under their own names, trained as this project's students are."""
    ours = [name for name in layout.modules.values() if name != HEAD] + [PRETEXT_HEAD, ACTION_HEAD]
    sign = layout.sign
    return dataclasses.replace(
        layout,
        name=_NAME,
        modules={name: name for name in ours},
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        crop=_CROP,
        clip_len=_CLIP_LEN,
        modality="res",
        prefix="",
        backward_residual=False,
        shuffle=SEGMENT_COPY,
        sign=None if sign is None else dataclasses.replace(sign, name=f"backbone.{sign.name}"),
    )


def plugin_layout(arch: str) -> Layout:
    """Our names for a plug-in's network: everything behind `backbone.` is its own."""
    heads = (PRETEXT_HEAD, ACTION_HEAD, "projector.mlp.0", "projector.mlp.2")
    return Layout(
        name=_NAME,
        arch=arch,
        modules={name: name for name in heads},
        last_norm="",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        crop=_CROP,
        clip_len=_CLIP_LEN,
        modality="res",
        kept="backbone.",
    )


LAYOUTS = tuple(_native(layout) for layout in (*vcop.LAYOUTS, *torchvision.LAYOUTS))
