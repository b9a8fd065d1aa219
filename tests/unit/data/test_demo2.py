"""The second built-in data set: HMDB51's layout, that a seed fixes every pixel, and that classes differ by motion."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from data import demo, demo2
from data.catalogs.hmdb51 import group_of, read_catalog
from data.demo2 import SIZES, Demo2Video, draw_video, films_of, is_test, make_demo2, name_of, shot_of, videos_of
from data.demo2_motions import ACTIONS
from data.demo2_pictures import HEIGHT, MAX_FRAMES, MIN_FRAMES, WIDTH, draw_frames, draw_shot, draw_sketch
from data.demo_figures import FEET, joints_of
from data.errors import CatalogError, DataError

CLASSES = [action.name for action in ACTIONS]
BY_NAME = {action.name: action for action in ACTIONS}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo2") / "set"
    make_demo2(out, "tiny2", seed=5, workers=2)
    return out


def _joints(name: str, phase: np.ndarray) -> dict[str, np.ndarray]:
    body = draw_sketch(np.random.default_rng(0)).body
    return joints_of(BY_NAME[name].pose(phase), body, len(phase))


def _file(folder: Path, seed: int, video: Demo2Video) -> Path:
    return folder / "videos" / CLASSES[video.action] / name_of(seed, video)


def _decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


# ------------------------------------------------------------------------------------------------ layout


def test_the_classes_are_others_than_the_first_sets_and_in_order() -> None:
    assert sorted(CLASSES) == CLASSES
    assert 6 <= len(CLASSES) <= 8
    assert all("_" in name for name in CLASSES)
    assert not set(CLASSES) & {action.name for action in demo.ACTIONS}


def test_the_hmdb51_catalog_reads_it_with_three_splits_and_finds_every_file(tiny: Path) -> None:
    catalog = read_catalog(tiny / "videos", tiny / "lists")
    assert catalog.classes == tuple(CLASSES)
    assert all(entry.file.is_file() for entry in catalog.entries)
    assert {entry.file for entry in catalog.entries} == {p for p in (tiny / "videos").rglob("*") if p.is_file()}
    assert {name: len(keys) for name, keys in catalog.subsets.items()} == {
        f"{part}0{split}": count * len(CLASSES) for split in (1, 2, 3) for part, count in (("train", 4), ("test", 2))
    }


def test_no_film_is_on_both_sides_of_a_split_and_films_are_groups_over_all_classes(tiny: Path) -> None:
    catalog = read_catalog(tiny / "videos", tiny / "lists")
    group = {entry.key: entry.group for entry in catalog.entries}
    for split in ("01", "02", "03"):
        sides = [{group[key] for key in catalog.subsets[part + split]} for part in ("train", "test")]
        assert not sides[0] & sides[1]
        assert list(map(len, sides)) == [4, 2]
    assert len(set(group.values())) == 6


def test_a_films_name_is_what_the_group_rule_finds() -> None:
    names = [name_of(0, Demo2Video(action, film, 1)) for action in range(len(ACTIONS)) for film in range(1, 11)]
    groups = {group_of(name.removesuffix(".avi"), CLASSES[i // 10]) for i, name in enumerate(names)}
    assert len(groups) == 10
    assert any(set(name) & set("#&'[(") for name in groups)  # characters that break naive tools


def test_full2_has_the_numbers_of_hmdb51_in_every_split() -> None:
    for split in (1, 2, 3):
        sides = [is_test("full2", split, video.film) for video in videos_of("full2") if video.action == 0]
        assert (sides.count(False), sides.count(True)) == (70, 30)


def test_smaller_sizes_are_parts_of_larger_ones_with_the_same_sides_in_split_1() -> None:
    tiny, middle, full = (set(videos_of(size)) for size in ("tiny2", "demo2", "full2"))
    assert tiny < middle < full
    for size in SIZES:
        assert [is_test(size, 1, film) for film in films_of(size)] == [film < 46 for film in films_of(size)]


# ------------------------------------------------------------------------------------------------ pixels


def test_every_file_decodes_to_the_drawn_frames_in_order(tiny: Path) -> None:
    lengths = set()
    for video in videos_of("tiny2")[::5]:
        decoded, drawn = _decode(_file(tiny, 5, video)), draw_video(5, video)
        assert decoded.shape == drawn.shape
        assert decoded.shape[1:] == (HEIGHT, WIDTH, 3)
        assert MIN_FRAMES <= len(decoded) <= MAX_FRAMES
        lengths.add(len(decoded))
        assert np.sqrt(((decoded.astype(float) - drawn) ** 2).mean()) < 12
    assert len(lengths) > 1


def test_a_video_drawn_alone_has_the_bytes_that_the_pool_wrote(tiny: Path, tmp_path: Path) -> None:
    for video in (Demo2Video(1, 46, 1), Demo2Video(7, 2, 1)):
        (tmp_path / CLASSES[video.action]).mkdir()
        demo2._write_video(tmp_path, 5, video)
        alone = tmp_path / CLASSES[video.action] / name_of(5, video)
        assert alone.read_bytes() == _file(tiny, 5, video).read_bytes()


def test_the_same_key_gives_the_same_frames_and_any_other_key_others() -> None:
    video = Demo2Video(action=2, film=3, clip=1)
    frames = draw_video(0, video)
    np.testing.assert_array_equal(frames, draw_video(0, video))
    others = [
        draw_video(1, video),
        *(draw_video(0, dataclasses.replace(video, **{field: 5})) for field in ("action", "film", "clip")),
    ]
    for other in others:
        count = min(len(frames), len(other))
        assert (other[:count] != frames[:count]).mean() > 0.2


def test_the_tags_of_a_name_tell_the_truth(tiny: Path) -> None:
    sizes: dict[str, list[float]] = {}
    for video in videos_of("tiny2"):
        path, shot = _file(tiny, 5, video), shot_of(5, video)
        assert ("_cm_" in path.name) == bool(np.ptp(shot.camera, axis=0).max() > 0)
        assert ("_fr_" in path.name) == (abs(shot.yaw) < 30)
        sizes.setdefault(path.stem.split("_")[-2], []).append(path.stat().st_size / len(shot.phase))
    means = {tag: float(np.mean(values)) for tag, values in sizes.items()}
    assert means["bad"] < means["med"] < means["goo"]


@pytest.mark.parametrize("name", CLASSES)
def test_the_figure_stands_in_the_picture_and_moves(name: str) -> None:
    rng = np.random.default_rng(3)
    sketch, shot = draw_sketch(rng), draw_shot(rng, BY_NAME[name])
    plain = dataclasses.replace(sketch, canvas=np.full_like(sketch.canvas, 128))
    frames = draw_frames(BY_NAME[name], plain, shot)
    figure = np.abs(frames.astype(int) - 128).max(axis=-1) > 8
    rows, columns = np.flatnonzero(figure.any(axis=(0, 2))), np.flatnonzero(figure.any(axis=(0, 1)))
    assert np.ptp(rows) > 0.5 * HEIGHT
    assert columns[0] > 0
    assert columns[-1] < WIDTH - 1
    assert 0.002 < (figure[1:] != figure[:-1]).mean() < 0.2


# ------------------------------------------------------------------------------------------------ motion


def test_the_two_crawls_are_each_other_backwards_in_time() -> None:
    phase = np.linspace(0, 2 * np.pi, 25)
    front, back = _joints("crawl_front", phase), _joints("crawl_back", phase)
    for joint, points in back.items():
        np.testing.assert_allclose(points[::-1], front[joint], atol=1e-12)
    top = np.argmax(front["hand_r"][:24, 1])  # over the top the hand goes forwards, towards +z
    assert front["hand_r"][top + 1, 2] > front["hand_r"][top - 1, 2]


def test_the_lower_foot_is_on_the_ground_unless_the_figure_jumps() -> None:
    phase = np.linspace(0, 2 * np.pi, 40)
    for action in ACTIONS:
        joints = _joints(action.name, phase)
        lowest = np.min([joints[foot][:, 1] for foot in FEET], axis=0)
        np.testing.assert_allclose(lowest, np.broadcast_to(action.pose(phase).lift, phase.shape), atol=1e-12)


def test_a_nearest_neighbour_on_how_the_joints_move_tells_all_classes_apart() -> None:
    """Velocities of the joints over a cycle, from any phase: the class is in the motion, whoever moves."""
    phase = np.linspace(0, 2 * np.pi, 32, endpoint=False)

    def motion(name: str, shift: float, seed: int) -> np.ndarray:
        body = draw_sketch(np.random.default_rng(seed)).body
        joints = joints_of(BY_NAME[name].pose(phase + shift), body, len(phase))
        return np.stack([np.diff(joints[j], axis=0, append=joints[j][:1]) for j in sorted(joints)])

    gallery = {name: [motion(name, 2 * np.pi * k / 32, 0) for k in range(32)] for name in CLASSES}
    for number, name in enumerate(CLASSES):
        query = motion(name, 0.1 + number, seed=7)
        nearest = {other: min(float(((query - m) ** 2).sum()) for m in motions) for other, motions in gallery.items()}
        ranked = sorted(nearest, key=nearest.__getitem__)
        assert ranked[0] == name
        assert nearest[ranked[0]] < 0.5 * nearest[ranked[1]]


# ------------------------------------------------------------------------------------------------ the folder


def test_asking_again_leaves_the_set_as_it_is_and_another_set_is_refused(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    make_demo2(tiny, "tiny2", seed=5, workers=1)
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before
    assert "already holds this set" in capsys.readouterr().out
    with pytest.raises(CatalogError, match=r"holds the demo set of size tiny2, seed 5, .*not the set of size demo2"):
        make_demo2(tiny, "demo2", seed=5)


@pytest.mark.parametrize(("seed", "workers"), [(-1, 1), (0, 0)])
def test_bad_numbers_are_refused_with_the_value(tmp_path: Path, seed: int, workers: int) -> None:
    with pytest.raises(DataError, match=rf"got size 'tiny2', seed {seed}, workers {workers}"):
        make_demo2(tmp_path / "set", "tiny2", seed=seed, workers=workers)


def test_help_names_the_sizes() -> None:
    command = [sys.executable, "-m", "data.demo2", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert all(size in shown for size in SIZES)
