"""A private Ray cluster, and what the system tests share: builders of tiny teachers and stores, surroundings, load."""

from __future__ import annotations

import importlib.util
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import httpx
import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
SERVE_CONFIG = REPOSITORY / "deploy" / "serve.yaml"
START_LIMIT_S = 180.0


def load_by_path(path: Path) -> ModuleType:
    """Test folders are no packages."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """Builders of small teachers, stores and questions."""
    return load_by_path(REPOSITORY / "tests" / "unit" / "teacher_server" / "tiny.py")


@pytest.fixture(scope="session")
def sandbox() -> ModuleType:
    """The surroundings in which commands are run as a user runs them."""
    return load_by_path(Path(__file__).with_name("sandbox.py"))


@pytest.fixture(scope="session")
def load() -> ModuleType:
    """Students and the content oracle."""
    return load_by_path(Path(__file__).with_name("load.py"))


@pytest.fixture(scope="session")
def fault_stage() -> ModuleType:
    """A cluster with teachers, and training commands on it."""
    return load_by_path(Path(__file__).with_name("fault_stage.py"))


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A cluster of three CPUs that only this module uses; its processes end with it."""
    import ray
    from ray import serve

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default; without it Ray warns
        environment.delenv("RAY_ADDRESS", raising=False)
        environment.setenv("RAY_worker_niceness", "0")  # with Ray's 15, this process's load would starve the replicas
        ray.init(
            address="local",
            num_cpus=3,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY)}},
        )
        yield
        serve.shutdown()  # forgets its controller too, which the next module's cluster does not have
        ray.shutdown()


@pytest.fixture(scope="module")
def gateway(ray_cluster: None) -> Callable[[Path, Path], str]:  # noqa: ARG001 the cluster must run
    """Brings teachers and gateway up for a library and a folder of stores, as Ray's REST API and KubeRay apply
    deploy/serve.yaml; returns the gateway's URL once it is ready."""

    def start(library: Path, stores: Path) -> str:
        from ray.serve._private.api import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        from services.serving import start_http

        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        config = yaml.safe_load(SERVE_CONFIG.read_text())
        config["http_options"]["port"] = port
        for application in config["applications"]:
            application["args"]["library"] = str(library)
            if application["name"] == "preceptor-gateway":
                application["args"]["stores"] = str(stores)
        start_http(config["http_options"]["host"], port)
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config))
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=START_LIMIT_S, trust_env=False) as client:
            _wait_for_status(client, "/readyz", 200)
        return url

    return start


@pytest.fixture(scope="session")
def wait_for_status() -> Callable[[httpx.Client, str, int], None]:
    """Asks the gateway until a path's answer has a status."""
    return _wait_for_status


def _wait_for_status(client: httpx.Client, path: str, status: int) -> None:
    """Asks until the answer has this status; the gateway itself spaces its looks at the teachers."""
    deadline = time.monotonic() + START_LIMIT_S
    while (answer := client.get(path)).status_code != status:
        assert time.monotonic() < deadline, f"{path} is {answer.status_code} {answer.text}, expected {status}"
        time.sleep(0.1)
