"""Asking until there is an answer: time limits, back-off, and a bounded number of questions in flight.

    put(query) ──► in flight, oldest first, at most `depth` ──► get() ──► reply, checked
                        │ retryable error or timeout ▲
                        └── cancel, back off, ask again ┘   until `budget_s` is spent: TeacherUnavailable

Repeating is safe: logits are a pure function of the question. A reply is used only if it answers exactly its query.
When the oldest question is asked again, the others in flight that failed as well go with it, so that a dead replica
costs one back-off and not one for each question. For a teacher that is known to be away, `get_soon` makes one short
try; a question that goes unanswered then stays on its way as the probe, which tells when the teacher is back.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from data.errors import DataError
from teacher_server.contract import PendingReply, TeacherClient
from teacher_server.errors import NoReplyYet, RetryableTeacherError, TeacherError, TeacherUnavailable
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
    """What asking has cost so far. dropped: tries given up on while they were on their way, whose late replies are
    never used."""

    queries: int = 0
    retries: int = 0
    dropped: int = 0
    waited_s: float = 0.0
    last_error: str = ""


@dataclass
class Question:
    """A query on its way. since: when its budget began, at its first failure or wait; None before both."""

    query: TeacherQuery
    digest: str
    pending: PendingReply
    asked_at: float
    since: float | None = None
    failures: int = 0


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
        return self.finish(self.start(query, digest=digest))

    def start(self, query: TeacherQuery, *, digest: str) -> Question:
        """Sends a question without waiting."""
        return Question(query, digest, self.client.submit(query), self._clock())

    def finish(self, question: Question, others: Callable[[], Iterable[Question]] = tuple) -> TeacherReply:
        """Waits for the answer, repeating the question where that helps; raises as `ask`.

        others: questions that are also on their way; those that failed too are repeated together with this one.
        """
        self.stats.queries += 1
        began = self._clock()
        question.since = began if question.since is None else question.since
        try:
            while True:
                try:
                    return self._wait(question, question.since + self.policy.budget_s - self._clock())
                except RetryableTeacherError as error:
                    pause_s = self._give_up_or_pause(question, question.since, error)
                self._sleep(pause_s)
                self._repeat(question)
                for other in others():
                    self._repeat_if_failed(other)
        finally:
            self.stats.waited_s += self._clock() - began

    def try_once(self, question: Question, wait_s: float) -> TeacherReply:
        """The checked reply, if it comes within so many seconds. Raises NoReplyYet, and then the question is still on
        its way, or what it failed with. It is not repeated."""
        self.stats.queries += 1
        began = self._clock()
        try:
            return self._wait(question, wait_s)
        except RetryableTeacherError as error:
            self._note_failure(error)
            raise
        finally:
            self.stats.waited_s += self._clock() - began

    def has_answer(self, question: Question) -> bool:
        """Whether somebody has answered a question that nobody waits for any more. Raises NoReplyYet while it is on
        its way; once it has been so for longer than one try may take, it is cancelled and counts as failed."""
        try:
            question.pending.result(timeout_s=0.0)
        except NoReplyYet:
            if self._clock() - question.asked_at < self.policy.attempt_timeout_s:
                raise
            question.pending.cancel()
            return False
        except RetryableTeacherError:
            return False
        return True

    def move_to(self, client: TeacherClient, questions: Iterable[Question]) -> None:
        """Asks another client from now on, also the questions that are on their way; those tries are dropped."""
        self.client = client
        for question in questions:
            question.pending.cancel()
            self.stats.dropped += 1
            self._repeat(question)

    def _wait(self, question: Question, limit_s: float) -> TeacherReply:
        timeout_s = max(0.0, min(self.policy.attempt_timeout_s, limit_s))
        reply = question.pending.result(timeout_s=timeout_s)
        return check_reply(question.query, reply, digest=question.digest, num_classes=self._num_classes)

    def _give_up_or_pause(self, question: Question, since: float, error: RetryableTeacherError) -> float:
        """Seconds to wait before the next try. Raises TeacherUnavailable when the budget does not allow one."""
        question.pending.cancel()
        question.failures += 1
        reason = self._note_failure(error)
        pause_s = self.policy.pause_s(question.failures, self._rng)
        waited_s = self._clock() - since
        if waited_s + pause_s >= self.policy.budget_s:
            raise TeacherUnavailable(str(question.query.teacher), waited_s, reason) from error
        return pause_s

    def _repeat(self, question: Question) -> None:
        self.stats.retries += 1
        question.pending = self.client.submit(question.query)
        question.asked_at = self._clock()

    def _repeat_if_failed(self, question: Question) -> None:
        """Asks again at once unless the reply is there or may still come. What repeating does not help, a spent budget
        included, is left for the turn of this question."""
        try:
            question.pending.result(timeout_s=0.0)
        except NoReplyYet:
            return
        except RetryableTeacherError as error:
            question.since = self._clock() if question.since is None else question.since
            if self._clock() - question.since >= self.policy.budget_s:
                return
            question.pending.cancel()
            question.failures += 1
            self._note_failure(error)
            self._repeat(question)
        except (TeacherError, DataError):
            return

    def _note_failure(self, error: RetryableTeacherError) -> str:
        """Counts a try that is given up on though its reply may still come; the reason in words."""
        self.stats.dropped += isinstance(error, NoReplyYet)
        self.stats.last_error = error.args[2] if isinstance(error, TeacherUnavailable) else str(error)
        return self.stats.last_error


class Prefetcher:
    """Keeps up to `depth` questions in flight and hands the replies back in the order of the questions.

    Every query that was put is answered exactly once by `get` or `get_soon`, or these raise for it and go on to the
    next. One thread may put while another gets.
    """

    def __init__(self, asker: Asker, depth: int) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self.depth = depth
        self._asker = asker
        self._in_flight: deque[Question] = deque()
        self._probe: Question | None = None

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
        self._in_flight.append(self._asker.start(query, digest=digest))

    def get(self) -> TeacherReply:
        """The reply to the oldest question; waits, and repeats the question where that helps. Raises as Asker.ask;
        RuntimeError when nothing was asked."""
        # A tuple made in one call: the other thread may put while this one walks over it.
        return self._asker.finish(self._oldest(), others=lambda: tuple(self._in_flight))

    def get_soon(self, wait_s: float) -> TeacherReply:
        """As `get`, for a teacher that is away: one try of at most `wait_s` seconds. Raises as Asker.try_once."""
        oldest = self._oldest()
        try:
            return self._asker.try_once(oldest, wait_s)
        except NoReplyYet:
            if self._probe is None:
                self._probe = oldest
            else:
                oldest.pending.cancel()
            raise

    def is_back(self) -> bool:
        """Whether a question that `get_soon` went on without was answered meanwhile. Its reply is not used."""
        if self._probe is None:
            return False
        try:
            answered = self._asker.has_answer(self._probe)
        except NoReplyYet:
            return False
        self._probe = None
        return answered

    def move_to(self, client: TeacherClient) -> None:
        """Asks `client` from now on, also what is in flight. Nothing may be put meanwhile."""
        self._asker.move_to(client, self._in_flight)

    def close(self) -> None:
        """Cancels what is in flight. The client stays open."""
        if self._probe is not None:
            self._probe.pending.cancel()
            self._probe = None
        while self._in_flight:
            self._in_flight.popleft().pending.cancel()

    def _oldest(self) -> Question:
        if not self._in_flight:
            raise RuntimeError("nothing was asked: put() a query first")
        return self._in_flight.popleft()
