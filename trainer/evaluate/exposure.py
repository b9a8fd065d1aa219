"""Which videos of a store a student was trained on, and which splits may therefore be asked of it.

A store's splits overlap: most test videos of UCF101's second split stand in the training list of the first. A student
of train01 is new to test01 alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.home import store_path
from data.store import ClipStore
from trainer.config import RunConfig
from trainer.errors import EvaluationError
from trainer.evaluate.records import ProtocolName
from trainer.evaluate.splits import split_names


def training_rows(config: RunConfig, store: ClipStore) -> NDArray[np.int64]:
    """Rows of the list that a run was trained on (all of it, whatever its fraction and hold-out); none of any other
    store. A store made again at the same place is the run's, too, and so is a copy elsewhere."""
    if config.train_subset not in store.subsets or not _is_store_of(config, store):
        return np.zeros(0, np.int64)
    return store.subset(config.train_subset)


def splits_to_ask(config: RunConfig, store: ClipStore, names: Sequence[str], protocol: ProtocolName) -> tuple[str, ...]:
    """The splits named, or else those whose test videos are all new to the student.

    Raises EvaluationError when there is none; and for a split named whose test videos the student has met under the
    very labels that it would be asked for: by `pretext`, or by any protocol if the run used action labels.
    """
    trained_on = training_rows(config, store)
    known = split_names(store)
    seen = {name: len(np.intersect1d(store.subset(f"test{name}"), trained_on)) for name in known}
    if not names:
        new = tuple(name for name in known if not seen[name])
        if known and not new:
            raise EvaluationError(
                f"the student was trained on {config.train_subset} of this store, which holds test videos of all its "
                f"splits: name those to ask with --splits; they are {', '.join(known)}"
            )
        return new
    if protocol == "pretext" or _used_labels(config):
        for name in names:
            if seen.get(name):
                raise EvaluationError(
                    f"{seen[name]} of the test videos of split {name} are in {config.train_subset}, on which this "
                    "student learned the answers: leave --splits out for the splits that are new to it"
                )
    return tuple(names)


def _is_store_of(config: RunConfig, store: ClipStore) -> bool:
    path = store_path(config.store)
    if path.resolve() == store.path.resolve():
        return True
    try:
        return ClipStore.open(path).fingerprint == store.fingerprint
    except DataError:  # the run's own store is not here
        return False


def _used_labels(config: RunConfig) -> bool:
    return config.ce_weight > 0 or bool(config.extra_loss)
