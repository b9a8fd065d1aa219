"""Which clips each step of fine-tuning trains on, a pure function of seed, epoch and video, and their features.

Axis letters: V videos, M clips of a video, B samples, D features.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.draw import Field, draw_clips, epoch_order, uniform_clips
from data.input_spec import InputSpec
from data.philox import Slot, uniform
from data.prepare import prepare
from data.render import render_batch
from data.store import ClipStore
from data.views import Augment, ClipSpec, VideoTable, ViewBatch
from teacher_server.zoo.network import VideoNetwork
from trainer.evaluate.finetune_recipe import FinetuneRecipe


class TrainingClips:
    """The features of each batch: looked up, or computed from drawn clips."""

    def __init__(
        self,
        network: VideoNetwork,
        store: ClipStore,
        rows: NDArray[np.int64],
        spec: ClipSpec,
        input_spec: InputSpec,
        recipe: FinetuneRecipe,
        train_VMD: NDArray[np.float32] | None,
    ) -> None:
        self._network, self._store, self._rows = network, store, rows
        self._spec, self._input_spec, self._recipe = spec, input_spec, recipe
        self._train_VMD = None if train_VMD is None else torch.from_numpy(train_VMD)
        self._place = {int(row): place for place, row in enumerate(rows)}
        self._device = next(network.parameters()).device
        self._epoch = -1
        self._order = rows
        self._views: ViewBatch | None = None
        self.bounds = batch_bounds(len(rows), recipe.batch_size)

    def batch(self, step: int) -> tuple[Tensor, NDArray[np.int64]]:
        """Features [B, D] of a step, with a graph to the backbone in mode full, and the rows of its videos."""
        epoch, place = divmod(step, len(self.bounds))
        if epoch != self._epoch:
            self._begin(epoch)
        part = slice(*self.bounds[place])
        rows = self._order[part]
        if self._train_VMD is not None:
            places = [self._place[int(row)] for row in rows]
            chosen = even_clip_of(self._store.videos, rows, epoch, self._recipe.view_seed, self._train_VMD.shape[1])
            return self._train_VMD[places, torch.from_numpy(chosen)].to(self._device), rows
        assert self._views is not None
        views = self._views.items(part.start, part.stop)
        pixels = torch.from_numpy(render_batch(self._store.gather(views), views)).to(self._device)
        x_BCTHW = prepare(pixels, self._input_spec)
        if self._recipe.mode == "full":
            return self._network.features(x_BCTHW), rows
        with torch.no_grad():
            return self._network.features(x_BCTHW), rows

    def _begin(self, epoch: int) -> None:
        recipe, videos = self._recipe, self._store.videos
        self._epoch = epoch
        self._order = epoch_order(videos, self._rows, view_seed=recipe.view_seed, epoch=epoch)
        if self._train_VMD is None:
            self._views = epoch_views(
                videos,
                self._order,
                epoch,
                view_seed=recipe.view_seed,
                spec=self._spec,
                augment=recipe.augment,
                clips_per_video=recipe.clips_per_video,
            )


def even_clip_of(
    videos: VideoTable, rows: NDArray[np.int64], epoch: int, view_seed: int, clips_per_video: int
) -> NDArray[np.int64]:
    """[V] which of its `clips_per_video` even clips each video shows in this epoch."""
    u = uniform(view_seed, videos.key_hashes[rows], epoch, Slot.EVEN_CLIP, Field.START)
    return np.floor(u * clips_per_video).astype(np.int64)


def epoch_views(
    videos: VideoTable,
    order: NDArray[np.int64],
    epoch: int,
    *,
    view_seed: int,
    spec: ClipSpec,
    augment: bool,
    clips_per_video: int,
) -> ViewBatch:
    """One clip of each video, in this order: anywhere and augmented, or one of its even clips. Raises VideoTooShort."""
    if augment:
        return draw_clips(videos, order, view_seed=view_seed, epoch=epoch, spec=spec, augment=Augment())
    even = uniform_clips(videos, order, spec=spec, clips_per_video=clips_per_video)
    chosen = even_clip_of(videos, order, epoch, view_seed, clips_per_video)
    return even.take(np.arange(len(order)) * clips_per_video + chosen)


def batch_bounds(num_videos: int, batch_size: int) -> tuple[tuple[int, int], ...]:
    """(first, end) of each batch of an epoch: no video is left out.

    A last video that would be alone joins the batch before it: batch-norm needs company.

    >>> batch_bounds(9, 4)
    ((0, 4), (4, 9))
    """
    starts = list(range(0, num_videos, batch_size))
    if batch_size > 1 and len(starts) > 1 and num_videos - starts[-1] == 1:
        starts.pop()
    return tuple(zip(starts, [*starts[1:], num_videos], strict=True))
