"""The in-process client against the contract, and asking with retries against a scripted client."""

from __future__ import annotations

import importlib.util
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayTaskError

from data.errors import StoreMissing
from data.store import ClipStore
from teacher_server.clients.inprocess import InProcessTeacherClient
from teacher_server.clients.retry import Asker, Prefetcher, RetryPolicy
from teacher_server.clients.serve import ServeTeacherClient
from teacher_server.errors import (
    BadQuery,
    BadReply,
    NoReplyYet,
    RetryableTeacherError,
    TeacherNotResident,
    TeacherOverloaded,
    TeacherUnavailable,
)
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId, TeacherQuery, TeacherReply

DIGEST = "d" * 64


def _load_beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestInProcess(_load_beside("client_contract").ClientContract):  # type: ignore[misc]
    """The contract, and what only this client can show."""

    @pytest.fixture
    def client(self, library: TeacherLibrary) -> Iterator[InProcessTeacherClient]:
        client = InProcessTeacherClient(library)
        yield client
        client.close()

    def test_more_than_the_queue_holds_is_refused_until_there_is_room(
        self, library: TeacherLibrary, tiny: ModuleType, store: ClipStore
    ) -> None:
        gate = threading.Event()

        def open_when_told(path: Path) -> ClipStore:
            assert gate.wait(10)
            return ClipStore.open(path)

        client = InProcessTeacherClient(library, open_when_told, max_queued_clips=9)
        first = client.submit(tiny.views_query(store, tiny.draw(store, 2)))
        with pytest.raises(TeacherOverloaded, match="6 clips wait on this replica and 6 more"):
            client.submit(tiny.views_query(store, tiny.draw(store, 2))).result(10)
        gate.set()
        first.result(10)
        assert len(client.submit(tiny.views_query(store, tiny.draw(store, 3))).result(10).logits) == 3
        client.close()

    def test_a_store_that_was_replaced_is_opened_again(
        self, library: TeacherLibrary, tiny: ModuleType, tmp_path: Path
    ) -> None:
        client = InProcessTeacherClient(library)
        old = tiny.build_store(tmp_path / "s")
        client.submit(tiny.views_query(old, tiny.draw(old, 1))).result(10)
        (tmp_path / "s").rename(tmp_path / "former")
        new = tiny.build_store(tmp_path / "s", seed=1)
        assert len(client.submit(tiny.views_query(new, tiny.draw(new, 1))).result(10).logits) == 1
        client.close()

    def test_a_closed_client_says_so(self, library: TeacherLibrary, tiny: ModuleType, store: ClipStore) -> None:
        client = InProcessTeacherClient(library)
        client.close()
        with pytest.raises(TeacherUnavailable, match="closed"):
            client.submit(tiny.views_query(store, tiny.draw(store, 1))).result(10)


class Script:
    """A client that plays back a list of outcomes, and a clock that pauses and slow replies move."""

    def __init__(self, *outcomes: object) -> None:
        self.outcomes = list(outcomes)
        self.submitted: list[str] = []
        self.cancelled: list[str] = []
        self.pauses: list[float] = []
        self.timeouts: list[float] = []
        self.latest: dict[str, _ScriptedReply] = {}
        self.now = 0.0

    def submit(self, query: TeacherQuery) -> Any:
        self.submitted.append(query.request_id)
        self.latest[query.request_id] = _ScriptedReply(self, query, self.outcomes.pop(0))
        return self.latest[query.request_id]

    def close(self) -> None:
        """Nothing to free."""

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def asker(self, **policy: float) -> Asker:
        return Asker(
            self,
            num_classes=5,
            policy=RetryPolicy(**policy),
            rng=random.Random(7),
            clock=lambda: self.now,
            sleep=self.sleep,
        )


class _ScriptedReply:
    def __init__(self, script: Script, query: TeacherQuery, outcome: object) -> None:
        self._script, self._query, self._outcome = script, query, outcome

    def result(self, timeout_s: float) -> TeacherReply:
        self._script.timeouts.append(timeout_s)
        if self._outcome == "silence":
            self._script.now += timeout_s
            raise NoReplyYet("alpha@1", timeout_s, "no reply yet")
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return reply_to(self._query, **self._outcome)  # type: ignore[arg-type]

    def cancel(self) -> None:
        self._script.cancelled.append(self._query.request_id)

    def turn_into(self, outcome: object) -> None:
        """What happens to a question that is on its way."""
        self._outcome = outcome


def question(name: str = "q") -> TeacherQuery:
    return TeacherQuery(name, TeacherId("alpha", 1), 4.0, 3, pixels=np.zeros((6, 8, 32, 32, 3), np.uint8))


def reply_to(query: TeacherQuery, **changes: Any) -> TeacherReply:
    values = {
        "request_id": query.request_id,
        "teacher": query.teacher,
        "digest": DIGEST,
        "temperature": query.temperature,
        "logits": np.zeros((2, 5), np.float32),
        "engine": "cpu",
    }
    return TeacherReply(**(values | changes))


@pytest.mark.parametrize(
    "error", [TeacherNotResident("alpha@1"), TeacherOverloaded(5, 3, 7), TeacherUnavailable("alpha@1", 1.0, "died")]
)
def test_a_retryable_error_is_followed_by_another_try(error: RetryableTeacherError) -> None:
    script = Script(error, error, {})
    reply = script.asker().ask(question(), digest=DIGEST)
    assert reply.request_id == "q"
    assert script.submitted == ["q", "q", "q"]
    assert script.cancelled == ["q", "q"]


@pytest.mark.parametrize(
    ("cause", "raised"),
    [
        (KeyError("a fault of ours"), TeacherUnavailable),
        (BadQuery("no"), BadQuery),
        (StoreMissing("s", "no"), StoreMissing),
    ],
)
def test_an_error_that_no_replica_foresaw_can_be_asked_again_and_a_refusal_is_itself(
    cause: Exception, raised: type[Exception]
) -> None:
    class Response:
        def result(self, timeout_s: float) -> TeacherReply:  # noqa: ARG002 the contract's signature
            raise RayTaskError("infer", "traceback", cause)

    class Handle:
        def __init__(self) -> None:
            self.infer = self

        def remote(self, query: TeacherQuery) -> Response:  # noqa: ARG002
            return Response()

    client = ServeTeacherClient()
    client._handle = Handle()
    with pytest.raises(raised, match=r"a fault of ours|no"):
        client.submit(question()).result(1.0)


def test_pauses_double_up_to_their_limit_with_jitter_from_the_given_generator() -> None:
    script = Script(*[TeacherNotResident("alpha@1")] * 6, {})
    asker = script.asker(backoff_s=0.1, max_backoff_s=1.0)
    asker.ask(question(), digest=DIGEST)
    rng = random.Random(7)
    assert script.pauses == [base * (0.5 + 0.5 * rng.random()) for base in (0.1, 0.2, 0.4, 0.8, 1.0, 1.0)]
    assert (asker.stats.retries, asker.stats.dropped, asker.stats.queries) == (6, 0, 1)
    assert asker.stats.waited_s == pytest.approx(sum(script.pauses))


def test_silence_ends_each_try_at_its_own_limit_and_all_of_them_at_the_budget() -> None:
    script = Script(*["silence"] * 9)
    with pytest.raises(TeacherUnavailable) as caught:
        script.asker(attempt_timeout_s=10.0, budget_s=25.0, backoff_s=0.5).ask(question(), digest=DIGEST)
    teacher, waited_s, reason = caught.value.args
    assert (teacher, reason) == ("alpha@1", "no reply yet")
    assert waited_s == pytest.approx(25.0)
    assert script.timeouts[:2] == [10.0, 10.0]
    assert script.timeouts[2] == pytest.approx(5.0 - sum(script.pauses))
    assert script.cancelled == ["q"] * 3


@pytest.mark.parametrize("error", [BadQuery("no"), BadReply("no")])
def test_other_errors_are_not_tried_again(error: Exception) -> None:
    script = Script(error)
    with pytest.raises(type(error)):
        script.asker().ask(question(), digest=DIGEST)
    assert script.submitted == ["q"]


@pytest.mark.parametrize(
    ("lie", "match"),
    [
        ({"digest": "e" * 64}, "got an answer from alpha@1 .eeeeeeeeeeee."),
        ({"teacher": TeacherId("alpha", 2)}, "got an answer from alpha@2"),
        ({"request_id": "another"}, "to another"),
        ({"temperature": 1.0}, "temperature"),
        ({"logits": np.zeros((2, 4), np.float32)}, r"expected logits \[2, 5\]"),
        ({"logits": np.full((2, 5), np.nan, np.float32)}, "not finite"),
    ],
)
def test_a_reply_that_does_not_answer_the_question_is_never_used(lie: dict[str, Any], match: str) -> None:
    with pytest.raises(BadReply, match=match):
        Asker(Script(lie), num_classes=5).ask(question(), digest=DIGEST)


def test_a_prefetcher_answers_in_the_order_of_the_questions_whatever_fails() -> None:
    # First tries of a, b, c; then b's second.
    script = Script({}, TeacherNotResident("alpha@1"), {}, {})
    prefetcher = Prefetcher(script.asker(), depth=3)
    for name in "abc":
        prefetcher.put(question(name), digest=DIGEST)
    assert script.submitted == ["a", "b", "c"]
    assert [prefetcher.get().request_id for _ in range(3)] == ["a", "b", "c"]
    assert script.submitted == ["a", "b", "c", "b"]
    assert (prefetcher.stats.queries, prefetcher.stats.retries, prefetcher.stats.dropped) == (3, 1, 0)


def test_a_prefetcher_never_has_more_than_depth_questions_in_flight() -> None:
    prefetcher = Prefetcher(Script({}, {}).asker(), depth=2)
    prefetcher.put(question("a"), digest=DIGEST)
    prefetcher.put(question("b"), digest=DIGEST)
    assert prefetcher.full
    with pytest.raises(RuntimeError, match="2 questions are in flight"):
        prefetcher.put(question("c"), digest=DIGEST)
    prefetcher.get()
    assert not prefetcher.full


def test_a_prefetcher_goes_on_after_a_question_that_failed() -> None:
    prefetcher = Prefetcher(Script(BadQuery("no"), {}).asker(), depth=2)
    prefetcher.put(question("a"), digest=DIGEST)
    prefetcher.put(question("b"), digest=DIGEST)
    with pytest.raises(BadQuery):
        prefetcher.get()
    assert prefetcher.get().request_id == "b"
    with pytest.raises(RuntimeError, match="nothing was asked"):
        prefetcher.get()


def test_closing_a_prefetcher_cancels_what_is_in_flight() -> None:
    script = Script({}, {})
    prefetcher = Prefetcher(script.asker(), depth=2)
    prefetcher.put(question("a"), digest=DIGEST)
    prefetcher.put(question("b"), digest=DIGEST)
    prefetcher.close()
    assert script.cancelled == ["a", "b"]
    assert len(prefetcher) == 0


def test_a_depth_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Prefetcher(Script().asker(), depth=0)


DIED = TeacherUnavailable("alpha@1", 1.0, "replica died")


def prefetching(script: Script, names: str, **policy: float) -> Prefetcher:
    prefetcher = Prefetcher(script.asker(**policy), depth=len(names))
    for name in names:
        prefetcher.put(question(name), digest=DIGEST)
    return prefetcher


def test_questions_that_failed_with_the_oldest_are_asked_again_with_it_after_one_pause() -> None:
    # b and d died with a, c lives on another replica; then all are answered.
    script = Script(DIED, DIED, {}, DIED, {}, {}, {})
    prefetcher = prefetching(script, "abcd")
    assert [prefetcher.get().request_id for _ in range(4)] == ["a", "b", "c", "d"]
    assert script.submitted == ["a", "b", "c", "d", "a", "b", "d"]
    assert len(script.pauses) == 1
    assert (prefetcher.stats.retries, prefetcher.stats.dropped, prefetcher.stats.queries) == (3, 0, 4)


def test_questions_on_their_way_are_left_alone_when_the_oldest_is_asked_again() -> None:
    script = Script(DIED, "silence", {})
    prefetcher = prefetching(script, "ab")
    prefetcher.get()
    assert script.submitted == ["a", "b", "a"]
    assert script.cancelled == ["a"]
    script.latest["b"].turn_into({})
    assert prefetcher.get().request_id == "b"
    assert script.submitted == ["a", "b", "a"]


def test_what_repeating_does_not_help_waits_for_its_turn() -> None:
    script = Script(DIED, BadQuery("no"), {})
    prefetcher = prefetching(script, "ab")
    assert prefetcher.get().request_id == "a"
    with pytest.raises(BadQuery):
        prefetcher.get()
    assert script.submitted == ["a", "b", "a"]


def test_the_budget_of_a_question_runs_from_its_first_failure_and_not_from_its_turn() -> None:
    # a and b fail together at 0; a is answered in its second try, b only fails.
    script = Script(DIED, DIED, {}, *[DIED] * 50)
    prefetcher = prefetching(script, "ab", budget_s=4.0, backoff_s=0.5, max_backoff_s=1.0)
    prefetcher.get()
    first_failure, script.now = script.now, script.now + 3.0
    with pytest.raises(TeacherUnavailable, match="replica died"):
        prefetcher.get()
    assert script.now - first_failure <= 4.0
    assert script.now > first_failure + 3.0


def test_a_short_try_neither_repeats_nor_waits_longer_than_told() -> None:
    script = Script(DIED, "silence", {})
    prefetcher = prefetching(script, "abc")
    with pytest.raises(TeacherUnavailable, match="replica died"):
        prefetcher.get_soon(0.25)
    with pytest.raises(NoReplyYet):
        prefetcher.get_soon(0.25)
    assert prefetcher.get_soon(0.25).request_id == "c"
    assert script.timeouts == [0.25] * 3
    assert (script.submitted, script.pauses) == (["a", "b", "c"], [])
    assert (prefetcher.stats.retries, prefetcher.stats.dropped, prefetcher.stats.queries) == (0, 1, 3)


def test_an_answer_that_comes_after_its_short_try_only_says_that_the_teacher_is_back() -> None:
    script = Script("silence", "silence", {})
    prefetcher = prefetching(script, "abc")
    for _ in range(2):
        with pytest.raises(NoReplyYet):
            prefetcher.get_soon(0.25)
    assert script.cancelled == ["b"]  # one probe is enough
    assert not prefetcher.is_back()
    script.latest["a"].turn_into({})
    assert prefetcher.is_back()
    assert not prefetcher.is_back()  # it tells once
    assert prefetcher.get().request_id == "c"


@pytest.mark.parametrize("failure", ["died", "too old"])
def test_a_probe_that_is_lost_makes_room_for_another(failure: str) -> None:
    script = Script("silence", "silence")
    prefetcher = prefetching(script, "ab", attempt_timeout_s=10.0)
    with pytest.raises(NoReplyYet):
        prefetcher.get_soon(0.25)
    if failure == "died":
        script.latest["a"].turn_into(DIED)
    else:
        script.now += 10.0
    assert not prefetcher.is_back()
    with pytest.raises(NoReplyYet):
        prefetcher.get_soon(0.25)
    script.latest["b"].turn_into({})
    assert prefetcher.is_back()


def test_another_client_is_asked_what_is_on_its_way_and_all_that_follows() -> None:
    first, second = Script("silence", "silence"), Script({}, {}, {})
    prefetcher = prefetching(first, "ab")
    prefetcher.move_to(second)
    assert first.cancelled == second.submitted == ["a", "b"]
    assert prefetcher.get().request_id == "a"
    prefetcher.put(question("c"), digest=DIGEST)
    assert [prefetcher.get().request_id for _ in range(2)] == ["b", "c"]
    assert (first.submitted, second.submitted) == (["a", "b"], ["a", "b", "c"])


def test_closing_cancels_the_probe_too() -> None:
    script = Script("silence")
    prefetcher = prefetching(script, "a")
    with pytest.raises(NoReplyYet):
        prefetcher.get_soon(0.25)
    prefetcher.close()
    assert script.cancelled == ["a"]
    assert not prefetcher.is_back()
