"""The HMDB51 layout: what is read from folders and lists, groups by film, and what is refused or warned of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data.catalogs.hmdb51 import group_of, read_catalog
from data.errors import CatalogError

ODD = "#20_Rhythm(HQ) & 'x'_brush_hair_u_nm_np1_ba_goo_0.avi"
PLAIN = "April_09_brush_hair_u_nm_np1_ba_goo_1.avi"
FALL = "April_09_fall_floor_f_cm_np1_le_bad_2.avi"
NOT_UTF8 = os.fsdecode(b"caf\xe9_fall_floor_f_cm_np2_fr_med_3.avi")


class Layout:
    """Folders and lists with empty files: the catalog does not look inside."""

    def __init__(self, root: Path) -> None:
        self.videos, self.lists = root / "videos", root / "lists"
        self.lists.mkdir()
        for name in (ODD, PLAIN):
            self.video("brush_hair", name)
        for name in (FALL, NOT_UTF8):
            self.video("fall_floor", name)
        self.write("brush_hair", 1, f"{PLAIN} 1 \n{ODD} 2 \n")
        self.write("fall_floor", 1, f"{FALL} 2\n{NOT_UTF8} 1\n")

    def video(self, class_name: str, name: str) -> None:
        path = self.videos / class_name / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def write(self, class_name: str, split: int, text: str) -> None:
        (self.lists / f"{class_name}_test_split{split}.txt").write_bytes(text.encode("utf-8", "surrogateescape"))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def test_reads_classes_with_underscores_entries_and_subsets_as_written(layout: Layout) -> None:
    catalog = read_catalog(layout.videos, layout.lists)
    assert catalog.classes == ("brush_hair", "fall_floor")
    assert {entry.key: (entry.label, entry.group, entry.file) for entry in catalog.entries} == {
        f"brush_hair/{ODD[:-4]}": (0, "#20_Rhythm(HQ) & 'x'", layout.videos / "brush_hair" / ODD),
        f"brush_hair/{PLAIN[:-4]}": (0, "April_09", layout.videos / "brush_hair" / PLAIN),
        f"fall_floor/{FALL[:-4]}": (1, "April_09", layout.videos / "fall_floor" / FALL),
        f"fall_floor/{NOT_UTF8[:-4]}": (1, os.fsdecode(b"caf\xe9"), layout.videos / "fall_floor" / NOT_UTF8),
    }
    assert catalog.subsets == {
        "train01": (f"brush_hair/{PLAIN[:-4]}", f"fall_floor/{NOT_UTF8[:-4]}"),
        "test01": (f"brush_hair/{ODD[:-4]}", f"fall_floor/{FALL[:-4]}"),
    }
    assert all(entry.file.is_file() for entry in catalog.entries)


@pytest.mark.parametrize(
    ("stem", "class_name", "group"),
    [
        ("Veoh_Alpha_Dog_1_walk_f_cm_np1_le_bad_29", "walk", "Veoh_Alpha_Dog_1"),
        ("Film_shoot_ball_u_nm_np2_ri_med_0", "shoot_ball", "Film"),
        ("Film_run_u_nm_np2_ri_med_0", "walk", "Film_run"),  # the action in the name is not the folder's
        ("walk_f_cm_np1_le_bad_2", "walk", "walk"),
        ("no_tags_walk", "walk", "no_tags_walk"),
        ("Film_walk_f_cm_np1_le_bad", "walk", "Film_walk_f_cm_np1_le_bad"),
    ],
)
def test_the_group_is_the_film_and_a_name_without_the_tags_stands_alone(stem: str, class_name: str, group: str) -> None:
    assert group_of(stem, class_name) == group


def test_videos_that_no_split_uses_are_left_out(layout: Layout) -> None:
    layout.write("brush_hair", 1, f"{PLAIN} 1\n{ODD} 0\n")
    catalog = read_catalog(layout.videos, layout.lists)
    assert f"brush_hair/{ODD[:-4]}" not in {entry.key for entry in catalog.entries}


def test_a_video_may_be_on_another_side_in_every_split(layout: Layout) -> None:
    for name, first, second in (("brush_hair", PLAIN, ODD), ("fall_floor", FALL, NOT_UTF8)):
        layout.write(name, 3, f"{first} 2\n{second} 0\n")
    subsets = read_catalog(layout.videos, layout.lists).subsets
    assert tuple(subsets) == ("train01", "test01", "train03", "test03")
    assert subsets["train03"] == ()
    assert subsets["test03"] == (f"brush_hair/{PLAIN[:-4]}", f"fall_floor/{FALL[:-4]}")


def test_an_absent_file_keeps_its_entry_and_another_extension_takes_its_place(layout: Layout) -> None:
    layout.write("brush_hair", 1, "gone.avi 1\nother.avi 2\n")
    layout.video("brush_hair", "other.mp4")
    files = {entry.key: entry.file.name for entry in read_catalog(layout.videos, layout.lists).entries}
    assert files["brush_hair/gone"] == "gone.avi"
    assert files["brush_hair/other"] == "other.mp4"


def test_seventy_to_thirty_gives_no_warning_and_other_numbers_one_for_the_split(layout: Layout) -> None:
    full = "".join(f"v{i}.avi {1 if i < 70 else 2}\n" for i in range(100)) + "v100.avi 0\n"
    layout.write("brush_hair", 1, full)
    layout.write("fall_floor", 1, full)
    assert read_catalog(layout.videos, layout.lists).warnings == ()
    layout.write("fall_floor", 1, full.replace("v3.avi 1", "v3.avi 2"))
    (warning,) = read_catalog(layout.videos, layout.lists).warnings
    assert warning.startswith("split 1: HMDB51 lists 70 training and 30 test videos of each class, here 1 of 2 ")
    assert warning.endswith("fall_floor 69/31")


def test_folders_that_no_list_names_are_reported(layout: Layout) -> None:
    layout.video("dance", "a.avi")
    assert "no list names the folders dance" in read_catalog(layout.videos, layout.lists).warnings[-1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.avi\n", "line 1: 'name.avi' and 0, 1 or 2 were expected, got 'a.avi'"),
        ("a.avi 3\n", "0, 1 or 2 were expected"),
        ("../a.avi 1\n", "a file name without a folder was expected"),
        ("a.avi 1\n\na.avi 2\n", "lists a.avi twice"),
        ("a.avi 1\na.mp4 1\n", "lists fall_floor/a twice|have the same name"),
    ],
)
def test_lists_that_break_the_layout_are_refused(layout: Layout, text: str, message: str) -> None:
    layout.write("fall_floor", 1, text)
    with pytest.raises(CatalogError, match=message):
        read_catalog(layout.videos, layout.lists)


def test_one_file_under_two_names_is_not_on_both_sides(layout: Layout) -> None:
    layout.video("fall_floor", "a.avi")
    layout.write("fall_floor", 1, "a.avi 1\na.mp4 2\n")
    with pytest.raises(CatalogError, match="fall_floor/a is in both train01 and test01"):
        read_catalog(layout.videos, layout.lists)


def test_absent_folders_and_lists_are_named(layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"no folder .*nowhere"):
        read_catalog(tmp_path / "nowhere", layout.lists)
    layout.write("brush_hair", 2, f"{PLAIN} 1\n")
    with pytest.raises(CatalogError, match=r"has no fall_floor_test_split2\.txt, which other classes have"):
        read_catalog(layout.videos, layout.lists)
    with pytest.raises(CatalogError, match="name the folder of the official lists"):
        read_catalog(layout.videos, layout.videos)
