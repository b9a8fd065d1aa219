"""Who goes next: weighted fair queueing of clips between runs. Pure: no clock, no thread, no asyncio.

    add ──► waiting ──► loading ──► loaded ──► taken, item by item      leave: answered, failed, cancelled
            next_to_load    mark_loaded    take_pass                    room_for: who must leave so that one fits

A run is a flow. It has a virtual time, which advances by clips / weight as its items are taken; the flow with the
least goes first, and within a flow the oldest request (start-time fair queueing, Goyal, Vin and Cheng 1996). The
system's virtual time is the largest at which an item was taken so far.

- A flow that comes back after a pause starts at max(its own virtual time, the system's - credit): the question of a run
  that asks little goes first beside a greedy one of its weight, and what anybody can save up is bounded by the credit,
  in clips over weight. (Counted in clips alone, the smaller a run's weight the earlier it would go.)
- A pass holds items of one key: the key of the oldest loaded request of the flow that goes first. It is filled with
  requests of that key from all flows in fair order, the last one as far as it fits. They are paid for, so every other
  key gets its turn.
- Requests are loaded in the order in which they would be taken. Loading a key pauses while LOADED_PASSES passes of it
  lie loaded, but a flow that has nothing loaded may load one request. What lies loaded is bounded in bytes.
- When there is no room, a run may push out the newest requests of whoever holds most, never so far that it would end
  up with more than them; clips over weight on both sides.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

CREDIT_CLIPS = 192  # of a run of weight 1: four training questions of 16 tuples
LOADED_PASSES = 2
MAX_IDLE_FLOWS = 1024
MIN_WEIGHT = 0.1  # a lower one counts as this: what a pass has room for takes no run's virtual time far off

Key = TypeVar("Key", bound=Hashable)


@dataclass(eq=False, kw_only=True)
class Request(Generic[Key]):
    """What scheduling knows of a request; whoever schedules derives a class that carries more.

    pass_items: most items that one pass of this key takes. num_bytes: what it takes when it is loaded. `order`,
    `taken` and `gone` belong to the queue.
    """

    run: str
    weight: float
    key: Key
    num_items: int
    clips_per_item: int
    pass_items: int
    num_bytes: int = 0
    order: int = 0
    taken: int = 0
    gone: bool = False

    @property
    def num_clips(self) -> int:
        """Clips of all its items."""
        return self.num_items * self.clips_per_item


Req = TypeVar("Req", bound=Request[Any])


@dataclass(frozen=True)
class Take(Generic[Req]):
    """Items first..last-1 of a request, taken into a pass."""

    request: Req
    first: int
    last: int


@dataclass(eq=False)
class _Flow(Generic[Req]):
    """One run. held_clips: not answered yet. ahead_clips: loading or loaded, and not taken."""

    weight: float = 1.0
    virtual_time: float = float("-inf")
    held_clips: int = 0
    ahead_clips: int = 0
    waiting: dict[Req, None] = field(default_factory=dict)  # by arrival
    loading: Req | None = None
    loaded: dict[Req, None] = field(default_factory=dict)  # by arrival; with items left

    @property
    def share(self) -> float:
        return self.held_clips / self.weight

    def reweigh(self, weight: float, now: float) -> None:
        """Another weight, the same debt in clips at the system's virtual time `now`; a credit stays one of time."""
        if self.virtual_time > now:
            self.virtual_time = now + (self.virtual_time - now) * self.weight / weight
        self.weight = weight

    def first_loaded(self, key: Hashable) -> Req | None:
        return next((request for request in self.loaded if request.key == key), None)

    def untaken(self) -> Iterator[Req]:
        """Requests with items left, newest first."""
        yield from reversed(self.waiting)
        if self.loading is not None:
            yield self.loading
        yield from reversed(self.loaded)


class FairQueue(Generic[Req]):
    """Requests until they are answered. Not thread-safe; every call costs O(runs that have requests) at most.

    max_loaded_bytes: of requests that are loading, or loaded and not wholly taken; one of any size may.
    """

    def __init__(self, *, credit_clips: int = CREDIT_CLIPS, max_loaded_bytes: float = math.inf) -> None:
        self._credit_clips = credit_clips
        self._max_loaded_bytes = max_loaded_bytes
        self._virtual_time = 0.0
        self._flows: dict[str, _Flow[Req]] = {}  # of the runs that have requests
        self._idle: dict[str, _Flow[Req]] = {}  # of those that had some, longest idle first
        self._ahead_items: Counter[Hashable] = Counter()  # by key: loading or loaded, and not taken
        self._loaded_bytes = 0  # or loading
        self._held_clips = 0
        self._arrivals = 0

    @property
    def held_clips(self) -> int:
        """Clips of all requests that have not left."""
        return self._held_clips

    @property
    def num_flows(self) -> int:
        """Runs that are remembered."""
        return len(self._flows) + len(self._idle)

    @property
    def any_loaded(self) -> bool:
        """Whether take_pass would take something."""
        return any(flow.loaded for flow in self._flows.values())

    @property
    def may_load(self) -> bool:
        """Whether next_to_load would give something."""
        return self._next_flow() is not None

    def untaken(self) -> list[Req]:
        """Requests that have items left to take."""
        return [request for flow in self._flows.values() for request in flow.untaken()]

    def loaded(self) -> list[Req]:
        """Those of them that are loaded."""
        return [request for flow in self._flows.values() for request in flow.loaded]

    def add(self, request: Req) -> None:
        """It waits to be loaded."""
        flow = self._flows.get(request.run) or self._idle.pop(request.run, None) or _Flow()
        self._flows[request.run] = flow
        flow.reweigh(_weight(request), self._virtual_time)
        if next(flow.untaken(), None) is None:
            flow.virtual_time = max(flow.virtual_time, self._floor)
        self._arrivals += 1
        request.order = self._arrivals
        flow.waiting[request] = None
        flow.held_clips += request.num_clips
        self._held_clips += request.num_clips

    def next_to_load(self) -> Req | None:
        """The request to load now, if there is one; then call mark_loaded, or leave."""
        flow = self._next_flow()
        if flow is None:
            return None
        flow.loading = request = next(iter(flow.waiting))
        del flow.waiting[request]
        self._loaded_bytes += request.num_bytes
        self._count_ahead(flow, request, request.num_items)
        return request

    def mark_loaded(self, request: Req) -> None:
        """Its items may be taken, unless it has left meanwhile."""
        if not request.gone:
            flow = self._flows[request.run]
            flow.loading = None
            flow.loaded[request] = None

    def take_pass(self) -> list[Take[Req]]:
        """What the next pass holds: at most pass_items items of one key; empty when nothing is loaded."""
        heads = [(flow.virtual_time, next(iter(flow.loaded))) for flow in self._flows.values() if flow.loaded]
        if not heads:
            return []
        _, leader = min(heads, key=lambda head: (head[0], head[1].order))
        line: list[tuple[float, int, _Flow[Req]]] = []  # a heap of the flows that have items of this key
        for flow in self._flows.values():
            if (head := flow.first_loaded(leader.key)) is not None:
                line.append((flow.virtual_time, head.order, flow))  # no two requests have one order
        heapq.heapify(line)
        takes: list[Take[Req]] = []
        room = leader.pass_items
        while room and line:
            flow = line[0][-1]
            request = flow.first_loaded(leader.key)
            assert request is not None  # a flow stands in line only while it has one
            # As much of a request as fits: dealt out item by item, all requests would end in the last pass.
            count = min(room, request.num_items - request.taken)
            takes.append(Take(request, request.taken, request.taken + count))
            self._take_items(flow, request, count)
            room -= count
            head = flow.first_loaded(leader.key)
            if head is not None:
                heapq.heapreplace(line, (flow.virtual_time, head.order, flow))
            else:
                heapq.heappop(line)
        return takes

    def room_for(self, request: Req, limit_clips: int) -> list[Req] | None:
        """Who must leave so that this new request fits into the limit: often nobody; None when it has to be refused.

        Only requests of which nothing was taken are pushed out, the newest first.
        """
        excess = self._held_clips + request.num_clips - limit_clips
        mine = self._flows.get(request.run)
        claim = ((0 if mine is None else mine.held_clips) + request.num_clips) / _weight(request)
        shares = {flow: flow.share for flow in self._flows.values() if flow is not mine}
        newest = {flow: flow.untaken() for flow in shares}
        pushed: list[Req] = []
        while excess > 0:
            richest = max(newest, key=shares.__getitem__, default=None)
            if richest is None:
                return None
            victim = next((one for one in newest[richest] if one.taken == 0), None)
            if victim is None:
                del newest[richest]  # all that it holds was begun
                continue
            shares[richest] -= victim.num_clips / richest.weight
            if shares[richest] < claim:
                return None
            pushed.append(victim)
            excess -= victim.num_clips
        return pushed

    def leave(self, request: Req) -> None:
        """It was answered, or nobody waits for it any more. Leaving twice does no harm."""
        if request.gone:
            return
        request.gone = True
        flow = self._flows[request.run]
        if request is flow.loading or request in flow.loaded:
            self._loaded_bytes -= request.num_bytes
            self._count_ahead(flow, request, request.taken - request.num_items)
        if request is flow.loading:
            flow.loading = None
        flow.waiting.pop(request, None)
        flow.loaded.pop(request, None)
        flow.held_clips -= request.num_clips
        self._held_clips -= request.num_clips
        if flow.held_clips == 0:
            self._idle[request.run] = self._flows.pop(request.run)
            self._forget_idle()

    def _next_flow(self) -> _Flow[Req] | None:
        """Whose oldest request is loaded next. Where that one must wait for room in memory, so do all: small ones would
        take the room again and again."""
        flow = min(filter(self._may_load, self._flows.values()), key=_loading_rank, default=None)
        if flow is None or 0 < self._loaded_bytes > self._max_loaded_bytes - next(iter(flow.waiting)).num_bytes:
            return None
        return flow

    def _may_load(self, flow: _Flow[Req]) -> bool:
        request = next(iter(flow.waiting), None)
        if request is None:
            return False
        return flow.ahead_clips == 0 or self._ahead_items[request.key] < LOADED_PASSES * request.pass_items

    def _take_items(self, flow: _Flow[Req], request: Req, count: int) -> None:
        self._virtual_time = max(self._virtual_time, flow.virtual_time)
        flow.virtual_time += count * request.clips_per_item / flow.weight
        request.taken += count
        self._count_ahead(flow, request, -count)
        if request.taken == request.num_items:
            self._loaded_bytes -= request.num_bytes
            del flow.loaded[request]

    def _count_ahead(self, flow: _Flow[Req], request: Req, items: int) -> None:
        flow.ahead_clips += items * request.clips_per_item
        self._ahead_items[request.key] += items
        if self._ahead_items[request.key] == 0:
            del self._ahead_items[request.key]

    @property
    def _floor(self) -> float:
        """Where a flow starts that was never seen or not for long."""
        return self._virtual_time - self._credit_clips

    def _forget_idle(self) -> None:
        """Idle flows whose virtual time no longer matters, and the longest idle ones when there are too many."""
        while self._idle:
            name, flow = next(iter(self._idle.items()))
            if flow.virtual_time > self._floor and len(self._idle) <= MAX_IDLE_FLOWS:
                return
            del self._idle[name]


def _loading_rank(flow: _Flow[Any]) -> tuple[float, int]:
    """By the virtual time that the flow has when everything that it has loaded is taken."""
    return flow.virtual_time + flow.ahead_clips / flow.weight, next(iter(flow.waiting)).order


def _weight(request: Request[Any]) -> float:
    return max(request.weight, MIN_WEIGHT)
