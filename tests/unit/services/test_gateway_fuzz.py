"""The gateway under requests that are drawn from its own OpenAPI description, right ones and wrong ones.

Looked for: answers of an undocumented status, form or content, and any 5xx: teachers and library are well, so nothing
that a client sends may look as if they were not. Planted faults show that the search finds what it looks for.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.responses import JSONResponse

from services.errors import InternalError
from teacher_server.protocol import TeacherId

MAX_EXAMPLES, MAX_EXAMPLES_IN_FULL = 20, 300
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
NAMES = {
    "name": ["alpha", "beta", "alpha@2", "nobody", "..", "%00"],
    "version": ["1", "2", "9", "0", "x"],
    "run": ["r", "another-run.2", ".r", "a" * 129],
    "block": ["0", "7", "-1", "x"],
}

HERE = {"Host": "127.0.0.1"}  # a gateway without a token answers requests for this machine only


def fuzz(app: FastAPI, paths: str = "/", *, seed_: int = 0, examples: int = MAX_EXAMPLES) -> Counter[int]:
    """Statuses that came, of the paths that begin so. Raises AssertionError, or schemathesis's group of failures, at
    the first answer that may not come."""
    statuses: Counter[int] = Counter()
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=HERE).include(path_regex=f"^{paths}")
    for result in schema.get_all_operations():
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            _fuzz_operation(result.ok(), mode, statuses, seed_, examples)
    return statuses


def _fuzz_operation(operation: Any, mode: GenerationMode, statuses: Counter[int], seed_: int, examples: int) -> None:
    has_input = bool(operation.body) or any(operation.iter_parameters())
    if mode is GenerationMode.NEGATIVE and not has_input:
        return

    @with_seed(seed_)
    @settings(
        max_examples=examples if has_input else 2,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), names=st.randoms(use_true_random=False))
    def check(case: Any, names: random.Random) -> None:
        for name in case.path_parameters or {}:
            if name in NAMES and names.random() < 0.8:  # drawn names would hardly ever be known ones
                case.path_parameters[name] = names.choice(NAMES[name])
        response = case.call(headers=HERE)
        statuses[response.status_code] += 1
        assert response.status_code < 500, response.text
        case.validate_response(response, checks=CHECKS)

    try:
        check()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # any text is allowed as a name, so nothing can be wrong with it


@pytest.fixture
def app(gateway: Any) -> FastAPI:
    gateway.loaded = frozenset({TeacherId("alpha", 1), TeacherId("alpha", 2), TeacherId("beta", 1)})
    return gateway.app


def test_drawn_requests_get_documented_answers_and_find_no_bug(
    app: FastAPI, full: bool, seed: int, figure: Callable[[int, str, str], None]
) -> None:
    statuses = fuzz(app, seed_=seed, examples=MAX_EXAMPLES_IN_FULL if full else MAX_EXAMPLES)
    figure(
        10,
        f"{sum(statuses.values())} drawn requests, by status {dict(sorted(statuses.items()))}",
        "0 5xx, 0 undocumented statuses",
    )
    assert statuses[200] > 100
    assert {400, 404, 409, 422} <= statuses.keys()


def plant(app: FastAPI, fault: str) -> None:
    """A route whose answer is not as its description says."""

    @app.get("/planted", responses={200: {"model": dict[str, int]}})
    async def planted(number: int = 0) -> JSONResponse:
        if fault == "a bug":
            raise InternalError(f"planted, {number}")
        return JSONResponse({"a": "text"}, 418 if fault == "an undocumented status" else 200)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("a bug", "InternalError"),
        ("an undocumented status", "Received: 418"),
        ("another body", "is not of type"),
    ],
)
def test_the_search_finds_a_planted_fault(app: FastAPI, fault: str, message: str) -> None:
    plant(app, fault)
    with pytest.raises((AssertionError, BaseExceptionGroup), match=message):
        fuzz(app, "/planted")
