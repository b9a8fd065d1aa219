"""For all tests: a slow moment of the machine is no failure; and what the tests of the promises share.

--full   their full form, as `make chaos` runs it      --seed N   of the faults; the same seed gives the same faults
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings

FULL_LIMIT_S = 3600
FIGURES = pytest.StashKey[list[str]]()

settings.register_profile("preceptor", deadline=None)
settings.load_profile("preceptor")


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
