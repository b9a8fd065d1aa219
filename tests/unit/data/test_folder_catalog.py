"""A plain folder for each class: what is taken, how it is split, and what is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.catalogs.folder import read_catalog
from data.errors import CatalogError


def fill(folder: Path, sizes: dict[str, int]) -> Path:
    for name, size in sizes.items():
        (folder / name).mkdir(parents=True)
        for i in range(size):
            (folder / name / f"clip {i}.mp4").touch()
    return folder


def test_every_file_is_a_video_of_its_folders_class_and_a_group_of_its_own(tmp_path: Path) -> None:
    catalog = read_catalog(fill(tmp_path, {"run": 3, "jump up": 2}))
    assert catalog.classes == ("jump up", "run")
    assert [(e.key, e.label, e.group) for e in catalog.entries[:2]] == [
        ("jump up/clip 0.mp4", 0, "jump up/clip 0.mp4"),
        ("jump up/clip 1.mp4", 0, "jump up/clip 1.mp4"),
    ]
    assert len({entry.group for entry in catalog.entries}) == 5
    assert catalog.warnings == ()


def test_each_class_is_split_by_its_share_and_every_video_is_on_one_side(tmp_path: Path) -> None:
    catalog = read_catalog(fill(tmp_path, {"a": 10, "b": 5, "c": 2}), test_percent=30)
    train, test = (catalog.subsets[name] for name in ("train01", "test01"))
    assert sorted((*train, *test)) == sorted(entry.key for entry in catalog.entries)
    assert [sum(key.startswith(f"{name}/") for key in test) for name in "abc"] == [3, 2, 1]


def test_the_split_depends_on_the_seed_and_on_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path / "one", {"a": 12, "b": 12})
    fill(tmp_path / "two", {"a": 12})
    splits = [read_catalog(tmp_path / "one", seed=seed).subsets["test01"] for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    assert read_catalog(tmp_path / "two").subsets["test01"] == tuple(k for k in splits[0] if k.startswith("a/"))


def test_a_class_with_one_video_is_trained_on_and_reported(tmp_path: Path) -> None:
    catalog = read_catalog(fill(tmp_path, {"a": 1, "b": 4}))
    assert "a/clip 0.mp4" in catalog.subsets["train01"]
    assert catalog.warnings == ("classes with a single video have none to test on: 'a'",)


def test_train_and_test_folders_are_the_split(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"a": 3, "b": 1})
    fill(tmp_path / "test", {"a": 1, "c": 1})
    catalog = read_catalog(tmp_path)
    assert catalog.classes == ("a", "b", "c")
    assert catalog.subsets["test01"] == ("test/a/clip 0.mp4", "test/c/clip 0.mp4")
    assert len(catalog.subsets["train01"]) == 4
    assert {entry.key: entry.label for entry in catalog.entries}["test/c/clip 0.mp4"] == 2
    assert catalog.warnings == ("classes without a training video: 'c'",)


def test_a_class_named_train_alone_is_a_class(tmp_path: Path) -> None:
    assert read_catalog(fill(tmp_path, {"train": 2, "car": 2})).classes == ("car", "train")


def test_what_is_not_read_is_named_and_hidden_things_are_not(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 2, "a/deeper": 1})
    fill(tmp_path, {"broken\nclass": 1})
    for name in ("notes.txt", ".DS_Store", "a/.hidden", "a/two\nlines.avi"):
        (tmp_path / name).touch()
    catalog = read_catalog(tmp_path)
    assert catalog.classes == ("a",)
    (warning,) = catalog.warnings
    assert "broken\\nclass" in warning
    assert "notes.txt" in warning
    assert "a/deeper" in warning
    assert "two\\nlines" in warning
    assert "hidden" not in warning


def test_empty_and_absent_folders_and_bad_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="holds no folder with videos"):
        read_catalog(tmp_path)
    with pytest.raises(CatalogError, match="there is no folder"):
        read_catalog(tmp_path / "nowhere")
    fill(tmp_path, {"a": 2})
    for bad in (0.0, 100.0, float("nan")):
        with pytest.raises(CatalogError, match=f"got {bad}"):
            read_catalog(tmp_path, test_percent=bad)
