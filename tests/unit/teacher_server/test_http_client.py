"""The HTTP client against the contract, with a real gateway on a real port, and against servers that do wrong."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from data.errors import StoreMismatch
from data.store import ClipStore
from services.gateway import create_app
from teacher_server.clients import http as http_client
from teacher_server.clients.http import HttpTeacherClient
from teacher_server.clients.inprocess import InProcessTeacherClient
from teacher_server.clients.wire import JSON_LENGTH_HEADER
from teacher_server.errors import (
    BadQuery,
    BadReply,
    TeacherError,
    TeacherNotResident,
    TeacherOverloaded,
    TeacherUnavailable,
    UnknownTeacher,
)
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId, TeacherQuery

SECRET = "a-secret-token"
PATIENCE_S = 30.0


def _load_beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


servers = _load_beside("http_servers")


@pytest.fixture(scope="module")
def url(library: TeacherLibrary, store: ClipStore) -> Iterator[str]:
    """A gateway with the in-process client behind it."""
    app = create_app(InProcessTeacherClient(library), library, None, stores_root=store.path.parent)
    with servers.serve(app) as url:
        yield url


class TestHttp(_load_beside("client_contract").ClientContract):  # type: ignore[misc]
    """The contract of every client: client -> HTTP -> gateway -> in-process client."""

    @pytest.fixture
    def client(self, url: str) -> Iterator[HttpTeacherClient]:
        client = HttpTeacherClient(url)
        yield client
        client.close()

    def test_more_questions_than_may_be_in_flight_wait_and_are_all_answered(
        self, url: str, tiny: ModuleType, store: ClipStore
    ) -> None:
        client = HttpTeacherClient(url, max_in_flight=2)
        queries = [tiny.views_query(store, tiny.draw(store, 1, seed)) for seed in range(8)]
        pending = [client.submit(query) for query in queries]
        replies = [each.result(PATIENCE_S) for each in pending]
        assert [reply.request_id for reply in replies] == [query.request_id for query in queries]
        client.close()


def question(**fields: Any) -> TeacherQuery:
    values: dict[str, Any] = {"pixels": np.zeros((6, 8, 16, 16, 3), np.uint8)}
    return TeacherQuery("q", TeacherId("alpha", 1), 4.0, 3, **(values | fields))


def answer(**changes: Any) -> bytes:
    """The whole answer to `question`, two items of logits."""
    logits = np.arange(10, dtype=np.float32)
    head = json.dumps(
        {
            "id": "q",
            "parameters": {
                "teacher": "alpha@1", "digest": "d" * 64, "engine": "cpu", "temperature": 4.0,
                "queue_s": 0.0, "render_s": 0.0, "forward_s": 0.1,
            },
            "outputs": [
                {"name": "logits", "shape": [2, 5], "datatype": "FP32", "parameters": {"binary_data_size": 40}}
            ],
        }
    ).encode()  # fmt: skip
    return servers.http_answer(200, head + logits.tobytes(), **({JSON_LENGTH_HEADER: str(len(head))} | changes))


def ask(*answers: bytes, **options: Any) -> Any:
    """The client's reply to the first question when a server answers so."""
    with servers.ScriptedServer(list(answers)) as server:
        client = HttpTeacherClient(server.url, SECRET, **options)
        try:
            return client.submit(question()).result(PATIENCE_S)
        finally:
            client.close()


# ---- what is sent


def test_a_question_names_teacher_and_token_and_reuses_its_connection() -> None:
    with servers.ScriptedServer([answer()]) as server:
        client = HttpTeacherClient(server.url + "/", SECRET)
        for _ in range(3):
            reply = client.submit(question()).result(PATIENCE_S)
            np.testing.assert_array_equal(reply.logits, np.arange(10).reshape(2, 5))
        client.close()
        assert server.num_connections == 1
    first = server.asked[0]
    assert (first.method, first.path) == ("POST", "/v2/models/alpha/versions/1/infer")
    assert first.headers["authorization"] == f"Bearer {SECRET}"
    assert first.headers["accept-encoding"] == "identity"
    assert "transfer-encoding" not in first.headers
    assert first.json["inputs"][0]["shape"] == [6, 8, 16, 16, 3]


def test_proxies_and_netrc_of_the_environment_take_no_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with servers.ScriptedServer([answer()]) as server:
        client = HttpTeacherClient(server.url)
        client.submit(question()).result(PATIENCE_S)
        client.close()
    assert "authorization" not in server.asked[0].headers


# ---- cancelling, time, closing


def test_cancelling_closes_the_connection() -> None:
    with servers.ScriptedServer([servers.SILENCE]) as server:
        client = HttpTeacherClient(server.url)
        pending = client.submit(question())
        assert server.arrived.acquire(timeout=PATIENCE_S)
        pending.cancel()
        assert server.left.wait(PATIENCE_S)
        with pytest.raises(TeacherUnavailable, match="cancelled"):
            pending.result(PATIENCE_S)
        client.close()


def test_a_question_that_was_cancelled_before_its_turn_is_never_sent() -> None:
    with servers.ScriptedServer([servers.SILENCE, answer()]) as server:
        client = HttpTeacherClient(server.url, max_in_flight=1)
        first = client.submit(question(run="first"))
        assert server.arrived.acquire(timeout=PATIENCE_S)
        second, third = client.submit(question(run="second")), client.submit(question(run="third"))
        second.cancel()
        first.cancel()
        third.result(PATIENCE_S)
        client.close()
    assert [asked.json["parameters"]["run"] for asked in server.asked] == ["first", "third"]


def test_questions_that_are_cancelled_at_any_moment_cost_no_place() -> None:
    """With httpx's own pool of connections, places were lost here for good."""
    with servers.ScriptedServer([answer()]) as server:
        client = HttpTeacherClient(server.url, max_in_flight=2)
        for i in range(300):
            pending = [client.submit(question()) for _ in range(3)]
            if i % 3:
                assert server.arrived.acquire(timeout=PATIENCE_S)
            for each in pending[i % 2 :]:
                each.cancel()
        last = [client.submit(question()) for _ in range(4)]
        assert [each.result(PATIENCE_S).request_id for each in last] == ["q"] * 4
        client.close()


def test_a_server_that_stays_silent_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "NETWORK_MARGIN_S", 0.1)
    with servers.ScriptedServer([servers.SILENCE]) as server:
        client = HttpTeacherClient(server.url)
        with pytest.raises(TeacherUnavailable, match=r"within 0\.2 s: no answer from http.* in time"):
            client.submit(question(timeout_s=0.1)).result(PATIENCE_S)
        assert server.left.wait(PATIENCE_S)
        client.close()


def test_closing_ends_what_is_under_way_and_later_questions_are_told() -> None:
    with servers.ScriptedServer([servers.SILENCE]) as server:
        client = HttpTeacherClient(server.url)
        pending = client.submit(question())
        assert server.arrived.acquire(timeout=PATIENCE_S)
        client.close()
        client.close()
        assert server.left.wait(PATIENCE_S)
        pending.cancel()
        for late in (pending, client.submit(question())):
            with pytest.raises(TeacherUnavailable):
                late.result(PATIENCE_S)


# ---- connections that fail or break


def test_nobody_listening_is_unavailable() -> None:
    with servers.ScriptedServer([answer()]) as server:
        pass
    client = HttpTeacherClient(server.url, SECRET)
    with pytest.raises(TeacherUnavailable, match=r"alpha@1 did not answer .* \(ConnectError: ") as caught:
        client.submit(question()).result(PATIENCE_S)
    assert SECRET not in str(caught.value)
    client.close()


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nConnection: close\r\n", id="closed in the headers"),
        pytest.param(answer(Connection="close")[:-1], id="closed in the body"),
        pytest.param(answer().replace(b"X\r\n", b"X\r\nConnection: close\r\n")[:90], id="closed early in the body"),
        pytest.param(b"220 mail server ready\r\nConnection: close\r\n\r\n", id="not HTTP"),
        pytest.param(b"\x16\x03\x01 connection: close\r\n\r\n", id="TLS"),
    ],
)
def test_a_connection_that_breaks_is_unavailable(raw: bytes) -> None:
    with pytest.raises(TeacherUnavailable, match="no answer from http"):
        ask(raw)


def test_a_client_goes_on_after_a_broken_connection() -> None:
    with servers.ScriptedServer([answer(Connection="close")[:-1], answer()]) as server:
        client = HttpTeacherClient(server.url)
        with pytest.raises(TeacherUnavailable):
            client.submit(question()).result(PATIENCE_S)
        assert client.submit(question()).result(PATIENCE_S).request_id == "q"
        client.close()


# ---- answers that are none


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (servers.http_answer(200, b"<html>welcome</html>"), JSON_LENGTH_HEADER),
        (servers.http_answer(200, b""), JSON_LENGTH_HEADER),
        (servers.http_answer(200, b"x" * 200, **{JSON_LENGTH_HEADER: "100"}), "JSON is not as expected"),
        (answer(**{JSON_LENGTH_HEADER: "9"}), "JSON is not as expected"),
        (answer(**{JSON_LENGTH_HEADER: "999999"}), "expected a number"),
        (servers.http_answer(405, b"<html>not here</html>"), "HTTP 405, which no gateway sends: is the URL right"),
        (servers.http_answer(302, b"", Location="http://127.0.0.1:1/"), "HTTP 302"),
        (servers.json_answer(400, ["a", "list"]), "HTTP 400"),
        (servers.json_answer(418, {"error": 7, "code": "BadQuery"}), "HTTP 418"),
    ],
)
def test_what_is_no_answer_of_a_gateway_is_never_used(raw: bytes, match: str) -> None:
    with pytest.raises(BadReply, match=match):
        ask(raw)


@pytest.mark.parametrize("raw", [servers.http_answer(404, b"Path '/v1' not found."), servers.json_answer(404, ["a"])])
def test_an_address_without_a_gateway_behind_it_may_get_one_again(raw: bytes) -> None:
    with pytest.raises(
        TeacherUnavailable, match="HTTP 404, which no gateway sends: it still starts, or the URL is wrong"
    ):
        ask(raw)


def test_an_answer_that_is_too_large_is_cut_off() -> None:
    with pytest.raises(BadReply, match="more than 1000 bytes"):
        ask(servers.http_answer(200, b"x" * 1001), max_reply_bytes=1000)


def test_a_compressed_answer_is_not_unpacked() -> None:
    with pytest.raises(BadReply, match="JSON is not as expected"):
        ask(servers.http_answer(200, b"\x1f\x8b" + b"x" * 98, Content_Encoding="gzip", **{JSON_LENGTH_HEADER: "100"}))


# ---- refusals


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (servers.refusal(422, "BadQuery", "why"), BadQuery("why")),
        (servers.refusal(404, "UnknownTeacher", "x", ["alpha", "beta"]), UnknownTeacher("x", ("alpha", "beta"))),
        (servers.refusal(429, "TeacherOverloaded", 1, 2, 3), TeacherOverloaded(1, 2, 3)),
        (servers.refusal(503, "TeacherNotResident", "alpha@1"), TeacherNotResident("alpha@1")),
        (servers.refusal(422, "StoreMismatch", "path", "why"), StoreMismatch("path", "why")),
    ],
)
def test_a_refusal_is_raised_as_the_error_that_it_was(raw: bytes, error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        ask(raw)
    assert type(caught.value) is type(error)
    assert caught.value.args == error.args


@pytest.mark.parametrize(
    "raw",
    [
        servers.refusal(429, "GatewayBusy", "16 questions", sentence="16 questions are under way"),
        servers.refusal(503, "Draining", sentence="16 questions are under way"),
        servers.refusal(408, "SlowBody", sentence="16 questions are under way"),
        servers.refusal(503, "NoReplyYet", "alpha@1", 3.0, "16 questions are under way"),
        servers.http_answer(503, b"16 questions are under way"),
        servers.http_answer(500, b"<html>16 questions are under way</html>"),
        servers.http_answer(502, b"16 questions are under way" + b"\xff" * 10_000),
    ],
)
def test_busy_or_broken_servers_may_be_asked_again(raw: bytes) -> None:
    with pytest.raises(TeacherUnavailable, match="16 questions are under way") as caught:
        ask(raw)
    assert type(caught.value) is TeacherUnavailable
    assert len(str(caught.value)) < 400


def test_a_refusal_of_an_unknown_kind_is_not_repeated() -> None:
    with pytest.raises(TeacherError, match="the moon is wrong") as caught:
        ask(servers.refusal(422, "WrongMoon", sentence="the moon is wrong"))
    assert type(caught.value) is TeacherError


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_named_by_its_variable_and_never_shown(status: int) -> None:
    with pytest.raises(TeacherError, match="set PRECEPTOR_TOKEN") as caught:
        ask(servers.refusal(status, "Unauthorized", sentence=f"your token {SECRET} is wrong"))
    assert type(caught.value) is TeacherError
    assert SECRET not in str(caught.value)


# ---- addresses


@pytest.mark.parametrize(
    "url",
    [
        "", "127.0.0.1:8000", "ftp://host", "file:///etc/passwd", "http://", "http://host:0", "http://host:99999",
        "http://[::1", "http://ho st", "http://ho\nst", "http://a..b", "http://" + 64 * "a",
        "http://host/?a=b", "http://host/#a",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(TeacherError, match="expected http://HOST:PORT"):
        HttpTeacherClient(url)


@pytest.mark.parametrize("url", ["http://[::1]:8000", "https://gateway.example/under/a/path/", "http://localhost"])
def test_hosts_ports_and_paths_of_a_gateway_are_taken(url: str) -> None:
    client = HttpTeacherClient(url)
    assert repr(client) == f"HttpTeacherClient({url.rstrip('/')!r})"
    client.close()


def test_a_gateway_behind_a_path_is_asked_there() -> None:
    with servers.ScriptedServer([answer()]) as server:
        client = HttpTeacherClient(server.url + "/under/this/")
        client.submit(question()).result(PATIENCE_S)
        client.close()
    assert server.asked[0].path == "/under/this/v2/models/alpha/versions/1/infer"


def test_a_password_in_the_address_is_refused_and_not_shown() -> None:
    with pytest.raises(TeacherError, match="PRECEPTOR_TOKEN") as caught:
        HttpTeacherClient("http://user:hunter2@host:8000")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("token", ["", "  ", "two\nlines", "schlüssel", "nul\0"])
def test_a_token_that_no_header_can_carry_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(TeacherError, match="PRECEPTOR_TOKEN") as caught:
        HttpTeacherClient("http://127.0.0.1:8000", token)
    assert not token.strip() or token not in str(caught.value)


def test_the_token_is_not_in_the_clients_repr() -> None:
    client = HttpTeacherClient("http://127.0.0.1:8000", SECRET)
    assert repr(client) == "HttpTeacherClient('http://127.0.0.1:8000')"
    client.close()
