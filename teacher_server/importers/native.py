"""Our own names, as teacher_server.zoo.network gives them; the other tables lead to the same ones."""

from __future__ import annotations

import dataclasses

from data.input_spec import IMAGENET_MEAN, IMAGENET_STD
from teacher_server.importers import vcop
from teacher_server.importers.layout import ACTION_HEAD, HEAD, PRETEXT_HEAD, Layout


def _native(layout: Layout) -> Layout:
    """The same modules under their own names, trained as this project's students are."""
    ours = [name for name in layout.modules.values() if name != HEAD] + [PRETEXT_HEAD, ACTION_HEAD]
    return dataclasses.replace(
        layout,
        name="native",
        modules={name: name for name in ours},
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        crop=56,
        clip_len=10,
        modality="res",
        prefix="",
        backward_residual=False,
    )


LAYOUTS = tuple(_native(layout) for layout in vcop.LAYOUTS)
