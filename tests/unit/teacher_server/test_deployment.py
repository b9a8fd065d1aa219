"""Calls of the roster, whose actor is a fake here: limits over several tries, and errors as ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError, RayTaskError

from teacher_server.errors import AliasMoved, TeacherUnavailable
from teacher_server.protocol import TeacherId
from teacher_server.serve import deployment
from teacher_server.serve.deployment import TeacherService


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """(limit of the call, method, arguments) of each try; what the list `outcomes` of the service says happens."""
    found: list[tuple[Any, ...]] = []

    def call_once(self: Any, timeout_s: float, method: str, *args: object) -> Any:
        found.append((timeout_s, method, *args))
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(TeacherService, "_call_once", call_once)
    monkeypatch.setattr(deployment, "RECONNECT_PAUSE_S", 0.2)
    return found


def service(*outcomes: object) -> TeacherService:
    made = TeacherService(Path("/library"))
    made.outcomes = list(outcomes)  # type: ignore[attr-defined]
    return made


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("evict", "traceback", cause)


def test_a_call_that_is_repeated_gets_what_is_left_of_its_limit(calls: list[tuple[Any, ...]]) -> None:
    """Else the roster could carry it out after the caller was told that it had not."""
    assert service(ActorDiedError(), 2).evict(TeacherId("alpha", 1), "ann", timeout_s=10.0) == 2
    (first_s, *_, first_limit_s), (second_s, *_, second_limit_s) = calls
    assert 9.9 < first_limit_s <= 10.0
    assert second_limit_s <= first_limit_s - 0.2
    assert second_s - second_limit_s == pytest.approx(first_s - first_limit_s) == pytest.approx(5.0)


def test_a_call_that_is_not_answered_in_time_may_have_been_carried_out(calls: list[tuple[Any, ...]]) -> None:
    with pytest.raises(TeacherUnavailable, match="promote took longer, and may have been carried out"):
        service(GetTimeoutError()).promote("alpha", 2, "ann", timeout_s=1.0)
    assert len(calls) == 1


@pytest.mark.usefixtures("calls")
def test_what_ray_does_to_the_roster_comes_as_unavailable_and_its_own_errors_as_they_are() -> None:
    for cause in (ActorDiedError(), TimeoutError("the controller does not answer")):
        with pytest.raises(TeacherUnavailable, match=type(cause).__name__):
            service(task_error(cause)).release("run")
    with pytest.raises(AliasMoved):
        service(task_error(AliasMoved("alpha", 1, 2))).release("run")
    with pytest.raises(RayTaskError):
        service(task_error(KeyError("a fault of ours"))).release("run")
