"""Who gets in: no token, one, two; and what a web page can do, which is nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from services.asking import GatewayOptions
from teacher_server.library import TeacherLibrary

OPEN = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")


def outcome(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of a refusal, which has the form of all."""
    body = answer.json()
    assert set(body) == {"error", "code", "args"}
    assert "\n" not in body["error"]
    return answer.status_code, body["code"]


ASK, OPERATE = "the-asking-token", "the-operating-token"
CHANGES = [
    ("PUT", "/v1/aliases/alpha"),
    ("POST", "/v1/aliases/alpha/rollback"),
    ("POST", "/v1/teachers/alpha/versions/2/evict"),
]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def routes_of(gateway: Any) -> list[tuple[str, str]]:
    """Every method and path of the description, with names filled in."""
    values = {"name": "alpha", "version": "2", "run": "r", "block": "0"}
    paths = gateway.app.openapi()["paths"]
    return [(method.upper(), path.format(**values)) for path, methods in paths.items() for method in methods]


def test_with_a_token_every_route_but_health_wants_it(
    make_gateway: Any, client: Any, figure: Callable[[int, str, str], None]
) -> None:
    gateway = make_gateway(token=ASK)
    guarded = [(method, path) for method, path in routes_of(gateway) if path not in OPEN]
    assert len(guarded) > 15
    for method, path in [*guarded, ("GET", "/openapi.json"), ("GET", "/nowhere"), ("GET", "/healthz/")]:
        answer = gateway.send(method, path)
        assert outcome(answer) == (401, "Unauthorized"), path
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert client.asked == []
    figure(
        11,
        f"{len(guarded)} methods of routes refused without a token, {len(OPEN)} open",
        "all but liveness and readiness",
    )
    assert [gateway.get(path).status_code for path in OPEN] == [200] * 4


@pytest.mark.parametrize(
    "header", [ASK, f"Bearer {ASK[:-1]}", f"Bearer {ASK}2", f"bearer {ASK}", f"Basic {ASK}", "Bearer "]
)
def test_only_the_exact_token_opens(make_gateway: Any, header: str) -> None:
    gateway = make_gateway(token=ASK)
    assert gateway.get("/v1/teachers", headers={"Authorization": header}).status_code == 401
    assert gateway.get("/v1/teachers", headers=bearer(ASK)).status_code == 200


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_with_an_ask_token_and_no_operators_nobody_changes_what_is_served(
    make_gateway: Any, library: TeacherLibrary, method: str, path: str
) -> None:
    gateway = make_gateway(token=ASK)
    answer = gateway.send(method, path, headers=bearer(ASK), json={"version": 2})
    assert outcome(answer) == (403, "Forbidden")
    assert "PRECEPTOR_OPERATOR_TOKEN" in answer.json()["error"]
    assert gateway.send(method, path, headers=bearer(OPERATE)).status_code == 401
    assert not (library.root / "roster.json").exists()


def test_of_two_tokens_one_asks_and_the_other_does_both(make_gateway: Any, control: Any) -> None:
    gateway = make_gateway(token=ASK, operator_token=OPERATE)
    control.roster.promote("alpha", 1, "test")
    for method, path in CHANGES:
        assert gateway.send(method, path, headers=bearer(ASK), json={"version": 2}).status_code == 403, path
        assert gateway.send(method, path, json={"version": 2}).status_code == 401, path
    for token in (ASK, OPERATE):
        assert gateway.get("/v1/aliases", headers=bearer(token)).status_code == 200
        assert gateway.send("PUT", "/v1/runs/r/lease", headers=bearer(token)).status_code == 200
    promoted = gateway.send("PUT", "/v1/aliases/alpha", headers=bearer(OPERATE), json={"version": 2})
    assert promoted.status_code == 200, promoted.text


def test_with_an_operators_token_alone_everything_wants_that(make_gateway: Any) -> None:
    gateway = make_gateway(operator_token=OPERATE)
    assert gateway.get("/v1/teachers").status_code == 401
    assert gateway.get("/v1/teachers", headers=bearer(OPERATE)).status_code == 200


def test_without_a_token_everything_is_open_but_to_web_pages(gateway: Any) -> None:
    assert gateway.send("PUT", "/v1/aliases/alpha", json={"version": 2}).status_code == 200
    for method, path in routes_of(gateway):
        if path not in OPEN:
            answer = gateway.send(method, path, headers={"Origin": "http://127.0.0.1:8000"})
            assert outcome(answer) == (403, "Forbidden"), path
            answer = gateway.send(method, path, headers={"Host": "rebound.example:8000"})  # no Origin: same-origin
            assert outcome(answer) == (403, "Forbidden"), path


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "127.8.9.1", "localhost:8000", "[::1]:8000", ""])
def test_without_a_token_requests_for_this_machine_are_answered(gateway: Any, host: str) -> None:
    assert gateway.get("/v1/teachers", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["10.0.0.7", "localhost.example", "[::", "0.0.0.0", "127.0.0.1.example:80"])
def test_without_a_token_requests_for_other_hosts_are_refused(gateway: Any, host: str) -> None:
    assert outcome(gateway.get("/v1/teachers", headers={"Host": host})) == (403, "Forbidden")


def test_with_a_token_the_host_does_not_matter(make_gateway: Any) -> None:
    gateway = make_gateway(token=ASK)
    assert gateway.get("/v1/teachers", headers={"Host": "teachers.example", **bearer(ASK)}).status_code == 200


def test_the_tokens_are_not_shown_by_the_options() -> None:
    shown = repr(GatewayOptions(token=ASK, operator_token=OPERATE))
    assert ASK not in shown
    assert OPERATE not in shown


def test_the_tokens_come_from_the_environment_and_an_empty_one_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEPTOR_TOKEN", "")
    monkeypatch.setenv("PRECEPTOR_OPERATOR_TOKEN", OPERATE)
    options = GatewayOptions.from_environment()
    assert (options.token, options.operator_token, options.has_token) == (None, OPERATE, True)
    monkeypatch.delenv("PRECEPTOR_OPERATOR_TOKEN")
    assert not GatewayOptions.from_environment().has_token
