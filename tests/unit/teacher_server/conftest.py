"""A tiny library of random teachers and a tiny store, made once per test run; see tiny.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from data.store import ClipStore
from teacher_server import library as library_module
from teacher_server.library import TeacherLibrary


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The builders."""
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def library(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> TeacherLibrary:
    """alpha@1, alpha@2, beta@1, gamma@1. Tests must not change it."""
    return tiny.build_library(tmp_path_factory.mktemp("library"), tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def store(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    """Six videos."""
    return tiny.build_store(tmp_path_factory.mktemp("stores") / "tiny")


@pytest.fixture
def no_bundled(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package brings no teachers of its own."""
    monkeypatch.setattr(library_module, "BUNDLED", tmp_path_factory.mktemp("bundled"))
