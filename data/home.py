"""Where everything that lasts lies: PRECEPTOR_HOME with datasets/, stores/, teachers/, ledgers/, runs/, evaluations/,
scrape/."""

from __future__ import annotations

import os
from pathlib import Path

from data.errors import DataError

VARIABLE = "PRECEPTOR_HOME"
_UPLOADED_COPY = "runtime_resources"  # Ray unpacks a job's --working-dir below a folder of this name


class HomeError(DataError):
    """PRECEPTOR_HOME is not set, or not usable."""


def home() -> Path:
    """The folder that PRECEPTOR_HOME names, else `var` in the checkout that the program was started in.

    Raises HomeError outside a checkout, and in the uploaded copy of one that a cluster deletes after the job.
    """
    value = os.environ.get(VARIABLE)
    if value:
        if not os.path.isabs(value):
            raise HomeError(f"{VARIABLE} must be an absolute path, got {value!r}: workers run in other folders")
        return Path(value)
    here = Path.cwd()
    if _UPLOADED_COPY in here.parts:
        raise HomeError(
            f"this job runs in an uploaded copy that is deleted afterwards: name a lasting folder, as in "
            f'ray job submit --working-dir . --runtime-env-json \'{{"env_vars": {{"{VARIABLE}": "/path"}}}}\' -- ...'
        )
    if not (here / "trainer" / "run.py").is_file():
        raise HomeError(f"{here} is no Preceptor checkout: go to one, or set {VARIABLE} to an absolute path")
    return here / "var"


def stores_folder() -> Path:
    """Clip stores, by name."""
    return home() / "stores"


def teachers_folder() -> Path:
    """The teacher library and the roster's file."""
    return home() / "teachers"


def ledgers_folder() -> Path:
    """Recorded answers, a ledger per teacher digest."""
    return home() / "ledgers"


def runs_folder() -> Path:
    """A folder per training run."""
    return home() / "runs"


def evaluations_folder() -> Path:
    """Results of `preceptor eval`, a folder per weights digest."""
    return home() / "evaluations"


def store_path(name: str) -> Path:
    """The store that a user means: a bare name lies under stores_folder(), anything with a separator is a path."""
    if os.sep in name or name.startswith("."):
        return Path(name).absolute()
    return stores_folder() / name
