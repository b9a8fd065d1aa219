"""The built-in data set as a store: made once, kept, and never made anew over a damaged one."""

import pytest

from data.demo_store import FRAME_SIZE, is_store, main, make_demo_store
from data.errors import DataError, StoreDamaged
from data.store import ClipStore


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PRECEPTOR_HOME", str(tmp_path))
    return tmp_path


def test_the_set_is_drawn_ingested_and_then_kept(home, capsys):
    assert not is_store(home / "stores" / "tiny")
    path = make_demo_store("tiny")
    assert path == home / "stores" / "tiny"
    store = ClipStore.open(path)
    assert (store.frame_size, store.verify(), store.skipped) == (FRAME_SIZE, [], ())
    assert {"train01", "test01"} <= set(store.subsets)
    groups = {name: {store.groups[row] for row in store.subset(name)} for name in ("train01", "test01")}
    assert not groups["train01"] & groups["test01"]
    assert len(list((home / "datasets" / "tiny" / "videos").glob("*/*"))) == len(store)
    assert store.fingerprint[:12] in capsys.readouterr().out

    manifest = next(path.glob("manifest-*.json"))
    written = manifest.stat().st_mtime_ns
    main("tiny")
    assert manifest.stat().st_mtime_ns == written
    assert capsys.readouterr().out.endswith("stores/tiny is there already\n")

    manifest.write_text("{")
    with pytest.raises(StoreDamaged):
        make_demo_store("tiny")
    with pytest.raises(SystemExit, match=r"^error: clip store "):
        main("tiny")
    assert manifest.read_text() == "{"


def test_the_second_set_has_three_splits_films_for_groups_and_clips_of_several_lengths(home):
    store = ClipStore.open(make_demo_store("tiny2"))
    assert store.path == home / "stores" / "tiny2"
    assert (store.frame_size, store.verify(), store.skipped) == (FRAME_SIZE, [], ())
    assert set(store.subsets) == {"train01", "test01", "train02", "test02", "train03", "test03"}
    for split in ("01", "02", "03"):
        groups = [{store.groups[row] for row in store.subset(part + split)} for part in ("train", "test")]
        assert not groups[0] & groups[1]
        assert {*store.labels[store.subset("test" + split)].tolist()} == set(range(len(store.classes)))
    assert len(set(store.videos.num_frames.tolist())) > 1
    assert store.videos.num_frames.min() >= 64  # a tuple of every preset fits


@pytest.mark.usefixtures("home")
def test_a_size_that_is_none_is_refused_with_those_that_are():
    with pytest.raises(DataError, match="no built-in data set 'huge': choose one of tiny, demo, full, tiny2"):
        make_demo_store("huge")
