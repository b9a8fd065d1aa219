"""The gateway's routes for operators and for runs elsewhere, over a roster file; each compared with the roster."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import pytest

from teacher_server.errors import NoCapacity, OverBudget, TeacherError, TeacherUnavailable
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId, TeacherRef

PATIENCE_S = 30.0
DIGEST = "ab" * 32


def outcome(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def digest_of(library: TeacherLibrary, version: int) -> str:
    return library.entry(TeacherId("alpha", version)).digest


# ---- aliases


def test_aliases_have_digests_and_a_log_of_every_change(gateway: Any, control: Any, library: TeacherLibrary) -> None:
    control.roster.resolve(TeacherRef("alpha"))
    control.roster.promote("alpha", 2, "somebody")
    said = gateway.get("/v1/aliases").json()
    assert said["aliases"] == [{"name": "alpha", "version": 2, "digest": digest_of(library, 2)}]
    assert [(entry["name"], entry["old"], entry["new"]) for entry in said["log"]] == [
        ("alpha", None, 1),
        ("alpha", 1, 2),
    ]
    assert said["log"] == [change.model_dump() for change in control.roster.state().log]


def test_a_promotion_moves_the_alias_and_says_what_it_did(gateway: Any, control: Any) -> None:
    control.roster.resolve(TeacherRef("alpha"))
    answer = gateway.send("PUT", "/v1/aliases/alpha", json={"version": 2, "expected": 1, "who": "me"})
    assert answer.json() == {
        "teacher": "alpha@2",
        "previous": "alpha@1",
        "gate": {"items": 4, "agreement": 0.5, "kl": None, "old_ms": 1.0, "new_ms": 2.0},  # inf is no JSON
        "seconds": {"prepare": 0.5, "commit": 0.25},
    }
    state = control.roster.state()
    assert state.aliases == {"alpha": 2}
    assert state.log[-1].who == "me (http 127.0.0.1)"


def test_an_alias_that_moved_meanwhile_is_left_alone(gateway: Any, control: Any) -> None:
    control.roster.promote("alpha", 2, "somebody else")
    answer = gateway.send("PUT", "/v1/aliases/alpha", json={"version": 1, "expected": 1})
    assert outcome(answer) == (409, "AliasMoved")
    assert answer.json()["args"] == ["alpha", 1, 2]
    assert control.roster.state().aliases == {"alpha": 2}
    assert outcome(gateway.send("POST", "/v1/aliases/alpha/rollback", json={"expected": 1})) == (409, "AliasMoved")


def test_floors_that_are_not_met_refuse_with_the_reasons(gateway: Any, control: Any) -> None:
    floors = {"min_agreement": 0.9, "max_kl": 0.1, "max_latency_ratio": 1.5}
    answer = gateway.send("PUT", "/v1/aliases/alpha", json={"version": 2} | floors)
    assert outcome(answer) == (409, "GateRefused")
    assert len(answer.json()["args"][1]) == 3
    assert control.roster.state().aliases == {}


def test_a_teacher_of_another_signature_is_refused_with_the_differences(gateway: Any, library: TeacherLibrary) -> None:
    beta = library.entry(TeacherId("beta", 1))
    library.add("alpha", beta.card, beta.weights)
    answer = gateway.send("PUT", "/v1/aliases/alpha", json={"version": 3})
    assert outcome(answer) == (409, "TeacherMismatch")
    assert "head is action, alpha@1 has pretext" in answer.json()["args"][1]


def test_a_rollback_needs_no_body_and_goes_to_the_version_before(gateway: Any, control: Any) -> None:
    control.roster.resolve(TeacherRef("alpha"))
    control.roster.promote("alpha", 2, "somebody")
    said = gateway.send("POST", "/v1/aliases/alpha/rollback").json()
    assert (said["teacher"], said["previous"], said["gate"]) == ("alpha@1", "alpha@2", None)
    assert control.roster.state().aliases == {"alpha": 1}


@pytest.mark.parametrize(
    ("name", "body", "status", "code"),
    [
        ("nobody", {"version": 1}, 404, "UnknownTeacher"),
        ("alpha", {"version": 9}, 404, "UnknownTeacher"),
        ("alpha@1", {"version": 2}, 422, "BadQuery"),
        ("Alpha", {"version": 2}, 422, "BadQuery"),
        ("alpha", {}, 422, "BadQuery"),
        ("alpha", {"version": 0}, 422, "BadQuery"),
        ("alpha", {"version": "2"}, 422, "BadQuery"),
        ("alpha", {"version": 2, "min_agreement": 1.5}, 422, "BadQuery"),
        ("alpha", {"version": 2, "max_latency_ratio": 0}, 422, "BadQuery"),
        ("alpha", {"version": 2, "floor": 1}, 422, "BadQuery"),
        ("alpha", [], 422, "BadQuery"),
    ],
)
def test_bad_promotions_are_refused_and_change_nothing(
    gateway: Any, control: Any, name: str, body: Any, status: int, code: str
) -> None:
    assert outcome(gateway.send("PUT", f"/v1/aliases/{name}", json=body)) == (status, code)
    assert control.roster.state().aliases in ({}, {"alpha": 1})


def test_a_version_in_use_is_not_unloaded_and_another_is(gateway: Any, control: Any) -> None:
    control.roster.resolve(TeacherRef("alpha"))
    answer = gateway.send("POST", "/v1/teachers/alpha/versions/1/evict")
    assert outcome(answer) == (409, "TeacherInUse")
    assert answer.json()["args"] == ["alpha@1", ["alias alpha"]]
    done = gateway.send("POST", "/v1/teachers/alpha/versions/2/evict", json={"who": "me"})
    assert done.json() == {"teacher": "alpha@2", "replicas": 2}
    assert outcome(gateway.send("POST", "/v1/teachers/alpha/versions/9/evict")) == (404, "UnknownTeacher")


@pytest.mark.parametrize(
    ("error", "status"),
    [(OverBudget("alpha@2", 1, 2, 3), 409), (TeacherUnavailable("roster", 30.0, "gone"), 503)],
)
def test_what_the_service_refuses_a_change_with_keeps_its_type(
    gateway: Any, control: Any, error: TeacherError, status: int
) -> None:
    control.errors = [error]
    answer = gateway.send("PUT", "/v1/aliases/alpha", json={"version": 2})
    assert outcome(answer) == (status, type(error).__name__)
    assert answer.json()["args"] == list(error.args)


# ---- runs


def test_a_run_elsewhere_lives_as_one_on_the_cluster_does(gateway: Any, control: Any, library: TeacherLibrary) -> None:
    """Lease, bind, a swap in between, renewal, the end: all as the roster's own methods give it."""
    first = {"teacher": "alpha@1", "digest": digest_of(library, 1), "block": 0}
    acquired = gateway.send("POST", "/v1/runs/r/lease", json={"teacher": "alpha"})
    assert acquired.json() == first | {"adopted": True}
    assert gateway.send("POST", "/v1/runs/r/blocks/0", json={"teacher": "alpha"}).json() == first
    control.roster.promote("alpha", 2, "somebody")
    assert gateway.send("POST", "/v1/runs/r/blocks/0", json={"teacher": "alpha"}).json() == first
    second = {"teacher": "alpha@2", "digest": digest_of(library, 2), "block": 1}
    assert gateway.send("POST", "/v1/runs/r/blocks/1", json={"teacher": "alpha"}).json() == second
    assert gateway.send("PUT", "/v1/runs/r/lease").json() == {"held": True}
    said = gateway.get("/v1/runs/r").json()
    lease = said.pop("lease")
    assert said == {"run": "r", "timeline": [first, second], "highest_block": 1}
    assert lease == {"teacher": "alpha@2", "expires_at": control.roster.state().leases["r"].expires_at}
    assert gateway.get("/v1/runs").json() == {"runs": [said | {"lease": lease}]}
    assert gateway.send("DELETE", "/v1/runs/r/lease").json() == {"held": False}
    assert gateway.send("DELETE", "/v1/runs/r/lease").json() == {"held": False}
    assert gateway.send("PUT", "/v1/runs/r/lease").json() == {"held": False}


def test_a_run_that_nobody_heard_of_has_an_empty_timeline(gateway: Any) -> None:
    assert gateway.get("/v1/runs/r").json() == {"run": "r", "timeline": [], "highest_block": None, "lease": None}


def test_a_timeline_is_restored_unless_the_roster_knows_the_run(
    gateway: Any, control: Any, library: TeacherLibrary
) -> None:
    old = {"teacher": "alpha@2", "digest": digest_of(library, 2), "block": 0}
    body = {"bindings": [old], "highest_block": 6}
    restored = gateway.send("PUT", "/v1/runs/r/timeline", json=body)
    assert restored.json() == {"run": "r", "timeline": [old], "highest_block": 6, "lease": None}
    assert gateway.send("POST", "/v1/runs/r/blocks/5", json={"teacher": "alpha"}).json() == old | {"block": 5}
    other = {"teacher": "alpha@1", "digest": digest_of(library, 1), "block": 0}
    again = gateway.send("PUT", "/v1/runs/r/timeline", json={"bindings": [other], "highest_block": 9})
    assert again.json() == restored.json()
    assert [str(binding.teacher) for binding in control.roster.timeline("r")] == ["alpha@2"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (
            {"bindings": [{"teacher": "alpha@9", "digest": DIGEST, "block": 0}], "highest_block": 0},
            404,
            "UnknownTeacher",
        ),
        ({"bindings": [{"teacher": "alpha", "digest": DIGEST, "block": 0}], "highest_block": 0}, 422, "BadQuery"),
        ({"bindings": [{"teacher": "alpha@1", "digest": "x", "block": 0}], "highest_block": 0}, 422, "BadQuery"),
        ({"bindings": [{"teacher": "alpha@1", "digest": DIGEST, "block": 3}], "highest_block": 3}, 422, "BadQuery"),
        ({"bindings": [{"teacher": "alpha@1", "digest": DIGEST, "block": -1}], "highest_block": 3}, 422, "BadQuery"),
        ({"bindings": []}, 422, "BadQuery"),
        ({"bindings": [{}] * 6000, "highest_block": 0}, 422, "BadQuery"),
    ],
)
def test_a_timeline_that_no_run_can_have_had_is_refused(
    gateway: Any, control: Any, body: Any, status: int, code: str
) -> None:
    assert outcome(gateway.send("PUT", "/v1/runs/r/timeline", json=body)) == (status, code)
    assert control.roster.state().timelines == {}


@pytest.mark.parametrize("run", [".r", "..%2Fr", "r%00", "r%0A", "r" * 129, "é", "r r"])
def test_names_that_are_no_runs_are_refused_on_every_route(gateway: Any, control: Any, run: str) -> None:
    calls = ["GET ", "POST /lease", "PUT /lease", "DELETE /lease", "POST /blocks/0", "PUT /timeline"]
    for method, path in (call.split(" ") for call in calls):
        answer = gateway.send(method, f"/v1/runs/{run}{path}", json={"teacher": "alpha"})
        assert answer.status_code in (404, 422), path
    assert control.roster.state().leases == {}


@pytest.mark.parametrize("block", ["-1", "one", "1.5", "9" * 30, "9" * 5000])
def test_blocks_are_counted_from_zero(gateway: Any, block: str) -> None:
    answer = gateway.send("POST", f"/v1/runs/r/blocks/{block}", json={"teacher": "alpha"})
    assert outcome(answer) == (422, "BadQuery")


def test_a_lease_that_the_cluster_has_no_room_for_is_refused(gateway: Any, control: Any) -> None:
    control.errors = [NoCapacity("the teacher service needs 1 x 8 CPU")]
    answer = gateway.send("POST", "/v1/runs/r/lease", json={"teacher": "alpha"})
    assert outcome(answer) == (503, "NoCapacity")


def test_runs_that_wait_for_teachers_hold_up_neither_renewals_nor_bindings(make_gateway: Any, control: Any) -> None:
    gateway = make_gateway(max_waiting=2, max_control=1)
    control.gate = threading.Event()

    async def scenario(http: httpx.AsyncClient) -> list[httpx.Response]:
        waiting = [asyncio.create_task(http.post(f"/v1/runs/w{i}/lease", json={"teacher": "alpha"})) for i in range(2)]
        for _ in waiting:
            assert await asyncio.to_thread(control.waiting.acquire, timeout=PATIENCE_S)
        answers = [
            await http.post("/v1/runs/w9/lease", json={"teacher": "alpha"}),
            await http.put("/v1/runs/r/lease"),
            await http.post("/v1/runs/r/blocks/0", json={"teacher": "alpha"}),
        ]
        control.gate.set()
        return [*answers, *(await asyncio.gather(*waiting))]

    refused, renewed, bound, *acquired = gateway.run(scenario)
    assert outcome(refused) == (429, "GatewayBusy")
    assert [answer.status_code for answer in (renewed, bound, *acquired)] == [200] * 4
