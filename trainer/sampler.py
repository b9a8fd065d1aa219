"""Which views a step trains on: a pure function of the step, the same for any number of workers and after a resume."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.draw import draw_tuples, epoch_order, long_enough
from data.operations import load_operation
from data.philox import Slot, uniform
from data.store import ClipStore
from data.subsets import take_fraction, write_list
from data.views import VIEWS_PER_TUPLE, VideoTable, ViewBatch, key_hash
from trainer.config import ConfigError, RunConfig

_SMALLEST_BATCH = 2  # tuples: one alone has no negatives


def split_rows(
    store: ClipStore, config: RunConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]:
    """(training rows, validation rows, test rows, number left out as too short for a tuple).

    Validation is a hold-out of whole groups (gNN) of the training list, so that no actor or background is on both
    sides; the test list is never touched. config.fraction is taken of what then is left to train on, so all fractions
    share validation and test. Raises ConfigError when a video stands in both lists, when a part is empty or the
    fraction leaves fewer than 2 videos.
    """
    train, validation, test, left_out = _split_whole(store, config)
    part = train[_fraction_of(store, train, config)]
    if len(part) < _SMALLEST_BATCH:
        raise ConfigError(
            f"--fraction {config.fraction:g} leaves {len(part)} of {len(train)} training videos, a batch needs at "
            f"least {_SMALLEST_BATCH}: choose a larger fraction"
        )
    return part, validation, test, left_out


def count_whole(store: ClipStore, config: RunConfig) -> int:
    """Training videos at 100 percent: what `Sampler` computes equal steps from."""
    return len(_split_whole(store, config)[0])


def write_train_list(path: Path, store: ClipStore, train_rows: NDArray[np.int64]) -> None:
    """The keys that a run trains on, one in each line, in the order of the store's list."""
    write_list(path, (store.videos.keys[row] for row in train_rows))


def _split_whole(
    store: ClipStore, config: RunConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]:
    """What `split_rows` gives at 100 percent."""
    wanted, tested = store.subset(config.train_subset), store.subset(config.test_subset)
    num_shared = len(np.intersect1d(wanted, tested))
    if num_shared:
        raise ConfigError(
            f"{num_shared} of the {len(tested)} videos of --test-subset {config.test_subset} are in --train-subset "
            f"{config.train_subset}, too: nothing would be told by a test on them; name the two lists of one split, "
            "such as train02 and test02"
        )
    train, test = (rows[long_enough(store.videos, rows, config.clip_spec.tuple_span)] for rows in (wanted, tested))
    left_out = len(wanted) + len(tested) - len(train) - len(test)
    if len(train) == 0 or len(test) == 0:
        raise ConfigError(
            f"no video of {config.train_subset} or of {config.test_subset} has the {config.clip_spec.tuple_span} "
            "frames that a tuple needs: choose a smaller --clip-len or --interval"
        )
    held_out = _held_out_groups(store, train, config.val_fraction)
    is_validation = np.array([store.groups[row] in held_out for row in train])
    if is_validation.all() or not is_validation.any():
        num_groups = len({store.groups[row] for row in train})
        raise ConfigError(
            f"{len(train)} training videos in {num_groups} groups cannot be split for validation: --val-fraction "
            f"{config.val_fraction:g} holds {len(held_out)} whole groups out; change it, or give the videos more groups"
        )
    return train[~is_validation], train[is_validation], test, left_out


def _fraction_of(store: ClipStore, rows: NDArray[np.int64], config: RunConfig) -> NDArray[np.int64]:
    keys = [store.videos.keys[row] for row in rows]
    return take_fraction(keys, store.labels[rows], config.fraction, config.subset_seed)


def _held_out_groups(store: ClipStore, rows: NDArray[np.int64], fraction: float) -> frozenset[str]:
    """The groups with the smallest drawn places; at least one. Independent of --seed, so that runs compare."""
    groups = sorted({store.groups[row] for row in rows})
    hashes = np.array([key_hash(group) for group in groups], dtype=np.uint64)
    place = uniform(0, hashes, 0, Slot.HOLD_OUT, 0)
    count = max(1, round(fraction * len(groups)))
    return frozenset(groups[i] for i in np.argsort(place)[:count])


def _steps_per_epoch(num_videos: int, config: RunConfig) -> int:
    """Batches of an epoch. Raises ConfigError when there is none."""
    smallest = max(_SMALLEST_BATCH, config.num_workers)
    full, rest = divmod(num_videos, config.batch_size)
    steps = full + (rest >= smallest)
    if steps == 0:
        raise ConfigError(f"{num_videos} training videos make no batch of at least {smallest} tuples")
    return steps


def validated_epochs(num_epochs: int, config: RunConfig) -> frozenset[int]:
    """The epochs, counted from 1, that validation follows: all, but with equal steps only about as many as there would
    be on the whole list, because the epochs of a small fraction hold few steps. Every quarter of the run is among them.

    >>> sorted(validated_epochs(64, RunConfig(epochs=6, equal_steps=True)))
    [8, 16, 24, 32, 40, 48, 56, 64]
    """
    if not config.equal_steps:
        return frozenset(range(1, num_epochs + 1))
    times = 4 * math.ceil(config.epochs / 4)
    return frozenset(math.floor(part * num_epochs / times + 0.5) for part in range(1, times + 1)) - {0}


class Sampler:
    """Steps to views. A last partial batch is used if every worker gets a tuple of it and it has at least 2.

    num_whole: training videos at 100 percent (`count_whole`). With config.equal_steps the run has as many steps as it
    would have with all of them, and passes over its fraction so much more often; validation stays about as frequent.
    """

    def __init__(
        self,
        videos: VideoTable,
        rows: NDArray[np.int64],
        config: RunConfig,
        num_whole: int | None = None,
        *,
        trusted: bool = False,
    ) -> None:
        """trusted: whether the user typed the name of a pretext operation of their own. Raises ConfigError when there
        are too few videos, or equal steps are wanted and num_whole is not given; ViewError for the operation."""
        if config.equal_steps and num_whole is None:
            raise ConfigError("equal steps are counted from the whole training list: num_whole must be given")
        self._videos = videos
        self._rows = rows
        self._config = config
        if config.pretext_operation:
            load_operation(config.pretext_operation, trusted=trusted)
        self.steps_per_epoch = _steps_per_epoch(len(rows), config)
        whole = num_whole if config.equal_steps and num_whole is not None else len(rows)
        self._planned_steps = config.epochs * _steps_per_epoch(whole, config)
        self._validated_epochs = validated_epochs(math.ceil(self._planned_steps / self.steps_per_epoch), config)
        self._position_of = np.full(len(videos.keys), -1, dtype=np.int64)
        self._position_of[rows] = np.arange(len(rows))
        self._epoch = -1
        self._epoch_views: ViewBatch | None = None

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return min(self._planned_steps, self._config.max_steps) if self._config.max_steps else self._planned_steps

    @property
    def total_epochs(self) -> int:
        """Epochs that the run begins."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    def epoch_of(self, step: int) -> int:
        """The epoch that a step (from 0) belongs to."""
        return step // self.steps_per_epoch

    @property
    def validated_epochs(self) -> tuple[int, ...]:
        """The epochs, counted from 1, that validation follows, in their order."""
        within = (epoch for epoch in self._validated_epochs if epoch < self.total_epochs)
        return (*sorted(within), self.total_epochs)

    def is_validated(self, step: int) -> bool:
        """Whether validation, and a checkpoint, follow this step: the last of a validated epoch or of the run."""
        ends_epoch = (step + 1) % self.steps_per_epoch == 0
        return (ends_epoch and self.epoch_of(step) + 1 in self._validated_epochs) or step + 1 == self.total_steps

    def views(self, step: int, rank: int = 0, world: int = 1) -> ViewBatch:
        """The tuples of a step, or a worker's contiguous share of them."""
        start = (step % self.steps_per_epoch) * self._config.batch_size
        stop = min(start + self._config.batch_size, len(self._rows))
        count = stop - start
        return self._of_epoch(self.epoch_of(step)).items(
            start + count * rank // world, start + count * (rank + 1) // world
        )

    def positions(self, views: ViewBatch) -> NDArray[np.int64]:
        """[tuples] where the video of each stands in the training list."""
        return self._position_of[views.records["video"][::VIEWS_PER_TUPLE]]

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
                operation=config.pretext_operation,
            )
            self._epoch = epoch
        return self._epoch_views
