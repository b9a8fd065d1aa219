"""Nearest-neighbour retrieval: does a video's neighbourhood in feature space hold a video of the same action?

Method: the features of a video's clips are averaged, neighbours are ranked by cosine. Training videos are the
gallery, test videos the queries; none is left out.

Axis letters: Q queries, G gallery videos, M clips of a video, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.evaluate.records import RetrievalExample

KS = (1, 5, 10, 20, 50)
EXAMPLE_NEIGHBOURS = 5
_EXAMPLES = 6
_QUERIES_AT_ONCE = 256  # bounds the memory: [256, G] similarities and their order


def retrieval(
    query_features: NDArray[np.float32],
    gallery_features: NDArray[np.float32],
    query_labels: NDArray[np.int64],
    gallery_labels: NDArray[np.int64],
    ks: Sequence[int] = KS,
) -> dict[int, float]:
    """k -> share of queries with at least one video of their class among the k nearest of the gallery.

    A k larger than the gallery means the whole gallery; the dictionary keeps the k that was asked for. Other arguments
    as in `first_hit_ranks`.
    """
    if any(k < 1 for k in ks):
        raise ValueError(f"every k must be at least 1, got {list(ks)}")
    ranks_Q = first_hit_ranks(query_features, gallery_features, query_labels, gallery_labels)
    # A query whose class the gallery lacks has rank G: no k may reach it.
    return {k: float((ranks_Q < min(k, len(gallery_labels))).mean()) for k in ks}


def first_hit_ranks(
    query_features: NDArray[np.float32],
    gallery_features: NDArray[np.float32],
    query_labels: NDArray[np.int64],
    gallery_labels: NDArray[np.int64],
) -> NDArray[np.int64]:
    """[Q] how many gallery videos are nearer than the nearest one of the query's class; G if it has none.

    features: [Q, M, D] and [G, M', D]. Of equally near videos the one with the lower row comes first; a video whose
    features are all zero has cosine 0 to every other. Raises ValueError for shapes that do not fit or nothing to rank.
    """
    gallery_size = len(gallery_labels)
    _check_labels(query_features, query_labels, "query")
    _check_labels(gallery_features, gallery_labels, "gallery")
    parts = []
    for part, order, _ in _ranked(query_features, gallery_features):
        hits = gallery_labels[order] == query_labels[part, None]
        parts.append(np.where(hits.any(axis=1), hits.argmax(axis=1), gallery_size))
    return np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest gallery videos of each query, nearest first: their places in the gallery and cosines, [Q, k]."""

    places: NDArray[np.int64]
    cosines: NDArray[np.float64]


def nearest(query_features: NDArray[np.float32], gallery_features: NDArray[np.float32], k: int) -> Neighbours:
    """The k nearest gallery videos of each query, all of them for a larger k; ties as in `first_hit_ranks`.

    features: [Q, M, D] and [G, M', D]. Raises ValueError for shapes that do not fit.
    """
    places, cosines = [], []
    for _, order, similarity in _ranked(query_features, gallery_features):
        places.append(order[:, :k])
        cosines.append(np.take_along_axis(similarity, order[:, :k], axis=1))
    return Neighbours(np.concatenate(places), np.concatenate(cosines))


def retrieval_examples(
    near: Neighbours, query_rows: NDArray[np.int64], gallery_rows: NDArray[np.int64]
) -> tuple[RetrievalExample, ...]:
    """A few queries, evenly spaced over the list whatever came out, with their neighbours.

    rows: [Q] and [G], where queries and gallery stand in the store.
    """
    shown = np.unique(np.linspace(0, len(query_rows) - 1, min(_EXAMPLES, len(query_rows))).round().astype(int))
    return tuple(
        RetrievalExample(
            query=int(query_rows[q]),
            neighbours=tuple(gallery_rows[near.places[q]].tolist()),
            cosines=tuple(near.cosines[q].round(4).tolist()),
        )
        for q in shown
    )


def _ranked(
    query_features: NDArray[np.float32], gallery_features: NDArray[np.float32]
) -> Iterator[tuple[slice, NDArray[np.int64], NDArray[np.float64]]]:
    """Some queries at a time: which ones, the gallery from near to far [q, G], the cosines [q, G] in gallery order."""
    queries_QD = _unit_means(query_features, "query")
    gallery_GD = _unit_means(gallery_features, "gallery")
    if queries_QD.shape[1] != gallery_GD.shape[1]:
        raise ValueError(
            f"queries have {queries_QD.shape[1]} features, the gallery {gallery_GD.shape[1]}: they must be equal"
        )
    for start in range(0, len(queries_QD), _QUERIES_AT_ONCE):
        part = slice(start, start + _QUERIES_AT_ONCE)
        similarity = queries_QD[part] @ gallery_GD.T
        yield part, np.argsort(-similarity, axis=1, kind="stable"), similarity


def chance_top_k(query_labels: NDArray[np.int64], gallery_labels: NDArray[np.int64], k: int) -> float:
    """Expected top-k accuracy when the gallery is ranked at random: 1 - C(G-n, k) / C(G, k) with n gallery videos of
    the query's class, mean over the queries."""
    size = len(gallery_labels)
    draws = np.arange(min(k, size))
    same_Q = (query_labels[:, None] == gallery_labels[None, :]).sum(axis=1)
    # C(G-n, k) / C(G, k) as a product of k factors that are never negative: no large factorials.
    misses_Qk = np.maximum(size - same_Q[:, None] - draws, 0) / (size - draws)
    return float(1 - misses_Qk.prod(axis=1).mean())


def _check_labels(features: NDArray[np.float32], labels: NDArray[np.int64], what: str) -> None:
    if labels.shape != features.shape[:1]:
        raise ValueError(f"{what}: features of {len(features)} videos need as many labels, got {labels.shape}")


def _unit_means(features: NDArray[np.float32], what: str) -> NDArray[np.float64]:
    """[V, D] mean over the clips, scaled to length 1."""
    if features.ndim != 3 or len(features) == 0:
        raise ValueError(f"{what}: features [videos, clips, D] of at least one video are needed, got {features.shape}")
    mean = features.astype(np.float64).mean(axis=1)
    norm = np.linalg.norm(mean, axis=1, keepdims=True)
    return mean / np.where(norm > 0, norm, 1.0)
