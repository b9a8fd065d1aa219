"""From a network and a store to features: the only part of the evaluation that touches pixels.

    views -> gather -> render -> prepare -> frozen forward -> features

Axis letters: N views, V videos, M clips of a video, D features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from data.draw import uniform_clips
from data.input_spec import InputSpec
from data.prepare import prepare
from data.render import render_batch
from data.views import ClipSpec, VideoTable, ViewBatch
from teacher_server.zoo.fold import fold_batch_norm
from teacher_server.zoo.layers import Backbone
from teacher_server.zoo.network import VideoNetwork
from trainer.errors import NotFinite

Progress = Callable[[int, int], None]
"""Called with (clips done, clips in all) after every forward pass."""
PhaseProgress = Callable[[str, int, int], None]
"""The same with the name of the phase before it: `pretext`, `training clips`, `test clips`, `fine-tuning` (steps)."""


class Frames(Protocol):
    """What features need of a store: a ClipStore, or videos held in memory."""

    @property
    def videos(self) -> VideoTable:
        """A row per video."""

    def gather(self, batch: ViewBatch) -> list[NDArray[np.uint8]]:
        """The frames [T, H, W, 3] of every view, in order."""


def phase_of(progress: PhaseProgress | None, phase: str) -> Progress | None:
    """The progress of one phase."""
    if progress is None:
        return None
    return lambda done, total: progress(phase, done, total)


@contextmanager
def frozen(network: VideoNetwork) -> Iterator[None]:
    """Evaluation mode without gradients inside; afterwards every module is in the mode that it was in before."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


def view_features(
    network: VideoNetwork,
    store: Frames,
    batch: ViewBatch,
    input_spec: InputSpec,
    *,
    batch_clips: int = 64,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """[N, D] features of each view. A view that occurs several times is rendered and computed once.

    batch_clips: clips in memory at a time. Runs on the device of the network's weights. Raises NotFinite
    for features that are not finite: no accuracy computed from them would mean anything.
    """
    if batch_clips < 1:
        raise ValueError(f"batch_clips must be at least 1, got {batch_clips}")
    distinct, inverse_N = _distinct(batch)
    features = np.empty((len(distinct), network.backbone.feature_size), dtype=np.float32)
    device = next(network.parameters()).device
    backbone = _folded(network.backbone)
    with torch.inference_mode():
        for start in range(0, len(distinct), batch_clips):
            part = distinct.items(start, start + batch_clips)
            pixels = torch.from_numpy(render_batch(store.gather(part), part)).to(device)
            features[start : start + len(part)] = backbone(prepare(pixels, input_spec)).float().cpu().numpy()
            if progress is not None:
                progress(start + len(part), len(distinct))
    if not np.isfinite(features).all():
        raise NotFinite("the network's features are not finite: it diverged, train again with a smaller lr")
    return features[inverse_N]


def clip_features(
    network: VideoNetwork,
    store: Frames,
    rows: NDArray[np.int64],
    spec: ClipSpec,
    input_spec: InputSpec,
    clips_per_video: int,
    batch_clips: int = 64,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """[V, M, D] features of `clips_per_video` = M evenly spaced clips of each video, centre crop.

    Raises VideoTooShort for a video with fewer than clip_len frames.
    """
    views = uniform_clips(store.videos, rows, spec=spec, clips_per_video=clips_per_video)
    features = view_features(network, store, views, input_spec, batch_clips=batch_clips, progress=progress)
    return features.reshape(len(rows), clips_per_video, features.shape[1])


def _folded(backbone: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose batch-norms are folded into its convolutions, as a teacher's are: a tenth to a
    third less time for each clip. A plug-in that is no Backbone keeps its batch-norms, as in a teacher."""
    copied = copy.deepcopy(backbone).eval()
    if isinstance(copied, Backbone):
        fold_batch_norm(copied)
    return copied


def _distinct(batch: ViewBatch) -> tuple[ViewBatch, NDArray[np.int64]]:
    """The different views in order of appearance, as items of one view, and for each view of `batch` its place."""
    place: dict[bytes, int] = {}
    inverse = np.array([place.setdefault(record.tobytes(), len(place)) for record in batch.records], dtype=np.int64)
    _, first = np.unique(inverse, return_index=True)
    return ViewBatch(batch.records[first], 1, batch.store_fingerprint, batch.operation), inverse
