"""What counts for the token is where Serve really listens. Ray's side is a fake: a Serve that runs already keeps its
address, whatever it is told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from services import operate, serving
from services.addresses import HttpAddress
from services.asking import GatewayOptions
from services.operate import ServeOptions
from teacher_server.serve.deployment import TeacherService
from trainer.config import ConfigError

OPEN = GatewayOptions()
OPTIONS = ServeOptions("127.0.0.1", 8000, replicas=1, max_replicas=0, cpus=1.0, gpus=0.0, memory_mb=512)


@dataclass
class FakeServe:
    """Listens where it was first told to, as Serve does. deployed: what was deployed on it. served: teachers run."""

    host: str | None = None
    port: int = 0
    served: bool = False
    deployed: list[Any] = field(default_factory=list)

    def start(self, *, proxy_location: str, http_options: dict[str, Any]) -> None:
        assert proxy_location == "HeadOnly"
        if self.host is None:
            self.host, self.port = http_options["host"], http_options["port"]

    def deploy(self, options: Any) -> bool:
        self.deployed.append(options)
        return self.served

    def status(self) -> Any:
        return SimpleNamespace(proxies={"node": "HEALTHY"})


@pytest.fixture
def ray_serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> FakeServe:
    monkeypatch.setenv("PRECEPTOR_HOME", str(tmp_path))
    fake = FakeServe()
    monkeypatch.setattr(serving.serve, "start", fake.start)
    monkeypatch.setattr(serving.serve, "status", fake.status)
    monkeypatch.setattr(serving, "_get_global_client", lambda: SimpleNamespace(http_config=fake))
    monkeypatch.setattr(TeacherService, "connect", lambda _: SimpleNamespace(deploy=fake.deploy))
    monkeypatch.setattr(serving, "deploy_gateway", lambda _, options: fake.deployed.append(options))
    return fake


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_a_serve_that_others_reach_gets_no_open_gateway_whatever_host_is_asked_for(
    ray_serve: FakeServe, host: str
) -> None:
    ray_serve.host, ray_serve.port = host, 8123
    with pytest.raises(ConfigError) as caught:
        operate.deploy(OPTIONS, OPEN)
    message = str(caught.value)
    assert f"listens on {host}:8123, which can be reached from other machines" in message
    assert "PRECEPTOR_TOKEN (or in PRECEPTOR_OPERATOR_TOKEN alone" in message
    assert ray_serve.deployed == []


@pytest.mark.parametrize("gateway", [GatewayOptions(token="ask"), GatewayOptions(operator_token="operate")])
def test_with_either_token_it_is_used_and_its_real_address_is_told(
    ray_serve: FakeServe, gateway: GatewayOptions
) -> None:
    ray_serve.host, ray_serve.port = "0.0.0.0", 8123
    assert operate.deploy(OPTIONS, gateway) == HttpAddress("0.0.0.0", 8123)
    assert ray_serve.deployed[-1] == gateway


def test_a_serve_on_loopback_needs_no_token(ray_serve: FakeServe) -> None:
    assert operate.deploy(OPTIONS, OPEN) == HttpAddress("127.0.0.1", 8000)
    assert ray_serve.deployed[-1] == OPEN


@pytest.mark.parametrize("served", [True, False])
def test_teachers_that_are_served_already_keep_their_options_and_the_operator_is_told(
    ray_serve: FakeServe, capsys: pytest.CaptureFixture[str], served: bool
) -> None:
    ray_serve.served = served
    operate.deploy(OPTIONS, OPEN)
    assert ("served here already: they go on as they are" in capsys.readouterr().out) == served


def test_an_ipv6_address_is_written_as_a_url_wants_it() -> None:
    assert HttpAddress("::1", 8000).url == "http://[::1]:8000"
    assert HttpAddress("127.0.0.1", 8000).url == "http://127.0.0.1:8000"
