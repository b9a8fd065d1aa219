"""Promises 3 and 9: versions change under load, and four times the load that can be served, on a private cluster.

The operations of promise 3, in an order that the seed decides, while eight students ask without a pause:

    promote, rollback          a version that was evicted is loaded, tested and compared on all replicas, then committed
    not finite, damaged,
    wrong shape, changed       a promotion whose load fails: nothing changes. changed: its weights are not the card's
    other signature            one that is refused before anything is loaded
    killed                     a replica gets SIGKILL while it prepares: nothing changes, and another takes its place
"""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.torch import load_file, save_file

from data.store import ClipStore
from teacher_server.clients.inprocess import InProcessTeacherClient
from teacher_server.errors import LibraryError, TeacherInUse, TeacherMismatch, TeacherUnavailable
from teacher_server.library import WEIGHTS, TeacherLibrary
from teacher_server.protocol import TeacherId, TeacherQuery, TeacherRef, new_request_id
from teacher_server.roster.roster import Roster
from teacher_server.serve.deployment import DeployOptions, TeacherService
from teacher_server.serve.replica_state import ReplicaState

pytestmark = pytest.mark.system

NAME = "swap"
NUM_STUDENTS = 8
GOOD = (1, 2, 3, 4)
NOT_FINITE, OTHER_SIGNATURE, DAMAGED, WRONG_SHAPE, CHANGED, SLOW_TO_TEST = range(5, 11)
REFUSED = {
    "not finite": (NOT_FINITE, LibraryError),
    "damaged": (DAMAGED, LibraryError),
    "wrong shape": (WRONG_SHAPE, LibraryError),
    "changed": (CHANGED, LibraryError),
    "other signature": (OTHER_SIGNATURE, TeacherMismatch),
}
PATIENCE_S = 120.0
SWAP_WAIT_MS = 100
SWAP_LIMIT_S = 3.0  # of one swap: the gate, which waits for its share of a busy replica, takes what it gets until then
Figure = Callable[[int, str, str], None]


@dataclasses.dataclass(frozen=True)
class Form:
    """How much of it. replies: of the students, in all."""

    operations: dict[str, int]
    replies: int
    overload_s: float


SHORT = Form(
    {"promote": 4, "rollback": 3, "not finite": 1, "damaged": 1, "wrong shape": 1, "changed": 1, "other signature": 1,
     "killed": 1},
    2000, 7.0,
)  # fmt: skip
FULL = Form(
    {"promote": 80, "rollback": 60, "not finite": 15, "damaged": 15, "wrong shape": 10, "changed": 10,
     "other signature": 10, "killed": 20},
    100_000, 60.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def form(full: bool) -> Form:
    return FULL if full else SHORT


@pytest.fixture(scope="module")
def store(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    return tiny.build_store(tmp_path_factory.mktemp("stores") / "tiny")


@pytest.fixture(scope="module")
def library(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> TeacherLibrary:
    """Versions 1 to 4 are sound, the last as well; a replica must refuse 5, 7 and 8, the library 9, the roster 6."""
    library, scratch = TeacherLibrary(tmp_path_factory.mktemp("library")), tmp_path_factory.mktemp("weights")
    wider: dict[str, object] = {"width": 1.0, "feature_size": 512}
    changes: dict[int, dict[str, object]] = {OTHER_SIGNATURE: wider, SLOW_TO_TEST: {"chunk_items": 64}}
    for version in range(1, SLOW_TO_TEST + 1):
        card = tiny.make_card(**changes.get(version, {}))
        path = tiny.save_random_weights(card, scratch / f"{version}.safetensors", version)
        if version == NOT_FINITE:
            save_file({k: x * 1e30 if x.is_floating_point() else x for k, x in load_file(path).items()}, path)
        assert library.add(NAME, card, path) == TeacherId(NAME, version)
    content = {version: (library.root / NAME / str(version) / WEIGHTS).read_bytes() for version in (1, OTHER_SIGNATURE)}
    tiny.replace_weights(library.root / NAME / str(DAMAGED), content[1][:-1000])
    tiny.replace_weights(library.root / NAME / str(WRONG_SHAPE), content[OTHER_SIGNATURE])
    (library.root / NAME / str(CHANGED) / WEIGHTS).write_bytes(content[1])
    card = tiny.make_card(**wider)
    library.add("steady", card, tiny.save_random_weights(card, scratch / "steady.safetensors", 0))
    return library


@pytest.fixture(scope="module")
def service(ray_cluster: None, library: TeacherLibrary) -> TeacherService:  # noqa: ARG001 the cluster must run
    return TeacherService.connect(library.root)


# ---- promise 3


class Operator:
    """Moves the alias and knows where it must point. counts: operations by kind, `killed late` for a replica that had
    prepared before it was killed."""

    def __init__(self, service: TeacherService, library: TeacherLibrary, rng: random.Random) -> None:
        self.counts: Counter[str] = Counter()
        self.seconds: list[float] = []
        self._service = service
        self._library = library
        self._rng = rng
        self._pile = [1]

    def do(self, kind: str) -> None:
        """One operation; afterwards the alias points where it must."""
        if kind == "rollback" and len(self._pile) < 2:
            kind = "promote"
        if kind in REFUSED:
            version, error = REFUSED[kind]
            with pytest.raises(error):
                self._service.promote(NAME, version, "test")
        elif kind == "killed":
            kind = self._kill_while_it_prepares()
        else:
            self._move(kind)
        self.counts[kind] += 1
        state = Roster(self._library).state()
        assert (state.aliases[NAME], state.pending) == (self._pile[-1], {}), kind

    def _move(self, kind: str) -> None:
        left, began = self._pile[-1], time.monotonic()
        if kind == "rollback":
            self._service.rollback(NAME, "test", expected=left, timeout_s=SWAP_LIMIT_S)
            self._pile.pop()
        else:
            target = self._rng.choice([version for version in GOOD if version != left])
            self._service.promote(NAME, target, "test", expected=left, timeout_s=SWAP_LIMIT_S)
            self._pile.append(target)
        self.seconds.append(time.monotonic() - began)
        self._evict(left)  # so that it must be loaded when its turn comes again

    def _evict(self, version: int) -> None:
        """Once the students have moved on to the next version."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self._service.evict(TeacherId(NAME, version), "test")
                return
            except TeacherInUse:
                assert time.monotonic() < deadline
            time.sleep(0.25)

    def _kill_while_it_prepares(self) -> str:
        victim = self._rng.choice(replicas(self._service, 2))
        with ThreadPoolExecutor(1) as thread:
            promoting = thread.submit(self._service.promote, NAME, SLOW_TO_TEST, "test")
            deadline = time.monotonic() + PATIENCE_S
            while NAME not in Roster(self._library).state().pending:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            time.sleep(0.3 * self._rng.random())
            os.kill(victim.pid, signal.SIGKILL)
            try:
                promoting.result(PATIENCE_S)
            except TeacherUnavailable:
                kind = "killed"
            else:
                kind = "killed late"
                self._service.rollback(NAME, "test")
        replicas(self._service, 2)
        return kind


def replicas(service: TeacherService, num: int) -> list[ReplicaState]:
    """Their states, once there are so many; the dead ones are replaced by then."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            states = service.describe()
        except TeacherUnavailable:  # one has just died
            states = []
        if len(states) == num and all(psutil.pid_exists(state.pid) for state in states):
            return sorted(states, key=lambda state: state.pid)
        assert time.monotonic() < deadline, f"{len(states)} replicas, {num} are expected"
        time.sleep(0.1)


def test_nobody_notices_that_versions_change_under_load(
    service: TeacherService, library: TeacherLibrary, tiny: ModuleType, load: ModuleType, store: ClipStore,
    form: Form, seed: int, figure: Figure,
) -> None:  # fmt: skip
    rng = random.Random(seed)
    oracle = load.ContentOracle(library, load.make_pool(tiny, store, 32, seed))
    for version in (*GOOD, SLOW_TO_TEST):
        oracle.learn(TeacherId(NAME, version))
    service.deploy(DeployOptions(num_replicas=2))
    operator = Operator(service, library, rng)
    kinds = [kind for kind, count in form.operations.items() if kind != "killed" for _ in range(count)]
    rng.shuffle(kinds)
    replies_each = form.replies // len(kinds) // 2
    with load.Students(service, TeacherRef(NAME), oracle, NUM_STUDENTS, seed) as students:
        students.wait_for(100)
        began = time.monotonic()
        # Swaps and quiet take turns and get as many replies, so what else this machine does hits both alike.
        for kind in kinds:
            before, students.phase = students.num_replies, "swaps"
            operator.do(kind)
            students.wait_for(NUM_STUDENTS * load.BLOCK_QUESTIONS)  # until all have come to another block
            students.wait_for(max(1, replies_each - (students.num_replies - before)))
            students.phase = "settling"
            students.wait_for(2 * NUM_STUDENTS)
            students.phase = "quiet"
            students.wait_for(students.num_replies - before)
        students.phase = "kills"
        for _ in range(form.operations["killed"]):
            operator.do("killed")
            students.wait_for(10)
    took_s = time.monotonic() - began
    waits_ms = {phase: 1000 * np.array(waits_s) for phase, waits_s in students.waits_s.items()}
    longest = ", ".join(
        f"{phase} {ms.max():.0f} (p99 {np.quantile(ms, 0.99):.0f}, of {len(ms)})" for phase, ms in waits_ms.items()
    )
    figure(
        3,
        f"{operator.counts.total()} operations ({', '.join(f'{n} {kind}' for kind, n in operator.counts.items())}) in "
        f"{took_s:.0f} s, a swap {np.median(operator.seconds):.2f} s; {students.num_replies} replies, "
        f"{students.retries} retries, 0 failed, {len(students.wrong)} wrong; longest wait in ms: {longest}",
        f">= {sum(form.operations.values())} operations, >= {form.replies} replies, 0 failed, 0 wrong; swaps at most "
        f"{SWAP_WAIT_MS} ms longer than quiet",
    )
    assert not students.wrong, students.wrong[:5]
    assert students.num_replies >= form.replies
    assert operator.counts["killed"] > 0
    if form is FULL:  # figures of time, for an idle machine; the short form prints them
        for longest_ms in (np.max, lambda ms: np.quantile(ms, 0.99)):
            assert longest_ms(waits_ms["swaps"]) <= longest_ms(waits_ms["quiet"]) + SWAP_WAIT_MS
    service.delete()


class _LyingClient:
    """Answers with the version before the one that it was asked for, and names the one that it was asked for."""

    def __init__(self, library: TeacherLibrary) -> None:
        self._library = library
        self._honest = InProcessTeacherClient(library)

    def ask(self, query: TeacherQuery) -> Any:
        asked = dataclasses.replace(query, teacher=TeacherId(query.teacher.name, query.teacher.version - 1))
        reply = self._honest.submit(asked).result(PATIENCE_S)
        return dataclasses.replace(reply, teacher=query.teacher, digest=self._library.entry(query.teacher).digest)

    def close(self) -> None:
        self._honest.close()


def test_the_oracle_catches_a_teacher_that_lies_about_its_version(
    library: TeacherLibrary, tiny: ModuleType, load: ModuleType, store: ClipStore, seed: int
) -> None:
    oracle = load.ContentOracle(library, load.make_pool(tiny, store, 4, seed))
    for version in (1, 2):
        oracle.learn(TeacherId(NAME, version))
    liar = _LyingClient(library)
    for index, question in enumerate(oracle.pool):
        query = dataclasses.replace(question, teacher=TeacherId(NAME, 2), request_id=new_request_id())
        assert oracle.fault(index, liar.ask(query)) == (
            f"question {index}: the reply names {NAME}@2, its content is that of ['{NAME}@1']"
        )
    liar.close()


# ---- promise 9


@pytest.fixture
def steady() -> TeacherQuery:
    """A question without views, so that no answer is shared: each takes the same forward passes, 20 ms a clip."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 32, 32, 3), dtype=np.uint8)
    return TeacherQuery(new_request_id(), TeacherId("steady", 1), 4.0, 3, pixels=pixels, timeout_s=60.0)


def test_four_times_the_load_is_refused_promptly_and_the_rest_is_served_at_full_speed(
    service: TeacherService, steady: TeacherQuery, load: ModuleType, form: Form, figure: Figure
) -> None:
    limit = 4 * steady.num_clips
    service.delete()  # two replicas are left if the test before failed
    service.deploy(DeployOptions(max_queued_clips=limit))
    service.acquire("overload", TeacherRef("steady", 1))
    callers = load.make_callers(2)
    load.part_cores(service, callers)
    warm_s = 2.0
    load.fates_of([caller.saturate.remote(steady, 1.0, 2) for caller in callers])  # everything has started

    def measure_capacity() -> float:
        alone = load.fates_of([caller.saturate.remote(steady, warm_s + form.overload_s, 2) for caller in callers])
        return load.answer_rate(alone, warm_s)

    before = measure_capacity()
    watch = load.Watch(service)
    with load.every(0.3, watch.look):
        per_s = 4 * before / len(callers)
        fates = load.fates_of([caller.at_rate.remote(steady, warm_s + form.overload_s, per_s) for caller in callers])
    goodput = load.answer_rate(fates, warm_s)
    capacity = (before + measure_capacity()) / 2  # so that a machine which gets slower meanwhile changes both
    outcomes = Counter(fate.outcome for fate in fates)
    refusals_s = sorted(fate.waited_s for fate in fates if fate.outcome == "TeacherOverloaded")
    third = len(watch.rss_mib) // 3
    growth_mib = max(watch.rss_mib[-third:]) - max(watch.rss_mib[third:-third])
    figure(
        9,
        f"{len(fates)} questions at 4 x {before:.1f}/s: goodput {goodput / capacity:.1%} of capacity, "
        f"{dict(outcomes)}; refused after {1000 * np.median(refusals_s):.0f} ms (median), "
        f"{1000 * refusals_s[-1]:.0f} ms (longest); at most {watch.most_queued_clips} clips queued of {limit}; replica "
        f"{growth_mib:+.1f} MiB in the last third",
        "goodput >= 90 %, refusals typed and prompt (an answer waits longer), queue within its limit, memory flat",
    )
    assert set(outcomes) == {"answered", "TeacherOverloaded"}
    if form is FULL:  # the same
        assert goodput >= 0.9 * capacity
    answers_s = [fate.waited_s for fate in fates if fate.outcome == "answered"]
    assert np.quantile(refusals_s, 0.99) < np.median(answers_s)
    assert limit / 2 < watch.most_queued_clips <= limit
    assert growth_mib < 32
    service.delete()
