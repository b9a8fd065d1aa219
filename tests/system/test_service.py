"""The teacher service on a real, private Ray cluster."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import random
import signal
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

from data.input_spec import InputSpec
from data.prepare import prepare
from data.render import render_batch
from data.store import ClipStore
from teacher_server.client import APP_NAME, ServeTeacherClient
from teacher_server.deployment import DeployOptions, TeacherService
from teacher_server.errors import (
    BadReply,
    LibraryError,
    NoCapacity,
    TeacherNotResident,
    TeacherOverloaded,
    TeacherUnavailable,
    UnknownTeacher,
)
from teacher_server.inprocess import InProcessTeacherClient
from teacher_server.library import WEIGHTS, TeacherLibrary
from teacher_server.protocol import TeacherId, TeacherQuery, TeacherRef
from teacher_server.retry import Asker, Prefetcher, RetryPolicy
from teacher_server.roster import Roster
from teacher_server.roster_actor import NAMESPACE, ROSTER_NAME
from teacher_server.zoo.network import VideoNetwork
from trainer.losses import distill_loss

pytestmark = pytest.mark.system

ALPHA = TeacherRef("alpha")
PATIENCE_S = 60.0
Reference = Callable[[TeacherQuery], np.ndarray]


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
        service.acquire("keeper", ALPHA)
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
    assert after.batch_requests - before.batch_requests == 30
    assert after.batch_clips - before.batch_clips == sum(query.num_clips for query in queries)
    assert after.batches - before.batches <= 15  # two or more questions in a pass, on average


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
    query = tiny.views_query(store, tiny.draw(store, 100))
    client = app.client()
    pending = [client.submit(query) for _ in range(20)]  # 6,000 clips where 2,048 may wait
    expected, refused, answered = reference(query), [], 0
    for each in pending:
        try:
            np.testing.assert_array_equal(each.result(PATIENCE_S).logits, expected)
            answered += 1
        except TeacherOverloaded as error:
            refused.append(error.args[1:])
    assert answered >= 6  # 2,048 clips hold six of these questions
    assert set(refused) == {(300, 2048)}
    reply = asker(client).ask(query, digest=library.entry(query.teacher).digest)
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
    weights = library.root / "delta" / str(delta.version) / WEIGHTS
    tiny.save_random_weights(card, weights, 2)
    with pytest.raises(LibraryError, match=r"delta@1 has digest .* here, replicas serve it as"):
        app.acquire("second", TeacherRef("delta"))
    app.release("first")
    assert is_app_there()


def test_a_promoted_version_is_loaded_first_and_bound_from_the_next_block_on(
    app: TeacherService, library: TeacherLibrary, tiny: ModuleType, tmp_path: Path
) -> None:
    card = tiny.make_card()
    for seed in (1, 2):
        library.add("omega", card, tiny.save_random_weights(card, tmp_path / f"{seed}.safetensors", seed))
    omega = TeacherRef("omega")
    assert app.bind("swapped", omega, 0).teacher == TeacherId("omega", 1)
    assert app.promote("omega", 2, who="test") == TeacherId("omega", 2)
    assert "omega@2" in app.describe()[0].teachers
    assert app.bind("swapped", omega, 0).teacher == TeacherId("omega", 1)
    assert app.bind("swapped", omega, 1).teacher == TeacherId("omega", 2)
    assert [(span.block, span.teacher.version) for span in app.timeline("swapped")] == [(0, 1), (1, 2)]


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


def test_a_killed_replica_loses_no_question(
    app: TeacherService, tiny: ModuleType, library: TeacherLibrary, store: ClipStore, reference: Reference
) -> None:
    digest = library.entry(TeacherId("alpha", 1)).digest
    queries = [tiny.views_query(store, tiny.draw(store, 8, seed)) for seed in range(24)]
    (victim,) = app.describe()
    prefetcher = Prefetcher(asker(app.client()), depth=4)
    replies = []
    for i, query in enumerate(queries):
        if prefetcher.full:
            replies.append(prefetcher.get())
        prefetcher.put(query, digest=digest)
        if i == 10:
            os.kill(victim.pid, signal.SIGKILL)
    replies += [prefetcher.get() for _ in range(len(prefetcher))]
    assert [reply.request_id for reply in replies] == [query.request_id for query in queries]
    for query, reply in zip(queries, replies, strict=True):
        np.testing.assert_array_equal(reply.logits, reference(query))
    assert prefetcher.stats.retries > 0
    (successor,) = app.describe()
    assert successor.pid != victim.pid


def test_an_operators_app_outlives_the_runs(app: TeacherService) -> None:
    app.deploy()
    app.release("keeper")
    assert is_app_there()
    assert app.acquire("late", ALPHA).adopted
    app.release("late")
    assert is_app_there()
    app.delete()
    assert not is_app_there()
