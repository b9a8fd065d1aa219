"""What was asked lately: the views of recent questions, so that a new version can be asked the same before it serves.

    answered question ──add──► a ring per (views per item, clip shape) ──take──► the promotion gate

Only packed views are kept, 44 bytes a clip, never pixels.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from data.views import ViewBatch
from teacher_server.protocol import TeacherQuery

if TYPE_CHECKING:  # importing it would import torch
    from teacher_server.answering import ClipShape

MAX_KINDS = 8


class RecentViews(NamedTuple):
    """Items of one question, and the absolute path of the store that the asker drew them from."""

    batch: ViewBatch
    store: str


@dataclass(frozen=True)
class _Question:
    order: int
    views: bytes
    store: str
    num_items: int


@dataclass
class _Ring:
    """Questions of one kind, oldest first. num_items: of all of them."""

    questions: deque[_Question] = field(default_factory=deque)
    num_items: int = 0


class RecentQuestions:
    """Rings that remember at least the last `max_items` items of each kind, by whole questions, of at most MAX_KINDS
    kinds: views per item and clip shape. Use from one thread.
    """

    def __init__(self, max_items: int = 64) -> None:
        if max_items < 1:
            raise ValueError(f"max_items must be at least 1, got {max_items}")
        self._max_items = max_items
        self._rings: dict[tuple[int, ClipShape], _Ring] = {}  # the kind that was asked last comes last
        self._asked = 0

    def add(self, query: TeacherQuery, shape: ClipShape) -> None:
        """Remembers an answered question; one without views is left out."""
        if query.views is None or query.store is None:
            return
        kind = (query.views_per_item, shape)
        ring = self._rings[kind] = self._rings.pop(kind) if kind in self._rings else _Ring()
        if len(self._rings) > MAX_KINDS:
            del self._rings[next(iter(self._rings))]
        self._asked += 1
        question = _Question(self._asked, query.views, query.store, query.view_batch().num_items)
        ring.questions.append(question)
        ring.num_items += question.num_items
        while ring.num_items - ring.questions[0].num_items >= self._max_items:
            ring.num_items -= ring.questions.popleft().num_items

    def take(self, views_per_item: int, n: int) -> list[RecentViews]:
        """At most n items of any clip shape, the latest questions first. They stay remembered."""
        rings = [ring for (views, _), ring in self._rings.items() if views == views_per_item]
        questions = sorted((q for ring in rings for q in ring.questions), key=lambda q: q.order, reverse=True)
        taken: list[RecentViews] = []
        for question in questions:
            if n <= 0:
                break
            items = min(n, question.num_items)
            taken.append(RecentViews(ViewBatch.from_bytes(question.views).items(0, items), question.store))
            n -= items
        return taken
