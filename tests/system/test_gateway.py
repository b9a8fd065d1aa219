"""Teachers and gateway as deploy/serve.yaml brings them up, asked over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import httpx
import numpy as np
import psutil
import pytest
import ray

from data.store import ClipStore
from data.views_arrow import to_arrow
from services.finding import Place, find_place
from teacher_server.clients.http import HttpTeacherClient
from teacher_server.clients.http_control import HttpOperatorControl, HttpRunControl
from teacher_server.clients.inprocess import InProcessTeacherClient
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId, TeacherQuery, TeacherRef, new_request_id
from teacher_server.serve.deployment import TeacherService

pytestmark = pytest.mark.system

START_LIMIT_S = 180.0
PATIENCE_S = 60.0
Reference = Callable[[np.ndarray, TeacherId, float], np.ndarray]


@pytest.fixture(scope="module")
def library(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> TeacherLibrary:
    return tiny.build_library(tmp_path_factory.mktemp("library"), tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def store(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    return tiny.build_store(tmp_path_factory.mktemp("stores") / "tiny")


@pytest.fixture(scope="module")
def http(gateway: Callable[[Path, Path], str], library: TeacherLibrary, store: ClipStore) -> Iterator[httpx.Client]:
    """A client of the gateway, which is ready."""
    url = gateway(library.root, store.path.parent)
    with httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def reference(library: TeacherLibrary) -> Iterator[Reference]:
    """The in-process answer."""
    client = InProcessTeacherClient(library)

    def answer(clips: np.ndarray, teacher: TeacherId, temperature: float) -> np.ndarray:
        views = library.entry(teacher).card.views_per_item
        query = TeacherQuery(new_request_id(), teacher, temperature, views, pixels=clips)
        return client.submit(query).result(PATIENCE_S).logits

    yield answer
    client.close()


def random_clips(seed: int, num_clips: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_clips, 8, 32, 32, 3), dtype=np.uint8)


def ask(client: httpx.Client, name: str, clips: np.ndarray, **parameters: float) -> httpx.Response:
    """A question with binary pixels; the answer comes as JSON."""
    size = {"binary_data_size": clips.nbytes}
    pixels = {"name": "pixels", "datatype": "UINT8", "shape": clips.shape, "parameters": size}
    head = json.dumps({"inputs": [pixels], "parameters": parameters}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return client.post(f"/v2/models/{name}/infer", content=head + clips.tobytes(), headers=headers)


def logits_of(answer: httpx.Response) -> np.ndarray:
    (output,) = answer.json()["outputs"]
    return np.float32(output["data"]).reshape(output["shape"])


@pytest.mark.usefixtures("http")
def test_operators_commands_find_what_a_config_file_deployed(library: TeacherLibrary) -> None:
    """Before any run has asked for it: nobody but the replicas has started the roster."""
    deadline = time.monotonic() + START_LIMIT_S
    while not find_place(library, "", {}, time.time()).address:
        assert time.monotonic() < deadline, "the service is not noted in the library"
        time.sleep(0.1)
    assert find_place(library, "", {}, time.time()) == Place(address=ray.get_runtime_context().gcs_address)


def test_answers_over_http_are_the_bytes_of_the_in_process_teacher(http: httpx.Client, reference: Reference) -> None:
    for name, teacher in (
        ("alpha", TeacherId("alpha", 1)),
        ("alpha/versions/2", TeacherId("alpha", 2)),
        ("beta", TeacherId("beta", 1)),
    ):
        clips = random_clips(teacher.version)
        answer = ask(http, name, clips, temperature=4.0)
        assert answer.status_code == 200, answer.text
        assert answer.json()["parameters"]["teacher"] == str(teacher)
        np.testing.assert_array_equal(logits_of(answer), reference(clips, teacher, 4.0))


def test_the_list_has_the_digests_that_answers_carry(http: httpx.Client) -> None:
    listed = {teacher["name"]: teacher for teacher in http.get("/v1/teachers").json()["teachers"]}
    digests = [version["digest"] for version in listed["alpha"]["versions"]]
    answers = [ask(http, f"alpha/versions/{version}", random_clips(0)).json() for version in (1, 2)]
    assert digests == [answer["parameters"]["digest"] for answer in answers]


def test_a_run_on_another_cluster_leases_binds_and_asks_with_views(
    http: httpx.Client, tiny: ModuleType, store: ClipStore, library: TeacherLibrary
) -> None:
    """The HTTP clients against the service: the answer is that of the in-process client, bit for bit."""
    url = str(http.base_url)
    control, client, local = HttpRunControl(url), HttpTeacherClient(url), InProcessTeacherClient(library)
    try:
        assert control.acquire("elsewhere", TeacherRef("alpha")).adopted
        binding = control.bind("elsewhere", TeacherRef("alpha"), 0)
        assert control.bind("elsewhere", TeacherRef("alpha"), 0) == binding
        assert control.timeline("elsewhere") == [binding]
        assert control.renew("elsewhere")
        query = tiny.views_query(store, tiny.draw(store, 4), teacher=binding.teacher)
        assert len(to_arrow(query.view_batch())) < 16 * 1024
        over_http = client.submit(query).result(PATIENCE_S)
        np.testing.assert_array_equal(over_http.logits, local.submit(query).result(PATIENCE_S).logits)
        assert over_http.digest == binding.digest
        control.release("elsewhere")
        assert not control.renew("elsewhere")
    finally:
        client.close()
        local.close()


def test_an_operator_swaps_and_rolls_back_while_questions_follow_the_alias(http: httpx.Client) -> None:
    operator = HttpOperatorControl(str(http.base_url))
    assert operator.promote("alpha", 2, "test", expected=1).teacher == TeacherId("alpha", 2)
    assert ask(http, "alpha", random_clips(0)).json()["parameters"]["teacher"] == "alpha@2"
    assert operator.rollback("alpha", "test", expected=2).teacher == TeacherId("alpha", 1)
    assert ask(http, "alpha", random_clips(0)).json()["parameters"]["teacher"] == "alpha@1"
    log = http.get("/v1/aliases").json()["log"]
    assert [(entry["old"], entry["new"]) for entry in log if entry["name"] == "alpha"][-2:] == [(1, 2), (2, 1)]
    assert operator.evict(TeacherId("alpha", 2), "test") == 1


def test_what_a_teacher_refuses_comes_back_as_422(http: httpx.Client) -> None:
    answer = ask(http, "alpha", random_clips(0)[:, :, :30, :30].copy())
    assert (answer.status_code, answer.json()["code"]) == (422, "BadQuery")
    assert answer.json()["error"] == "alpha@1 takes 32x32 pixels, got 30x30"


def test_a_chunked_body_is_cut_off_at_the_limit(http: httpx.Client) -> None:
    answer = http.post("/v2/models/alpha/infer", content=(bytes(2**20) for _ in range(40)))
    assert (answer.status_code, answer.json()["code"]) == (413, "TooLarge")


def test_many_at_once_are_answered_right_or_refused_with_retry_after(http: httpx.Client, reference: Reference) -> None:
    with ThreadPoolExecutor(48) as threads:
        answers = list(threads.map(lambda seed: ask(http, "alpha", random_clips(seed, 3)), range(96)))
    statuses = [answer.status_code for answer in answers]
    print(f"96 questions from 48 threads: {statuses.count(200)} answered, {statuses.count(429)} refused")
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) >= 16
    for seed, answer in enumerate(answers):
        if answer.status_code == 429:
            assert int(answer.headers["Retry-After"]) > 0
        elif seed % 8 == 0:
            expected = reference(random_clips(seed, 3), TeacherId("alpha", 1), 1.0)
            np.testing.assert_array_equal(logits_of(answer), expected)


def test_the_http_port_listens_on_loopback_only(http: httpx.Client) -> None:
    listening = [c.laddr for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert {address.ip for address in listening if address.port == http.base_url.port} == {"127.0.0.1"}


def test_a_run_adopts_the_teachers_of_the_config_file_and_does_not_end_them(
    http: httpx.Client, library: TeacherLibrary
) -> None:
    service = TeacherService.connect(library.root)
    assert service.acquire("run", TeacherRef("alpha")).adopted
    service.release("run")
    assert ask(http, "alpha", random_clips(0)).status_code == 200


def test_without_teachers_the_gateway_lives_is_not_ready_and_says_so(
    http: httpx.Client, library: TeacherLibrary, wait_for_status: Callable[[httpx.Client, str, int], None]
) -> None:
    """Comes last: it ends the teachers."""
    TeacherService.connect(library.root).delete()
    wait_for_status(http, "/readyz", 503)
    assert http.get("/healthz").status_code == 200
    answer = ask(http, "alpha", random_clips(0))
    assert (answer.status_code, answer.json()["code"]) == (503, "TeacherUnavailable")
    assert int(answer.headers["Retry-After"]) > 0
