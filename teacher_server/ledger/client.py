"""Answers recorded and replayed: a teacher client that asks another client only for what no ledger holds.

    submit ──► item digests ──► ledger ── all found ──────────────────────────► soften ──► reply
                                  │ missing items                                 ▲
                                  └──► inner client, raw float32 ──► ledger ──────┘

    mode    found in the ledger   missing
    replay  replayed              NotInLedger; there is no inner client
    record  asked all the same    asked, recorded
    auto    replayed              asked, recorded

The inner client is asked at temperature 1 for float32, and the division happens here, with the function that replicas
use. So a reply has the same bits whether it was asked for directly, recorded or replayed.

Axis letters: N clips, I items, V views per item, K classes, D features.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from data.errors import DataError
from data.store import ClipStore
from data.views import ViewBatch
from teacher_server.answering import StoreCache, soften
from teacher_server.contract import FailedReply, PendingReply, TeacherClient
from teacher_server.errors import BadQuery, LedgerError, NotInLedger, TeacherError, TeacherUnavailable
from teacher_server.ledger.segments import Origin
from teacher_server.ledger.store import (
    HEADER,
    Answer,
    Ledger,
    LedgerHeader,
    disk_errors,
    leave_out,
    ledger_folder,
    no_ledger,
    refuse,
)
from teacher_server.protocol import PhaseSeconds, TeacherId, TeacherQuery, TeacherReply, check_reply

LedgerMode = Literal["record", "replay", "auto"]
FLUSH_ITEMS = 4096


@dataclass(frozen=True)
class LedgerStats:
    """Items so far. replayed: answered from the ledger; asked: sent to the inner client, every try counts; recorded:
    new in the ledger; unrecorded: asked without views, so that there was nothing to record them under."""

    replayed_items: int = 0
    asked_items: int = 0
    recorded_items: int = 0
    unrecorded_items: int = 0


@dataclass(frozen=True)
class _Question:
    """A query that names its views. digest: the teacher digest; folder: of its ledger. keys: I item digests."""

    query: TeacherQuery
    batch: ViewBatch
    digest: str
    folder: Path
    keys: list[bytes]
    origin: Origin

    def header(self, reply: TeacherReply) -> LedgerHeader:
        """Of the ledger that this reply belongs into."""
        views, classes = self.batch.views_per_item, _num_classes(reply)
        return LedgerHeader(str(self.query.teacher), self.digest, reply.engine, views, classes)


class LedgerClient:
    """See the top of this module. Threads may share it. root: the folder of all ledgers.

    inner: asked for what is missing, and closed with this client; None with mode replay, and only then.
    digest_of: the digest that a teacher must have; asked once for each. want_features: have features recorded too,
    also where no query asks for them. flush_items: answers that are written at a time; a crash loses fewer.
    """

    def __init__(
        self,
        root: Path,
        mode: LedgerMode,
        *,
        inner: TeacherClient | None,
        digest_of: Callable[[TeacherId], str],
        open_store: Callable[[Path], ClipStore] = ClipStore.open,
        want_features: bool = False,
        flush_items: int = FLUSH_ITEMS,
    ) -> None:
        if mode not in ("record", "replay", "auto") or (inner is None) != (mode == "replay"):
            raise ValueError(f"record and auto need an inner client, replay has none; got {mode!r} with {inner}")
        self._root = root
        self._mode = mode
        self._on_damage = refuse if mode == "replay" else leave_out
        self._inner = inner
        self._digest_of = digest_of
        self._want_features = want_features
        self._flush_items = flush_items
        self._stores = StoreCache(open_store)
        self._digests: dict[TeacherId, str] = {}
        self._ledgers: dict[Path, Ledger] = {}
        self._counts: Counter[str] = Counter()
        self._closed = False
        self._lock = threading.RLock()

    @property
    def stats(self) -> LedgerStats:
        """What this client has done so far."""
        with self._lock:
            return LedgerStats(**self._counts)

    def submit(self, query: TeacherQuery) -> PendingReply:
        """Looks the items up and sends the missing ones on. Whatever is wrong shows in `result`."""
        try:
            with self._lock:
                if self._closed:
                    raise TeacherUnavailable(str(query.teacher), 0.0, "this client is closed")
                return self._pass_on(query) if query.views is None else self._look_up(query)
        except (DataError, TeacherError) as error:
            return FailedReply(error)

    def flush(self) -> None:
        """Writes what was recorded since the last flush. Raises LedgerError when the disk refuses."""
        with self._lock:
            for ledger in self._ledgers.values():
                with disk_errors(ledger.folder):
                    ledger.flush()

    def close(self) -> None:
        """Flushes and closes the inner client. Replies that come later are given out, but not recorded any more."""
        try:
            with self._lock:
                self._closed = True
                self.flush()
        finally:
            if self._inner is not None:
                self._inner.close()

    def _pass_on(self, query: TeacherQuery) -> PendingReply:
        """A query without views: nothing says what its pixels are."""
        if self._inner is None:
            raise BadQuery("a ledger is asked about views, this query carries pixels only: --teacher-input views")
        items = query.num_clips // query.views_per_item
        self._counts.update(asked_items=items, unrecorded_items=items)
        return self._inner.submit(query)

    def _look_up(self, query: TeacherQuery) -> PendingReply:
        question = self._question(query)
        answers = self._find(question)
        missing = [i for i, answer in enumerate(answers) if answer is None]
        if self._inner is None or not missing:
            return _LedgerPending(partial(self._merge, question, answers), None)
        asked = self._inner_query(question, missing)
        self._counts["asked_items"] += len(missing)
        return _LedgerPending(partial(self._take_in, question, answers, missing, asked), self._inner.submit(asked))

    def _question(self, query: TeacherQuery) -> _Question:
        batch = query.view_batch()
        if query.pixels is not None and len(query.pixels) != len(batch):
            raise BadQuery(
                f"{len(query.pixels)} clips are not one for each of the {len(batch)} views that they come with"
            )
        if query.teacher not in self._digests:
            self._digests[query.teacher] = self._digest_of(query.teacher)
        digest = self._digests[query.teacher]
        assert query.store is not None  # TeacherQuery refuses views without one
        store = self._stores.get(Path(query.store), batch.store_fingerprint)
        highest = batch.records["video"].max()
        if highest >= len(store):
            raise BadQuery(f"a view names video {highest}, the store has {len(store)}")
        origin = Origin(str(store.path), store.fingerprint, store.frame_size)
        folder = ledger_folder(self._root, query.teacher, digest)
        return _Question(query, batch, digest, folder, batch.item_digests(store.videos), origin)

    def _find(self, question: _Question) -> list[Answer | None]:
        """What the ledger has. In replay that is all of it, or this raises NotInLedger or LedgerError."""
        ledger = self._ledger(question)
        replay = self._mode == "replay"
        if ledger is None and replay:
            raise no_ledger(self._root, question.query.teacher, question.digest)
        if ledger is None or self._mode == "record":
            return [None] * len(question.keys)
        if replay and ledger.header.views_per_item != question.batch.views_per_item:
            wanted, got = ledger.header.views_per_item, question.batch.views_per_item
            raise BadQuery(f"{question.query.teacher} answers items of {wanted} views, got {got}")
        features = question.query.want_features or (self._want_features and not replay)
        answers = ledger.find(question.keys, question.origin.frame_size, features=features)
        if None in answers:
            with disk_errors(ledger.folder):
                ledger.refresh(force=replay)  # other writers may have recorded them meanwhile
            answers = ledger.find(question.keys, question.origin.frame_size, features=features)
        if replay and None in answers:
            raise NotInLedger(str(ledger.folder), answers.count(None), len(answers))
        return answers

    def _ledger(self, question: _Question) -> Ledger | None:
        """The ledger of the teacher digest; None when nothing was recorded yet. Raises LedgerError."""
        folder, teacher = question.folder, str(question.query.teacher)
        if folder not in self._ledgers:
            if not (folder / HEADER).exists():
                return None
            with disk_errors(folder):
                self._ledgers[folder] = Ledger.open(folder, self._on_damage)
        header = self._ledgers[folder].header
        if (header.teacher, header.digest) != (teacher, question.digest):
            raise LedgerError(str(folder), f"it holds answers of {header.teacher} ({header.digest}): move it away")
        return self._ledgers[folder]

    def _inner_query(self, question: _Question, missing: list[int]) -> TeacherQuery:
        """The missing items at temperature 1 in float32."""
        query = question.query
        want_features = query.want_features or self._want_features
        raw = dataclasses.replace(query, temperature=1.0, dtype="float32", want_features=want_features)
        if len(missing) == len(question.keys):
            return raw
        pixels = query.pixels
        if pixels is not None:
            by_item = pixels.reshape(-1, query.views_per_item, *pixels.shape[1:])
            pixels = by_item[missing].reshape(-1, *pixels.shape[1:])
        return dataclasses.replace(raw, views=question.batch.take(missing).to_bytes(), pixels=pixels)

    def _take_in(
        self,
        question: _Question,
        answers: Sequence[Answer | None],
        missing: list[int],
        asked: TeacherQuery,
        reply: TeacherReply | None,
    ) -> TeacherReply:
        """Records the inner client's reply and merges it with what the ledger had.

        Raises BadReply for an answer that is not finite or not to this question, LedgerError for one of another
        teacher digest or engine, or when it cannot be recorded.
        """
        assert reply is not None  # there is an inner client when something is missing
        if reply.digest != question.digest:
            raise LedgerError(
                str(question.folder),
                f"{reply.teacher} answered with digest {reply.digest[:12]}, expected {question.digest[:12]}: its files "
                "differ between the service and this library; nothing was recorded",
            )
        check_reply(asked, reply, digest=question.digest, num_classes=_num_classes(reply))
        # Copies: answers that wait for the next flush must not pin a reply's shared memory.
        logits = np.array(reply.logits, dtype=np.float32)
        features = np.array(reply.features, dtype=np.float32) if asked.want_features else None
        merged = list(answers)
        for row, i in enumerate(missing):
            merged[i] = Answer(logits[row], features[row] if features is not None else None)
        with self._lock:
            if not self._closed:
                self._record(question, missing, merged, question.header(reply))
        return self._merge(question, merged, reply)

    def _record(
        self, question: _Question, missing: list[int], merged: Sequence[Answer | None], header: LedgerHeader
    ) -> None:
        ledger = self._ledger(question)
        with disk_errors(question.folder):
            if ledger is None:
                ledger = self._ledgers[question.folder] = Ledger.create(question.folder, header, self._on_damage)
            ledger.check_header(header)
            views_IV = question.batch.records.reshape(len(question.keys), -1)
            for i in missing:
                answer = merged[i]
                assert answer is not None
                self._counts["recorded_items"] += ledger.record(question.origin, question.keys[i], views_IV[i], answer)
            if ledger.num_pending >= self._flush_items:
                ledger.flush()

    def _merge(self, question: _Question, answers: Sequence[Answer | None], reply: TeacherReply | None) -> TeacherReply:
        """The reply to the whole question. answers: one for each item. reply: the inner client's, if it was asked."""
        query = question.query
        whole = [answer for answer in answers if answer is not None]
        features = [answer.features for answer in whole if answer.features is not None]
        with self._lock:
            engine = reply.engine if reply is not None else self._ledgers[question.folder].header.engine
            self._counts["replayed_items"] += len(whole) - (len(reply.logits) if reply is not None else 0)
        return TeacherReply(
            request_id=query.request_id,
            teacher=query.teacher,
            digest=question.digest,
            temperature=query.temperature,
            logits=soften(np.stack([answer.logits for answer in whole]), query),
            engine=engine,
            features=np.stack(features) if query.want_features else None,
            seconds=reply.seconds if reply is not None else PhaseSeconds(),
        )


class _LedgerPending:
    """finish: makes the reply, of the inner client's where there was something to ask it. pending: that one's."""

    def __init__(self, finish: Callable[[TeacherReply | None], TeacherReply], pending: PendingReply | None) -> None:
        self._finish = finish
        self._pending = pending
        self._reply: TeacherReply | None = None

    def result(self, timeout_s: float) -> TeacherReply:
        if self._reply is None:
            self._reply = self._finish(self._pending.result(timeout_s) if self._pending is not None else None)
        return self._reply

    def cancel(self) -> None:
        if self._pending is not None:
            self._pending.cancel()


def _num_classes(reply: TeacherReply) -> int:
    """K; -1 for logits of another shape than [I, K], which check_reply then refuses."""
    return reply.logits.shape[1] if reply.logits.ndim == 2 else -1
