"""A private Ray cluster, the tiny library and store of the unit tests, and what the tests of the promises share.

--full   their full form, as `make chaos` runs it      --seed N   of the faults; the same seed gives the same faults
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
FULL_LIMIT_S = 3600
FIGURES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """See above."""
    group = parser.getgroup("promises")
    group.addoption("--full", action="store_true", help="the promises' tests in their full form: an hour")
    group.addoption("--seed", type=int, default=0, help="of the faults of the promises' tests")


def pytest_configure(config: pytest.Config) -> None:
    """Room for the figures."""
    config.stash[FIGURES] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The full form takes longer than the limit of pyproject.toml."""
    if config.getoption("--full"):
        for item in items:
            item.add_marker(pytest.mark.timeout(FULL_LIMIT_S))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One of several processes (-n 2) hands its figures to the one that prints them."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["figures"] = session.config.stash[FIGURES]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """The figures of such a process; it has none when it crashed."""
    node.config.stash[FIGURES].extend(getattr(node, "workeroutput", {}).get("figures", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The figures of the promises, at the end."""
    if config.stash[FIGURES]:
        terminalreporter.section("promises: what was measured, and what is asked")
        terminalreporter.write("\n".join([*config.stash[FIGURES], ""]))


@pytest.fixture(scope="session")
def full(pytestconfig: pytest.Config) -> bool:
    """Whether the full form is asked for."""
    return bool(pytestconfig.getoption("--full"))


@pytest.fixture(scope="session")
def seed(pytestconfig: pytest.Config) -> int:
    """Of the faults."""
    return int(pytestconfig.getoption("--seed"))


@pytest.fixture(scope="session")
def figure(pytestconfig: pytest.Config, seed: int) -> Callable[[int, str, str], None]:
    """Notes and prints one line: the promise's number, what was measured, what is asked."""

    def note(promise: int, measured: str, asked: str) -> None:
        line = f"promise {promise}, seed {seed}: {measured}; asked: {asked}"
        pytestconfig.stash[FIGURES].append(line)
        print(line, flush=True)

    return note


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
