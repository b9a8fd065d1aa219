"""Made-up cells for the tables, claims and pages."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def made_up():
    """Builders of cells with known means: see made_up.py."""
    path = Path(__file__).with_name("made_up.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
