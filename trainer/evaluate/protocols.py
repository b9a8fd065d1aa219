"""The four questions of method.md, section 7, put to one student on the official splits of a store.

    finetune    action accuracy after fine-tuning, head or full
    probe       action accuracy of a linear probe on frozen features
    retrieval   whether a test video's nearest training videos show its action
    pretext     which of the five operations was done to a tuple

Every split is one SplitScore; the Evaluation adds their mean. Features of frozen students are computed once for all
splits. `evaluate.final` puts the same functions together for the end of a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.store import ClipStore
from teacher_server.card import pretext_classes
from teacher_server.zoo.network import VideoNetwork
from trainer.errors import EvaluationError
from trainer.evaluate.bootstrap import bootstrap_interval, bootstrap_mean_interval
from trainer.evaluate.extract import PhaseProgress, clip_features, phase_of
from trainer.evaluate.feature_files import kept_features
from trainer.evaluate.finetune import FinetuneResult, SplitFeatures, finetune
from trainer.evaluate.pretext import confusion_matrix, pretext_accuracy
from trainer.evaluate.probe import commonest_share, linear_probe
from trainer.evaluate.records import Evaluation, SplitScore
from trainer.evaluate.request import EvalRequest
from trainer.evaluate.retrieval import (
    EXAMPLE_NEIGHBOURS,
    KS,
    chance_top_k,
    nearest,
    retrieval,
    retrieval_examples,
)
from trainer.evaluate.splits import Split, check_frames, groups_of, splits_of

OnAnswers = Callable[[str, NDArray[np.bool_], Sequence[str]], None]


@dataclass(frozen=True)
class Workplace:
    """Where parts of an evaluation are kept until it is whole. features: belongs to the student; work: to the question.

    Fine-tuned networks are handed to `tuned`, with the name of their split.
    """

    features: Path
    work: Path
    tuned: Callable[[str, FinetuneResult], None]


@dataclass(frozen=True, eq=False)
class _Scored:
    """A split's score, and for its interval the single answers."""

    score: SplitScore
    correct: NDArray[np.bool_]
    groups: list[str]


def evaluate(
    network: VideoNetwork,
    store: ClipStore,
    request: EvalRequest,
    *,
    student: str,
    weights_digest: str,
    trained_on: NDArray[np.int64] | None = None,
    workplace: Workplace | None = None,
    on_answers: OnAnswers | None = None,
    progress: PhaseProgress | None = None,
) -> Evaluation:
    """The answer to the request, on the device that the network's weights lie on.

    student, weights_digest: who is evaluated, for the record. trained_on: rows of the store that the student was
    trained on; None when nobody knows. workplace: makes it resumable; None keeps nothing. on_answers: told of each
    split whether each answer is right, bool [I], and of which group its video is. progress: may raise to end it early.
    Raises EvaluationError for what does not go together.
    """
    began = time.monotonic()
    check_frames(store.frame_size, request.spec, f"clip store {store.path}")
    splits = splits_of(store, request.splits, request.num_frames)
    run = _Run(network, store, request, trained_on, workplace, progress)
    scored = run.scores(splits)
    if on_answers is not None:
        for one in scored:
            on_answers(one.score.split, one.correct, one.groups)
    scores = tuple(one.score for one in scored)
    top_k = None
    if scores[0].top_k is not None:
        top_k = {k: float(np.mean([(score.top_k or {})[k] for score in scores])) for k in scores[0].top_k}
    balanced = [score.balanced_accuracy for score in scores if score.balanced_accuracy is not None]
    return Evaluation(
        protocol=request.protocol,
        student=student,
        weights_digest=weights_digest,
        store=store.path.name,
        store_fingerprint=store.fingerprint,
        settings=request.settings(tuple(split.name for split in splits)),
        classes=(
            pretext_classes(request.operation, request.shuffle)
            if request.protocol == "pretext"
            else printable(store.classes)
        ),
        splits=scores,
        mean_accuracy=float(np.mean([score.accuracy for score in scores])),
        mean_interval=bootstrap_mean_interval(
            [one.correct for one in scored], [one.groups for one in scored], seed=request.seed
        ),
        mean_chance=float(np.mean([score.chance for score in scores])),
        mean_balanced_accuracy=float(np.mean(balanced)) if balanced else None,
        mean_top_k=top_k,
        seconds=round(time.monotonic() - began, 3),
    )


def printable(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names as text: bytes of file names that are no text become escapes, which JSON can hold."""
    return tuple(name.encode("utf-8", "backslashreplace").decode() for name in names)


class _Run:
    """One evaluation under way."""

    def __init__(
        self,
        network: VideoNetwork,
        store: ClipStore,
        request: EvalRequest,
        trained_on: NDArray[np.int64] | None,
        workplace: Workplace | None,
        progress: PhaseProgress | None,
    ) -> None:
        self._network, self._store, self._request = network, store, request
        self._trained_on = trained_on
        self._workplace, self._progress = workplace, progress

    def scores(self, splits: tuple[Split, ...]) -> list[_Scored]:
        """One per split."""
        request = self._request
        if request.protocol == "pretext":
            return [self._pretext(split) for split in splits]
        if request.protocol == "finetune" and (request.recipe.mode == "full" or request.recipe.augment):
            return [self._finetune(split, None) for split in splits]
        tuning = request.protocol == "finetune"
        features = self._features(splits, request.recipe.clips_per_video if tuning else request.clips_per_video)
        score = {"finetune": self._finetune, "probe": self._probe, "retrieval": self._retrieval}[request.protocol]
        return [score(split, part) for split, part in zip(splits, features, strict=True)]

    def _features(self, splits: tuple[Split, ...], clips_per_video: int) -> list[SplitFeatures]:
        """Of every video once, whatever the number of splits that it stands in."""
        request, store = self._request, self._store
        rows = np.unique(np.concatenate([part for split in splits for part in (split.train_rows, split.test_rows)]))
        args = (self._network, store, rows, request.spec, request.input_spec, clips_per_video)
        progress = phase_of(self._progress, "clips")
        if self._workplace is None:
            features = clip_features(*args, progress=progress)
        else:
            features = kept_features(*args, self._workplace.features, progress=progress)
        places = [(np.searchsorted(rows, s.train_rows), np.searchsorted(rows, s.test_rows)) for s in splits]
        return [SplitFeatures(features[train], features[test]) for train, test in places]

    def _finetune(self, split: Split, features: SplitFeatures | None) -> _Scored:
        store, request = self._store, self._request
        result = finetune(
            self._network,
            store,
            train_rows=split.train_rows,
            test_rows=split.test_rows,
            spec=request.spec,
            input_spec=request.input_spec,
            recipe=request.recipe,
            features=features,
            folder=None if self._workplace is None else self._workplace.work / f"split{split.name}",
            progress=_named(self._progress, split.name),
        )
        if self._workplace is not None:
            self._workplace.tuned(split.name, result)
        chance = commonest_share(store.labels[split.train_rows], store.labels[split.test_rows])
        return self._scored(
            split, result.correct, split.test_rows, result.confusion, chance, train_accuracy=result.train_accuracy
        )

    def _probe(self, split: Split, features: SplitFeatures) -> _Scored:
        train, test = self._store.labels[split.train_rows], self._store.labels[split.test_rows]
        result = linear_probe(features.train_VMD, train, features.test_VMD, test, len(self._store.classes))
        chance = commonest_share(train, test)
        return self._scored(
            split, result.correct, split.test_rows, result.confusion, chance, train_accuracy=result.train_accuracy
        )

    def _retrieval(self, split: Split, features: SplitFeatures) -> _Scored:
        gallery, queries = self._store.labels[split.train_rows], self._store.labels[split.test_rows]
        near = nearest(features.test_VMD, features.train_VMD, EXAMPLE_NEIGHBOURS)
        answers = gallery[near.places[:, 0]]
        return self._scored(
            split,
            answers == queries,
            split.test_rows,
            confusion_matrix(queries, answers, len(self._store.classes)),
            chance_top_k(queries, gallery, 1),
            top_k=retrieval(features.test_VMD, features.train_VMD, queries, gallery, KS),
            examples=retrieval_examples(near, split.test_rows, split.train_rows),
        )

    def _pretext(self, split: Split) -> _Scored:
        request = self._request
        if self._network.pretext_head is None:
            raise EvaluationError("this student has no pretext head: evaluate the run that it was fine-tuned from")
        result = pretext_accuracy(
            self._network,
            self._store,
            split.test_rows,
            request.spec,
            request.input_spec,
            request.view_seed,
            request.tuples_per_video,
            request.any_swap,
            shuffle=request.shuffle,
            operation=request.operation,
            progress=phase_of(_named(self._progress, split.name), "pretext"),
        )
        return self._scored(
            split,
            result.correct,
            result.rows,
            result.confusion,
            result.chance,
            balanced_accuracy=result.balanced_accuracy,
            loss=result.loss,
            label_histogram=result.label_histogram,
        )

    def _scored(
        self,
        split: Split,
        correct: NDArray[np.bool_],
        rows: NDArray[np.int64],
        confusion: NDArray[np.int64],
        chance: float,
        **more: Any,
    ) -> _Scored:
        groups = groups_of(self._store, rows)
        score = SplitScore(
            split=split.name,
            accuracy=float(correct.mean()),
            interval=bootstrap_interval(correct, groups, seed=self._request.seed),
            chance=chance,
            confusion=tuple(tuple(row) for row in confusion.tolist()),
            test_items=len(correct),
            test_videos=len(split.test_rows),
            test_left_out=split.test_left_out,
            test_seen=split.num_seen(self._trained_on),
            train_videos=len(split.train_rows),
            train_left_out=split.train_left_out,
            **more,
        )
        return _Scored(score, correct, groups)


def _named(progress: PhaseProgress | None, split: str) -> PhaseProgress | None:
    """Phases with the split before them."""
    if progress is None:
        return None
    return lambda phase, done, total: progress(f"split {split}: {phase}", done, total)
