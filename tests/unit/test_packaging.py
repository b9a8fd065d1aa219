"""The distribution owns its four packages; light modules stay light; the lock names every dependency and no host."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("data", "teacher_server", "trainer", "services")
HEAVY = ("torch", "ray", "fastapi")
LIGHT_NAMES = ("config", "protocol", "types", "errors")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def light_modules():
    """Dotted names of all modules that promise to be light."""
    files = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py") if file.stem in LIGHT_NAMES)
    return sorted(".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files)


def python(*argv):
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)


@pytest.mark.parametrize("package", PACKAGES)
def test_an_import_name_belongs_to_this_distribution_only(package):
    assert set(importlib.metadata.packages_distributions()[package]) == {"preceptor"}


def test_every_package_is_listed_for_the_build():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for package in PACKAGES
        for file in (ROOT / package).rglob("__init__.py")
    }
    assert set(listed) == there


def test_light_modules_import_nothing_heavy():
    names = light_modules()
    assert {"data.errors", "teacher_server.errors", "teacher_server.protocol", "trainer.config"} <= set(names)
    code = f"import sys, {', '.join(names)}; print(sorted(sys.modules.keys() & set({HEAVY!r})))"
    done = python("-c", code)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_check_for_heavy_modules_sees_one():
    done = python("-c", f"import sys, fastapi; print(sorted(sys.modules.keys() & set({HEAVY!r})))")
    assert done.stdout.strip() == "['fastapi']"


def test_the_help_of_the_training_command_is_light():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['trainer/run.py', '--help']\n"
        "try:\n"
        "    runpy.run_path('trainer/run.py', run_name='__main__')\n"
        "except SystemExit as error:\n"
        f"    print(error.code, sorted(sys.modules.keys() & set({HEAVY!r})))\n"
    )
    done = python("-c", code)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert "--teacher-budget-s" in done.stdout
    assert "usage: python trainer/run.py" in done.stdout


def normal(name):
    """A distribution's name as the index compares names (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def locked():
    """name -> version."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    entries = [line for line in lines if line and not line.startswith("#")]
    pins = [re.fullmatch(r"([A-Za-z0-9._-]+)(\[[a-z,]+\])?==([A-Za-z0-9.+!]+)( ; .+)?", entry) for entry in entries]
    assert [entry for entry, pin in zip(entries, pins, strict=True) if pin is None] == []
    return {normal(pin[1]): pin[3] for pin in pins}


def test_the_lock_names_no_host_and_no_path():
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|--(index|extra-index|find-links|trusted-host)|file:|\s@\s", text)


def test_the_lock_pins_every_dependency_within_its_range(locked):
    wanted = [*PROJECT["dependencies"], *(x for extra in PROJECT["optional-dependencies"].values() for x in extra)]
    for requirement in wanted:
        name, bounds = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?(.*)", requirement).groups()
        version = locked[normal(name)]
        for bound in bounds.split(","):
            assert satisfies(version, bound), f"{name}=={version} is not {bound}"


def satisfies(version, bound):
    """Only >= and < occur, with versions of numbers."""
    operator, limit = re.fullmatch(r"(>=|<)([0-9.]+)", bound).groups()
    left, right = ([int(part) for part in re.findall(r"\d+", text)] for text in (version, limit))
    return left >= right if operator == ">=" else left < right
