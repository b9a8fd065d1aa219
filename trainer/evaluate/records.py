"""What an evaluation found, as it is kept: JSON that reads back into the same record. Accuracies lie in [0, 1]."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Interval = tuple[float, float] | None
ProtocolName = Literal["finetune", "probe", "retrieval", "pretext"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RetrievalExample(_Record):
    """A query and its nearest gallery videos, nearest first: rows of the store, and cosines."""

    query: int
    neighbours: tuple[int, ...]
    cosines: tuple[float, ...]


class SplitScore(_Record):
    """One split. accuracy: top-1 of the protocol's question: action or, for `pretext`, operation.

    interval: 95 %, resampled by group; None with fewer than 2 groups. chance: always naming the commonest operation; a
    gallery in random order; always naming the class that is commonest among the training videos. confusion: a row per
    true class, a column per answer; in retrieval the answer is the nearest video's class. test_items: answers that the
    accuracy is the mean of. *_left_out: videos with too few frames. test_seen: test videos in the lists that the
    student was trained on, None when those are not known. train_accuracy: of clips. balanced_accuracy: of pretext, mean
    over the operations. label_histogram: how often each operation was asked for. top_k: of retrieval, by k.
    """

    split: str
    accuracy: float
    interval: Interval
    chance: float
    confusion: tuple[tuple[int, ...], ...]
    test_items: int
    test_videos: int
    test_left_out: int
    test_seen: int | None
    train_videos: int
    train_left_out: int
    train_accuracy: float | None = None
    balanced_accuracy: float | None = None
    loss: float | None = None
    label_histogram: tuple[int, ...] | None = None
    top_k: dict[int, float] | None = None
    examples: tuple[RetrievalExample, ...] = ()


class Evaluation(_Record):
    """One student, one protocol, one store. mean_*: over the splits; the interval resamples the groups of all of them
    together, because one group's videos can stand in several lists. settings: all that the numbers depend on besides
    weights and store. classes: what rows and columns of the confusions are called."""

    format: Literal[1] = 1
    protocol: ProtocolName
    student: str
    weights_digest: str
    store: str
    store_fingerprint: str
    settings: dict[str, Any]
    classes: tuple[str, ...]
    splits: tuple[SplitScore, ...]
    mean_accuracy: float
    mean_interval: Interval
    mean_chance: float
    mean_balanced_accuracy: float | None = None
    mean_top_k: dict[int, float] | None = None
    seconds: float
