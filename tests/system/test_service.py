"""The teacher service on a real, private Ray cluster."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import ray
import torch
from ray import serve
from safetensors.torch import load_file, save_file

from data.input_spec import InputSpec
from data.prepare import prepare
from data.render import render_batch
from data.store import ClipStore
from teacher_server.clients.inprocess import InProcessTeacherClient
from teacher_server.clients.retry import Asker, RetryPolicy
from teacher_server.clients.serve import APP_NAME, ServeTeacherClient
from teacher_server.errors import (
    AliasMoved,
    BadReply,
    GateRefused,
    LibraryError,
    NoCapacity,
    OverBudget,
    TeacherInUse,
    TeacherNotResident,
    TeacherOverloaded,
    TeacherUnavailable,
    UnknownTeacher,
)
from teacher_server.library import TeacherLibrary
from teacher_server.promotion import GateFloors
from teacher_server.protocol import TeacherId, TeacherQuery, TeacherRef, new_request_id
from teacher_server.roster.roster import Roster
from teacher_server.serve.deployment import DeployOptions, TeacherService
from teacher_server.serve.gate import GATE_ITEMS, ForwardTime, compare_logits
from teacher_server.serve.roster_actor import NAMESPACE, ROSTER_NAME
from teacher_server.zoo.network import VideoNetwork
from trainer.losses import distill_loss

pytestmark = pytest.mark.system

ALPHA = TeacherRef("alpha")
PATIENCE_S = 60.0
BUDGET_MB = 20  # room for all teachers of this file but one
Reference = Callable[[TeacherQuery], np.ndarray]
_numbers = itertools.count(1)


def _contract() -> type:
    path = Path(__file__).parents[1] / "unit" / "teacher_server" / "client_contract.py"
    spec = importlib.util.spec_from_file_location("client_contract", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ClientContract


@pytest.fixture(scope="module")
def library(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> TeacherLibrary:
    return tiny.build_library(tmp_path_factory.mktemp("library"), tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def store(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    return tiny.build_store(tmp_path_factory.mktemp("stores") / "tiny")


@pytest.fixture(scope="module")
def service(ray_cluster: None, library: TeacherLibrary) -> TeacherService:  # noqa: ARG001 the cluster must run
    """No app runs yet."""
    return TeacherService.connect(library.root)


@pytest.fixture
def app(service: TeacherService) -> TeacherService:
    """The app runs, because the run "keeper" holds a lease."""
    if not service.renew("keeper"):
        service.acquire("keeper", ALPHA, DeployOptions(memory_budget_mb=BUDGET_MB))
    return service


@pytest.fixture(scope="module")
def reference(library: TeacherLibrary) -> Iterator[Reference]:
    """The in-process answer."""
    client = InProcessTeacherClient(library)
    yield lambda query: client.submit(query).result(PATIENCE_S).logits
    client.close()


def asker(client: ServeTeacherClient) -> Asker:
    policy = RetryPolicy(attempt_timeout_s=20.0, budget_s=60.0)
    return Asker(client, num_classes=5, policy=policy, rng=random.Random(0))


def is_app_there() -> bool:
    return APP_NAME in serve.status().applications


# ---- before there is an app


def test_a_cluster_that_is_too_small_is_told_so_in_one_sentence(service: TeacherService) -> None:
    with pytest.raises(NoCapacity, match=r"needs 1 x 64 CPU, the largest node of the cluster has 3: ask for less"):
        service.acquire("greedy", ALPHA, DeployOptions(num_cpus=64))
    with pytest.raises(NoCapacity, match=r"needs 4 x 1 CPU, 3 of the cluster's 3 are free"):
        service.acquire("greedy", ALPHA, DeployOptions(num_replicas=4), timeout_s=0.5)
    assert not is_app_there()


def test_an_unknown_teacher_is_refused_before_anything_is_deployed(service: TeacherService) -> None:
    with pytest.raises(UnknownTeacher, match="known are"):
        service.acquire("run", TeacherRef("nobody"))
    assert not is_app_there()


@pytest.mark.usefixtures("service")
def test_a_roster_serves_one_library(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="roster serves the library"):
        TeacherService.connect(tmp_path)


def test_twenty_runs_at_once_get_one_app_and_the_last_one_ends_it(
    service: TeacherService, tiny: ModuleType, store: ClipStore
) -> None:
    runs = [f"run{i}" for i in range(20)]
    with ThreadPoolExecutor(20) as threads:
        acquired = list(threads.map(lambda run: service.acquire(run, ALPHA), runs))
    assert sorted(each.adopted for each in acquired) == [False] + [True] * 19
    assert {each.binding.teacher for each in acquired} == {TeacherId("alpha", 1)}
    assert len(service.describe()) == 1
    for run in runs[:-1]:
        service.release(run)
    assert is_app_there()
    service.release(runs[-1])
    assert not is_app_there()
    with pytest.raises(TeacherUnavailable):
        service.client().submit(tiny.views_query(store, tiny.draw(store, 1))).result(1.0)


# ---- with the app


class TestServe(_contract()):  # type: ignore[misc]
    """The contract of every client."""

    @pytest.fixture
    def client(self, app: TeacherService) -> Iterator[ServeTeacherClient]:
        app.acquire("contract", TeacherRef("beta"))
        client = app.client()
        yield client
        client.close()
        app.release("contract")


def test_merged_questions_get_the_bytes_that_the_in_process_client_gives(
    app: TeacherService, tiny: ModuleType, store: ClipStore, reference: Reference
) -> None:
    queries = []
    for seed in range(30):
        batch = tiny.draw(store, 1 + seed % 5, seed)
        query = tiny.views_query(store, batch)
        if seed % 2:
            pixels = render_batch(store.gather(batch), batch)
            query = dataclasses.replace(query, views=None, store=None, pixels=pixels)
        queries.append(query)
    (before,) = app.describe()
    clients = [app.client() for _ in range(3)]
    pending = [clients[i % 3].submit(query) for i, query in enumerate(queries)]
    replies = [each.result(PATIENCE_S) for each in pending]
    (after,) = app.describe()
    for query, reply in zip(queries, replies, strict=True):
        np.testing.assert_array_equal(reply.logits, reference(query))
    shared = 3 * (after.shared - before.shared)  # clips of tuples that were drawn twice and asked about at once
    assert after.batch_clips - before.batch_clips + shared == sum(query.num_clips for query in queries)
    alone = sum(math.ceil(query.num_clips / 3 / 4) for query in queries)  # passes of 4 items
    assert after.batches - before.batches <= 0.9 * alone


def test_the_gradient_of_the_distillation_term_is_that_of_the_in_process_teacher(
    app: TeacherService, tiny: ModuleType, store: ClipStore, reference: Reference
) -> None:
    batch = tiny.draw(store, 4, seed=7)
    query = tiny.views_query(store, batch)
    served = app.client().submit(query).result(PATIENCE_S)
    torch.manual_seed(0)
    student = VideoNetwork("r3d", 0.125)
    clips = prepare(render_batch(store.gather(batch), batch), InputSpec(modality="res", crop=tiny.SPEC.crop))
    first, middle, last = clips.unflatten(0, (-1, 3)).unbind(1)

    def gradient(teacher_logits: np.ndarray) -> torch.Tensor:
        logits = student.forward_tuple((first, middle, last)).pretext_logits
        loss = distill_loss(logits, torch.from_numpy(teacher_logits.copy()), query.temperature)
        student.zero_grad()
        loss.backward()
        return torch.cat([p.grad.reshape(-1) for p in student.parameters() if p.grad is not None])

    with_service, in_process = gradient(served.logits), gradient(reference(query))
    assert with_service.norm() > 1e-3
    assert torch.equal(with_service, in_process)


def test_a_worker_process_connects_by_itself(
    app: TeacherService, tiny: ModuleType, store: ClipStore, reference: Reference
) -> None:
    query = tiny.views_query(store, tiny.draw(store, 2))

    def in_worker(service: TeacherService, query: TeacherQuery) -> tuple[object, np.ndarray]:
        binding = service.bind("worker-run", TeacherRef("alpha"), 3)
        return binding, service.client().submit(query).result(30.0).logits

    binding, logits = ray.get(ray.remote(num_cpus=0)(in_worker).remote(app, query), timeout=PATIENCE_S)
    np.testing.assert_array_equal(logits, reference(query))
    assert binding == app.bind("worker-run", ALPHA, 3)
    assert [span.block for span in app.timeline("worker-run")] == [0]


def test_a_teacher_that_is_not_resident_is_loaded_and_answers(
    app: TeacherService, tiny: ModuleType, library: TeacherLibrary, store: ClipStore, reference: Reference
) -> None:
    query = tiny.views_query(store, tiny.draw(store, 2), teacher=TeacherId("alpha", 2))
    with pytest.raises(TeacherNotResident, match="alpha@2 is not loaded"):
        app.client().submit(query).result(PATIENCE_S)
    reply = asker(app.client()).ask(query, digest=library.entry(query.teacher).digest)
    np.testing.assert_array_equal(reply.logits, reference(query))


def test_a_pinned_teacher_is_loaded_by_the_time_it_is_acquired(app: TeacherService) -> None:
    acquired = app.acquire("pinned", TeacherRef("gamma", 1))
    assert acquired.adopted
    assert app.describe()[0].teachers["gamma@1"] == acquired.binding.digest
    app.release("pinned")


def test_overload_is_refused_at_once_and_retries_get_through(
    app: TeacherService, tiny: ModuleType, library: TeacherLibrary, store: ClipStore, reference: Reference
) -> None:
    queries = [tiny.views_query(store, tiny.draw(store, 100, seed)) for seed in range(20)]
    client = app.client()
    pending = [client.submit(query) for query in queries]  # 6,000 clips where 2,048 may wait
    refused, answered = [], 0
    for query, each in zip(queries, pending, strict=True):
        try:
            logits = each.result(PATIENCE_S).logits
        except TeacherOverloaded as error:
            refused.append(error.args[1:])
            continue
        np.testing.assert_array_equal(logits, reference(query))
        answered += 1
    assert answered >= 6  # 2,048 clips hold six of these questions
    assert set(refused) == {(300, 2048)}
    reply = asker(client).ask(queries[-1], digest=library.entry(TeacherId("alpha", 1)).digest)
    assert len(reply.logits) == 100


def test_a_reply_with_another_digest_is_refused(app: TeacherService, tiny: ModuleType, store: ClipStore) -> None:
    with pytest.raises(BadReply, match=r"asked alpha@1 \(000000000000\)"):
        asker(app.client()).ask(tiny.views_query(store, tiny.draw(store, 1)), digest="0" * 64)


def test_replicas_that_serve_other_files_than_the_library_holds_are_refused(
    app: TeacherService, tiny: ModuleType, library: TeacherLibrary, tmp_path: Path
) -> None:
    card = tiny.make_card()
    delta = library.add("delta", card, tiny.save_random_weights(card, tmp_path / "a.safetensors", 1))
    app.acquire("first", TeacherRef("delta"))
    others = tiny.save_random_weights(card, tmp_path / "b.safetensors", 2)
    tiny.replace_weights(library.root / "delta" / str(delta.version), others.read_bytes())
    with pytest.raises(LibraryError, match=r"delta@1 has digest .* here, replicas serve it as"):
        app.acquire("second", TeacherRef("delta"))
    app.release("first")
    assert is_app_there()


# ---- operators


@pytest.fixture
def add(library: TeacherLibrary, tiny: ModuleType, tmp_path: Path) -> Callable[..., None]:
    """Adds a version to a name: random weights of a seed, with changes to its card."""

    def add(name: str, seed: int, scale: float = 1.0, **card_fields: object) -> None:
        card = tiny.make_card(**card_fields)
        path = tiny.save_random_weights(card, tmp_path / f"{seed}.safetensors", seed)
        if scale != 1.0:
            save_file({key: x * scale if x.is_floating_point() else x for key, x in load_file(path).items()}, path)
        library.add(name, card, path)

    return add


@pytest.fixture
def swap(add: Callable[..., None], app: TeacherService) -> TeacherRef:
    """A name of this test's own with two versions, the first of which is served."""
    name = f"swap-{next(_numbers)}"
    for seed in (1, 2):
        add(name, seed)
    app.acquire(name, TeacherRef(name))
    return TeacherRef(name)


class Load:
    """A run that asks about a few questions over and over and keeps every reply, until it is ended."""

    def __init__(self, app: TeacherService, ref: TeacherRef, run: str, queries: list[TeacherQuery]) -> None:
        self.answered: list[tuple[TeacherQuery, np.ndarray]] = []
        self._ended = threading.Event()
        self._threads = ThreadPoolExecutor(1)
        self._asking = self._threads.submit(self._ask, app, ref, run, queries)

    def _ask(self, app: TeacherService, ref: TeacherRef, run: str, queries: list[TeacherQuery]) -> None:
        client, block = asker(app.client()), 0
        while not self._ended.is_set():
            binding = app.bind(run, ref, block)
            for query in queries:
                asked = dataclasses.replace(query, teacher=binding.teacher, request_id=new_request_id(), run=run)
                self.answered.append((asked, client.ask(asked, digest=binding.digest).logits))
            block += 1

    def wait_for(self, replies: int) -> None:
        """Until so many more have come."""
        target, deadline = len(self.answered) + replies, time.monotonic() + PATIENCE_S
        while len(self.answered) < target and not self._asking.done():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def end(self) -> list[tuple[TeacherQuery, np.ndarray]]:
        """All replies; raises what went wrong."""
        self._ended.set()
        self._asking.result(PATIENCE_S)
        self._threads.shutdown()
        return self.answered


def version_of(app: TeacherService, ref: TeacherRef) -> int:
    return app.aliases()[ref.name].version


def wait_for_pending(library: TeacherLibrary, name: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while name not in Roster(library).state().pending:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_gate_shows_how_far_the_versions_are_apart_and_a_floor_keeps_the_old_one(
    app: TeacherService, swap: TeacherRef, tiny: ModuleType, store: ClipStore, reference: Reference
) -> None:
    asked = tiny.views_query(
        store, tiny.draw(store, GATE_ITEMS, seed=5), teacher=TeacherId(swap.name, 1), temperature=1.0
    )
    app.client().submit(asked).result(PATIENCE_S)  # the gate takes the items that were asked last
    new = dataclasses.replace(asked, teacher=TeacherId(swap.name, 2))
    expected = compare_logits(reference(asked), reference(new), ForwardTime(), ForwardTime())
    with pytest.raises(GateRefused, match=f"KL divergence is {expected.kl:.4f} nats, at most 0.0000 asked"):
        app.promote(swap.name, 2, "test", floors=GateFloors(max_kl=0.0))
    assert version_of(app, swap) == 1
    gate = app.promote(swap.name, 2, "test", floors=GateFloors(max_kl=1e3)).gate
    assert gate is not None
    assert (gate.items, gate.agreement) == (GATE_ITEMS, expected.agreement)
    assert gate.kl == pytest.approx(expected.kl, rel=1e-6)
    assert gate.old_ms > 0
    assert gate.new_ms > 0


def test_a_version_that_fails_its_self_test_is_refused_and_nothing_changes(
    app: TeacherService, swap: TeacherRef, add: Callable[..., None], library: TeacherLibrary
) -> None:
    add(swap.name, 3, scale=1e30)  # finite weights, answers that are not
    before = Roster(library).state()
    with pytest.raises(LibraryError, match="not finite"):
        app.promote(swap.name, 3, "test")
    assert version_of(app, swap) == 1
    after = Roster(library).state()
    assert (after.pending, after.log) == (before.pending, before.log)
    assert f"{swap}@3" not in app.describe()[0].teachers


def test_a_rollback_takes_back_the_last_promotion(app: TeacherService, swap: TeacherRef) -> None:
    app.promote(swap.name, 2, "test", expected=1)
    with pytest.raises(AliasMoved):
        app.rollback(swap.name, "test", expected=1)
    back = app.rollback(swap.name, "test", expected=2)
    assert (back.teacher.version, back.previous, back.gate) == (1, TeacherId(swap.name, 2), None)
    assert version_of(app, swap) == 1


def test_a_version_is_evicted_once_nobody_needs_it_and_comes_back_for_a_run_that_was_bound_to_it(
    app: TeacherService, swap: TeacherRef, tiny: ModuleType, store: ClipStore, reference: Reference
) -> None:
    old = app.bind("bound", swap, 0)
    app.promote(swap.name, 2, "test")
    app.acquire("bound", TeacherRef(swap.name, 1))
    with pytest.raises(TeacherInUse, match="run bound"):
        app.evict(old.teacher, "test")
    app.release("bound")
    app.release(swap.name)
    assert app.evict(old.teacher, "test") == 1
    assert str(old.teacher) not in app.describe()[0].teachers
    query = tiny.views_query(store, tiny.draw(store, 2), teacher=old.teacher)
    with pytest.raises(TeacherNotResident, match="it was evicted"):
        app.client().submit(query).result(PATIENCE_S)
    asked = dataclasses.replace(query, run="bound")
    np.testing.assert_array_equal(asker(app.client()).ask(asked, digest=old.digest).logits, reference(query))


def test_a_teacher_beyond_the_memory_budget_is_refused(app: TeacherService, add: Callable[..., None]) -> None:
    add("wide", 1, width=1.0, feature_size=512)
    with pytest.raises(OverBudget, match=f"of the replica's budget of {BUDGET_MB}.0 MiB"):
        app.acquire("large", TeacherRef("wide"))
    assert not app.renew("large")
    (replica,) = app.describe()
    assert 0 < replica.resident_bytes < replica.budget_bytes == BUDGET_MB * 2**20


def test_equal_questions_share_one_answer(
    app: TeacherService, tiny: ModuleType, store: ClipStore, reference: Reference
) -> None:
    query = tiny.views_query(store, tiny.draw(store, 16, seed=77))
    colder = dataclasses.replace(query, request_id=new_request_id(), temperature=1.0)
    (before,) = app.describe()
    pending = [app.client().submit(each) for each in (query, colder)]
    for each, reply in zip((query, colder), [one.result(PATIENCE_S) for one in pending], strict=True):
        np.testing.assert_array_equal(reply.logits, reference(each))
    (after,) = app.describe()
    assert after.shared - before.shared == 1
    assert after.batch_clips - before.batch_clips == 48


def test_a_promotion_outlives_the_rosters_process(
    app: TeacherService, swap: TeacherRef, add: Callable[..., None], library: TeacherLibrary
) -> None:
    add(swap.name, 3, chunk_items=64)
    with ThreadPoolExecutor(1) as thread:
        promoting = thread.submit(app.promote, swap.name, 3, "test", expected=1)
        wait_for_pending(library, swap.name)
        ray.kill(ray.get_actor(ROSTER_NAME, namespace=NAMESPACE), no_restart=False)
        assert promoting.result(PATIENCE_S).teacher == TeacherId(swap.name, 3)
    state = Roster(library).state()
    assert state.pending == {}
    assert [(x.old, x.new) for x in state.log if x.name == swap.name] == [(None, 1), (1, 3)]


# ---- faults


def test_a_run_that_stopped_renewing_is_released(app: TeacherService, library: TeacherLibrary) -> None:
    key = Roster(library).state().leases["keeper"].app
    Roster(library, clock=lambda: time.time() - 1000).acquire("dead", key, TeacherId("alpha", 1), deploying=False)
    assert app.sweep() == ["dead"]
    assert app.renew("keeper")
    assert is_app_there()


def test_a_killed_roster_goes_on_from_its_file(app: TeacherService) -> None:
    bound = app.bind("survivor", ALPHA, 5)
    ray.kill(ray.get_actor(ROSTER_NAME, namespace=NAMESPACE), no_restart=False)
    assert app.bind("survivor", ALPHA, 5) == bound
    assert app.renew("keeper")


def test_an_operators_app_outlives_the_runs(app: TeacherService) -> None:
    app.deploy()
    app.release("keeper")
    assert is_app_there()
    assert app.acquire("late", ALPHA).adopted
    app.release("late")
    assert is_app_there()
    app.delete()
    assert not is_app_there()


def test_without_an_app_a_version_is_tested_in_a_process_of_its_own(
    service: TeacherService, add: Callable[..., None]
) -> None:
    for seed, scale in ((1, 1.0), (2, 1.0), (3, 1e30)):
        add("offline", seed, scale)
    assert service.promote("offline", 2, "test").gate is None
    with pytest.raises(LibraryError, match="not finite"):
        service.promote("offline", 3, "test")
    assert service.aliases()["offline"].version == 2
