"""Weighted fair queueing on simulated backlogs: every pass and every load takes no time, so counts are exact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import pytest

from teacher_server.batching.fairness import CREDIT_CLIPS, LOADED_PASSES, MAX_IDLE_FLOWS, FairQueue, Request, Take

PASS_ITEMS = 16
CLIPS = 3  # an item
QUESTION_ITEMS = 4 * PASS_ITEMS  # 192 clips, which is the credit

Queue = FairQueue[Request[str]]


def ask(
    queue: Queue, run: str, items: int, *, key: str = "k", weight: float = 1.0, pass_items: int = PASS_ITEMS
) -> Request[str]:
    """Adds a request."""
    request = Request(run=run, weight=weight, key=key, num_items=items, clips_per_item=CLIPS, pass_items=pass_items)
    queue.add(request)
    return request


def load_all(queue: Queue) -> list[Request[str]]:
    """Loads what may be loaded now, in order."""
    loaded = []
    while (request := queue.next_to_load()) is not None:
        queue.mark_loaded(request)
        loaded.append(request)
    return loaded


def next_pass(queue: Queue) -> list[Take[Request[str]]]:
    """Loads, takes a pass, and lets go of what is finished."""
    load_all(queue)
    takes = queue.take_pass()
    for take in takes:
        if take.request.taken == take.request.num_items:
            queue.leave(take.request)
    return takes


def items_by_run(passes: Iterable[list[Take[Request[str]]]]) -> Counter[str]:
    """Items that each run got."""
    return Counter(take.request.run for takes in passes for take in takes for _ in range(take.first, take.last))


def jain(shares: list[float]) -> float:
    """Jain's fairness index: 1 when all are equal, 1/n when one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


def drain(queue: Queue) -> list[list[Take[Request[str]]]]:
    """All passes until nothing is left."""
    passes = []
    while takes := next_pass(queue):
        passes.append(takes)
    return passes


def test_equal_backlogged_runs_get_equal_shares_whatever_the_size_and_number_of_their_requests() -> None:
    queue: Queue = FairQueue()
    for run, items in (("a", 1), ("b", 5), ("c", 16), ("d", 64), ("e", 37)):
        for _ in range(2400 // items):
            ask(queue, run, items)
    shares = items_by_run(next_pass(queue) for _ in range(300))
    assert sum(shares.values()) == 300 * PASS_ITEMS
    assert jain(list(shares.values())) >= 0.9999
    assert max(shares.values()) - min(shares.values()) <= PASS_ITEMS


def test_equal_runs_of_different_keys_get_equal_shares() -> None:
    queue: Queue = FairQueue()
    for run in "abcd":
        for _ in range(100):
            ask(queue, run, 7, key="x" if run in "ab" else run)
    shares = items_by_run(next_pass(queue) for _ in range(120))
    assert jain(list(shares.values())) >= 0.98


def test_the_index_would_tell_an_unfair_order() -> None:
    assert jain([10.0, 1.0]) < 0.6


def test_a_run_of_three_times_the_weight_gets_three_times_as_much() -> None:
    queue: Queue = FairQueue()
    for _ in range(200):
        ask(queue, "one", 8, weight=1.0)
        ask(queue, "three", 8, weight=3.0)
    shares = items_by_run(next_pass(queue) for _ in range(100))
    assert shares["three"] / shares["one"] == pytest.approx(3.0, abs=0.02)


@pytest.mark.parametrize("light_asks_first", [True, False])
def test_of_two_new_runs_the_one_of_less_weight_does_not_go_first(light_asks_first: bool) -> None:
    queue: Queue = FairQueue()
    ask(queue, "busy", 400)
    for _ in range(20):
        next_pass(queue)
    for run, weight in (("light", 0.1), ("heavy", 10.0))[:: 1 if light_asks_first else -1]:
        ask(queue, run, 100, weight=weight)
    shares = items_by_run(next_pass(queue) for _ in range(6))
    assert shares["heavy"] >= 5 * PASS_ITEMS


def test_a_big_question_of_a_quarters_weight_delays_two_students_hardly() -> None:
    """As a gate before a promotion asks: once, much, and after a pause."""
    queue: Queue = FairQueue()
    for _ in range(10):
        for run in "ab":
            ask(queue, run, 16)
        next_pass(queue)
    for run in "ab":
        ask(queue, run, 400)
    ask(queue, "gate", 400, weight=0.25)
    shares = items_by_run(next_pass(queue) for _ in range(17))
    assert shares["gate"] * CLIPS <= CREDIT_CLIPS * 0.25 + (shares["a"] + shares["b"]) * CLIPS / 8 + PASS_ITEMS * CLIPS


def passes_for_a_question(queue: Queue, run: str) -> int:
    """Passes from asking until the last item was taken, the one that runs when it comes not counted."""
    asked = [ask(queue, run, QUESTION_ITEMS // 4) for _ in range(4)]
    count = 0
    while any(request.taken < request.num_items for request in asked):
        next_pass(queue)
        count += 1
    return count


def test_a_light_runs_whole_question_goes_first_beside_one_that_asks_ten_times_as_much() -> None:
    queue: Queue = FairQueue()
    alone = passes_for_a_question(queue, "light")
    assert alone == 4
    latencies = []
    for _ in range(30):
        for _ in range(10):
            ask(queue, "greedy", QUESTION_ITEMS)
        for _ in range(QUESTION_ITEMS * 10 // PASS_ITEMS):  # while the light run computes
            next_pass(queue)
        for _ in range(3):
            ask(queue, "greedy", QUESTION_ITEMS)  # a backlog that never ends
        latencies.append(1 + passes_for_a_question(queue, "light"))  # 1: the pass that runs when the question comes
    assert max(latencies) <= 1.5 * alone


def test_what_a_run_can_save_up_is_bounded_by_the_credit() -> None:
    queue: Queue = FairQueue()
    for _ in range(500):
        ask(queue, "busy", 16)
    next_pass(queue)
    for _ in range(200):
        next_pass(queue)  # the other one stays away for 200 passes
    for _ in range(100):
        ask(queue, "back", 16)
    shares = items_by_run(next_pass(queue) for _ in range(40))
    ahead = (shares["back"] - shares["busy"]) * CLIPS
    assert 0 < ahead <= CREDIT_CLIPS + 2 * CLIPS


def test_a_run_that_returns_at_once_keeps_the_debt_that_it_has() -> None:
    queue: Queue = FairQueue()
    for _ in range(100):
        ask(queue, "patient", 16)
    got: Counter[str] = Counter()
    for _ in range(60):
        ask(queue, "hasty", 16)  # always one request, which leaves before the next one comes
        got += items_by_run([next_pass(queue)])
    assert (got["hasty"] - got["patient"]) * CLIPS <= 2 * CREDIT_CLIPS


@pytest.mark.parametrize("first_weight", [0.1, 1.0, 10.0])
def test_a_run_that_changes_its_weight_owes_the_same_clips_and_has_its_new_share_from_then_on(
    first_weight: float,
) -> None:
    queue: Queue = FairQueue()
    ask(queue, "steady", 200)
    ask(queue, "changing", 1, weight=first_weight)
    next_pass(queue)
    for _ in range(20):
        ask(queue, "changing", 16)
        ask(queue, "steady", 16)
    shares = items_by_run(next_pass(queue) for _ in range(30))
    assert abs(shares["changing"] - shares["steady"]) * CLIPS <= CREDIT_CLIPS + 2 * PASS_ITEMS * CLIPS


def test_within_a_run_the_oldest_goes_first_and_a_request_is_split_between_passes_by_whole_items() -> None:
    queue: Queue = FairQueue()
    first, second = ask(queue, "a", 20), ask(queue, "a", 20)
    passes = drain(queue)
    assert [[(take.request, take.first, take.last) for take in takes] for takes in passes] == [
        [(first, 0, 16)],
        [(first, 16, 20), (second, 0, 12)],
        [(second, 12, 20)],
    ]


def test_a_pass_is_filled_with_its_key_from_all_runs() -> None:
    queue: Queue = FairQueue()
    ask(queue, "a", 6, key="x")
    ask(queue, "b", 50, key="y")
    ask(queue, "c", 4, key="x")
    keys_and_items = [(takes[0].request.key, sum(take.last - take.first for take in takes)) for takes in drain(queue)]
    assert keys_and_items[0] == ("x", 10)
    assert keys_and_items[1:] == [("y", 16)] * 3 + [("y", 2)]
    assert all(len({take.request.key for take in takes}) == 1 for takes in drain(queue))


def test_no_key_starves_though_another_ones_passes_always_have_room_for_the_same_run() -> None:
    queue: Queue = FairQueue()
    for _ in range(100):
        ask(queue, "mixed", 8, key="x")
    rare, other = ask(queue, "mixed", 1, key="rare"), ask(queue, "quiet", 1, key="other")

    def passes_until(request: Request[str]) -> int:
        for count in range(1, 1000):
            ask(queue, "half", 8, key="x")  # comes back for every pass and leaves half of it free
            next_pass(queue)
            if request.taken:
                return count
        raise AssertionError("it was never taken")

    assert passes_until(other) <= 3
    assert passes_until(rare) <= 150  # 100 requests of its own run, half a pass each, stand before it


def test_a_trace_of_96_requests_takes_as_few_passes_as_accumulating_can() -> None:
    """The trace of the design: 96 requests 4 ms apart, a pass takes 100 ms; 25 arrive during each one."""
    queue: Queue = FairQueue()
    arrivals, now, passes = [4 * i for i in range(96)], 0, 0
    while arrivals or queue.held_clips:
        while arrivals and arrivals[0] <= now:
            arrivals.pop(0)
            ask(queue, "a", 1)
        passes, now = passes + 1, now + 100
        assert next_pass(queue)
    assert passes == 1 + -(-95 // PASS_ITEMS) == 7
    assert passes_of_a_batcher_that_freezes(96, apart_ms=4, wait_ms=5) == 48


def passes_of_a_batcher_that_freezes(requests: int, *, apart_ms: int, wait_ms: int) -> int:
    """A batch is closed wait_ms after its first request came, though the teacher is busy."""
    passes, closes = 0, -1
    for now in range(0, requests * apart_ms, apart_ms):
        if now > closes:
            passes, closes = passes + 1, now + wait_ms
    return passes


def test_loading_pauses_while_whole_passes_lie_loaded_and_goes_on_when_one_was_taken() -> None:
    queue: Queue = FairQueue()
    for _ in range(10):
        ask(queue, "a", 8)
    assert sum(request.num_items for request in load_all(queue)) == LOADED_PASSES * PASS_ITEMS
    assert not queue.may_load
    queue.take_pass()
    assert sum(request.num_items for request in load_all(queue)) == PASS_ITEMS


def test_a_run_that_has_nothing_loaded_may_load_beside_a_full_pool() -> None:
    queue: Queue = FairQueue()
    for _ in range(30):
        ask(queue, "greedy", 16)
    for _ in range(20):
        next_pass(queue)  # its credit is spent
    load_all(queue)
    light = [ask(queue, "light", 16) for _ in range(2)]
    assert load_all(queue) == light[:1]
    assert [take.request for take in queue.take_pass()] == light[:1]


def test_what_lies_loaded_is_bounded_in_bytes_and_one_request_may_be_larger() -> None:
    queue: Queue = FairQueue(max_loaded_bytes=100)

    def of_bytes(run: str, num_bytes: int) -> Request[str]:
        request = Request(
            run=run, weight=1.0, key=run, num_items=1, clips_per_item=1, pass_items=PASS_ITEMS, num_bytes=num_bytes
        )
        queue.add(request)
        return request

    large, first, second, third = (of_bytes(*one) for one in (("a", 500), ("b", 60), ("c", 40), ("d", 1)))
    assert load_all(queue) == [large]
    assert [take.request for take in queue.take_pass()] == [large]
    assert load_all(queue) == [first, second]
    queue.leave(first)  # cancelled
    assert load_all(queue) == [third]
    queue.leave(second)
    queue.leave(third)
    loading = of_bytes("e", 70), of_bytes("f", 70)
    assert queue.next_to_load() is loading[0]
    assert not queue.may_load
    queue.leave(loading[0])
    assert load_all(queue) == [loading[1]]


def test_small_requests_do_not_keep_a_large_one_from_being_loaded() -> None:
    queue: Queue = FairQueue(max_loaded_bytes=100)
    large = Request(run="large", weight=1.0, key="k", num_items=1, clips_per_item=1, pass_items=1, num_bytes=90)
    for i in range(10):
        queue.add(Request(run="small", weight=1.0, key="k", num_items=1, clips_per_item=1, pass_items=1, num_bytes=20))
        if i == 0:
            queue.add(large)
    order = [take.request.run for _ in range(4) for take in next_pass(queue)]
    assert order[:2] == ["small", "large"]


def test_requests_are_loaded_in_the_order_in_which_they_will_be_taken() -> None:
    queue: Queue = FairQueue()
    for run in ("a", "a", "a", "b", "b", "b"):
        ask(queue, run, 4)
    assert [request.run for request in load_all(queue)] == ["a", "b", "a", "b", "a", "b"]


def test_a_run_that_holds_less_pushes_out_the_newest_requests_of_the_one_that_holds_most() -> None:
    queue: Queue = FairQueue()
    greedy = [ask(queue, "greedy", 10) for _ in range(10)]
    middle = ask(queue, "middle", 20)
    newcomer = Request(run="light", weight=1.0, key="k", num_items=15, clips_per_item=CLIPS, pass_items=PASS_ITEMS)
    assert queue.room_for(newcomer, limit_clips=queue.held_clips) == [greedy[9], greedy[8]]
    assert queue.room_for(newcomer, limit_clips=queue.held_clips + 45) == []
    assert middle.run == "middle"


def weighted_claim(weight: float) -> Callable[[Queue], Request[str]]:
    """A request of 20 items of a run of this weight."""
    return lambda _: Request(
        run="new", weight=weight, key="k", num_items=20, clips_per_item=CLIPS, pass_items=PASS_ITEMS
    )


@pytest.mark.parametrize(("weight", "fits"), [(0.5, False), (1.0, False), (2.0, True)])
def test_nobody_is_pushed_out_for_one_who_would_then_hold_more_than_they_by_weight(weight: float, fits: bool) -> None:
    queue: Queue = FairQueue()
    victims = [ask(queue, "old", 10) for _ in range(3)]  # 30 items, 10 would stay
    request = weighted_claim(weight)(queue)
    assert queue.room_for(request, limit_clips=queue.held_clips) == (victims[:0:-1] if fits else None)


def test_what_was_begun_is_never_pushed_out() -> None:
    queue: Queue = FairQueue()
    begun = [ask(queue, "greedy", 100, key="x"), ask(queue, "greedy", 100, key="y")]
    ask(queue, "other", 1, key="y")  # the rest of its pass goes to the greedy run
    for _ in range(2):
        next_pass(queue)
    assert [request.taken for request in begun] == [PASS_ITEMS, PASS_ITEMS - 1]
    newcomer = weighted_claim(1.0)(queue)
    assert queue.room_for(newcomer, limit_clips=queue.held_clips) is None
    fresh = ask(queue, "greedy", 30)
    assert queue.room_for(newcomer, limit_clips=queue.held_clips) == [fresh]


def test_a_request_that_leaves_at_any_stage_gives_everything_back() -> None:
    for stage in range(4):
        queue: Queue = FairQueue()
        request = ask(queue, "a", 20)
        if stage >= 1:
            assert queue.next_to_load() is request
        if stage >= 2:
            queue.mark_loaded(request)
        if stage >= 3:
            queue.take_pass()
        queue.leave(request)
        queue.leave(request)  # a second time changes nothing
        queue.mark_loaded(request)  # the load thread comes back late
        assert (queue.held_clips, queue.any_loaded, queue.may_load) == (0, False, False)
        ask(queue, "a", 20)
        assert len(next_pass(queue)) == 1  # nothing counts as loaded that has gone


def test_runs_without_requests_are_forgotten() -> None:
    queue: Queue = FairQueue()
    for i in range(3 * MAX_IDLE_FLOWS):
        ask(queue, f"run {i}", 1)
        next_pass(queue)
    assert queue.num_flows <= MAX_IDLE_FLOWS
    for _ in range(2 * MAX_IDLE_FLOWS):
        ask(queue, "busy", 16)
    drain(queue)
    assert queue.num_flows == 1  # nobody else's past matters after that


def test_a_tiny_weight_does_not_break_the_order() -> None:
    queue: Queue = FairQueue()
    ask(queue, "tiny", 200, weight=1e-300)  # more than its credit
    drain(queue)
    for _ in range(20):
        ask(queue, "a", 4)
        ask(queue, "b", 16)
    assert items_by_run(next_pass(queue) for _ in range(8)) == {"a": 64, "b": 64}
