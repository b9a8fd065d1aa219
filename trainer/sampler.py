"""Which views a step trains on: a pure function of the step, the same for any number of workers and after a resume."""

from __future__ import annotations

import math

import numpy as np
import xxhash
from numpy.typing import NDArray

from data.philox import uniform
from data.store import ClipStore
from data.views import VideoTable, ViewBatch, draw_tuples, epoch_order, long_enough
from trainer.config import ConfigError, RunConfig

_HOLD_OUT_SLOT = 0xFFFE


def split_rows(
    store: ClipStore, config: RunConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]:
    """(training rows, validation rows, test rows, number left out as too short for a tuple).

    Validation is a hold-out of whole groups (gNN) of the training list, so that no actor or background is on both
    sides; the test list is never touched. Raises ConfigError when a part is empty.
    """
    usable = {}
    left_out = 0
    for name in (config.train_subset, config.test_subset):
        rows = store.subset(name)
        fits = long_enough(store.videos, rows, config.clip_spec.tuple_span)
        left_out += int((~fits).sum())
        usable[name] = rows[fits]
    train, test = usable[config.train_subset], usable[config.test_subset]
    if len(train) == 0 or len(test) == 0:
        raise ConfigError(
            f"no video of {config.train_subset} or of {config.test_subset} has the {config.clip_spec.tuple_span} "
            "frames that a tuple needs: choose a smaller --clip-len or --interval"
        )
    held_out = _held_out_groups(store, train, config.val_fraction)
    is_validation = np.array([store.groups[row] in held_out for row in train])
    if is_validation.all() or not is_validation.any():
        raise ConfigError(f"{len(train)} training videos in {len(held_out)} groups cannot be split for validation")
    return train[~is_validation], train[is_validation], test, left_out


def _held_out_groups(store: ClipStore, rows: NDArray[np.int64], fraction: float) -> frozenset[str]:
    """The groups with the smallest drawn places; at least one. Independent of --seed, so that runs compare."""
    groups = sorted({store.groups[row] for row in rows})
    hashes = np.array([xxhash.xxh3_64_intdigest(group.encode()) for group in groups], dtype=np.uint64)
    place = uniform(0, hashes, 0, _HOLD_OUT_SLOT, 0)
    count = max(1, round(fraction * len(groups)))
    return frozenset(groups[i] for i in np.argsort(place)[:count])


class Sampler:
    """Steps to views. A last partial batch is used if every worker gets a tuple of it and it has at least 2."""

    def __init__(self, videos: VideoTable, rows: NDArray[np.int64], config: RunConfig) -> None:
        self._videos = videos
        self._rows = rows
        self._config = config
        smallest = max(2, config.num_workers)
        full, rest = divmod(len(rows), config.batch_size)
        self.steps_per_epoch = full + (rest >= smallest)
        if self.steps_per_epoch == 0:
            raise ConfigError(f"{len(rows)} training videos make no batch of at least {smallest} tuples")
        self._epoch = -1
        self._epoch_views: ViewBatch | None = None

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        steps = self._config.epochs * self.steps_per_epoch
        return min(steps, self._config.max_steps) if self._config.max_steps else steps

    @property
    def total_epochs(self) -> int:
        """Epochs that the run begins."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    def epoch_of(self, step: int) -> int:
        """The epoch that a step (from 0) belongs to."""
        return step // self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether this is the last step of its epoch or of the run."""
        return (step + 1) % self.steps_per_epoch == 0 or step + 1 == self.total_steps

    def views(self, step: int, rank: int = 0, world: int = 1) -> ViewBatch:
        """The tuples of a step, or a worker's contiguous share of them."""
        start = (step % self.steps_per_epoch) * self._config.batch_size
        stop = min(start + self._config.batch_size, len(self._rows))
        count = stop - start
        return self._of_epoch(self.epoch_of(step)).items(
            start + count * rank // world, start + count * (rank + 1) // world
        )

    def _of_epoch(self, epoch: int) -> ViewBatch:
        if self._epoch_views is None or epoch != self._epoch:
            config = self._config
            order = epoch_order(self._videos, self._rows, view_seed=config.view_seed, epoch=epoch)
            view_set = epoch % config.views_per_video if config.views_per_video else epoch
            self._epoch_views = draw_tuples(
                self._videos,
                order,
                view_seed=config.view_seed,
                epoch=view_set,
                spec=config.clip_spec,
                augment=config.augmentation,
                any_swap=config.any_swap,
                shuffle=config.shuffle_variant,
            )
            self._epoch = epoch
        return self._epoch_views
