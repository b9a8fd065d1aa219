"""From a query to its reply, the one path of every place that answers: replicas and the in-process client.

check_query ──► load_pixels ──► answer_together ──► join_answers ──► make_reply
(card only)     (store, CPU)    (parts of several   (of one query)   (temperature)
                                 queries)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import StoreMismatch, ViewError
from data.render import render_batch
from data.store import ClipStore
from teacher_server.batching.batcher import Part
from teacher_server.card import MAX_CHUNK_BYTES, Card
from teacher_server.engine.teacher import Teacher, TeacherAnswer
from teacher_server.errors import BadQuery
from teacher_server.protocol import PhaseSeconds, TeacherQuery, TeacherReply

MAX_OPEN_STORES = 16
MAX_QUESTION_BYTES = 2**30  # of one question's pixels: 1783 clips of 16x112x112


@dataclass(frozen=True)
class ClipShape:
    """Frames, height and width of the clips of one query; only equal ones can share a forward pass."""

    clip_len: int
    height: int
    width: int

    @property
    def num_bytes(self) -> int:
        """Of one clip's pixels."""
        return self.clip_len * self.height * self.width * 3


class StoreCache:
    """Stores by path, kept open. Used by one thread at a time."""

    def __init__(self, open_store: Callable[[Path], ClipStore] = ClipStore.open) -> None:
        self._open_store = open_store
        self._stores: dict[Path, ClipStore] = {}

    def get(self, path: Path, fingerprint: str) -> ClipStore:
        """The store with this fingerprint; opened again when the one at hand is another, because it may have grown.

        Raises StoreMissing, StoreDamaged; StoreMismatch when it is still another one.
        """
        store = self._stores.get(path)
        if store is None or store.fingerprint != fingerprint:
            store = self._open_store(path)
            while len(self._stores) >= MAX_OPEN_STORES:
                self._stores.pop(next(iter(self._stores)))
            self._stores[path] = store
        if store.fingerprint != fingerprint:
            raise StoreMismatch(str(path), f"the views were drawn from {fingerprint}, here lies {store.fingerprint}")
        return store


def check_query(query: TeacherQuery, card: Card) -> ClipShape:
    """Whether this teacher can answer; touches neither store nor pixels. Raises BadQuery with what was expected."""
    if query.views_per_item != card.views_per_item:
        raise BadQuery(f"{query.teacher} answers items of {card.views_per_item} views, got {query.views_per_item}")
    shape = ClipShape(*query.pixels.shape[1:4]) if query.pixels is not None else _shape_of_views(query)
    if query.pixels is not None and query.views is not None:
        views, count = _shape_of_views(query), len(query.view_batch())
        if (views, count) != (shape, len(query.pixels)):
            raise BadQuery(f"{len(query.pixels)} clips are {shape}, the {count} views that they come with {views}")
    if shape.clip_len < card.min_clip_len:
        raise BadQuery(f"{query.teacher} takes clips of at least {card.min_clip_len} frames, got {shape.clip_len}")
    if (shape.height, shape.width) != (card.crop, card.crop) and not card.resize:
        raise BadQuery(f"{query.teacher} takes {card.crop}x{card.crop} pixels, got {shape.height}x{shape.width}")
    _check_bytes(query, card, shape)
    return shape


def load_pixels(query: TeacherQuery, stores: StoreCache) -> NDArray[np.uint8]:
    """uint8 [N, T, H, W, 3]: the query's own pixels, or its views rendered from its store.

    Raises BadQuery for views that cannot be rendered, StoreError.
    """
    if query.pixels is not None:
        return query.pixels
    assert query.store is not None  # TeacherQuery refuses views without one
    batch = query.view_batch()
    store = stores.get(Path(query.store), batch.store_fingerprint)
    try:
        return render_batch(store.gather(batch), batch)
    except ViewError as error:
        raise BadQuery(str(error)) from None


def answer_together(teacher: Teacher, parts: Sequence[Part[NDArray[np.uint8]]]) -> list[TeacherAnswer]:
    """One answer for each part of an array of clips [N, T, H, W, 3], from the clips of all parts in common chunks.

    An answer does not depend on which other parts are there: see teacher_server.engine.teacher. It is a copy, so
    keeping it does not keep those of the others.
    """
    views = teacher.card.views_per_item
    pixels = [part.loaded[part.first * views : part.last * views] for part in parts]
    answer = teacher.answer(pixels[0] if len(pixels) == 1 else np.concatenate(pixels))
    ends = np.cumsum([part.num_items for part in parts])[:-1]
    both = zip(np.split(answer.logits, ends), np.split(answer.features, ends), strict=True)
    return [TeacherAnswer(logits.copy(), features.copy()) for logits, features in both]


def join_answers(answers: Sequence[TeacherAnswer]) -> TeacherAnswer:
    """The answer to a question from those to its parts, in order."""
    if len(answers) == 1:
        return answers[0]
    return TeacherAnswer(
        np.concatenate([answer.logits for answer in answers]), np.concatenate([answer.features for answer in answers])
    )


def make_reply(query: TeacherQuery, teacher: Teacher, answer: TeacherAnswer, seconds: PhaseSeconds) -> TeacherReply:
    """The reply: logits divided by the query's temperature; features only if they were asked for."""
    return TeacherReply(
        request_id=query.request_id,
        teacher=teacher.teacher,
        digest=teacher.digest,
        temperature=query.temperature,
        logits=soften(answer.logits, query),
        engine=teacher.engine,
        features=answer.features.copy() if query.want_features else None,
        seconds=seconds,
    )


def soften(raw: NDArray[np.float32], query: TeacherQuery) -> NDArray[np.float32] | NDArray[np.float16]:
    """Raw logits divided by the query's temperature, in float32 and then in the type that it asks for.

    Raises BadQuery when they are too large for float16.
    """
    softened = raw / np.float32(query.temperature)
    if query.dtype == "float16" and np.abs(softened).max(initial=0) > np.finfo(np.float16).max:
        raise BadQuery(
            f"logits of {np.abs(raw).max():.3g} at temperature {query.temperature:g} are too large for float16: ask "
            "for float32, or at a higher temperature"
        )
    return softened.astype(query.dtype, copy=False)


def _check_bytes(query: TeacherQuery, card: Card, shape: ClipShape) -> None:
    """Few bytes of views can ask for any amount of pixels, so what they ask for is bounded here. Raises BadQuery."""
    chunk_bytes = card.chunk_items * card.views_per_item * shape.num_bytes
    if chunk_bytes > MAX_CHUNK_BYTES:
        raise BadQuery(
            f"{query.teacher} computes {card.chunk_items} items of {card.views_per_item} clips at a time, which are "
            f"{chunk_bytes} bytes of {shape}, at most {MAX_CHUNK_BYTES} are allowed: ask about shorter or smaller clips"
        )
    question_bytes = query.num_clips * shape.num_bytes
    if question_bytes > MAX_QUESTION_BYTES:
        raise BadQuery(
            f"{query.num_clips} clips of {shape} are {question_bytes} bytes of pixels, a question has at most "
            f"{MAX_QUESTION_BYTES}: split it"
        )


def _shape_of_views(query: TeacherQuery) -> ClipShape:
    shapes = np.unique(query.view_batch().records[["clip_len", "crop_h", "crop_w"]])
    if len(shapes) != 1:
        raise BadQuery(f"the clips of one query share length and crop, got (frames, height, width) {shapes.tolist()}")
    return ClipShape(*shapes[0].item())
