"""The ledger client: against the client contract, and against a teacher in closed form whose every answer is known."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import xxhash
from numpy.typing import NDArray

from data.store import ClipStore
from data.views import ViewBatch
from teacher_server.answering import soften
from teacher_server.clients.inprocess import InProcessTeacherClient
from teacher_server.contract import PendingReply
from teacher_server.errors import BadQuery, BadReply, LedgerError, NotInLedger, TeacherUnavailable
from teacher_server.ledger.client import LedgerClient, LedgerStats
from teacher_server.ledger.store import ledger_folder
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import PhaseSeconds, TeacherId, TeacherQuery, TeacherReply

ALPHA = TeacherId("alpha", 1)
DIGEST = "ab" * 32
NUM_CLASSES, FEATURE_SIZE = 5, 4
PATIENCE_S = 30.0


def _load_beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ClientContract = _load_beside("client_contract").ClientContract


def in_process_ledger(root: Path, library: TeacherLibrary) -> LedgerClient:
    inner = InProcessTeacherClient(library)
    return LedgerClient(root, "auto", inner=inner, digest_of=lambda teacher: library.entry(teacher).digest)


class TestEmptyLedger(ClientContract):  # type: ignore[misc, valid-type]
    """The contract, where everything is asked and recorded."""

    @pytest.fixture
    def client(self, library: TeacherLibrary, tmp_path: Path) -> Iterator[LedgerClient]:
        client = in_process_ledger(tmp_path, library)
        yield client
        client.close()


@pytest.fixture(scope="module")
def filled(
    library: TeacherLibrary, tiny: ModuleType, store: ClipStore, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with the answers that the contract asks alpha@1 and beta@1 for."""
    root = tmp_path_factory.mktemp("ledgers")
    client = in_process_ledger(root, library)
    client.submit(tiny.views_query(store, tiny.draw(store, 6))).result(PATIENCE_S)
    beta = tiny.views_query(store, tiny.single_clips(store, 6), teacher=TeacherId("beta", 1), want_features=True)
    client.submit(beta).result(PATIENCE_S)
    client.close()
    return root


class TestFilledLedger(ClientContract):  # type: ignore[misc, valid-type]
    """The contract, where what its tests ask for was recorded before."""

    # These three are about the time that a forward pass takes, which a replayed answer does not.
    test_views_and_pixels_give_the_bytes_of_the_frozen_teacher = None
    test_no_reply_in_time_is_told_apart_and_waiting_again_brings_it = None
    test_a_cancelled_question_has_no_reply = None

    @pytest.fixture
    def client(self, filled: Path, library: TeacherLibrary) -> Iterator[LedgerClient]:
        client = in_process_ledger(filled, library)
        yield client
        client.close()

    @pytest.mark.parametrize(
        ("fault", "match"),
        [("crop", "takes 32x32 pixels, got 24x24"), ("bytes", "not a view batch"), ("empty", "at least one item")],
    )
    def test_a_question_that_cannot_be_answered_is_refused(
        self, client: LedgerClient, tiny: ModuleType, store: ClipStore, fault: str, match: str
    ) -> None:
        """All but the one that is too large for a queue: it repeats items that the ledger has, so nobody is asked."""
        super().test_a_question_that_cannot_be_answered_is_refused(client, tiny, store, fault, match)

    def test_a_replayed_answer_has_the_bytes_of_the_service(
        self, filled: Path, library: TeacherLibrary, tiny: ModuleType, store: ClipStore
    ) -> None:
        direct = InProcessTeacherClient(library)
        replay = LedgerClient(filled, "replay", inner=None, digest_of=lambda teacher: library.entry(teacher).digest)
        query = tiny.views_query(store, tiny.draw(store, 5), temperature=3.0)
        expected, got = direct.submit(query).result(PATIENCE_S), replay.submit(query).result(0.0)
        np.testing.assert_array_equal(got.logits, expected.logits)
        assert dataclasses.replace(got, logits=expected.logits, seconds=expected.seconds) == expected
        assert got.seconds == PhaseSeconds()
        direct.close()


def raw_answers(batch: ViewBatch, size: int, salt: bytes = b"") -> NDArray[np.float32]:
    """[I, size] numbers that only the item's own views decide."""
    items = batch.records.reshape(-1, batch.views_per_item)
    seeds = [xxhash.xxh3_64_intdigest(salt + item.tobytes()) for item in items]
    return np.stack([np.random.default_rng(seed).normal(0, 3, size) for seed in seeds]).astype(np.float32)


@dataclass
class ViewTeacher:
    """Answers from the views alone, at once; everything it says can be changed. It keeps what it was asked."""

    digest: str = DIGEST
    engine: str = "cpu"
    change: Callable[[TeacherReply], TeacherReply] = lambda reply: reply
    asked: list[TeacherQuery] = field(default_factory=list)
    cancelled: int = 0
    closed: bool = False

    def submit(self, query: TeacherQuery) -> PendingReply:
        self.asked.append(query)
        return _Ready(self, query)

    def close(self) -> None:
        self.closed = True

    def answer(self, query: TeacherQuery) -> TeacherReply:
        if query.views is None:
            raw = np.zeros((query.num_clips // query.views_per_item, NUM_CLASSES), dtype=np.float32)
            features = None
        else:
            raw = raw_answers(query.view_batch(), NUM_CLASSES)
            features = raw_answers(query.view_batch(), FEATURE_SIZE, b"features") if query.want_features else None
        logits = soften(raw, query)
        seconds = PhaseSeconds(0.25, 0.5, 0.125)
        return self.change(
            TeacherReply(
                query.request_id, query.teacher, self.digest, query.temperature, logits, self.engine, features, seconds
            )
        )


@dataclass
class _Ready:
    teacher: ViewTeacher
    query: TeacherQuery

    def result(self, timeout_s: float) -> TeacherReply:
        if timeout_s <= 0:
            raise TeacherUnavailable(str(self.query.teacher), timeout_s, "no reply yet")
        return self.teacher.answer(self.query)

    def cancel(self) -> None:
        self.teacher.cancelled += 1


@pytest.fixture
def teacher() -> ViewTeacher:
    return ViewTeacher()


@pytest.fixture
def make(tmp_path: Path, teacher: ViewTeacher) -> Callable[..., LedgerClient]:
    """make(mode, **options): a client over the closed-form teacher and one folder of ledgers."""

    def build(mode: str, **options: object) -> LedgerClient:
        values: dict[str, object] = {
            "inner": None if mode == "replay" else teacher,
            "digest_of": lambda _: DIGEST,
        }
        return LedgerClient(tmp_path / "ledgers", mode, **(values | options))  # type: ignore[arg-type]

    return build


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of alpha@1's ledger."""
    return ledger_folder(tmp_path / "ledgers", ALPHA, DIGEST)


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.arrow"))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("temperature", [4.0, 3.0, 0.7, 1.0])
def test_direct_recorded_and_replayed_replies_are_the_same_bits(make, teacher, tiny, store, temperature, dtype):
    query = tiny.views_query(store, tiny.draw(store, 4), temperature=temperature, dtype=dtype)
    direct = teacher.answer(query).logits
    recorder = make("record")
    recorded = recorder.submit(query).result(PATIENCE_S)
    recorder.close()
    replayed = make("replay").submit(query).result(PATIENCE_S)
    for reply in (recorded, replayed):
        assert reply.logits.dtype == np.dtype(dtype)
        assert reply.logits.tobytes() == direct.tobytes()
        assert (reply.request_id, reply.temperature, reply.digest) == (query.request_id, temperature, DIGEST)
    assert (recorded.seconds.forward, replayed.seconds) == (0.125, PhaseSeconds())


def test_a_recording_at_one_temperature_serves_all_others(make, teacher, tiny, store):
    batch = tiny.draw(store, 3)
    recorder = make("auto")
    recorder.submit(tiny.views_query(store, batch, temperature=9.0)).result(PATIENCE_S)
    recorder.close()
    query = tiny.views_query(store, batch, temperature=0.7)
    assert make("replay").submit(query).result(0).logits.tobytes() == teacher.answer(query).logits.tobytes()


def test_auto_asks_for_the_missing_items_only_and_keeps_the_order(make, teacher, tiny, store):
    batch = tiny.draw(store, 6)
    client = make("auto")
    client.submit(tiny.views_query(store, batch.take([4, 1]))).result(PATIENCE_S)
    mixed = batch.take([0, 1, 2, 4, 5])
    pixels = np.arange(15, dtype=np.uint8).reshape(15, 1, 1, 1, 1) * np.ones((1, 8, 32, 32, 3), np.uint8)
    query = tiny.views_query(store, mixed, pixels=pixels)
    reply = client.submit(query).result(PATIENCE_S)
    assert reply.logits.tobytes() == teacher.answer(query).logits.tobytes()
    asked = teacher.asked[-1]
    assert asked.views == batch.take([0, 2, 5]).to_bytes()
    assert asked.pixels[:, 0, 0, 0, 0].tolist() == [0, 1, 2, 6, 7, 8, 12, 13, 14]
    assert (asked.temperature, asked.dtype) == (1.0, "float32")
    assert client.stats == LedgerStats(replayed_items=2, asked_items=5, recorded_items=5)


def test_record_asks_for_everything_and_records_nothing_twice(make, tiny, store, folder):
    batch = tiny.draw(store, 3)
    for _ in range(2):
        client = make("record")
        client.submit(tiny.views_query(store, batch)).result(PATIENCE_S)
        client.close()
    assert client.stats == LedgerStats(asked_items=3)
    assert len(segments(folder)) == 1


def test_replay_names_the_ledger_and_how_many_items_it_lacks(make, tiny, store, folder):
    client = make("auto")
    client.submit(tiny.views_query(store, tiny.draw(store, 2))).result(PATIENCE_S)
    client.close()
    with pytest.raises(NotInLedger, match=f"{folder.name} has no answer to 4 of 6 items"):
        make("replay").submit(tiny.views_query(store, tiny.draw(store, 6))).result(0)
    with pytest.raises(NotInLedger, match="1 of 1"):  # other augmentation of the same video
        make("replay").submit(tiny.views_query(store, tiny.draw(store, 1, seed=1))).result(0)


def test_replay_without_a_ledger_says_what_there_is_of_that_teacher(make, tiny, store, folder):
    client = make("auto")
    client.submit(tiny.views_query(store, tiny.draw(store, 1))).result(PATIENCE_S)
    client.close()
    other = make("replay", digest_of=lambda _: "cd" * 32)
    with pytest.raises(LedgerError, match=f"none for alpha@1 with digest cdcdcdcdcdcd.*{folder.name}.*--ledger auto"):
        other.submit(tiny.views_query(store, tiny.draw(store, 1))).result(0)


def test_answers_of_one_writer_reach_a_reader_that_is_open_already(make, tiny, store):
    first, second, reader = make("auto"), make("auto"), make("replay")
    batch = tiny.draw(store, 4)
    for client, items in ((first, batch.items(0, 2)), (second, batch.items(2, 4))):
        client.submit(tiny.views_query(store, items)).result(PATIENCE_S)
        client.flush()
        assert len(reader.submit(tiny.views_query(store, items)).result(0).logits) == 2
    assert reader.stats == LedgerStats(replayed_items=4)


def test_answers_survive_a_store_that_grew(make, tiny, store, tmp_path):
    client = make("auto")
    old = tiny.views_query(store, tiny.draw(store, 2))
    expected = client.submit(old).result(PATIENCE_S)
    client.close()
    grown = tiny.build_store(tmp_path / "grown")
    batch = tiny.draw(grown, 2)
    regrown = dataclasses.replace(grown.videos, fingerprint="99" * 16)  # as a later generation would have
    later = make("replay", open_store=lambda _: _Relabelled(grown, regrown))
    query = tiny.views_query(store, dataclasses.replace(batch, store_fingerprint="99" * 16))
    assert later.submit(query).result(0).logits.tobytes() == expected.logits.tobytes()


class _Relabelled:
    """A store with another fingerprint."""

    def __init__(self, store: ClipStore, videos: object) -> None:
        self.path, self.frame_size, self.videos, self._store = store.path, store.frame_size, videos, store
        self.fingerprint = "99" * 16

    def __len__(self) -> int:
        return len(self._store)


def test_equal_digests_of_a_store_with_other_frame_sizes_are_no_answers(make, tiny, store):
    client = make("auto")
    query = tiny.views_query(store, tiny.draw(store, 2))
    client.submit(query).result(PATIENCE_S)
    client.close()

    def turned(_: Path) -> _Relabelled:
        other = _Relabelled(store, store.videos)
        other.frame_size, other.fingerprint = store.frame_size[::-1], store.fingerprint
        return other

    with pytest.raises(NotInLedger, match="2 of 2"):
        make("replay", open_store=turned).submit(query).result(0)


def test_features_are_replayed_only_if_they_were_recorded(make, teacher, tiny, store):
    batch = tiny.draw(store, 2)
    plain, wanting = tiny.views_query(store, batch), tiny.views_query(store, batch, want_features=True)
    client = make("auto")
    client.submit(plain).result(PATIENCE_S)
    client.close()
    with pytest.raises(NotInLedger, match="2 of 2"):
        make("replay").submit(wanting).result(0)
    client = make("auto", want_features=True)
    assert client.submit(plain).result(PATIENCE_S).features is None
    assert teacher.asked[-1].want_features
    assert client.stats.asked_items == 2
    client.close()
    reply = make("replay").submit(wanting).result(0)
    assert reply.features.tobytes() == raw_answers(batch, FEATURE_SIZE, b"features").tobytes()
    assert reply.logits.tobytes() == teacher.answer(wanting).logits.tobytes()
    assert make("replay").submit(plain).result(0).features is None


def test_pixels_alone_are_passed_on_unrecorded_and_refused_in_replay(make, teacher, tiny, store, folder):
    pixels = np.zeros((6, 8, 32, 32, 3), np.uint8)
    query = dataclasses.replace(tiny.views_query(store, tiny.draw(store, 2)), views=None, store=None, pixels=pixels)
    client = make("auto")
    assert len(client.submit(query).result(PATIENCE_S).logits) == 2
    client.close()
    assert teacher.asked == [query]
    assert client.stats == LedgerStats(asked_items=2, unrecorded_items=2)
    assert not folder.exists()
    with pytest.raises(BadQuery, match="pixels only"):
        make("replay").submit(query).result(0)


def test_pixels_that_are_not_one_clip_a_view_are_refused(make, tiny, store):
    query = tiny.views_query(store, tiny.draw(store, 2), pixels=np.zeros((3, 8, 32, 32, 3), np.uint8))
    with pytest.raises(BadQuery, match="3 clips are not one for each of the 6 views"):
        make("auto").submit(query).result(PATIENCE_S)


def test_a_reply_of_another_digest_is_refused_and_not_recorded(make, teacher, tiny, store, folder):
    teacher.digest = "ee" * 32
    with pytest.raises(LedgerError, match="answered with digest eeeeeeeeeeee, expected abababababab"):
        make("record").submit(tiny.views_query(store, tiny.draw(store, 1))).result(PATIENCE_S)
    assert not folder.exists()


def test_a_reply_of_another_engine_is_refused_and_not_recorded(make, teacher, tiny, store):
    batch = tiny.draw(store, 2)
    make("auto", flush_items=1).submit(tiny.views_query(store, batch.items(0, 1))).result(PATIENCE_S)
    teacher.engine = "cuda"
    client = make("auto")
    with pytest.raises(LedgerError, match=r"recorded with engine cpu \(now cuda\)"):
        client.submit(tiny.views_query(store, batch)).result(PATIENCE_S)
    client.close()
    assert client.stats.recorded_items == 0
    with pytest.raises(NotInLedger, match="1 of 2"):
        make("replay").submit(tiny.views_query(store, batch)).result(0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["logits", "features"])
def test_what_is_not_finite_is_never_recorded(make, teacher, tiny, store, folder, value, where):
    def spoil(reply: TeacherReply) -> TeacherReply:
        getattr(reply, where)[1, 2] = value
        return reply

    teacher.change = spoil
    client = make("auto", want_features=True)
    with pytest.raises(BadReply, match=f"{where} that are not finite"):
        client.submit(tiny.views_query(store, tiny.draw(store, 3))).result(PATIENCE_S)
    client.close()
    assert not folder.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda reply: dataclasses.replace(reply, logits=reply.logits[:1]),
        lambda reply: dataclasses.replace(reply, logits=reply.logits[:, :, None]),
        lambda reply: dataclasses.replace(reply, logits=np.float32(0)),
        lambda reply: dataclasses.replace(reply, logits=reply.logits.astype(np.float16)),
        lambda reply: dataclasses.replace(reply, temperature=4.0),
        lambda reply: dataclasses.replace(reply, request_id="another"),
    ],
)
def test_an_answer_to_something_else_is_never_recorded(make, teacher, tiny, store, folder, change):
    teacher.change = change
    client = make("record")
    with pytest.raises(BadReply):
        client.submit(tiny.views_query(store, tiny.draw(store, 2))).result(PATIENCE_S)
    client.close()
    assert not folder.exists()


def test_replay_refuses_items_of_another_number_of_views(make, tiny, store):
    make("auto", flush_items=1).submit(tiny.views_query(store, tiny.draw(store, 1))).result(PATIENCE_S)
    with pytest.raises(BadQuery, match="answers items of 3 views, got 1"):
        make("replay").submit(tiny.views_query(store, tiny.single_clips(store, 1))).result(0)


def test_answers_are_written_every_flush_items_and_at_the_end(make, tiny, store, folder):
    client = make("auto", flush_items=2)
    batch = tiny.draw(store, 5)
    for i, expected in enumerate((0, 1, 1, 2, 2)):
        client.submit(tiny.views_query(store, batch.items(i, i + 1))).result(PATIENCE_S)
        assert len(segments(folder)) == expected
    client.close()
    assert len(segments(folder)) == 3


def test_repeated_items_of_one_question_are_recorded_once(make, teacher, tiny, store):
    query = tiny.views_query(store, tiny.draw(store, 2).take([0, 1, 0, 0]))
    client = make("auto")
    assert client.submit(query).result(PATIENCE_S).logits.tobytes() == teacher.answer(query).logits.tobytes()
    assert client.stats == LedgerStats(asked_items=4, recorded_items=2)


def test_a_reply_can_be_taken_twice_and_from_another_thread(make, tiny, store):
    client = make("auto")
    pendings = [client.submit(tiny.views_query(store, tiny.draw(store, 1, seed=i))) for i in range(40)]
    replies: dict[int, TeacherReply] = {}

    def take(part: int) -> None:
        for i in range(part, 40, 4):
            replies[i] = pendings[i].result(PATIENCE_S)

    threads = [threading.Thread(target=take, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert all(pendings[i].result(PATIENCE_S) is replies[i] for i in range(40))
    assert client.stats == LedgerStats(asked_items=40, recorded_items=40)


def test_time_limit_and_cancel_reach_the_inner_client(make, teacher, tiny, store):
    pending = make("auto").submit(tiny.views_query(store, tiny.draw(store, 1)))
    with pytest.raises(TeacherUnavailable, match="no reply yet"):
        pending.result(0.0)
    pending.cancel()
    assert teacher.cancelled == 1
    assert len(pending.result(1.0).logits) == 1  # a time limit is no end


def test_a_closed_client_says_so_and_has_closed_the_inner_one(make, teacher, tiny, store):
    client = make("auto")
    query = tiny.views_query(store, tiny.draw(store, 1))
    late = client.submit(query)
    client.close()
    assert teacher.closed
    with pytest.raises(TeacherUnavailable, match="closed"):
        client.submit(query).result(1)
    assert late.result(1).logits.shape == (1, NUM_CLASSES)
    assert client.stats.recorded_items == 0
    client.close()


@pytest.mark.parametrize(("mode", "inner"), [("auto", None), ("record", None), ("replay", "one"), ("sometimes", "one")])
def test_modes_and_inner_clients_that_do_not_fit_are_refused(make, mode, inner):
    with pytest.raises(ValueError, match="need an inner client"):
        make(mode, inner=inner)


@pytest.mark.parametrize("digest", ["../../etc", "AB" * 32, "ab"])
def test_a_digest_that_is_none_never_becomes_a_path(make, tiny, store, tmp_path, digest):
    client = make("auto", digest_of=lambda _: digest)
    with pytest.raises(LedgerError, match="expected 64 hex digits"):
        client.submit(tiny.views_query(store, tiny.draw(store, 1))).result(1)
    assert not (tmp_path / "ledgers").exists()


def test_a_view_of_a_video_that_the_store_lacks_is_refused(make, tiny, store):
    batch = tiny.draw(store, 1)
    batch.records["video"] = 6
    with pytest.raises(BadQuery, match="video 6, the store has 6"):
        make("auto").submit(tiny.views_query(store, batch)).result(1)


def test_a_damaged_segment_is_refused_in_replay_and_asked_for_again_in_auto(make, tiny, store, folder):
    query = tiny.views_query(store, tiny.draw(store, 2))
    client = make("auto", flush_items=1)
    expected = client.submit(query).result(PATIENCE_S)
    (segment,) = segments(folder)
    blob = bytearray(segment.read_bytes())
    at = blob.find((expected.logits[0] * 4).tobytes())  # times the temperature: exact
    assert at > 0
    blob[at] ^= 1
    segment.write_bytes(blob)
    with pytest.raises(LedgerError, match=rf"{segment.name} cannot be used: it does not match its checksum.*remove it"):
        make("replay").submit(query).result(0)
    again = make("auto")
    with pytest.warns(UserWarning, match=segment.name):
        assert again.submit(query).result(PATIENCE_S).logits.tobytes() == expected.logits.tobytes()
    assert again.stats == LedgerStats(asked_items=2, recorded_items=2)
    again.close()
    segment.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make("replay").submit(query).result(0).logits.tobytes() == expected.logits.tobytes()


def test_a_full_disk_ends_the_question_with_what_to_do_and_loses_no_answer(make, tiny, store, folder, monkeypatch):
    client = make("auto", flush_items=1)
    query = tiny.views_query(store, tiny.draw(store, 2))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(LedgerError, match=r"the disk refuses \(No space left on device\): make room"):
            client.submit(query).result(PATIENCE_S)
    assert len(client.submit(query).result(PATIENCE_S).logits) == 2
    client.close()
    assert len(make("replay").submit(query).result(0).logits) == 2
    assert not list(folder.glob(".*.tmp"))
