"""The UCF101 layout: what is read from folders and lists, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.catalogs.ucf101 import read_catalog
from data.errors import CatalogError


class Layout:
    """Folders and lists with empty files: the catalog does not look inside."""

    def __init__(self, root: Path) -> None:
        self.videos = root / "videos"
        self.lists = root / "lists"
        self.lists.mkdir()
        for name in (
            "Bow/v_Bow_g01_c01.avi",
            "Bow/v_Bow_g02_c01.avi",
            "HandstandPushups/v_HandStandPushups_g03_c02.avi",
        ):
            self.video(name)
        self.write("classInd.txt", "1 Bow\n2 HandstandPushups\n")
        self.write("trainlist01.txt", "Bow/v_Bow_g02_c01.avi 1\nHandstandPushups/v_HandStandPushups_g03_c02.avi 2\n")
        self.write("testlist01.txt", "Bow/v_Bow_g01_c01.avi\n")

    def video(self, name: str) -> None:
        path = self.videos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def write(self, name: str, text: str) -> None:
        (self.lists / name).write_bytes(text.encode())


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def test_reads_classes_entries_and_subsets_as_written(layout: Layout) -> None:
    catalog = read_catalog(layout.videos, layout.lists)
    assert catalog.classes == ("Bow", "HandstandPushups")
    assert [(e.key, e.label, e.group) for e in catalog.entries] == [
        ("Bow/v_Bow_g01_c01", 0, "g01"),
        ("Bow/v_Bow_g02_c01", 0, "g02"),
        ("HandstandPushups/v_HandStandPushups_g03_c02", 1, "g03"),
    ]
    assert catalog.entries[2].file == layout.videos / "HandstandPushups/v_HandStandPushups_g03_c02.avi"
    assert catalog.subsets == {
        "train01": ("Bow/v_Bow_g02_c01", "HandstandPushups/v_HandStandPushups_g03_c02"),
        "test01": ("Bow/v_Bow_g01_c01",),
    }


def test_the_label_comes_from_the_folder_not_from_the_file_name(layout: Layout) -> None:
    layout.video("HandstandPushups/v_Bow_g09_c01.avi")
    layout.write("testlist01.txt", "HandstandPushups/v_Bow_g09_c01.avi\n")
    entry = next(e for e in read_catalog(layout.videos, layout.lists).entries if e.group == "g09")
    assert entry.label == 1


def test_carriage_returns_blank_lines_and_a_byte_order_mark_do_not_matter(layout: Layout) -> None:
    plain = read_catalog(layout.videos, layout.lists)
    for path in list(layout.lists.iterdir()):
        text = path.read_text()
        path.write_bytes(b"\xef\xbb\xbf" + b"\r\n" + text.replace("\n", "\r\n\r\n").encode() + b"  \r\n")
    assert read_catalog(layout.videos, layout.lists) == plain


def test_every_split_that_exists_becomes_two_subsets(layout: Layout) -> None:
    layout.write("trainlist03.txt", "Bow/v_Bow_g01_c01.avi 1\n")
    layout.write("testlist03.txt", "Bow/v_Bow_g02_c01.avi\n")
    assert tuple(read_catalog(layout.videos, layout.lists).subsets) == ("train01", "test01", "train03", "test03")


def test_videos_in_no_list_are_left_out(layout: Layout) -> None:
    layout.video("Bow/v_Bow_g07_c01.avi")
    assert "Bow/v_Bow_g07_c01" not in {e.key for e in read_catalog(layout.videos, layout.lists).entries}


def test_an_absent_file_keeps_its_entry_for_ingest_to_report(layout: Layout) -> None:
    layout.write("testlist01.txt", "Bow/v_Bow_g01_c01.avi\nBow/v_Bow_g08_c01.avi\n")
    files = [e.file for e in read_catalog(layout.videos, layout.lists).entries if e.group == "g08"]
    assert files == [layout.videos / "Bow/v_Bow_g08_c01.avi"]


def test_another_extension_takes_the_place_of_an_absent_file(layout: Layout) -> None:
    layout.video("Bow/v_Bow_g08_c01.mp4")
    layout.write("testlist01.txt", "Bow/v_Bow_g08_c01.avi\n")
    files = [e.file for e in read_catalog(layout.videos, layout.lists).entries if e.group == "g08"]
    assert files == [layout.videos / "Bow/v_Bow_g08_c01.mp4"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("classInd.txt", "", "lists no class"),
        ("classInd.txt", "1 Bow\n3 HandstandPushups\n", r"line 2: '2 ClassName' was expected"),
        ("classInd.txt", "1 Bow\n2 Bow\n", "listed twice"),
        ("classInd.txt", "1 ..\n2 Bow\n", "no folder name"),
        ("trainlist01.txt", "Kick/v_Kick_g01_c01.avi 1\n", "class 'Kick' is not in classInd.txt"),
        ("trainlist01.txt", "Bow/v_Bow_g02_c01.avi 2\n", "Bow has number 2 here and 1 in classInd.txt"),
        ("trainlist01.txt", "Bow/v_Bow_g02_c01.avi 1\nBow/v_Bow_g02_c01.avi 1\n", "lists Bow/v_Bow_g02_c01 twice"),
        ("trainlist01.txt", "Bow/v_Bow_g01_c01.avi 1\n", "is in both train01 and test01"),
        ("trainlist01.txt", "Bow/bow.avi 1\n", "ends in _gNN_cNN was expected"),
        ("testlist01.txt", "v_Bow_g01_c01.avi\n", "'Class/file' was expected"),
        ("testlist01.txt", "../Bow/v_Bow_g01_c01.avi\n", "'Class/file' was expected"),
        ("testlist01.txt", "../v_Bow_g01_c01.avi\n", "'Class/file' was expected"),
        ("testlist01.txt", "/v_Bow_g01_c01.avi\n", "'Class/file' was expected"),
        ("testlist01.txt", "Bow/..\\v_Bow_g01_c01.avi\n", "'Class/file' was expected"),
    ],
)
def test_lists_that_break_the_layout_are_refused_with_their_place(
    layout: Layout, file: str, text: str, message: str
) -> None:
    layout.write(file, text)
    with pytest.raises(CatalogError, match=message):
        read_catalog(layout.videos, layout.lists)


def test_absent_folders_and_lists_are_named(layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"no folder .*nowhere"):
        read_catalog(tmp_path / "nowhere", layout.lists)
    with pytest.raises(CatalogError, match=r"no folder .*nowhere"):
        read_catalog(layout.videos, tmp_path / "nowhere")
    (layout.lists / "testlist01.txt").unlink()
    with pytest.raises(CatalogError, match=r"trainlist01.txt but no testlist01.txt"):
        read_catalog(layout.videos, layout.lists)
    (layout.lists / "trainlist01.txt").unlink()
    with pytest.raises(CatalogError, match=r"has no trainlist01\.txt"):
        read_catalog(layout.videos, layout.lists)
    (layout.lists / "classInd.txt").unlink()
    with pytest.raises(CatalogError, match=r"classInd\.txt cannot be read"):
        read_catalog(layout.videos, layout.lists)
