"""The pretext task on videos: which of the five operations was done to the middle clip of a tuple.

Every video is tried under all five operations, so each label occurs equally often and guessing gives 1/5. With the
remote variant of the temporal shuffle the label 4 is rarer, because a short video has no remote clip, and always naming
another one gives more.

Axis letters: I items (tuples), K operations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from data.draw import eval_tuples
from data.input_spec import InputSpec
from data.store import ClipStore
from data.views import NUM_PRETEXT, SEGMENT_COPY, VIEWS_PER_TUPLE, ClipSpec, ViewBatch
from teacher_server.zoo.network import VideoNetwork
from trainer.evaluate.extract import Progress, frozen, view_features


@dataclass(frozen=True, eq=False)
class PretextResult:
    """confusion: int64 [K, K], a row per true operation and a column per answer. correct: bool [I] and rows: int64 [I],
    for each item whether the answer was right and which video it is about."""

    accuracy: float
    balanced_accuracy: float  # mean over the operations of the share answered right
    loss: float  # mean cross entropy, nats
    label_histogram: tuple[int, ...]  # [K]
    confusion: NDArray[np.int64]
    correct: NDArray[np.bool_]
    rows: NDArray[np.int64]

    @property
    def chance(self) -> float:
        """The accuracy of always naming the commonest operation."""
        return max(self.label_histogram) / sum(self.label_histogram)


def pretext_accuracy(
    network: VideoNetwork,
    store: ClipStore,
    rows: NDArray[np.int64],
    spec: ClipSpec,
    input_spec: InputSpec,
    view_seed: int,
    tuples_per_video: int,
    any_swap: bool = False,
    *,
    shuffle: int = SEGMENT_COPY,
    operation: str = "",
    batch_clips: int = 64,
    progress: Progress | None = None,
) -> PretextResult:
    """Every video under all five operations at `tuples_per_video` places; centre crop, no augmentation.

    any_swap, shuffle, operation: as in the student's training, which knows one variant of the temporal shuffle only.

    The five tuples of a place share their first and last clip: 7 forward passes instead of 15.
    Raises VideoTooShort for a video without room for a tuple, ValueError for no videos.
    """
    tuples = eval_tuples(
        store.videos,
        rows,
        view_seed=view_seed,
        spec=spec,
        tuples_per_video=tuples_per_video,
        any_swap=any_swap,
        shuffle=shuffle,
        operation=operation,
    )
    features = view_features(network, store, tuples, input_spec, batch_clips=batch_clips, progress=progress)
    logits_IK = _head_logits(network, features)
    return pretext_result(logits_IK, tuples.pretext_labels, _item_rows(tuples))


def pretext_result(
    logits_IK: NDArray[np.float32], labels_I: NDArray[np.int64], rows_I: NDArray[np.int64]
) -> PretextResult:
    """The figures for these answers. Of equal logits the lower label is the answer. Raises ValueError for no items."""
    if len(labels_I) == 0:
        raise ValueError("the pretext accuracy needs at least one video that is long enough for a tuple, got none")
    answers_I = logits_IK.argmax(axis=1)
    confusion = confusion_matrix(labels_I, answers_I, NUM_PRETEXT)
    counts_K = confusion.sum(axis=1)
    recalls = np.diag(confusion)[counts_K > 0] / counts_K[counts_K > 0]
    shifted = logits_IK.astype(np.float64) - logits_IK.max(axis=1, keepdims=True)
    log_p_IK = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return PretextResult(
        accuracy=float((answers_I == labels_I).mean()),
        balanced_accuracy=float(recalls.mean()),
        loss=float(-log_p_IK[np.arange(len(labels_I)), labels_I].mean()),
        label_histogram=tuple(counts_K.tolist()),
        confusion=confusion,
        correct=answers_I == labels_I,
        rows=rows_I,
    )


def confusion_matrix(labels_I: NDArray[np.int64], answers_I: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """[K, K] counts: a row per true class, a column per answer."""
    cells = np.bincount(labels_I * num_classes + answers_I, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def _head_logits(network: VideoNetwork, features_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """[I, K]: the pretext head on the features of each tuple's three clips."""
    device = next(network.parameters()).device
    with frozen(network):
        features_IVD = torch.from_numpy(features_ND).to(device).unflatten(0, (-1, VIEWS_PER_TUPLE))
        return network.pretext_logits(features_IVD.unbind(dim=1)).float().cpu().numpy()


def _item_rows(tuples: ViewBatch) -> NDArray[np.int64]:
    return tuples.records["video"][:: tuples.views_per_item].astype(np.int64)
