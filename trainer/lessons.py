"""What a student was trained on, told by the videos themselves.

A store may be moved, or made again with another codec or frame size, and the smaller built-in sets are parts of the
larger ones. The videos stay the same: a video is known again by its key and its number of frames. Files that were
ingested under another layout have other keys, and are not known again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from data.errors import DataError
from data.home import store_path
from data.store import ClipStore
from data.views import key_hash
from trainer.config import RunConfig
from trainer.runs import RunFolder

_ANY_LENGTH = 0  # frames of a video of which only the key is on record


class Lesson(BaseModel):
    """One list of videos that a student was trained on, whole: also what a fraction or the hold-out left aside of it,
    unless the run's store is gone.

    name: such as train01 of ucf101. used_labels: whether the videos' action labels, or an action teacher's answers, had
    a part in it. videos: number of frames, or 0 where that is not on record, by 16 hex digits of the key's hash; None
    when nobody here knows which videos they were.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    used_labels: bool
    videos: dict[str, int] | None


def lesson_on(store: ClipStore, rows: NDArray[np.int64], list_name: str, *, used_labels: bool) -> Lesson:
    """These rows of a store."""
    videos = {name: int(store.videos.num_frames[row]) for row, name in zip(rows, _names(store, rows), strict=True)}
    return Lesson(name=f"{list_name} of {store.path.name}", used_labels=used_labels, videos=videos)


def lesson_of_run(run: RunFolder, config: RunConfig, *, has_action_head: bool) -> Lesson:
    """The run's list in its store or, when that is gone or holds other videos now, those that its folder names."""
    used_labels = has_action_head or config.ce_weight > 0 or bool(config.extra_loss)
    named = _named_by(run)
    try:
        store = ClipStore.open(store_path(config.store))
    except DataError:
        store = None
    if store is not None and config.train_subset in store.subsets:
        lesson = lesson_on(store, store.subset(config.train_subset), config.train_subset, used_labels=used_labels)
        assert lesson.videos is not None
        if named is None or named.keys() <= lesson.videos.keys():
            return lesson
    name = f"{config.train_subset} of {store_path(config.store).name}"
    return Lesson(name=name, used_labels=used_labels, videos=named)


def rows_met(lesson: Lesson, store: ClipStore) -> NDArray[np.int64] | None:
    """Rows of the lesson's videos in a store, ascending; None when they are not known."""
    if lesson.videos is None:
        return None
    rows = np.arange(len(store.videos.keys))
    frames = [lesson.videos.get(name) for name in _names(store, rows)]
    known = [found in (_ANY_LENGTH, store.videos.num_frames[row]) for row, found in zip(rows, frames, strict=True)]
    return rows[np.array(known, dtype=bool)]


def _named_by(run: RunFolder) -> dict[str, int] | None:
    """The videos of train_list.txt; None without that file, as in a folder that somebody copied in part."""
    try:
        text = run.train_list.read_text("utf-8", "surrogateescape")
    except FileNotFoundError:
        return None
    return {f"{key_hash(key):016x}": _ANY_LENGTH for key in text.split("\n") if key}


def _names(store: ClipStore, rows: NDArray[np.int64]) -> list[str]:
    return [f"{store.videos.key_hashes[row]:016x}" for row in rows]
