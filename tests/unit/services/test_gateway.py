"""The gateway's routes against a teacher in closed form; the app needs no Ray."""

from __future__ import annotations

import asyncio
import io
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from services.asking import GatewayOptions, Readiness
from services.gateway import create_app
from teacher_server.errors import (
    BadQuery,
    LibraryError,
    TeacherError,
    TeacherNotResident,
    TeacherOverloaded,
    TeacherUnavailable,
)
from teacher_server.library import CARD, TeacherLibrary
from teacher_server.protocol import TeacherId, TeacherQuery
from teacher_server.roster import Roster

ROUTE = "/v1/teachers/{name}/logits"
CLIPS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 8, 3), dtype=np.uint8)
PATIENCE_S = 30.0
Check = Callable[[httpx.AsyncClient], Awaitable[Any]]


class Gateway:
    """The app, what it recorded, and a way to talk to it."""

    def __init__(self, client: Any, library: TeacherLibrary, options: GatewayOptions | None = None) -> None:
        self.recorded: list[tuple[str, int]] = []
        self.ready_error: TeacherError | None = None
        self.app: FastAPI = create_app(
            client, library, check_teachers=self._check_teachers, record=self._record, options=options
        )

    def _record(self, route: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.recorded.append((route, status))

    def _check_teachers(self) -> None:
        if self.ready_error is not None:
            raise self.ready_error

    def run(self, check: Check) -> Any:
        async def talk() -> Any:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
                return await asyncio.wait_for(check(http), PATIENCE_S)

        return asyncio.run(talk())

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.run(lambda http: http.get(path, **kwargs))

    def ask(self, name: str = "alpha", body: bytes | None = None, **kwargs: Any) -> httpx.Response:
        content = saved(CLIPS) if body is None else body
        return self.run(lambda http: http.post(f"/v1/teachers/{name}/logits", content=content, **kwargs))


@pytest.fixture
def gateway(client: Any, library: TeacherLibrary) -> Gateway:
    return Gateway(client, library)


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


# ---- health


def test_liveness_does_not_depend_on_teachers_and_readiness_does(gateway: Gateway) -> None:
    gateway.ready_error = TeacherUnavailable("service", 5.0, "no app")
    assert gateway.get("/healthz").json() == {"status": "alive"}
    answer = gateway.get("/readyz")
    assert (answer.status_code, answer.json()["error"]) == (503, "TeacherUnavailable")
    assert int(answer.headers["Retry-After"]) > 0


def test_readiness_follows_the_teachers_and_asks_them_at_most_once_a_second() -> None:
    now, calls, errors = [0.0], [0], [TeacherUnavailable("service", 5.0, "no app"), None]

    def check_teachers() -> None:
        calls[0] += 1
        if (error := errors[calls[0] - 1]) is not None:
            raise error

    async def scenario() -> None:
        readiness = Readiness(check_teachers, clock=lambda: now[0])
        for _ in range(3):
            with pytest.raises(TeacherUnavailable):
                await readiness.check()
        now[0] = 1.0
        await asyncio.gather(*(readiness.check() for _ in range(5)))

    asyncio.run(scenario())
    assert calls == [2]


# ---- the list


def test_the_list_names_versions_alias_digests_and_cards(gateway: Gateway, library: TeacherLibrary) -> None:
    Roster(library).promote("alpha", 2, "test")
    listed = {teacher["name"]: teacher for teacher in gateway.get("/v1/teachers").json()["teachers"]}
    alpha = listed["alpha"]
    assert alpha["alias"] == 2
    assert [version["version"] for version in alpha["versions"]] == [1, 2]
    assert [version["digest"] for version in alpha["versions"]] == [
        library.entry(TeacherId("alpha", number)).digest for number in (1, 2)
    ]
    (beta,) = listed["beta"]["versions"]
    assert beta["card"] == {
        "arch": "r3d",
        "head": "action",
        "classes": ["a", "b"],
        "views_per_item": 1,
        "min_clip_len": 8,
        "crop": 8,
        "resize": False,
        "modality": "rgb",
    }


def test_a_damaged_version_is_listed_with_its_problem_and_hides_no_other(
    gateway: Gateway, library: TeacherLibrary
) -> None:
    (library.root / "alpha" / "1" / CARD).write_text("{}")
    listed = {teacher["name"]: teacher for teacher in gateway.get("/v1/teachers").json()["teachers"]}
    damaged, sound = listed["alpha"]["versions"]
    assert "arch: Field required" in damaged["problem"]
    assert damaged["digest"] is None
    assert sound["problem"] is None


def test_listing_and_asking_write_nothing(gateway: Gateway, library: TeacherLibrary) -> None:
    gateway.get("/v1/teachers")
    assert gateway.ask().status_code == 200
    assert not (library.root / "roster.json").exists()


# ---- questions


def test_an_answer_is_the_teachers_and_says_who_made_it(
    gateway: Gateway, client: Any, library: TeacherLibrary, expected: Callable[[TeacherQuery, int], np.ndarray]
) -> None:
    answer = gateway.ask("alpha@2", params={"temperature": 4}).json()
    (query,) = client.asked
    np.testing.assert_array_equal(query.pixels, CLIPS)
    np.testing.assert_array_equal(np.float32(answer["logits"]), expected(query, 5))  # two items of three clips
    assert (answer["teacher"], answer["temperature"]) == ("alpha@2", 4.0)
    assert answer["digest"] == library.entry(TeacherId("alpha", 2)).digest
    assert {name: answer["seconds"][name] for name in ("queue", "render", "forward")} == {
        "queue": 0.25,
        "render": 0.5,
        "forward": 0.125,
    }
    assert gateway.recorded == [(ROUTE, 200)]


def test_a_bare_name_follows_the_alias_and_temperature_is_one_by_default(
    gateway: Gateway, library: TeacherLibrary
) -> None:
    first = gateway.ask("alpha").json()
    Roster(library).promote("alpha", 2, "test")
    second = gateway.ask("alpha").json()
    assert (first["teacher"], second["teacher"]) == ("alpha@1", "alpha@2")
    assert first["temperature"] == 1.0


def test_a_version_that_is_still_loading_is_asked_again(gateway: Gateway, client: Any) -> None:
    client.refusals = [TeacherNotResident("alpha@1"), TeacherNotResident("alpha@1")]
    assert gateway.ask().status_code == 200
    assert len(client.asked) == 3


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
    gateway: Gateway, client: Any, error: TeacherError, status: int, retry: bool
) -> None:
    client.refusals = [error]
    answer = gateway.ask()
    assert answer.status_code == status
    assert answer.json() == {"error": type(error).__name__, "detail": str(error)}
    assert ("Retry-After" in answer.headers) == retry
    assert client.cancelled == isinstance(error, TeacherUnavailable)


def test_an_answer_of_other_weights_is_never_passed_on(gateway: Gateway, client: Any) -> None:
    client.digest = "0" * 64
    answer = gateway.ask()
    assert (answer.status_code, answer.json()["error"]) == (502, "BadReply")


def test_a_bug_shows_as_500_without_its_details(gateway: Gateway, client: Any) -> None:
    client.submit = None  # calling it raises TypeError
    answer = gateway.ask()
    assert (answer.status_code, answer.json()["error"]) == (500, "InternalError")
    assert gateway.recorded == [(ROUTE, 500)]


# ---- bad questions


@pytest.mark.parametrize(
    ("name", "params", "body", "status", "error"),
    [
        ("nobody", {}, None, 404, "UnknownTeacher"),
        ("alpha@3", {}, None, 404, "UnknownTeacher"),
        ("..%2F..%2Fetc", {}, None, 404, "NoRoute"),
        ("Alpha!", {}, None, 422, "BadQuery"),
        ("alpha@0", {}, None, 422, "BadQuery"),
        ("alpha", {"temperature": "0"}, None, 422, "BadQuery"),
        ("alpha", {"temperature": "nan"}, None, 422, "BadQuery"),
        ("alpha", {"temperature": "inf"}, None, 422, "BadQuery"),
        ("alpha", {"temperature": "warm"}, None, 422, "BadQuery"),
        ("alpha", {}, b"", 400, "NotAnArray"),
        ("alpha", {}, b"PK\x03\x04", 400, "NotAnArray"),
        ("alpha", {}, saved(CLIPS.astype(np.float64)), 422, "BadQuery"),
        ("alpha", {}, saved(CLIPS[:4]), 422, "BadQuery"),  # no whole items of three
    ],
)
def test_bad_questions_are_refused_with_one_sentence_and_never_reach_a_teacher(
    gateway: Gateway, client: Any, name: str, params: dict[str, str], body: bytes | None, status: int, error: str
) -> None:
    answer = gateway.ask(name, body, params=params)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert set(answer.json()) == {"error", "detail"}
    assert "\n" not in answer.json()["detail"]
    assert client.asked == []


def test_a_body_over_the_limit_is_cut_off_on_the_stream(client: Any, library: TeacherLibrary) -> None:
    gateway = Gateway(client, library, GatewayOptions(max_body_bytes=1000))
    sent: list[int] = []

    async def chunks() -> AsyncIterator[bytes]:
        for number in range(100):
            sent.append(number)
            yield b"x" * 600

    answer = gateway.run(lambda http: http.post("/v1/teachers/alpha/logits", content=chunks()))
    assert (answer.status_code, answer.json()["error"]) == (413, "TooLarge")
    assert len(sent) <= 3


def test_random_requests_get_documented_statuses_and_no_5xx(gateway: Gateway) -> None:
    documented = gateway.get("/openapi.json").json()["paths"][ROUTE]["post"]["responses"]
    rng, good = random.Random(0), saved(CLIPS)
    names = ["alpha", "beta", "alpha@2", "alpha@9", "@", "%00", "é", "a" * 300, "alpha@1@1"]
    temperatures = ["1", "-1", "1e-320", "1e39", "NaN", "", "4,5", "0x4"]

    async def fuzz(http: httpx.AsyncClient) -> set[int]:
        statuses = set()
        for _ in range(300):
            body = bytearray(good)
            for _ in range(rng.randrange(3)):
                body[rng.randrange(130)] = rng.randrange(256)
            cut = rng.choice([len(body), rng.randrange(len(body))])
            answer = await http.post(
                f"/v1/teachers/{rng.choice(names)}/logits",
                params=rng.choice([{}, {"temperature": rng.choice(temperatures)}]),
                headers=rng.choice([{}, {"content-encoding": "gzip"}, {"content-type": "application/json"}]),
                content=bytes(body[:cut]),
            )
            statuses.add(answer.status_code)
        return statuses

    statuses = gateway.run(fuzz)
    assert {200, 400, 404, 415, 422} <= statuses
    assert {str(status) for status in statuses} <= set(documented)
    assert max(statuses) < 500


def test_unknown_routes_and_methods_are_json_too_and_count_as_unmatched(gateway: Gateway) -> None:
    answer = gateway.get("/made/up/by/a/client")
    assert (answer.status_code, answer.json()["error"]) == (404, "NoRoute")
    assert gateway.run(lambda http: http.delete("/healthz")).status_code == 405
    assert gateway.recorded[0] == ("unmatched", 404)


# ---- many at a time


def test_beyond_the_limit_questions_are_refused_at_once_while_the_gateway_stays_alive(
    client: Any, library: TeacherLibrary
) -> None:
    gateway = Gateway(client, library, GatewayOptions(max_in_flight=2))
    client.gate = threading.Event()

    async def scenario(http: httpx.AsyncClient) -> tuple[httpx.Response, httpx.Response, list[httpx.Response]]:
        path = "/v1/teachers/alpha/logits"
        accepted = [asyncio.create_task(http.post(path, content=saved(CLIPS))) for _ in range(2)]
        for _ in accepted:  # both wait for their teacher
            assert await asyncio.to_thread(client.waiting.acquire, timeout=PATIENCE_S)
        refused = await http.post(path, content=saved(CLIPS))
        alive = await http.get("/healthz")
        client.gate.set()
        return refused, alive, await asyncio.gather(*accepted)

    refused, alive, answers = gateway.run(scenario)
    assert (refused.status_code, refused.json()["error"]) == (429, "GatewayBusy")
    assert refused.headers["Retry-After"] == "1"
    assert alive.status_code == 200
    assert [answer.status_code for answer in answers] == [200, 200]
    assert gateway.ask().status_code == 200  # the places are free again


# ---- the token


def test_with_a_token_every_route_but_health_wants_it(client: Any, library: TeacherLibrary) -> None:
    gateway = Gateway(client, library, GatewayOptions(token="secret"))
    for path in ("/v1/teachers", "/openapi.json", "/nowhere", "/healthz/"):
        answer = gateway.get(path)
        assert (answer.status_code, answer.json()["error"]) == (401, "Unauthorized"), path
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert gateway.ask().status_code == 401
    assert client.asked == []
    assert gateway.get("/healthz").status_code == gateway.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    "header", ["secret", "Bearer secre", "Bearer secret2", "bearer secret", "Basic secret", "Bearer "]
)
def test_only_the_exact_token_opens(client: Any, library: TeacherLibrary, header: str) -> None:
    gateway = Gateway(client, library, GatewayOptions(token="secret"))
    assert gateway.get("/v1/teachers", headers={"Authorization": header}).status_code == 401
    assert gateway.get("/v1/teachers", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_the_token_is_not_shown_by_the_options() -> None:
    assert "secret" not in repr(GatewayOptions(token="secret"))
