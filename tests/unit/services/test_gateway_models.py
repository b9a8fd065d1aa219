"""What the gateway tells of itself and its teachers: health, lists, metadata, readiness."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from services.asking import Readiness
from teacher_server.errors import TeacherError, TeacherUnavailable
from teacher_server.library import CARD, TeacherLibrary
from teacher_server.protocol import TeacherId
from teacher_server.roster.roster import Roster


def outcome(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of a refusal, which has the form of all."""
    body = answer.json()
    assert set(body) == {"error", "code", "args"}
    assert "\n" not in body["error"]
    return answer.status_code, body["code"]


# ---- health


def test_liveness_does_not_depend_on_teachers_and_readiness_does(gateway: Any) -> None:
    gateway.ready_error = TeacherUnavailable("service", 5.0, "no app")
    assert gateway.get("/readyz").status_code == 503
    assert gateway.get("/healthz").json() == {"status": "alive"}
    assert gateway.get("/v2/health/live").json() == {"live": True}


def test_it_is_ready_when_the_teachers_answer(gateway: Any) -> None:
    assert gateway.get("/readyz").json() == {"status": "ready"}
    assert gateway.get("/v2/health/ready").json() == {"ready": True}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/readyz"),
        ("GET", "/v2/health/ready"),
        ("GET", "/v2/models/alpha/ready"),
        ("POST", "/v2/repository/index"),
    ],
)
def test_until_the_teachers_answer_it_is_503_with_retry_after(gateway: Any, method: str, path: str) -> None:
    gateway.ready_error = TeacherUnavailable("service", 5.0, "no app")
    answer = gateway.send(method, path)
    assert outcome(answer) == (503, "TeacherUnavailable")
    assert int(answer.headers["Retry-After"]) > 0


def test_readiness_follows_the_teachers_and_asks_them_at_most_once_a_second() -> None:
    now, calls = [0.0], [0]
    answers: list[TeacherError | frozenset[TeacherId]] = [
        TeacherUnavailable("service", 5.0, "no app"),
        frozenset({TeacherId("alpha", 1)}),
    ]

    def check_teachers() -> frozenset[TeacherId]:
        calls[0] += 1
        answer = answers[calls[0] - 1]
        if isinstance(answer, TeacherError):
            raise answer
        return answer

    async def scenario() -> list[frozenset[TeacherId]]:
        readiness = Readiness(check_teachers, clock=lambda: now[0])
        for _ in range(3):
            with pytest.raises(TeacherUnavailable):
                await readiness.check()
        now[0] = 1.0
        return await asyncio.gather(*(readiness.check() for _ in range(5)))

    assert asyncio.run(scenario()) == [frozenset({TeacherId("alpha", 1)})] * 5
    assert calls == [2]


# ---- the lists


def test_the_list_names_versions_alias_digests_and_cards(gateway: Any, library: TeacherLibrary) -> None:
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


def test_a_damaged_version_is_listed_with_its_problem_and_hides_no_other(gateway: Any, library: TeacherLibrary) -> None:
    (library.root / "alpha" / "1" / CARD).write_text("{}")
    listed = {teacher["name"]: teacher for teacher in gateway.get("/v1/teachers").json()["teachers"]}
    damaged, sound = listed["alpha"]["versions"]
    assert "Field required" in damaged["problem"]
    assert damaged["digest"] is None
    assert sound["problem"] is None
    states = {(entry["name"], entry["version"]): entry for entry in gateway.send("POST", "/v2/repository/index").json()}
    assert states["alpha", "1"]["state"] == "UNAVAILABLE"
    assert "Field required" in states["alpha", "1"]["reason"]


def test_listing_and_asking_write_nothing(gateway: Any, library: TeacherLibrary) -> None:
    for path in ("/v1/teachers", "/v1/aliases", "/v1/runs", "/v1/runs/r", "/v2/models/alpha"):
        assert gateway.get(path).status_code == 200
    assert gateway.ask().status_code == 200
    assert not (library.root / "roster.json").exists()


def test_a_models_metadata_has_its_inputs_outputs_and_versions(gateway: Any) -> None:
    alpha, beta = (gateway.get(f"/v2/models/{name}").json() for name in ("alpha", "beta/versions/1"))
    assert (alpha["name"], alpha["versions"], alpha["platform"]) == ("alpha", ["1", "2"], "preceptor")
    assert alpha["inputs"] == [
        {"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, 8, 8, 3]},
        {"name": "views", "datatype": "UINT8", "shape": [-1]},
    ]
    assert alpha["outputs"] == [
        {"name": "logits", "datatype": "FP32", "shape": [-1, 5]},
        {"name": "features", "datatype": "FP32", "shape": [-1, 64]},
    ]
    assert beta["outputs"][0]["shape"] == [-1, 2]


def test_a_version_is_ready_when_a_replica_has_loaded_it_whatever_the_alias_says(
    gateway: Any, library: TeacherLibrary
) -> None:
    gateway.loaded = frozenset({TeacherId("alpha", 1), TeacherId("alpha", 2)})
    library.add("alpha", library.entry(TeacherId("alpha", 1)).card, library.entry(TeacherId("alpha", 1)).weights)
    Roster(library).promote("alpha", 3, "test")  # its files may be damaged: no replica could load it
    index = gateway.send("POST", "/v2/repository/index", json={}).json()
    assert {(entry["name"], entry["version"]): entry["state"] for entry in index if entry["name"] == "alpha"} == {
        ("alpha", "1"): "READY",
        ("alpha", "2"): "READY",
        ("alpha", "3"): "UNAVAILABLE",
    }
    ready = gateway.send("POST", "/v2/repository/index", json={"ready": True}).json()
    assert {entry["state"] for entry in ready} == {"READY"}
    assert len(ready) == sum(entry["state"] == "READY" for entry in index)
    assert gateway.get("/v2/models/alpha/versions/1/ready").status_code == 200
    for path in ("alpha", "alpha/versions/3"):
        assert outcome(gateway.get(f"/v2/models/{path}/ready")) == (503, "NotLoaded")


def test_the_server_says_what_it_is(gateway: Any) -> None:
    said = gateway.get("/v2").json()
    assert said["name"] == "preceptor"
    assert "binary_tensor_data" in said["extensions"]
