"""The gateway's routes against a teacher in closed form; the app needs no Ray."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from data.errors import StoreDamaged, StoreMismatch
from data.views import VIEW_DTYPE, ViewBatch
from data.views_arrow import to_arrow
from teacher_server.errors import (
    BadQuery,
    LibraryError,
    TeacherError,
    TeacherNotResident,
    TeacherOverloaded,
    TeacherUnavailable,
)
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId, TeacherQuery
from teacher_server.roster.roster import Roster

ROUTE = "/v2/models/{name}/infer"
PATH = "/v2/models/alpha/infer"
PATIENCE_S = 30.0


def outcome(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of a refusal, which has the form of all."""
    body = answer.json()
    assert set(body) == {"error", "code", "args"}
    assert "\n" not in body["error"]
    return answer.status_code, body["code"]


# ---- questions


def test_an_answer_is_the_teachers_and_says_who_made_it(
    gateway: Any,
    client: Any,
    library: TeacherLibrary,
    clips: np.ndarray,
    question: Any,
    expected: Callable[[TeacherQuery, int], np.ndarray],
) -> None:
    answer = gateway.ask("alpha/versions/2", question(clips, parameters={"temperature": 4, "run": "r1", "weight": 2}))
    said = answer.json()
    (query,) = client.asked
    np.testing.assert_array_equal(query.pixels, clips)
    assert (query.run, query.weight, query.views_per_item) == ("r1", 2.0, 3)
    logits = np.float32(said["outputs"][0]["data"]).reshape(said["outputs"][0]["shape"])
    np.testing.assert_array_equal(logits, expected(query, 5))  # two items of three clips
    assert said["parameters"] == {
        "teacher": "alpha@2",
        "digest": library.entry(TeacherId("alpha", 2)).digest,
        "engine": "cpu",
        "temperature": 4.0,
        "queue_s": 0.25,
        "render_s": 0.5,
        "forward_s": 0.125,
    }
    assert gateway.recorded == [("/v2/models/{name}/versions/{version}/infer", 200)]


def test_binary_outputs_follow_the_json(
    gateway: Any, client: Any, clips: np.ndarray, question: Any, expected: Callable[[TeacherQuery, int], np.ndarray]
) -> None:
    outputs = [{"name": name, "parameters": {"binary_data": True}} for name in ("logits", "features")]
    answer = gateway.ask("alpha", question(clips, outputs=outputs, parameters={"dtype": "float16"}))
    assert answer.headers["Content-Type"] == "application/octet-stream"
    length = int(answer.headers["Inference-Header-Content-Length"])
    logits, features = json.loads(answer.content[:length])["outputs"]
    assert (logits["datatype"], features["datatype"]) == ("FP16", "FP32")
    rest = answer.content[length:]
    np.testing.assert_array_equal(np.frombuffer(rest[:20], np.float16).reshape(2, 5), expected(client.asked[0], 5))
    assert np.frombuffer(rest[20:], np.float32).shape == (2 * 64,)


def test_views_are_asked_with_the_path_of_the_store_that_they_name(
    gateway: Any, client: Any, tensors: Any, tmp_path: Path
) -> None:
    (tmp_path / "stores" / "demo").mkdir(parents=True)
    batch = ViewBatch(np.zeros(6, VIEW_DTYPE), 3, "ab" * 16)
    answer = gateway.ask("alpha", views_question(tensors, batch, store="demo"))
    assert answer.status_code == 200, answer.text
    (query,) = client.asked
    assert (query.views, query.store) == (batch.to_bytes(), str(tmp_path / "stores" / "demo"))
    assert (query.pixels, query.views_per_item) == (None, 3)


def views_question(tensors: Any, batch: ViewBatch, **parameters: Any) -> tuple[bytes, dict[str, str]]:
    blob = to_arrow(batch)
    size = {"binary_data_size": len(blob)}
    tensor = {"name": "views", "datatype": "UINT8", "shape": [len(blob)], "parameters": size}
    return tensors({"inputs": [tensor], "parameters": parameters}, blob)


@pytest.mark.parametrize(
    "name",
    [
        "nowhere",
        "",
        ".",
        "..",
        "../stores/demo",
        "demo/",
        "/demo",
        "demo\x00",
        "demo\n",
        "~",
        "a" * 129,
        ".hidden",
        "é",
    ],
)
def test_a_store_is_named_and_never_a_path(gateway: Any, client: Any, tensors: Any, tmp_path: Path, name: str) -> None:
    for folder in ("demo", ".hidden"):
        (tmp_path / "stores" / folder).mkdir(parents=True)
    answer = gateway.ask("alpha", views_question(tensors, ViewBatch(np.zeros(3, VIEW_DTYPE), 3, "ab" * 16), store=name))
    assert outcome(answer) in [(422, "StoreMissing"), (422, "BadQuery")]  # BadQuery: over the schema's length
    assert str(tmp_path) not in answer.text
    assert client.asked == []


def test_a_store_that_an_operator_linked_in_is_one(gateway: Any, client: Any, tensors: Any, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "stores").mkdir()
    (tmp_path / "stores" / "linked").symlink_to(tmp_path / "elsewhere")
    batch = ViewBatch(np.zeros(3, VIEW_DTYPE), 3, "ab" * 16)
    assert gateway.ask("alpha", views_question(tensors, batch, store="linked")).status_code == 200
    assert client.asked[0].store == str(tmp_path / "stores" / "linked")


@pytest.mark.parametrize(("error", "status"), [(StoreMismatch, 422), (StoreDamaged, 503)])
def test_what_is_wrong_with_a_store_comes_back_with_its_name_instead_of_its_path(
    gateway: Any, client: Any, tensors: Any, tmp_path: Path, error: Any, status: int
) -> None:
    (tmp_path / "stores" / "demo").mkdir(parents=True)
    path = str(tmp_path / "stores" / "demo")
    client.refusals = [error(path, f"{path}/manifest is another one")]
    answer = gateway.ask(
        "alpha", views_question(tensors, ViewBatch(np.zeros(3, VIEW_DTYPE), 3, "ab" * 16), store="demo")
    )
    assert outcome(answer) == (status, error.__name__)
    assert answer.json()["args"] == ["demo", "demo/manifest is another one"]


def test_views_without_a_store_and_a_store_without_views_are_refused(
    gateway: Any, tensors: Any, clips: np.ndarray, question: Any
) -> None:
    for body in (
        views_question(tensors, ViewBatch(np.zeros(3, VIEW_DTYPE), 3, "ab" * 16)),
        question(clips, parameters={"store": "demo"}),
    ):
        assert outcome(gateway.ask("alpha", body)) == (422, "BadQuery")


def test_a_bare_name_follows_the_alias_at_once(gateway: Any, library: TeacherLibrary) -> None:
    teachers = []
    for version in (None, 2, 1):
        if version is not None:
            Roster(library).promote("alpha", version, "test")
        teachers.append(gateway.ask("alpha").json()["parameters"]["teacher"])
    assert teachers == ["alpha@1", "alpha@2", "alpha@1"]


def test_a_version_that_is_still_loading_is_asked_again(gateway: Any, client: Any) -> None:
    client.refusals = [TeacherNotResident("alpha@1"), TeacherNotResident("alpha@1")]
    assert gateway.ask().status_code == 200
    assert len(client.asked) == 3


def test_a_version_that_does_not_load_in_time_is_a_retryable_refusal(
    gateway: Any, client: Any, clips: np.ndarray, question: Any
) -> None:
    client.refusals = [TeacherNotResident("alpha@1")] * 100
    answer = gateway.ask("alpha", question(clips, parameters={"timeout_s": 0.1}))
    assert outcome(answer) == (503, "TeacherNotResident")
    assert int(answer.headers["Retry-After"]) > 0


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (TeacherOverloaded(2048, 6, 2048), 429, True),
        (TeacherUnavailable("alpha@1", 30.0, "no reply"), 503, True),
        (LibraryError("card.json", "damaged"), 503, False),
        (BadQuery("alpha@1 takes 8x8 pixels, got 9x9"), 422, False),
    ],
)
def test_refusals_of_teachers_keep_their_type_and_sentence(
    gateway: Any, client: Any, error: TeacherError, status: int, retry: bool
) -> None:
    client.refusals = [error]
    answer = gateway.ask()
    assert answer.status_code == status
    assert answer.json() == {"error": str(error), "code": type(error).__name__, "args": list(error.args)}
    assert ("Retry-After" in answer.headers) == retry
    assert client.cancelled == isinstance(error, TeacherUnavailable)


def test_an_answer_of_other_weights_is_never_passed_on(gateway: Any, client: Any) -> None:
    client.digest = "0" * 64
    assert outcome(gateway.ask()) == (502, "BadReply")


def test_a_nan_from_a_teacher_is_never_passed_on(gateway: Any, client: Any) -> None:
    client.nan = True
    answer = gateway.ask()
    assert outcome(answer) == (502, "BadReply")
    assert "not finite" in answer.json()["error"]


def test_a_bug_shows_as_500_without_its_details(gateway: Any, client: Any) -> None:
    client.submit = None  # calling it raises TypeError
    answer = gateway.ask()
    assert outcome(answer) == (500, "InternalError")
    assert "NoneType" not in answer.text
    assert gateway.recorded == [(ROUTE, 500)]


# ---- bad questions


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("nobody", 404, "UnknownTeacher"),
        ("alpha/versions/3", 404, "UnknownTeacher"),
        ("..%2F..%2Fetc", 404, "NoRoute"),
        ("Alpha!", 422, "BadQuery"),
        ("%00", 422, "BadQuery"),
        ("a" * 300, 422, "BadQuery"),
        ("alpha/versions/0", 422, "BadQuery"),
        ("alpha/versions/-1", 422, "BadQuery"),
        ("alpha/versions/one", 422, "BadQuery"),
        ("alpha@1/versions/1", 422, "BadQuery"),
    ],
)
def test_bad_names_are_refused_and_never_reach_a_teacher(
    gateway: Any, client: Any, name: str, status: int, code: str
) -> None:
    assert outcome(gateway.ask(name)) == (status, code)
    assert outcome(gateway.get(f"/v2/models/{name}")) == (status, code)
    assert client.asked == []


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"", {}, 400, "MalformedRequest"),
        (b"PK\x03\x04", {}, 400, "MalformedRequest"),
        (b"{}", {}, 422, "BadQuery"),
        (b"{}", {"Inference-Header-Content-Length": "3"}, 400, "MalformedRequest"),
        (b"{}", {"Content-Encoding": "gzip"}, 415, "EncodedBody"),
        (b'{"inputs": NaN}', {}, 400, "MalformedRequest"),
        (b"[" * 200_000, {}, 400, "MalformedRequest"),
        (b" " * 2**21, {}, 413, "TooLarge"),
    ],
)
def test_bad_bodies_are_refused_and_never_reach_a_teacher(
    gateway: Any, client: Any, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    assert outcome(gateway.ask("alpha", (content, headers))) == (status, code)
    assert client.asked == []


def test_clips_that_make_no_whole_items_are_refused(gateway: Any, clips: np.ndarray, question: Any) -> None:
    answer = gateway.ask("alpha", question(clips[:4]))
    assert outcome(answer) == (422, "BadQuery")
    assert answer.json()["error"] == "4 clips do not make whole items of 3"


def test_a_body_over_the_limit_is_cut_off_on_the_stream(make_gateway: Any) -> None:
    gateway, sent = make_gateway(max_body_bytes=1000), []

    async def chunks() -> AsyncIterator[bytes]:
        for number in range(100):
            sent.append(number)
            yield b"x" * 600

    answer = gateway.run(lambda http: http.post(PATH, content=chunks()))
    assert outcome(answer) == (413, "TooLarge")
    assert len(sent) <= 3


def test_a_body_that_does_not_come_is_408_and_frees_its_place(make_gateway: Any) -> None:
    gateway = make_gateway(body_timeout_s=0.05, max_in_flight=1)

    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(PATIENCE_S)

    assert outcome(gateway.run(lambda http: http.post(PATH, content=chunks()))) == (408, "SlowBody")
    assert gateway.ask().status_code == 200


def test_unknown_routes_and_methods_are_json_too_and_count_as_unmatched(gateway: Any) -> None:
    assert outcome(gateway.get("/made/up/by/a/client")) == (404, "NoRoute")
    assert outcome(gateway.get("/v2/")) == (404, "NoRoute")
    answer = gateway.send("DELETE", "/healthz")
    assert outcome(answer) == (405, "NoMethod")
    assert answer.headers["Allow"] == "GET"
    assert gateway.recorded[0] == ("unmatched", 404)


# ---- many at a time


def test_beyond_the_limit_questions_are_refused_at_once_while_the_gateway_stays_alive(
    make_gateway: Any, client: Any, clips: np.ndarray, question: Any
) -> None:
    gateway = make_gateway(max_in_flight=2)
    client.gate = threading.Event()
    content, headers = question(clips)

    async def scenario(http: httpx.AsyncClient) -> tuple[httpx.Response, httpx.Response, list[httpx.Response]]:
        accepted = [asyncio.create_task(http.post(PATH, content=content, headers=headers)) for _ in range(2)]
        for _ in accepted:  # both wait for their teacher
            assert await asyncio.to_thread(client.waiting.acquire, timeout=PATIENCE_S)
        refused = await http.post(PATH, content=content, headers=headers)
        alive = await http.get("/v1/teachers")
        client.gate.set()
        return refused, alive, await asyncio.gather(*accepted)

    refused, alive, answers = gateway.run(scenario)
    assert outcome(refused) == (429, "GatewayBusy")
    assert refused.headers["Retry-After"] == "1"
    assert alive.status_code == 200
    assert [answer.status_code for answer in answers] == [200, 200]
    assert gateway.ask().status_code == 200  # the places are free again


def test_a_greedy_run_leaves_the_others_their_part(
    make_gateway: Any, client: Any, clips: np.ndarray, question: Any
) -> None:
    gateway = make_gateway(max_in_flight=4)
    client.gate = threading.Event()

    async def scenario(http: httpx.AsyncClient) -> tuple[httpx.Response, httpx.Response, list[httpx.Response]]:
        def ask(run: str) -> Any:
            content, headers = question(clips, parameters={"run": run})
            return http.post(PATH, content=content, headers=headers)

        waiting = [asyncio.create_task(ask("greedy")) for _ in range(4)]  # alone, it may have all places
        for _ in range(4):
            assert await asyncio.to_thread(client.waiting.acquire, timeout=PATIENCE_S)
        waiting += [asyncio.create_task(ask("light")) for _ in range(2)]
        for _ in range(2):
            assert await asyncio.to_thread(client.waiting.acquire, timeout=PATIENCE_S)
        greedy, light = await ask("greedy"), await ask("light")
        client.gate.set()
        return greedy, light, await asyncio.gather(*waiting)

    greedy, light, answers = gateway.run(scenario)
    assert outcome(greedy) == outcome(light) == (429, "GatewayBusy")
    assert "its part of 4 among 2 runs" in greedy.json()["error"]
    assert [answer.status_code for answer in answers] == [200] * 6


def test_a_question_whose_asker_went_away_is_cancelled_and_its_place_is_free(
    make_gateway: Any, client: Any, clips: np.ndarray, question: Any
) -> None:
    gateway = make_gateway(max_in_flight=1)
    content, headers = question(clips)
    client.gate = threading.Event()
    client.on_cancel = client.gate.set

    async def leaves() -> list[dict[str, Any]]:
        asked, sent = [{"type": "http.request", "body": content}], []

        async def receive() -> dict[str, Any]:
            if asked:
                return asked.pop()
            assert await asyncio.to_thread(client.waiting.acquire, timeout=PATIENCE_S)  # the teacher works on it
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": PATH, "query_string": b"", "headers": raw}
        await asyncio.wait_for(gateway.app(scope, receive, send), PATIENCE_S)
        return sent

    asyncio.run(leaves())
    assert client.cancelled >= 1
    client.gate = None
    assert gateway.ask().status_code == 200
