"""The builders that Serve configs name. Nothing is deployed here."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from services import serving
from services.addresses import HttpAddress
from services.asking import GatewayOptions
from teacher_server.errors import BadQuery
from teacher_server.serve import app
from teacher_server.serve.app import DeployOptions
from trainer.config import ConfigError


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEPTOR_HOME", "/preceptor")
    for variable in ("PRECEPTOR_TOKEN", "PRECEPTOR_OPERATOR_TOKEN"):
        monkeypatch.delenv(variable, raising=False)


def deployment(application: Any) -> Any:
    return application._bound_deployment


def test_a_config_file_gets_the_deployment_that_the_roster_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The roster's own call of Serve is caught and compared."""
    targets: list[Any] = []
    monkeypatch.setattr(app.serve, "start", lambda **_: None)
    monkeypatch.setattr(app.serve, "run_many", lambda found, **_: targets.extend(found))
    app.deploy_app("/preceptor/teachers", DeployOptions(2, 3.0, 0.0))
    (target,) = targets
    theirs, ours = deployment(target.target), deployment(serving.teachers({"num_replicas": 2, "num_cpus": 3}))
    assert target.name == app.APP_NAME
    assert ours.init_args == theirs.init_args == ("/preceptor/teachers", DeployOptions(2, 3.0, 0.0))
    assert ours.func_or_class is theirs.func_or_class
    assert ours.name == theirs.name
    assert ours._deployment_config == theirs._deployment_config
    assert ours.ray_actor_options == theirs.ray_actor_options


def test_the_gateway_takes_its_token_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    args = deployment(serving.gateway({})).init_args
    assert args == ("/preceptor/teachers", "/preceptor/stores", GatewayOptions())
    monkeypatch.setenv("PRECEPTOR_TOKEN", "secret")
    *_, options = deployment(serving.gateway({"library": "/elsewhere"})).init_args
    assert (options.token, options.operator_token) == ("secret", None)
    monkeypatch.setenv("PRECEPTOR_OPERATOR_TOKEN", "other")
    assert deployment(serving.gateway({})).init_args[2].operator_token == "other"


@pytest.mark.parametrize(("host", "token", "refused"), [
    ("0.0.0.0", None, True), ("10.0.0.7", None, True), ("0.0.0.0", "secret", False), ("127.0.0.1", None, False),
])  # fmt: skip
def test_a_gateway_that_others_reach_does_not_start_without_a_token(
    monkeypatch: pytest.MonkeyPatch, host: str, token: str | None, refused: bool
) -> None:
    """A config file may name any address."""
    monkeypatch.setattr(serving, "running_address", lambda: HttpAddress(host, 8000))
    outcome: AbstractContextManager[object] = nullcontext()
    if refused:
        outcome = pytest.raises(ConfigError, match="can be reached from other machines")
    with outcome:
        serving.check_exposure(GatewayOptions(token=token))


def test_a_library_in_the_config_replaces_the_one_of_the_home() -> None:
    assert deployment(serving.gateway({"library": "/elsewhere"})).init_args[0] == str(Path("/elsewhere"))
    assert deployment(serving.gateway({"stores": "/elsewhere"})).init_args[:2] == ("/preceptor/teachers", "/elsewhere")
    assert deployment(serving.teachers({"library": "/elsewhere"})).init_args[0] == "/elsewhere"


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(BadQuery, match="replicas: Extra inputs"):
        serving.teachers({"replicas": 2})
    with pytest.raises(BadQuery, match="num_cpus"):
        serving.teachers({"num_cpus": "many"})
