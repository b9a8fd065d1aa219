"""Run and operator control over HTTP: what is sent, what comes back, and which calls are made again."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from services.asking import GatewayOptions
from services.gateway import create_app
from services.listing import print_alias_log, print_teachers
from services.offline import OfflineControl
from teacher_server.clients import http as http_client
from teacher_server.clients import http_control
from teacher_server.clients.http_control import ATTEMPTS, HttpOperatorControl, HttpRunControl
from teacher_server.clients.inprocess import InProcessTeacherClient
from teacher_server.contract import Acquired
from teacher_server.errors import (
    AliasMoved,
    BadQuery,
    BadReply,
    GateRefused,
    TeacherError,
    TeacherInUse,
    TeacherUnavailable,
    UnknownTeacher,
)
from teacher_server.library import TeacherLibrary
from teacher_server.promotion import GateFloors, GateReport, Promotion
from teacher_server.protocol import Binding, TeacherId, TeacherRef
from teacher_server.roster.roster import Roster

ALPHA = TeacherRef("alpha")
BOUND = {"teacher": "alpha@2", "digest": "d" * 64, "block": 5}
BINDING = Binding(TeacherId("alpha", 2), "d" * 64, 5)
PROMOTED = {"teacher": "alpha@2", "previous": "alpha@1", "gate": None, "seconds": {"prepare": 1.5}}
SECRET = "a-secret-token"


def _load_beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


servers = _load_beside("http_servers")
BROKEN = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
BUSY = servers.refusal(429, "GatewayBusy", sentence="too much is under way")


class Talk:
    """What a control's call returned, what the server saw, and the pauses between the attempts."""

    def __init__(self, control: type, call: Callable[[Any], object], *answers: bytes) -> None:
        self.pauses: list[float] = []
        with servers.ScriptedServer(list(answers)) as server:
            self.asked = server.asked
            self.returned: Any = call(control(server.url, SECRET, sleep=self.pauses.append))


def run(call: Callable[[HttpRunControl], object], *answers: bytes) -> Talk:
    return Talk(HttpRunControl, call, *answers)


def operate(call: Callable[[HttpOperatorControl], object], *answers: bytes) -> Talk:
    return Talk(HttpOperatorControl, call, *answers)


# ---- what is sent and what comes back


class Case(NamedTuple):
    """A call, the request that it makes, the answer and what the call then returns."""

    call: Callable[[Any], object]
    request: tuple[str, str, object]
    said: object
    returned: object


RUN_CALLS = {
    "acquire": Case(
        lambda c: c.acquire("r", ALPHA),
        ("POST", "/v1/runs/r/lease", {"teacher": "alpha"}),
        BOUND | {"adopted": True},
        Acquired(BINDING, True),
    ),
    "bind": Case(
        lambda c: c.bind("r", TeacherRef("alpha", 2), 5),
        ("POST", "/v1/runs/r/blocks/5", {"teacher": "alpha@2"}),
        BOUND,
        BINDING,
    ),
    "restore": Case(
        lambda c: c.restore("r", [BINDING], 7),
        ("PUT", "/v1/runs/r/timeline", {"bindings": [BOUND], "highest_block": 7}),
        {},
        None,
    ),
    "timeline": Case(
        lambda c: c.timeline("r"),
        ("GET", "/v1/runs/r", None),
        {"run": "r", "timeline": [BOUND], "lease": None},
        [BINDING],
    ),
    "renew": Case(lambda c: c.renew("r"), ("PUT", "/v1/runs/r/lease", None), {"held": False}, False),
    "release": Case(lambda c: c.release("r"), ("DELETE", "/v1/runs/r/lease", None), {}, None),
}
NO_FLOORS = {"min_agreement": None, "max_kl": None, "max_latency_ratio": None}
OPERATOR_CALLS = {
    "promote": Case(
        lambda c: c.promote("alpha", 2, "me", floors=GateFloors(0.9, None, 2.0), expected=1),
        (
            "PUT",
            "/v1/aliases/alpha",
            NO_FLOORS | {"who": "me", "version": 2, "expected": 1, "min_agreement": 0.9, "max_latency_ratio": 2.0},
        ),
        PROMOTED | {"gate": {"items": 8, "agreement": 1.0, "kl": 0.25, "old_ms": 2.0, "new_ms": 3.0}},
        Promotion(TeacherId("alpha", 2), TeacherId("alpha", 1), GateReport(8, 1.0, 0.25, 2.0, 3.0), {"prepare": 1.5}),
    ),
    "promote a new alias": Case(
        lambda c: c.promote("alpha", 2, "me"),
        ("PUT", "/v1/aliases/alpha", NO_FLOORS | {"who": "me", "version": 2, "expected": None}),
        PROMOTED | {"previous": None},
        Promotion(TeacherId("alpha", 2), None, None, {"prepare": 1.5}),
    ),
    "rollback": Case(
        lambda c: c.rollback("alpha", "me", expected=3),
        ("POST", "/v1/aliases/alpha/rollback", {"expected": 3, "who": "me"}),
        PROMOTED,
        Promotion(TeacherId("alpha", 2), TeacherId("alpha", 1), None, {"prepare": 1.5}),
    ),
    "evict": Case(
        lambda c: c.evict(TeacherId("alpha", 2), "me"),
        ("POST", "/v1/teachers/alpha/versions/2/evict", {"who": "me"}),
        {"replicas": 2},
        2,
    ),
}


@pytest.mark.parametrize("case", RUN_CALLS.values(), ids=RUN_CALLS)
def test_a_runs_call_is_one_request_with_the_token(case: Case) -> None:
    talk = run(case.call, servers.json_answer(200, case.said))
    (asked,) = talk.asked
    assert (asked.method, asked.path, asked.json if asked.body else None) == case.request
    assert asked.headers["authorization"] == f"Bearer {SECRET}"
    assert talk.returned == case.returned


@pytest.mark.parametrize("case", OPERATOR_CALLS.values(), ids=OPERATOR_CALLS)
def test_an_operators_call_is_one_request_with_the_token(case: Case) -> None:
    talk = operate(case.call, servers.json_answer(200, case.said))
    (asked,) = talk.asked
    assert (asked.method, asked.path, asked.json if asked.body else None) == case.request
    assert asked.headers["authorization"] == f"Bearer {SECRET}"
    assert talk.returned == case.returned


def test_gate_figures_that_json_cannot_say_are_not_numbers() -> None:
    gate = {"items": 8, "agreement": 1.0, "kl": None, "old_ms": 2.0, "new_ms": 3.0}
    talk = operate(lambda c: c.rollback("alpha", "me"), servers.json_answer(200, PROMOTED | {"gate": gate}))
    assert math.isnan(talk.returned.gate.kl)
    assert talk.returned.gate.agreement == 1.0


def test_an_answer_without_a_body_is_enough_where_nothing_is_returned() -> None:
    assert run(lambda c: c.release("r"), b"HTTP/1.1 204 No Content\r\n\r\n").returned is None


def test_a_runs_name_cannot_leave_its_place_in_the_path() -> None:
    talk = run(lambda c: c.renew("../aliases?x=/é"), servers.json_answer(200, {"held": True}))
    assert talk.asked[0].path == "/v1/runs/..%2Faliases%3Fx%3D%2F%C3%A9/lease"
    for name in ("", ".", ".."):
        with pytest.raises(BadQuery, match="cannot be part of an address"):
            HttpRunControl("http://127.0.0.1:1").renew(name)


# ---- errors


@pytest.mark.parametrize(
    "error",
    [
        UnknownTeacher("x", ("alpha",)),
        AliasMoved("alpha", 1, None),
        GateRefused("alpha@2", ("it differs", "it is slow")),
        TeacherInUse("alpha@1", ("the alias alpha",)),
    ],
)
def test_a_refusal_is_raised_as_the_error_that_it_was(error: TeacherError) -> None:
    with pytest.raises(type(error)) as caught:
        operate(lambda c: c.promote("alpha", 2, "me"), servers.refusal(409, type(error).__name__, *error.args))
    assert caught.value.args == error.args


@pytest.mark.parametrize(
    "raw",
    [
        servers.http_answer(200, b"<html>"),
        servers.json_answer(200, {"held": "perhaps"}),
        servers.json_answer(200, []),
        servers.http_answer(405, b"<html>"),
    ],
)
def test_an_answer_of_another_form_is_never_used(raw: bytes) -> None:
    with pytest.raises(BadReply):
        run(lambda c: c.renew("r"), raw)


@pytest.mark.parametrize("teacher", ["alpha", "../x@1", ""])
def test_a_binding_to_no_teacher_is_never_used(teacher: str) -> None:
    with pytest.raises(BadReply, match="names no teacher"):
        run(lambda c: c.bind("r", ALPHA, 5), servers.json_answer(200, BOUND | {"teacher": teacher}))


def test_an_answer_that_is_too_large_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_control, "MAX_ANSWER_BYTES", 100)
    with pytest.raises(BadReply, match="more than 100 bytes"):
        run(lambda c: c.timeline("r"), servers.http_answer(200, b" " * 101))


def test_a_refused_token_is_named_by_its_variable_and_never_shown() -> None:
    with pytest.raises(TeacherError, match="PRECEPTOR_TOKEN") as caught:
        operate(lambda c: c.rollback("alpha", "me"), servers.refusal(403, "Forbidden", sentence=SECRET))
    assert SECRET not in str(caught.value)
    control = HttpOperatorControl("http://127.0.0.1:1", SECRET)
    assert SECRET not in repr(control) + repr(vars(control))


# ---- what is made again


@pytest.mark.parametrize("case", RUN_CALLS.values(), ids=RUN_CALLS)
def test_a_runs_calls_are_made_again_after_a_broken_connection_and_a_busy_gateway(case: Case) -> None:
    talk = run(case.call, BROKEN, BUSY, servers.json_answer(200, case.said))
    assert talk.returned == case.returned
    assert [asked.method for asked in talk.asked] == [case.request[0]] * 3
    assert len(talk.pauses) == 2
    assert 0.1 <= talk.pauses[0] <= 0.2 <= talk.pauses[1] <= 0.4


@pytest.mark.parametrize("raw", [BROKEN, BUSY])
@pytest.mark.parametrize("case", OPERATOR_CALLS.values(), ids=OPERATOR_CALLS)
def test_an_operators_calls_are_never_made_again_once_they_were_sent(raw: bytes, case: Case) -> None:
    with servers.ScriptedServer([raw]) as server:
        control = HttpOperatorControl(server.url, sleep=lambda _: pytest.fail("it is tried again"))
        with pytest.raises(TeacherUnavailable):
            case.call(control)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("control", "call"),
    [(HttpRunControl, lambda c: c.renew("r")), (HttpOperatorControl, lambda c: c.evict(TeacherId("alpha", 2), "me"))],
)
def test_where_nobody_listens_every_call_is_made_a_few_times(control: type, call: Any) -> None:
    with servers.ScriptedServer([BROKEN]) as server:
        pass
    pauses: list[float] = []
    with pytest.raises(TeacherUnavailable, match="ConnectError"):
        call(control(server.url, sleep=pauses.append))
    assert len(pauses) == ATTEMPTS - 1


def test_a_call_that_keeps_failing_ends_with_its_last_reason() -> None:
    with pytest.raises(TeacherUnavailable, match="too much is under way"):
        run(lambda c: c.renew("r"), BROKEN, BROKEN, BROKEN, BUSY)


def test_a_gateway_that_starts_again_behind_its_proxy_is_asked_until_it_is_there() -> None:
    starting = servers.http_answer(404, b"Path '/v1/runs/r/lease' not found.")
    talk = run(lambda c: c.renew("r"), starting, starting, servers.json_answer(200, {"held": True}))
    assert (talk.returned, len(talk.asked)) == (True, 3)


def test_errors_that_repeating_does_not_help_are_raised_at_once() -> None:
    with servers.ScriptedServer([servers.refusal(404, "UnknownTeacher", "x", [])]) as server:
        with pytest.raises(UnknownTeacher):
            HttpRunControl(server.url).acquire("r", TeacherRef("x"))
        assert len(server.asked) == 1


def test_a_silent_gateway_is_given_up_on_at_the_calls_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    call = http_control._Call("GET", "/v1/runs/r", "for run r", limit_s=0.1)
    monkeypatch.setattr(http_control, "_Call", lambda *_: call)
    with servers.ScriptedServer([servers.SILENCE]) as server:
        with pytest.raises(TeacherUnavailable, match=r"\(ReadTimeout"):
            HttpRunControl(server.url).timeline("r")
        assert server.left.wait(30)


# ---- through a real gateway


class FileControl(OfflineControl):
    """What a gateway stands before, without a service: the roster's file."""

    def __init__(self, library: TeacherLibrary) -> None:
        super().__init__(library)
        self.roster = Roster(library)
        self.bind, self.restore, self.timeline = self.roster.bind, self.roster.restore, self.roster.timeline
        self.renew, self.release = self.roster.renew, self.roster.release

    def acquire(self, run: str, ref: TeacherRef) -> Acquired:
        binding = self.roster.preview(run, ref)
        self.roster.acquire(run, "cluster/app", binding.teacher, deploying=False)
        return Acquired(binding, adopted=True)


class Behind(NamedTuple):
    """A gateway's URL and what it stands before."""

    url: str
    library: TeacherLibrary
    control: FileControl


@pytest.fixture
def behind(tiny: ModuleType, tmp_path: Path, no_bundled: None) -> Iterator[Behind]:  # noqa: ARG001 alpha to gamma only
    library = tiny.build_library(tmp_path / "library", tmp_path)
    control, options = FileControl(library), GatewayOptions(token=SECRET, operator_token="operates")
    app = create_app(InProcessTeacherClient(library), library, control, stores_root=tmp_path, options=options)
    with servers.serve(app) as url:
        yield Behind(url, library, control)


def test_a_runs_life_through_the_gateway_is_in_the_roster(behind: Behind) -> None:
    runs, operator = HttpRunControl(behind.url, SECRET), HttpOperatorControl(behind.url, "operates")
    one, two = (behind.library.entry(TeacherId("alpha", version)) for version in (1, 2))
    assert runs.acquire("r", ALPHA) == Acquired(Binding(one.teacher, one.digest, 0), adopted=True)
    assert runs.renew("r")
    assert runs.bind("r", ALPHA, 0) == Binding(one.teacher, one.digest, 0)
    assert operator.promote("alpha", 2, "me", expected=1).previous == one.teacher
    assert runs.bind("r", ALPHA, 0).teacher == one.teacher
    assert runs.bind("r", ALPHA, 3) == Binding(two.teacher, two.digest, 3)
    timeline = [Binding(one.teacher, one.digest, 0), Binding(two.teacher, two.digest, 3)]
    assert runs.timeline("r") == behind.control.timeline("r") == timeline
    runs.release("r")
    runs.release("r")
    assert not runs.renew("r")
    assert runs.timeline("another") == []
    runs.restore("another", timeline, 5)
    assert runs.timeline("another") == behind.control.timeline("another") == timeline


def test_an_operators_changes_and_refusals_come_through_the_gateway(behind: Behind) -> None:
    runs, operator = HttpRunControl(behind.url, SECRET), HttpOperatorControl(behind.url, "operates")
    runs.bind("r", ALPHA, 0)
    with pytest.raises(AliasMoved, match="expected at version 2, it points to 1"):
        operator.promote("alpha", 2, "me", expected=2)
    with pytest.raises(GateRefused, match="no views were recorded"):
        operator.promote("alpha", 2, "me", floors=GateFloors(min_agreement=0.9))
    with pytest.raises(UnknownTeacher, match="known are alpha@1, alpha@2"):
        operator.promote("alpha", 9, "me")
    with pytest.raises(TeacherInUse, match="alpha@1 is needed by"):
        operator.evict(TeacherId("alpha", 1), "me")
    assert operator.promote("alpha", 2, "me").teacher == TeacherId("alpha", 2)
    undone = operator.rollback("alpha", "me", expected=2)
    assert (undone.teacher, undone.previous) == (TeacherId("alpha", 1), TeacherId("alpha", 2))
    assert operator.evict(TeacherId("beta", 1), "me") == 0
    assert [entry.who for entry in behind.control.roster.state().log[-2:]] == ["me (http 127.0.0.1)"] * 2


def test_a_token_that_may_ask_may_not_operate_and_a_wrong_one_may_nothing(behind: Behind) -> None:
    with pytest.raises(TeacherError, match="PRECEPTOR_OPERATOR_TOKEN"):
        HttpOperatorControl(behind.url, SECRET).promote("alpha", 2, "me")
    for token in (None, "wrong"):
        with pytest.raises(TeacherError, match="PRECEPTOR_TOKEN"):
            HttpRunControl(behind.url, token).bind("r", ALPHA, 0)
    assert behind.control.timeline("r") == []


def test_what_lies_behind_a_gateway_is_listed(
    behind: Behind, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PRECEPTOR_TOKEN", SECRET)
    print_alias_log(behind.url)
    assert capsys.readouterr().out == "no alias was made or changed yet\n"
    HttpOperatorControl(behind.url, "operates").promote("alpha", 2, "ann")
    print_teachers(behind.url)
    rows = {row.split("│")[1].strip(): row for row in capsys.readouterr().out.splitlines() if "@" in row}
    assert list(rows) == ["alpha@1", "alpha@2", "beta@1", "gamma@1"]
    assert behind.library.entry(TeacherId("alpha", 2)).digest[:12] in rows["alpha@2"]
    assert "yes" in rows["alpha@2"]
    assert "yes" not in rows["alpha@1"]
    print_alias_log(behind.url)
    assert "ann (http 127.0.0.1)" in capsys.readouterr().out
    monkeypatch.setenv("PRECEPTOR_TOKEN", "wrong")
    with pytest.raises(TeacherError, match="PRECEPTOR_TOKEN"):
        print_teachers(behind.url)


def test_the_trainer_finds_the_controls_beside_the_client() -> None:
    assert http_client.HttpRunControl is HttpRunControl
    assert http_client.HttpOperatorControl is HttpOperatorControl
