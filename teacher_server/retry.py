"""Asking until there is an answer: time limits, back-off, and a bounded number of questions in flight.

    put(query) ──► in flight, oldest first, at most `depth` ──► get() ──► reply, checked
                        │ retryable error or timeout ▲
                        └── cancel, back off, ask again ┘   until `budget_s` is spent: TeacherUnavailable

Repeating is safe: logits are a pure function of the question. A reply is used only if it answers exactly its query.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from teacher_server.contract import PendingReply, TeacherClient
from teacher_server.errors import RetryableTeacherError, TeacherUnavailable
from teacher_server.protocol import TeacherQuery, TeacherReply, check_reply


@dataclass(frozen=True)
class RetryPolicy:
    """attempt_timeout_s: one try; budget_s: all tries of a query together, from its first failure or wait on.

    Between tries: backoff_s doubled each time up to max_backoff_s, times a number drawn from [.5, 1].
    """

    attempt_timeout_s: float = 30.0
    budget_s: float = 120.0
    backoff_s: float = 0.05
    max_backoff_s: float = 2.0

    def pause_s(self, failures: int, rng: random.Random) -> float:
        """Seconds to wait after this many failures in a row (at least 1)."""
        return min(self.max_backoff_s, self.backoff_s * 2 ** min(failures - 1, 30)) * (0.5 + 0.5 * rng.random())


@dataclass
class AskStats:
    """What asking has cost so far. dropped: tries that were given up on; their late replies are never used."""

    queries: int = 0
    retries: int = 0
    dropped: int = 0
    waited_s: float = 0.0
    last_error: str = ""


class Asker:
    """Repeats a question until it is answered, the budget is spent, or the error is not a retryable one.

    rng: only spreads the retries of many clients; it takes no part in any result. clock and sleep are for tests.
    """

    def __init__(
        self,
        client: TeacherClient,
        *,
        num_classes: int,
        policy: RetryPolicy | None = None,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.client = client
        self.policy = policy if policy is not None else RetryPolicy()
        self.stats = AskStats()
        self._num_classes = num_classes
        self._rng = rng if rng is not None else random.Random(0)
        self._clock = clock
        self._sleep = sleep

    def ask(self, query: TeacherQuery, *, digest: str) -> TeacherReply:
        """The checked reply. Raises TeacherUnavailable naming the teacher and the last reason once the budget is
        spent, BadReply for an answer that must not be used, BadQuery and the like as they come."""
        return self.finish(query, self.client.submit(query), digest=digest)

    def finish(self, query: TeacherQuery, pending: PendingReply, *, digest: str) -> TeacherReply:
        """Waits for a query that is on its way already; otherwise as `ask`."""
        self.stats.queries += 1
        started, failures = self._clock(), 0
        while True:
            left_s = started + self.policy.budget_s - self._clock()
            try:
                reply = pending.result(timeout_s=max(0.0, min(self.policy.attempt_timeout_s, left_s)))
                self.stats.waited_s += self._clock() - started
                return check_reply(query, reply, digest=digest, num_classes=self._num_classes)
            except RetryableTeacherError as error:
                pending.cancel()
                failures += 1
                pause_s = self.policy.pause_s(failures, self._rng)
                self._give_up_or_count(query, error, started, pause_s)
            self._sleep(pause_s)
            self.stats.retries += 1
            pending = self.client.submit(query)

    def _give_up_or_count(
        self, query: TeacherQuery, error: RetryableTeacherError, started: float, pause_s: float
    ) -> None:
        reason = error.args[2] if isinstance(error, TeacherUnavailable) else str(error)
        self.stats.dropped += 1
        self.stats.last_error = reason
        waited_s = self._clock() - started
        if waited_s + pause_s >= self.policy.budget_s:
            self.stats.waited_s += waited_s
            raise TeacherUnavailable(str(query.teacher), waited_s, reason) from error


def ask(
    client: TeacherClient,
    query: TeacherQuery,
    *,
    digest: str,
    num_classes: int,
    policy: RetryPolicy | None = None,
    rng: random.Random | None = None,
) -> TeacherReply:
    """One question with retries; see Asker.ask."""
    return Asker(client, num_classes=num_classes, policy=policy, rng=rng).ask(query, digest=digest)


@dataclass(frozen=True)
class _InFlight:
    query: TeacherQuery
    digest: str
    pending: PendingReply


class Prefetcher:
    """Keeps up to `depth` questions in flight and hands the replies back in the order of the questions.

    Every query that was put is answered exactly once by `get`, or `get` raises for it and goes on to the next.
    """

    def __init__(self, asker: Asker, depth: int) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self.depth = depth
        self._asker = asker
        self._in_flight: deque[_InFlight] = deque()

    def __len__(self) -> int:
        return len(self._in_flight)

    @property
    def full(self) -> bool:
        """True when the next call must be `get`."""
        return len(self._in_flight) >= self.depth

    @property
    def stats(self) -> AskStats:
        """Seconds waited in `get`, retries, dropped tries."""
        return self._asker.stats

    def put(self, query: TeacherQuery, *, digest: str) -> None:
        """Sends a question. Raises RuntimeError when `depth` of them are in flight already."""
        if self.full:
            raise RuntimeError(f"{self.depth} questions are in flight already: take an answer with get() first")
        self._in_flight.append(_InFlight(query, digest, self._asker.client.submit(query)))

    def get(self) -> TeacherReply:
        """The reply to the oldest question; waits, and repeats the question where that helps. Raises as Asker.ask;
        RuntimeError when nothing was asked."""
        if not self._in_flight:
            raise RuntimeError("nothing was asked: put() a query first")
        oldest = self._in_flight.popleft()
        return self._asker.finish(oldest.query, oldest.pending, digest=oldest.digest)

    def close(self) -> None:
        """Cancels what is in flight. The client stays open."""
        while self._in_flight:
            self._in_flight.popleft().pending.cancel()
