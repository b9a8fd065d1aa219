"""What was asked lately."""

from __future__ import annotations

import numpy as np
import pytest

from data.views import VIEW_DTYPE, ViewBatch
from teacher_server.answering import ClipShape
from teacher_server.batching.recent import MAX_KINDS, RecentQuestions, RecentViews
from teacher_server.protocol import TeacherId, TeacherQuery

SHAPE, LONGER = ClipShape(8, 32, 32), ClipShape(16, 32, 32)


def question(first: int, items: int, *, views_per_item: int = 1, store: str = "/store") -> TeacherQuery:
    """Its items start at frames first, first + 1, ..."""
    records = np.zeros(items * views_per_item, VIEW_DTYPE)
    records["start"] = np.repeat(np.arange(first, first + items), views_per_item)
    return TeacherQuery(
        request_id="r",
        teacher=TeacherId("alpha", 1),
        temperature=1.0,
        views_per_item=views_per_item,
        views=ViewBatch(records, views_per_item, "00" * 16).to_bytes(),
        store=store,
    )


def starts(taken: list[RecentViews]) -> list[list[int]]:
    """The first frame of each item, by question."""
    return [views.batch.records["start"][:: views.batch.views_per_item].tolist() for views in taken]


def test_the_latest_questions_come_first_and_no_more_items_than_asked_for() -> None:
    recent = RecentQuestions()
    for first, store in ((10, "/a"), (20, "/b"), (30, "/c")):
        recent.add(question(first, 3, store=store), SHAPE)
    taken = recent.take(1, 5)
    assert starts(taken) == [[30, 31, 32], [20, 21]]
    assert [store for _, store in taken] == ["/c", "/b"]
    assert starts(recent.take(1, 100)) == [[30, 31, 32], [20, 21, 22], [10, 11, 12]]
    assert recent.take(1, 0) == []


def test_items_are_whole_and_the_views_are_the_ones_that_were_asked() -> None:
    recent = RecentQuestions()
    asked = question(5, 4, views_per_item=3)
    recent.add(asked, SHAPE)
    ((batch, _),) = recent.take(3, 2)
    assert batch.views_per_item == 3
    np.testing.assert_array_equal(batch.records, asked.view_batch().items(0, 2).records)


def test_questions_of_all_shapes_are_taken_and_items_of_so_many_views_only() -> None:
    recent = RecentQuestions()
    recent.add(question(10, 1), SHAPE)
    recent.add(question(20, 1), LONGER)
    recent.add(question(30, 1, views_per_item=3), SHAPE)
    recent.add(question(40, 1), SHAPE)
    assert starts(recent.take(1, 9)) == [[40], [20], [10]]
    assert starts(recent.take(3, 9)) == [[30]]
    assert recent.take(2, 9) == []


@pytest.mark.parametrize("items", [1, 3, 10, 25])
def test_the_last_items_are_remembered_by_whole_questions_and_older_ones_forgotten(items: int) -> None:
    recent = RecentQuestions(max_items=10)
    for first in range(0, 100 * items, items):
        recent.add(question(first, items), SHAPE)
    kept = [start for batch in starts(recent.take(1, 10_000)) for start in batch]
    assert 10 <= len(kept) < 10 + items
    assert set(kept) == set(range(100 * items - len(kept), 100 * items))


def test_the_kinds_asked_last_are_remembered() -> None:
    recent = RecentQuestions()
    recent.add(question(7, 1), SHAPE)
    for clip_len in range(100, 100 + MAX_KINDS):
        recent.add(question(1, 1), ClipShape(clip_len, 32, 32))
    assert starts(recent.take(1, 100)) == [[1]] * MAX_KINDS


def test_a_question_of_pixels_alone_is_left_out() -> None:
    recent = RecentQuestions()
    pixels = np.zeros((1, 8, 32, 32, 3), np.uint8)
    recent.add(TeacherQuery("r", TeacherId("alpha", 1), 1.0, 1, pixels=pixels), SHAPE)
    assert recent.take(1, 9) == []


def test_a_ring_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RecentQuestions(0)
