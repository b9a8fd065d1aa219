"""Where lasting things lie, and what is refused instead of being lost."""

from pathlib import Path

import pytest

from data.home import HomeError, home, runs_folder, store_path, stores_folder, teachers_folder


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The working directory is a checkout and PRECEPTOR_HOME is not set."""
    folder = tmp_path / "checkout"
    (folder / "trainer").mkdir(parents=True)
    (folder / "trainer" / "run.py").touch()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PRECEPTOR_HOME", raising=False)
    return folder


@pytest.mark.usefixtures("checkout")
def test_the_variable_names_the_home(monkeypatch):
    monkeypatch.setenv("PRECEPTOR_HOME", "/somewhere/else")
    assert home() == Path("/somewhere/else")
    assert stores_folder() == Path("/somewhere/else/stores")
    assert teachers_folder() == Path("/somewhere/else/teachers")
    assert runs_folder() == Path("/somewhere/else/runs")


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize("value", ["var", "./var", "~/var"])
def test_a_relative_home_is_refused_because_workers_run_elsewhere(monkeypatch, value):
    monkeypatch.setenv("PRECEPTOR_HOME", value)
    with pytest.raises(HomeError, match="must be an absolute path, got "):
        home()


@pytest.mark.parametrize("value", [None, ""])
def test_a_checkout_has_its_home_in_var_and_nothing_is_made(checkout, monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("PRECEPTOR_HOME", value)
    assert home() == checkout / "var"
    assert not (checkout / "var").exists()


def test_any_other_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PRECEPTOR_HOME", raising=False)
    with pytest.raises(HomeError, match="is no Preceptor checkout: go to one, or set PRECEPTOR_HOME"):
        home()


def test_the_uploaded_copy_of_a_job_is_refused_because_it_is_deleted(tmp_path, monkeypatch):
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    (copy / "trainer").mkdir(parents=True)
    (copy / "trainer" / "run.py").touch()
    monkeypatch.chdir(copy)
    monkeypatch.delenv("PRECEPTOR_HOME", raising=False)
    with pytest.raises(HomeError, match=r"deleted afterwards: name a lasting folder.*PRECEPTOR_HOME"):
        home()
    monkeypatch.setenv("PRECEPTOR_HOME", "/lasting")
    assert home() == Path("/lasting")


def test_a_bare_name_is_a_store_of_the_home_and_anything_else_a_path(checkout):
    assert store_path("demo") == checkout / "var" / "stores" / "demo"
    assert store_path("/data/ucf101") == Path("/data/ucf101")
    assert store_path("sub/ucf101") == checkout / "sub" / "ucf101"
    assert store_path("./ucf101") == checkout / "ucf101"
    assert store_path("..") == checkout / ".."
