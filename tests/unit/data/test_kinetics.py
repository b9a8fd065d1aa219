"""Kinetics' CSV lists: which file a line means under the usual names, the subsets, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.catalogs.kinetics import read_catalog
from data.errors import CatalogError

HEADER = "label,youtube_id,time_start,time_end,split\n"


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    return tmp_path / "videos"


def catalog_of(videos: Path, text: str, header: str = HEADER):
    path = videos.parent / "list.csv"
    path.write_text(header + text)
    return read_catalog(videos, path)


def put(videos: Path, name: str) -> Path:
    path = videos / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_classes_keys_groups_and_subsets_come_from_the_list(videos: Path) -> None:
    text = '"tying knot (not on a tie)",-id_1,0.0,10.0,train\ndancing,id2,5,15,validate\ndancing,id3,5,15,test\n'
    catalog = catalog_of(videos, text)
    assert catalog.classes == ("dancing", "tying knot (not on a tie)")
    assert [(e.key, e.label, e.group) for e in catalog.entries] == [
        ("dancing/id2_000005_000015", 0, "id2"),
        ("dancing/id3_000005_000015", 0, "id3"),
        ("tying knot (not on a tie)/-id_1_000000_000010", 1, "-id_1"),
    ]
    assert {name: len(keys) for name, keys in catalog.subsets.items()} == {"train01": 1, "val01": 1, "test01": 1}


@pytest.mark.parametrize(
    "name",
    [
        "ice skating/abc_000003_000013.mp4",
        "ice_skating/abc_000003_000013.mkv",
        "train/ice skating/abc_000003_000013.mp4",
        "train/ice_skating/abc_3_13.webm",
        "train/abc_000003_000013.mp4",
        "abc_000003_000013.mp4",
        "ice skating/abc.mp4",
    ],
)
def test_a_video_is_found_under_every_usual_name(videos: Path, name: str) -> None:
    path = put(videos, name)
    put(videos, "ice skating/other_000003_000013.mp4")
    assert [entry.file for entry in catalog_of(videos, "ice skating,abc,3,13,train\n").entries] == [path]


def test_the_full_name_goes_before_the_bare_id(videos: Path) -> None:
    put(videos, "run/abc.mp4")
    exact = put(videos, "run/abc_000003_000013.mp4")
    assert catalog_of(videos, "run,abc,3,13,train\n").entries[0].file == exact


def test_an_absent_video_keeps_its_entry_for_ingest_to_report(videos: Path) -> None:
    assert catalog_of(videos, "run,gone,3,13,train\n").entries[0].file == videos / "run/gone_000003_000013.mp4"


def test_two_clips_of_one_source_video_share_their_group(videos: Path) -> None:
    assert [e.group for e in catalog_of(videos, "run,abc,3,13,train\nrun,abc,20,30,train\n").entries] == ["abc"] * 2


def test_without_labelled_test_rows_the_validation_list_is_tested_on(videos: Path) -> None:
    catalog = catalog_of(videos, "run,a,0,10,train\nrun,b,0,10,val\n,c,0,10,test\n")
    assert catalog.subsets["test01"] == catalog.subsets["val01"] == ("run/b_000000_000010",)
    assert catalog.warnings == ("1 listed videos have no label and are left out",)


def test_files_of_a_folder_name_the_split_where_no_column_does(videos: Path, tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.csv").write_bytes(b"\xef\xbb\xbflabel,youtube_id,time_start,time_end\r\nrun,a,0,10\r\n")
    (lists / "validate.csv").write_text("youtube_id,label,time_end,time_start\nb,run,10,0\n")
    subsets = read_catalog(videos, lists).subsets
    assert subsets["train01"] == ("run/a_000000_000010",)
    assert subsets["val01"] == ("run/b_000000_000010",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run,../a,0,10,train\n", "a label and a YouTube id were expected"),
        ("a/b,abc,0,10,train\n", "a label and a YouTube id were expected"),
        ("run,abc,10,0,train\n", "line 2: time_start and a later time_end"),
        ("run,abc,x,10,train\n", "got 'x' and '10'"),
        ("run,abc,nan,inf,train\n", "got 'nan' and 'inf'"),
        ("run,abc,0,10,dev\n", "split must be one of train, validate, val, test, got 'dev'"),
        ("run,abc,0,10,train\nrun,abc,0,10,train\n", "lists run/abc_000000_000010 twice"),
        ("run,abc,0,10,train\nrun,abc,0,10,val\n", "run/abc_000000_000010 is in both train01 and val01"),
        ("run,abc,0,10,train\nrun,abc,0,10,test\n", "run/abc_000000_000010 is in both train01 and test01"),
        (",abc,0,10,test\n", "lists no video with a label"),
        ("run,abc,3\n", "split must be one of"),
    ],
)
def test_lines_that_break_the_layout_are_refused(videos: Path, text: str, message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        catalog_of(videos, text)


def test_an_absent_column_and_an_empty_folder_are_named(videos: Path) -> None:
    with pytest.raises(CatalogError, match="has no column youtube_id"):
        catalog_of(videos, "run,1\n", header="label,id\n")
    with pytest.raises(CatalogError, match=r"list\.csv, after line 0: it is not CSV"):
        catalog_of(videos, "", header='"' + "x" * 200_000)
    with pytest.raises(CatalogError, match="holds no CSV file"):
        read_catalog(videos, videos)
