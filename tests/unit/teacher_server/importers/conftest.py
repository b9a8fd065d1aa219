"""Builders of foreign checkpoints; see foreign.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def foreign() -> ModuleType:
    """The builders."""
    spec = importlib.util.spec_from_file_location("foreign", Path(__file__).with_name("foreign.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Where a test may write one."""
    return tmp_path / "best.pth"
