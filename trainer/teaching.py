"""The teacher as the training loop sees it: bound by the roster in blocks of steps, asked ahead, checked.

put(step) -> binding of the step's block -> TeacherQuery -> Prefetcher -> get() -> logits of exactly that version

When no teacher answers within the budget (config.on_teacher_loss):

    wait     get() raises TeacherUnavailable: the loop saves and ends
    skip     the answer has no logits; the teacher is away. Later questions are tried once, for AWAY_WAIT_S at most,
             until one is answered again: its own step's, or an earlier one's that is kept as a probe and came late
    replay   the ledger alone answers from then on; what it lacks raises NotInLedger, and the loop ends as for wait
"""

from __future__ import annotations

import random
import threading
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.views import VIEWS_PER_TUPLE, ViewBatch
from teacher_server.clients.retry import Asker, Prefetcher, RetryPolicy
from teacher_server.contract import TeacherClient
from teacher_server.errors import BadQuery, BadReply, LedgerError, RetryableTeacherError, TeacherUnavailable
from teacher_server.protocol import Binding, TeacherQuery, TeacherReply, new_request_id
from teacher_server.roster.roster import BLOCK_STEPS
from trainer.config import RunConfig
from trainer.loader import Asking, TeacherAnswer
from trainer.teacher_facts import TeacherFacts
from trainer.timeline import Binder, TimelineEntry

_PRETEXT = TeacherFacts()
AWAY_WAIT_S = 0.25  # of a step's wait for a teacher that is known to be away

InputKind = Literal["views", "pixels"]


class LedgerStats(Protocol):
    """What a ledger has done so far."""

    @property
    def replayed_items(self) -> int:
        """Items that were answered without a teacher."""
        ...


class AnswerLedger(TeacherClient, Protocol):
    """A client that answers from what was recorded: teacher_server.ledger.client.LedgerClient."""

    @property
    def stats(self) -> LedgerStats:
        """Counts so far."""
        ...

    def flush(self) -> None:
        """Makes durable what was recorded so far."""
        ...


@dataclass(frozen=True)
class _Asked:
    query: TeacherQuery
    binding: Binding


class BoundTeacher:
    """A TeacherSignal over any client.

    facts: what the teacher answers, and about what: an action teacher is asked about the first clip of each tuple.
    Features are asked for where the settings want them; a ledger then records them too. ledger: the client, where it
    is one that records or replays. replay_only: makes the client that goes on after the loss of the teachers, for
    config.on_teacher_loss = replay.
    """

    def __init__(
        self,
        client: TeacherClient,
        binder: Binder,
        *,
        config: RunConfig,
        run_id: str,
        store_path: Path,
        input_kind: InputKind,
        facts: TeacherFacts = _PRETEXT,
        ledger: AnswerLedger | None = None,
        replay_only: Callable[[], AnswerLedger] | None = None,
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._replay_only = replay_only
        self._binder = binder
        self._config = config
        self._run_id = run_id
        self._store_path = str(store_path)
        self._input_kind = input_kind
        self._facts = facts
        self._want_features = config.wants_features
        policy = RetryPolicy(attempt_timeout_s=config.teacher_timeout_s, budget_s=config.teacher_budget_s)
        self._asker = Asker(client, num_classes=facts.num_classes, policy=policy, rng=random.Random(run_id))
        self._prefetcher = Prefetcher(self._asker, config.prefetch)
        self._current: Binding | None = None
        self._asked: deque[_Asked] = deque()
        self._sending = threading.Lock()  # the producer sends while the loop changes the client
        self._away = False
        self._replayed_before = 0  # by a ledger that was closed
        self._counted = Asking()

    def restore(self, timeline: Sequence[TimelineEntry], steps_done: int) -> None:
        """As Binder.restore; before the first `put`."""
        self._binder.restore(timeline, steps_done)

    def put(self, step: int, views: ViewBatch, pixels: NDArray[np.uint8]) -> None:
        """Asks about a step's tuples. The roster is asked once a block, ahead of the step that needs it."""
        block = step // BLOCK_STEPS
        if self._current is None or self._current.block != block:
            self._current = self._binder.bind(block)
        if self._facts.views_per_item == 1:
            views, pixels = _first_clips(views, pixels)
        query = TeacherQuery(
            request_id=new_request_id(),
            teacher=self._current.teacher,
            temperature=self._config.temperature,
            views_per_item=self._facts.views_per_item,
            run=self._run_id,
            views=views.to_bytes(),
            store=self._store_path,
            pixels=pixels if self._input_kind == "pixels" else None,
            want_features=self._want_features,
            dtype=self._config.teacher_dtype,
            timeout_s=self._config.teacher_timeout_s,
            weight=self._config.teacher_weight,
        )
        with self._sending:
            self._asked.append(_Asked(query, self._current))
            self._prefetcher.put(query, digest=self._current.digest)

    def get(self) -> TeacherAnswer:
        """The answer to the oldest open question. Raises as retry.Prefetcher.get, NotInLedger; BadQuery when the
        teacher cannot read the clips where it runs."""
        asked = self._asked.popleft()
        try:
            reply = self._reply_soon(asked) if self._away else self._reply(asked)
        except DataError as error:
            raise BadQuery(
                f"{asked.query.teacher} cannot read the clips where it runs: {error}. Put the store there under this "
                "path, or send pixels (--teacher-input pixels)"
            ) from None
        asking = self._spent()
        if reply is not None:
            logits = reply.logits.astype(np.float32, copy=False)
            return TeacherAnswer(logits, asked.binding, asking=asking, features=self._features_of(reply))
        num_items = asked.query.num_clips // self._facts.views_per_item
        nothing = np.zeros((num_items, self._facts.num_classes), dtype=np.float32)
        no_features = np.zeros((num_items, self._facts.feature_size), dtype=np.float32)
        return TeacherAnswer(
            nothing,
            asked.binding,
            np.zeros(num_items, dtype=np.bool_),
            asking,
            features=no_features if self._want_features else None,
        )

    def flush(self) -> None:
        """Makes durable what was recorded so far."""
        if self._ledger is not None:
            self._ledger.flush()

    def ask_roster_again(self) -> None:
        """As Binder.ask_again."""
        self._binder.ask_again()

    def stop(self) -> None:
        """Ends a `put` that waits for the roster; any thread may call it."""
        self._binder.stop()

    def close(self) -> None:
        """Cancels what is in flight and closes the client.

        A ledger that cannot be written is only warned of: what it had to keep was flushed with the checkpoint, and the
        end of the run must be told in any case.
        """
        self.stop()
        self._prefetcher.close()
        try:
            self._client.close()
        except LedgerError as error:
            warnings.warn(f"answers since the last checkpoint were not recorded: {error}", stacklevel=2)

    def _features_of(self, reply: TeacherReply) -> NDArray[np.float32] | None:
        """None where they were not asked for. Raises BadReply for features of another size than the run was told."""
        if not self._want_features or reply.features is None:
            return None
        if reply.features.shape[1:] != (self._facts.feature_size,):
            raise BadReply(
                f"expected features of size {self._facts.feature_size}, {reply.teacher} sent "
                f"{list(reply.features.shape)}"
            )
        return reply.features

    def _reply(self, asked: _Asked) -> TeacherReply | None:
        """None for a step that goes without."""
        try:
            return self._prefetcher.get()
        except TeacherUnavailable:
            if self._config.on_teacher_loss == "skip":
                self._away = True
                return None
            if self._config.on_teacher_loss == "replay" and self._replay_only is not None:
                return self._replay(asked, self._replay_only)
            raise

    def _reply_soon(self, asked: _Asked) -> TeacherReply | None:
        if self._prefetcher.is_back():
            self._away = False
            return self._reply(asked)
        try:
            reply = self._prefetcher.get_soon(AWAY_WAIT_S)
        except RetryableTeacherError:
            return None
        self._away = False
        return reply

    def _replay(self, asked: _Asked, replay_only: Callable[[], AnswerLedger]) -> TeacherReply:
        """Hands this question and those in flight to the ledger alone, for good."""
        with self._sending:
            self._client.close()  # it writes down what it recorded, for the other one to find
            self._replayed_before = self._replayed_items()
            self._client = self._ledger = replay_only()
            self._replay_only = None
            self._prefetcher.move_to(self._client)
        return self._asker.ask(asked.query, digest=asked.binding.digest)

    def _spent(self) -> Asking:
        """What asking has cost since the answer before."""
        stats, before = self._prefetcher.stats, self._counted
        self._counted = Asking(stats.retries, stats.dropped, self._replayed_items())
        return Asking(
            self._counted.retries - before.retries,
            self._counted.dropped - before.dropped,
            self._counted.replayed - before.replayed,
        )

    def _replayed_items(self) -> int:
        return self._replayed_before + (0 if self._ledger is None else self._ledger.stats.replayed_items)


def _first_clips(views: ViewBatch, pixels: NDArray[np.uint8]) -> tuple[ViewBatch, NDArray[np.uint8]]:
    """The first clip of each tuple as an item of its own, and its pixels; no pretext operation is ever done to it."""
    first = ViewBatch(views.records[::VIEWS_PER_TUPLE].copy(), 1, views.store_fingerprint)
    return first, np.ascontiguousarray(pixels[::VIEWS_PER_TUPLE])
