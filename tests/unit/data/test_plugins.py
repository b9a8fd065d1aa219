"""Plug-ins by name: what is found, and above all what is never imported."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.errors import DataError
from data.plugins import PluginError, PluginNotAllowed, PluginNotFound, is_plugin_name, resolve

MODULE = "preceptor_test_plugin"
NAME = f"{MODULE}:make"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An importable module that leaves a file when it is imported."""
    path = tmp_path / f"{MODULE}.py"
    path.write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'imported')!r}).touch()\n"
        "def make(): return 7\nclass Box:\n    @staticmethod\n    def inner(): return 8\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    monkeypatch.delenv("PRECEPTOR_PLUGINS", raising=False)
    yield path
    sys.modules.pop(MODULE, None)


def declare(folder: Path, package: str, lines: str, group: str = "architectures") -> None:
    """Installs the metadata of a package that declares entry points."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[preceptor.{group}]\n{lines}\n")


def was_imported(module: Path) -> bool:
    return (module.parent / "imported").exists()


def test_a_typed_module_and_function_is_imported(module: Path) -> None:
    assert resolve("losses", NAME, trusted=True)() == 7
    assert was_imported(module)


@pytest.mark.usefixtures("module")
def test_attributes_are_followed_to_any_depth() -> None:
    assert resolve("losses", f"{MODULE}:Box.inner", trusted=True)() == 8


def test_a_name_from_a_file_is_not_imported(module: Path) -> None:
    with pytest.raises(PluginNotAllowed, match=f"start every process with PRECEPTOR_PLUGINS={NAME}"):
        resolve("architectures", NAME, trusted=False)
    assert not was_imported(module)


@pytest.mark.usefixtures("module")
def test_a_name_from_a_file_is_imported_when_the_environment_lists_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEPTOR_PLUGINS", f"other:thing, {NAME}")
    assert resolve("architectures", NAME, trusted=False)() == 7


@pytest.mark.parametrize("listed", [MODULE, f"{MODULE}:", f"{NAME}x", f"{MODULE}:Box", "", "*"])
def test_only_the_whole_name_in_the_environment_counts(
    module: Path, monkeypatch: pytest.MonkeyPatch, listed: str
) -> None:
    monkeypatch.setenv("PRECEPTOR_PLUGINS", listed)
    with pytest.raises(PluginNotAllowed):
        resolve("architectures", NAME, trusted=False)
    assert not was_imported(module)


@pytest.mark.parametrize("name", ["mine", NAME])
def test_what_an_installed_package_declares_is_imported_from_a_file_too(module: Path, name: str) -> None:
    declare(module.parent, "mine", f"mine = {NAME}")
    assert resolve("architectures", name, trusted=False)() == 7


def test_a_declaration_of_another_kind_does_not_count(module: Path) -> None:
    declare(module.parent, "mine", f"mine = {NAME}", group="losses")
    with pytest.raises(PluginNotFound, match=r"no installed package declares it in the group preceptor\.architectures"):
        resolve("architectures", "mine", trusted=False)
    with pytest.raises(PluginNotAllowed):
        resolve("architectures", NAME, trusted=False)
    assert not was_imported(module)


def test_two_packages_that_declare_one_name_differently_are_refused(module: Path) -> None:
    declare(module.parent, "one", f"mine = {NAME}")
    declare(module.parent, "two", f"mine = {MODULE}:Box")
    with pytest.raises(PluginError, match="several packages declare it"):
        resolve("architectures", "mine", trusted=True)
    assert not was_imported(module)


@pytest.mark.parametrize(
    "name", ["", "os.system", "os:", ":x", "a b:c", "../x:y", "os:sys tem", "a:b:c", "é:x", NAME + "\n"]
)
def test_what_is_no_name_is_refused_even_when_typed(name: str) -> None:
    assert not is_plugin_name("losses", name)
    with pytest.raises(PluginNotFound, match="write module:function"):
        resolve("losses", name, trusted=True)


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{MODULE}:nothing", f"module {MODULE} has no nothing"),
        ("no_such_module_here:make", "importing no_such_module_here failed with ModuleNotFoundError"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is_missing(name: str, message: str) -> None:
    with pytest.raises(PluginNotFound, match=message):
        resolve("losses", name, trusted=True)


def test_a_module_that_fails_is_told_in_one_error_with_its_cause(module: Path) -> None:
    module.write_text("raise RuntimeError('no licence')\n")
    with pytest.raises(PluginNotFound, match="RuntimeError: no licence") as caught:
        resolve("losses", NAME, trusted=True)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_name_can_be_judged_without_importing_it(module: Path) -> None:
    declare(module.parent, "mine", f"mine = {NAME}")
    assert is_plugin_name("architectures", NAME)
    assert is_plugin_name("architectures", "mine")
    assert not is_plugin_name("architectures", "yours")
    assert not was_imported(module)


def test_errors_keep_their_text_between_processes() -> None:
    error = PluginNotAllowed("losses", "a:b", "because")
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), str(copied)) == (PluginNotAllowed, "plug-in 'a:b' (losses): because")
    assert isinstance(copied, DataError)
