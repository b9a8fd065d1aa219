"""A private Ray cluster, and what the system tests share: builders of tiny teachers and stores, surroundings, load."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[2]


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
