"""What every teacher client promises. The test classes of the in-process client, the service, the HTTP client and the
ledger inherit from it; each brings a fixture `client` and, like everybody, `tiny`, `library` and `store`.

A store is found by its folder's name over HTTP, so the stores of these tests lie beside `store`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from data.errors import StoreMismatch, StoreMissing
from data.render import render_batch
from data.store import ClipStore
from data.views import ClipSpec
from teacher_server.contract import MAX_QUEUED_CLIPS, TeacherClient
from teacher_server.engine.teacher import FrozenTeacher
from teacher_server.errors import BadQuery, NoReplyYet, TeacherUnavailable, UnknownTeacher
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId, TeacherQuery, check_reply

PATIENCE_S = 60.0


class ClientContract:
    """The suite."""

    def test_views_and_pixels_give_the_bytes_of_the_frozen_teacher(
        self, client: TeacherClient, tiny: ModuleType, library: TeacherLibrary, store: ClipStore
    ) -> None:
        batch = tiny.draw(store, 5)
        query = tiny.views_query(store, batch)
        pixels = render_batch(store.gather(batch), batch)
        with_pixels = dataclasses.replace(query, views=None, store=None, pixels=pixels)
        teacher = FrozenTeacher.load(library.entry(TeacherId("alpha", 1)))
        expected = teacher.answer(pixels).logits / np.float32(4)
        for asked in (query, with_pixels):
            reply = check_reply(asked, client.submit(asked).result(PATIENCE_S), digest=teacher.digest, num_classes=5)
            np.testing.assert_array_equal(reply.logits, expected)
            assert reply.logits.dtype == np.float32
            assert reply.features is None
            assert reply.engine == teacher.engine
            assert min(reply.seconds.queue, reply.seconds.render) >= 0
            assert reply.seconds.forward > 0

    def test_the_reply_is_divided_by_the_temperature_once(
        self, client: TeacherClient, tiny: ModuleType, store: ClipStore
    ) -> None:
        batch = tiny.draw(store, 2)
        at = {t: client.submit(tiny.views_query(store, batch, temperature=t)).result(PATIENCE_S) for t in (1.0, 2.0)}
        np.testing.assert_array_equal(at[1.0].logits, 2 * at[2.0].logits)  # halving is exact
        assert (at[1.0].temperature, at[2.0].temperature) == (1.0, 2.0)

    def test_half_precision_logits_are_the_float32_ones_rounded_once(
        self, client: TeacherClient, tiny: ModuleType, store: ClipStore
    ) -> None:
        batch = tiny.draw(store, 3)
        whole, half = (
            client.submit(tiny.views_query(store, batch, dtype=dtype)).result(PATIENCE_S).logits
            for dtype in ("float32", "float16")
        )
        assert half.dtype == np.float16
        np.testing.assert_array_equal(half, whole.astype(np.float16))

    def test_pixels_that_come_with_their_views_are_answered_as_the_views_alone(
        self, client: TeacherClient, tiny: ModuleType, store: ClipStore
    ) -> None:
        batch = tiny.draw(store, 2)
        pixels = render_batch(store.gather(batch), batch)
        alone, together = (
            client.submit(tiny.views_query(store, batch, pixels=given)).result(PATIENCE_S).logits
            for given in (None, pixels)
        )
        np.testing.assert_array_equal(together, alone)

    def test_pixels_of_other_clips_than_the_views_are_refused(
        self, client: TeacherClient, tiny: ModuleType, store: ClipStore
    ) -> None:
        batch = tiny.draw(store, 2)
        pixels = render_batch(store.gather(batch), batch)
        with pytest.raises(BadQuery, match=r"3 clips are .* the 6 views that they come with"):
            client.submit(tiny.views_query(store, batch, pixels=pixels[:3])).result(PATIENCE_S)

    def test_run_and_weight_take_no_part_in_the_answer(
        self, client: TeacherClient, tiny: ModuleType, store: ClipStore
    ) -> None:
        batch = tiny.draw(store, 2)
        plain, other = (
            client.submit(tiny.views_query(store, batch, **fields)).result(PATIENCE_S)
            for fields in ({}, {"run": "20261122-101500-demo", "weight": 7.5})
        )
        np.testing.assert_array_equal(other.logits, plain.logits)
        assert (other.digest, other.engine) == (plain.digest, plain.engine)

    def test_features_come_when_asked_for(
        self, client: TeacherClient, tiny: ModuleType, library: TeacherLibrary, store: ClipStore
    ) -> None:
        batch = tiny.single_clips(store, 3)
        query = tiny.views_query(store, batch, teacher=TeacherId("beta", 1), want_features=True)
        reply = client.submit(query).result(PATIENCE_S)
        teacher = FrozenTeacher.load(library.entry(TeacherId("beta", 1)))
        answer = teacher.answer(render_batch(store.gather(batch), batch))
        np.testing.assert_array_equal(reply.features, answer.features)
        np.testing.assert_array_equal(reply.logits, answer.logits / np.float32(4))
        assert reply.logits.shape == (3, 3)

    @pytest.mark.parametrize("teacher", [TeacherId("nobody", 1), TeacherId("alpha", 9)])
    def test_an_unknown_teacher_is_named_with_the_known_ones(
        self, client: TeacherClient, tiny: ModuleType, store: ClipStore, teacher: TeacherId
    ) -> None:
        with pytest.raises(UnknownTeacher, match=r"known are alpha") as caught:
            client.submit(tiny.views_query(store, tiny.draw(store, 1), teacher=teacher)).result(PATIENCE_S)
        assert type(caught.value) is UnknownTeacher

    @pytest.mark.parametrize(
        ("fault", "match"),
        [
            ("items", "items? of 3 views, got"),
            ("other items", "items? of . views?, got"),
            ("crop", "takes 32x32 pixels, got 24x24"),
            ("bytes", "not a view batch"),
            ("empty", "at least one item"),
            ("size", f"never fits a queue of {MAX_QUEUED_CLIPS}"),
            ("colour", "brightness|factors must be"),
        ],
    )
    def test_a_question_that_cannot_be_answered_is_refused(
        self, client: TeacherClient, tiny: ModuleType, store: ClipStore, fault: str, match: str
    ) -> None:
        with pytest.raises(BadQuery, match=match):
            client.submit(_faulty(tiny, store, fault)).result(PATIENCE_S)

    def test_views_of_another_store_are_refused(
        self, client: TeacherClient, tiny: ModuleType, store: ClipStore, tmp_path: Path
    ) -> None:
        other = tiny.build_store(store.path.parent / tmp_path.name, seed=1)
        query = tiny.views_query(store, tiny.draw(store, 1), store=str(other.path))
        with pytest.raises(StoreMismatch, match=store.fingerprint):
            client.submit(query).result(PATIENCE_S)

    def test_a_missing_store_is_named(
        self, client: TeacherClient, tiny: ModuleType, store: ClipStore, tmp_path: Path
    ) -> None:
        query = tiny.views_query(store, tiny.draw(store, 1), store=str(tmp_path / "nowhere"))
        with pytest.raises(StoreMissing, match="nowhere"):
            client.submit(query).result(PATIENCE_S)

    def test_no_reply_in_time_is_told_apart_and_waiting_again_brings_it(
        self, client: TeacherClient, tiny: ModuleType, store: ClipStore
    ) -> None:
        pending = client.submit(tiny.views_query(store, tiny.draw(store, 6)))
        with pytest.raises(NoReplyYet, match="alpha@1 did not answer"):
            pending.result(0.0)
        first, again = pending.result(PATIENCE_S), pending.result(PATIENCE_S)
        np.testing.assert_array_equal(first.logits, again.logits)
        pending.cancel()
        pending.cancel()

    def test_a_cancelled_question_has_no_reply(self, client: TeacherClient, tiny: ModuleType, store: ClipStore) -> None:
        ahead = client.submit(tiny.views_query(store, tiny.draw(store, 48)))
        pending = client.submit(tiny.views_query(store, tiny.draw(store, 1)))
        pending.cancel()
        with pytest.raises(TeacherUnavailable) as caught:
            pending.result(PATIENCE_S)
        assert not isinstance(caught.value, NoReplyYet)
        assert len(ahead.result(PATIENCE_S).logits) == 48


def _faulty(tiny: ModuleType, store: ClipStore, fault: str) -> TeacherQuery:
    if fault == "items":
        return tiny.views_query(store, tiny.single_clips(store, 3))
    if fault == "other items":  # than the views themselves are packed in
        return tiny.views_query(store, tiny.draw(store, 1), views_per_item=1)
    if fault == "crop":
        return tiny.views_query(store, tiny.draw(store, 1, spec=ClipSpec(clip_len=8, interval=2, crop=24)))
    if fault == "bytes":
        return tiny.views_query(store, tiny.draw(store, 1), views=b"x" * 100)
    if fault == "empty":
        return tiny.views_query(store, tiny.draw(store, 6).items(0, 0))
    if fault == "size":
        return tiny.views_query(store, tiny.draw(store, MAX_QUEUED_CLIPS // 3 + 1))
    batch = tiny.draw(store, 1)
    batch.records["jitter"], batch.records["brightness"] = 1, -1.0
    return tiny.views_query(store, batch)
