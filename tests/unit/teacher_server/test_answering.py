"""Answers to parts of questions, with a closed-form teacher: the answer about an item is the sum of its pixels."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from data.views import VIEW_DTYPE, ViewBatch
from teacher_server.answering import MAX_QUESTION_BYTES, ClipShape, answer_together, check_query, join_answers, soften
from teacher_server.batching.batcher import Batcher, Part
from teacher_server.card import MAX_CHUNK_BYTES, Card
from teacher_server.engine.teacher import Teacher, TeacherAnswer
from teacher_server.errors import BadQuery
from teacher_server.protocol import TeacherId, TeacherQuery

VIEWS = 3
Pixels = NDArray[np.uint8]


class SumTeacher:
    """Logits [I, 2]: the sums of an item's red and green pixels. Features [I, 1]: of its blue ones."""

    card = SimpleNamespace(views_per_item=VIEWS)

    def __init__(self) -> None:
        self.passes: list[int] = []  # items of each

    def answer(self, pixels: Pixels) -> TeacherAnswer:
        self.passes.append(len(pixels) // VIEWS)
        sums = pixels.reshape(len(pixels) // VIEWS, -1, 3).sum(axis=1, dtype=np.float32)
        return TeacherAnswer(sums[:, :2], sums[:, 2:])


def question(items: int) -> Pixels:
    rng = np.random.default_rng(items)
    return rng.integers(0, 256, (items * VIEWS, 2, 4, 4, 3), dtype=np.uint8)


def assert_same(answer: TeacherAnswer, expected: TeacherAnswer) -> None:
    np.testing.assert_array_equal(answer.logits, expected.logits)
    np.testing.assert_array_equal(answer.features, expected.features)


def test_parts_of_questions_are_answered_in_one_pass_and_each_gets_its_own_items() -> None:
    teacher, one, two = SumTeacher(), question(5), question(4)
    parts = [Part(one, 3, 5), Part(two, 0, 1), Part(one, 0, 2)]
    answers = answer_together(cast(Teacher, teacher), parts)
    assert teacher.passes == [5]
    for answer, part in zip(answers, parts, strict=True):
        assert_same(answer, SumTeacher().answer(part.loaded[part.first * VIEWS : part.last * VIEWS]))
        assert answer.logits.base is None  # a copy: keeping it keeps nothing else


@pytest.mark.parametrize("cuts", [[0, 6], [0, 1, 6], [0, 2, 3, 6]])
def test_joined_parts_are_the_answer_to_the_whole(cuts: list[int]) -> None:
    teacher, pixels = cast(Any, SumTeacher()), question(6)
    answers = [answer_together(teacher, [Part(pixels, a, b)])[0] for a, b in itertools.pairwise(cuts)]
    assert_same(join_answers(answers), SumTeacher().answer(pixels))


def test_questions_through_the_batcher_get_the_answers_that_they_would_get_alone() -> None:
    teacher, questions = SumTeacher(), [question(items) for items in (7, 1, 10, 4, 4, 3)]

    async def ask_all() -> list[TeacherAnswer]:
        batcher: Batcher[str, Pixels, Pixels, TeacherAnswer] = Batcher(
            lambda pixels: pixels,
            lambda _, parts: answer_together(cast(Teacher, teacher), parts),
            join_answers,
            pass_items=lambda _: 4,
            max_queued_clips=1000,
        )
        asked = (
            batcher.submit(
                "k", pixels, num_items=len(pixels) // VIEWS, clips_per_item=VIEWS, timeout_s=30.0, run=str(i)
            )
            for i, pixels in enumerate(questions)
        )
        replies = await asyncio.gather(*asked)
        batcher.close()
        return [reply.result for reply in replies]

    for answer, pixels in zip(asyncio.run(ask_all()), questions, strict=True):
        assert_same(answer, SumTeacher().answer(pixels))
    assert max(teacher.passes) <= 4
    assert sum(teacher.passes) == 29


def card_of(chunk_items: int) -> Card:
    """Of a teacher that takes clips of 112x112."""
    names = SimpleNamespace(views_per_item=1, min_clip_len=8, crop=112, resize=False, chunk_items=chunk_items)
    return cast(Card, names)


def views_of(clips: int, clip_len: int) -> TeacherQuery:
    """A question about this many clips of 112x112; no store is looked at."""
    records = np.zeros(clips, VIEW_DTYPE)
    records["clip_len"], records["crop_h"], records["crop_w"] = clip_len, 112, 112
    views = ViewBatch(records, 1, "00" * 16).to_bytes()
    return TeacherQuery("r", TeacherId("x", 1), 1.0, 1, views=views, store="/s")


def test_a_chunk_of_clips_may_have_as_many_bytes_as_a_card_allows_and_no_more() -> None:
    longest = MAX_CHUNK_BYTES // (8 * 112 * 112 * 3)
    assert check_query(views_of(1, longest), card_of(8)) == ClipShape(longest, 112, 112)
    with pytest.raises(BadQuery, match=rf"8 items of 1 clips at a time, .* at most {MAX_CHUNK_BYTES}"):
        check_query(views_of(1, longest + 1), card_of(8))


def test_a_question_may_ask_for_a_bounded_number_of_bytes() -> None:
    most = MAX_QUESTION_BYTES // (64 * 112 * 112 * 3)
    assert check_query(views_of(most, 64), card_of(8)).num_bytes * most <= MAX_QUESTION_BYTES
    with pytest.raises(BadQuery, match="split it"):
        check_query(views_of(most + 1, 64), card_of(8))


def test_logits_that_float16_cannot_hold_are_refused_and_not_sent_as_infinite() -> None:
    raw = np.array([[700.0, -1.0]], dtype=np.float32)
    query = TeacherQuery("id", TeacherId("alpha", 1), 0.01, VIEWS, run="run", pixels=question(1), dtype="float16")
    with pytest.raises(BadQuery, match=r"logits of 700 at temperature 0.01 are too large for float16: ask for float32"):
        soften(raw, query)
    assert np.isfinite(soften(raw, dataclasses.replace(query, dtype="float32"))).all()
    assert np.isfinite(soften(raw, dataclasses.replace(query, temperature=0.011))).all()
