"""The evaluation at the end of a run: pretext task, retrieval and linear probe, as one record.

Features of the training and the test clips are taken once and serve both retrieval and probe.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.input_spec import InputSpec
from data.store import ClipStore
from data.views import SEGMENT_COPY, ClipSpec
from teacher_server.zoo.network import VideoNetwork
from trainer.answers import Answers
from trainer.evaluate.bootstrap import bootstrap_interval
from trainer.evaluate.extract import PhaseProgress, clip_features, phase_of
from trainer.evaluate.pretext import PretextResult, pretext_accuracy
from trainer.evaluate.probe import ProbeResult, commonest_share, linear_probe
from trainer.evaluate.records import RetrievalExample
from trainer.evaluate.retrieval import (
    EXAMPLE_NEIGHBOURS,
    KS,
    chance_top_k,
    first_hit_ranks,
    nearest,
    retrieval,
    retrieval_examples,
)
from trainer.evaluate.splits import fitting, groups_of

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class EvalOptions:
    """tuples_per_video: places at which a test video is tried under every operation. clips_per_video: for retrieval
    and probe. view_seed: of the operations' variants. seed: of the bootstrap, the only thing drawn at random.
    any_swap, shuffle, operation: as in training. batch_clips: clips in memory at a time."""

    tuples_per_video: int = 1
    clips_per_video: int = 10
    view_seed: int = 0
    seed: int = 0
    any_swap: bool = False
    shuffle: int = SEGMENT_COPY
    operation: str = ""
    batch_clips: int = 64


@dataclass(frozen=True)
class EvalResult:
    """What a student can do. Accuracies lie in [0, 1]; intervals are 95 % by group, None with fewer than 2 groups.

    `*_chance`: always naming the commonest operation; a gallery in random order; always naming the class that is
    commonest among the training videos. `retrieval`: k -> top-k accuracy; a k above `gallery_videos` means the whole
    gallery. `retrieval_examples`: a few queries with their neighbours, as rows of the store. `*_left_out`: videos with
    too few frames, for a tuple (pretext) or for a clip (train, test). `answers`: which items were right, for the three
    figures that runs are compared by; no part of the JSON.
    """

    pretext_acc: float
    pretext_balanced_acc: float
    pretext_loss: float
    pretext_interval: Interval
    pretext_chance: float
    pretext_label_histogram: tuple[int, ...]
    pretext_confusion: tuple[tuple[int, ...], ...]  # a row per operation, a column per answer
    retrieval_top1: float
    retrieval_top5: float
    retrieval: dict[int, float]
    retrieval_interval: Interval  # of top-1
    retrieval_top1_chance: float
    retrieval_top5_chance: float
    gallery_videos: int
    retrieval_examples: tuple[RetrievalExample, ...]
    probe_acc: float
    probe_train_acc: float  # of clips
    probe_interval: Interval
    probe_chance: float
    probe_confusion: tuple[tuple[int, ...], ...]  # a row per class, a column per answer
    pretext_videos: int
    pretext_left_out: int
    train_videos: int
    train_left_out: int
    test_videos: int
    test_left_out: int
    tuples_per_video: int
    clips_per_video: int
    seconds: float
    answers: Mapping[str, Answers]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: tuples become lists, the keys of `retrieval` text."""
        fields = asdict(replace(self, answers={}))
        del fields["answers"]
        fields["retrieval_examples"] = [example.model_dump(mode="json") for example in self.retrieval_examples]
        fields["retrieval"] = {str(k): value for k, value in self.retrieval.items()}
        return {name: _plain(value) for name, value in fields.items()}


def evaluate_student(
    network: VideoNetwork,
    store: ClipStore,
    *,
    train_rows: NDArray[np.int64],
    test_rows: NDArray[np.int64],
    spec: ClipSpec,
    input_spec: InputSpec,
    options: EvalOptions | None = None,
    progress: PhaseProgress | None = None,
) -> EvalResult:
    """Everything that method.md asks of a frozen student. The network comes back in the mode that it was in.

    train_rows: the gallery and the probe's training videos. test_rows: the queries and all test videos.
    Raises EvaluationError when a list has no video that is long enough, or when the features are not finite.
    """
    began = time.monotonic()
    options = options or EvalOptions()
    tuple_rows = fitting(store, test_rows, spec.tuple_span, "test list")
    train = fitting(store, train_rows, spec.clip_len, "training list")
    test = fitting(store, test_rows, spec.clip_len, "test list")
    pretext = pretext_accuracy(
        network,
        store,
        tuple_rows,
        spec,
        input_spec,
        options.view_seed,
        options.tuples_per_video,
        options.any_swap,
        shuffle=options.shuffle,
        operation=options.operation,
        batch_clips=options.batch_clips,
        progress=phase_of(progress, "pretext"),
    )

    def features(rows: NDArray[np.int64], phase: str) -> NDArray[np.float32]:
        m, size = options.clips_per_video, options.batch_clips
        return clip_features(network, store, rows, spec, input_spec, m, size, phase_of(progress, phase))

    train_VMD, test_VMD = features(train, "training clips"), features(test, "test clips")
    train_labels, test_labels = store.labels[train], store.labels[test]
    probe = linear_probe(train_VMD, train_labels, test_VMD, test_labels, len(store.classes))
    retrieved = first_hit_ranks(test_VMD, train_VMD, test_labels, train_labels) == 0
    return EvalResult(
        **_pretext_fields(pretext, store, options.seed),
        **_retrieval_fields(
            test_VMD, train_VMD, test_labels, train_labels, retrieved, groups_of(store, test), options.seed
        ),
        retrieval_examples=retrieval_examples(nearest(test_VMD, train_VMD, EXAMPLE_NEIGHBOURS), test, train),
        **_probe_fields(probe, train_labels, test_labels, groups_of(store, test), options.seed),
        pretext_videos=len(tuple_rows),
        pretext_left_out=len(test_rows) - len(tuple_rows),
        train_videos=len(train),
        train_left_out=len(train_rows) - len(train),
        test_videos=len(test),
        test_left_out=len(test_rows) - len(test),
        tuples_per_video=options.tuples_per_video,
        clips_per_video=options.clips_per_video,
        answers={
            name: Answers.of(correct, [store.videos.keys[row] for row in rows], groups_of(store, rows))
            for name, correct, rows in (
                ("pretext_acc", pretext.correct, pretext.rows),
                ("retrieval_top1", retrieved, test),
                ("probe_acc", probe.correct, test),
            )
        },
        seconds=round(time.monotonic() - began, 3),
    )


def _pretext_fields(result: PretextResult, store: ClipStore, seed: int) -> dict[str, Any]:
    return {
        "pretext_acc": result.accuracy,
        "pretext_balanced_acc": result.balanced_accuracy,
        "pretext_loss": result.loss,
        "pretext_interval": bootstrap_interval(result.correct, groups_of(store, result.rows), seed=seed),
        "pretext_chance": result.chance,
        "pretext_label_histogram": result.label_histogram,
        "pretext_confusion": _table(result.confusion),
    }


def _retrieval_fields(
    query_VMD: NDArray[np.float32],
    gallery_VMD: NDArray[np.float32],
    query_labels: NDArray[np.int64],
    gallery_labels: NDArray[np.int64],
    retrieved_V: NDArray[np.bool_],
    groups: list[str],
    seed: int,
) -> dict[str, Any]:
    top_k = retrieval(query_VMD, gallery_VMD, query_labels, gallery_labels, KS)
    return {
        "retrieval": top_k,
        "retrieval_top1": top_k[1],
        "retrieval_top5": top_k[5],
        "retrieval_interval": bootstrap_interval(retrieved_V, groups, seed=seed),
        "retrieval_top1_chance": chance_top_k(query_labels, gallery_labels, 1),
        "retrieval_top5_chance": chance_top_k(query_labels, gallery_labels, 5),
        "gallery_videos": len(gallery_labels),
    }


def _probe_fields(
    result: ProbeResult,
    train_labels: NDArray[np.int64],
    test_labels: NDArray[np.int64],
    groups: list[str],
    seed: int,
) -> dict[str, Any]:
    return {
        "probe_acc": result.accuracy,
        "probe_train_acc": result.train_accuracy,
        "probe_interval": bootstrap_interval(result.correct, groups, seed=seed),
        "probe_chance": commonest_share(train_labels, test_labels),
        "probe_confusion": _table(result.confusion),
    }


def _table(confusion: NDArray[np.int64]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in confusion.tolist())


def _plain(value: Any) -> Any:
    """Tuples as lists, all the way down."""
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
