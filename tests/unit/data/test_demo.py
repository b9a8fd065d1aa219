"""The built-in data set: its layout, that a seed fixes every pixel, and that classes move as their names say."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from data.demo import SIZES, main, make_demo, videos_of
from data.demo_figures import ACTIONS, FEET, joints_of
from data.demo_scenes import HEIGHT, NUM_FRAMES, WIDTH, draw_frames, draw_scene, draw_take
from data.demo_videos import DemoVideo, draw_video, encode_video
from data.errors import CatalogError, DataError

CLASSES = [action.name for action in ACTIONS]
BY_NAME = {action.name: action for action in ACTIONS}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "set"
    make_demo(out, "tiny", seed=5, workers=2)
    return out


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


def _decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def _on_flat_background(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames of an action and, [T, H, W], where the figure is: before a uniform grey, without noise or flicker."""
    scene, take = draw_scene(np.random.default_rng(seed)), draw_take(np.random.default_rng(seed), BY_NAME[name])
    scene = dataclasses.replace(scene, background=np.full_like(scene.background, 128))
    take = dataclasses.replace(take, noise=np.zeros_like(take.noise), gain=np.ones_like(take.gain))
    frames = draw_frames(BY_NAME[name], scene, take)
    # Grey pixels are the wall and the shadow; whatever has colour or is near black belongs to the figure.
    spread = frames.max(axis=-1).astype(int) - frames.min(axis=-1)
    return frames, (spread > 12) | (frames.max(axis=-1) < 40)


def _joints(name: str, phase: np.ndarray) -> dict[str, np.ndarray]:
    body = draw_scene(np.random.default_rng(0)).body
    return joints_of(BY_NAME[name].pose(phase), body, len(phase))


# ------------------------------------------------------------------------------------------------ layout


def test_class_list_numbers_the_classes_from_one_in_alphabetical_order(tiny: Path) -> None:
    assert len(CLASSES) >= 12
    assert _lines(tiny / "lists/classInd.txt") == [f"{i} {name}" for i, name in enumerate(sorted(CLASSES), start=1)]


def test_train_lines_are_path_and_label_and_test_lines_are_paths(tiny: Path) -> None:
    for line in _lines(tiny / "lists/trainlist01.txt"):
        path, label = line.split(" ")
        match = re.fullmatch(r"(\w+)/v_(\w+)_g(\d{2,})_c(\d{2,})\.(avi|mp4)", path)
        assert match, line
        assert match[1] == match[2] == CLASSES[int(label) - 1]
    assert all(" " not in line for line in _lines(tiny / "lists/testlist01.txt"))


def test_the_lists_name_exactly_the_files(tiny: Path) -> None:
    listed = [line.split(" ")[0] for name in ("train", "test") for line in _lines(tiny / f"lists/{name}list01.txt")]
    files = [path.relative_to(tiny / "videos").as_posix() for path in (tiny / "videos").rglob("*") if path.is_file()]
    assert sorted(listed) == sorted(files)
    assert len(listed) == len(CLASSES) * (4 + 2)


def test_every_class_has_both_containers_in_train_and_in_test(tiny: Path) -> None:
    for name in ("train", "test"):
        seen = {(line.split("/")[0], line.split(" ")[0][-3:]) for line in _lines(tiny / f"lists/{name}list01.txt")}
        assert seen == {(action, extension) for action in CLASSES for extension in ("avi", "mp4")}


def test_no_test_group_of_any_size_is_a_training_group_of_any_size() -> None:
    videos = [video for size in SIZES for video in videos_of(size)]
    train = {video.group for video in videos if video.is_train}
    test = {video.group for video in videos if not video.is_train}
    assert train
    assert test
    assert not train & test


def test_smaller_sizes_are_parts_of_larger_ones_and_full_is_ten_times_demo() -> None:
    tiny, demo, full = (videos_of(size) for size in ("tiny", "demo", "full"))
    assert set(tiny) < set(demo) < set(full)
    for is_train, about in ((True, 600), (False, 240)):
        count = sum(video.is_train is is_train for video in demo)
        assert abs(count - about) <= 12
        assert sum(video.is_train is is_train for video in full) == 10 * count


# ------------------------------------------------------------------------------------------------ pixels


def test_every_file_decodes_to_the_stated_frames(tiny: Path) -> None:
    files = sorted(path for path in (tiny / "videos").rglob("*") if path.is_file())
    for path in files:
        with av.open(str(path)) as container:
            codec = container.streams.video[0].codec_context.name
            sizes = [(frame.height, frame.width) for frame in container.decode(video=0)]
        assert codec == {".avi": "mpeg4", ".mp4": "h264"}[path.suffix]
        assert sizes == [(HEIGHT, WIDTH)] * NUM_FRAMES


@pytest.mark.parametrize("video", [DemoVideo(0, 1, 1), DemoVideo(0, 2, 1), DemoVideo(9, 47, 1)], ids=lambda v: v.name)
def test_decoded_pixels_are_close_to_the_drawn_ones(tiny: Path, video: DemoVideo) -> None:
    error = _decode(tiny / "videos" / video.name).astype(float) - draw_video(5, video)
    assert np.sqrt((error**2).mean()) < 12
    # The error of a frame shown at another time would be larger: order and number of frames are kept.
    shifted = _decode(tiny / "videos" / video.name)[1:].astype(float) - draw_video(5, video)[:-1]
    assert (shifted**2).mean() > 1.2 * (error**2).mean()


@pytest.mark.parametrize("video", [DemoVideo(3, 46, 1), DemoVideo(3, 47, 1), DemoVideo(13, 2, 1)], ids=lambda v: v.name)
def test_a_video_drawn_alone_has_the_bytes_that_the_pool_wrote(tiny: Path, tmp_path: Path, video: DemoVideo) -> None:
    alone = tmp_path / f"alone{Path(video.name).suffix}"
    for _ in range(3):  # some encoders differ from run to run only
        encode_video(alone, draw_video(5, video))
        assert alone.read_bytes() == (tiny / "videos" / video.name).read_bytes()


def test_the_same_key_gives_the_same_frames_and_any_other_key_others() -> None:
    video = DemoVideo(action=2, group=3, clip=1)
    frames = draw_video(0, video)
    np.testing.assert_array_equal(frames, draw_video(0, video))
    others = [
        draw_video(1, video),
        *(draw_video(0, dataclasses.replace(video, **{field: 5})) for field in ("action", "group", "clip")),
    ]
    assert all((other != frames).mean() > 0.2 for other in others)


def test_a_group_shares_its_background_over_all_classes() -> None:
    """Mean colour of the lowest rows, the floor: alike within a group, and unlike between groups."""
    groups = range(1, 9)
    floor = np.array(
        [[draw_video(0, DemoVideo(action, g, 1))[:, -6:].mean(axis=(0, 1, 2)) for g in groups] for action in (0, 4, 9)]
    )
    within = floor.std(axis=0).mean()
    between = floor.mean(axis=0).std(axis=0).mean()
    assert between > 4 * within


# ------------------------------------------------------------------------------------------------ motion


@pytest.mark.parametrize("seed", range(6))
def test_step_left_moves_left_and_step_right_moves_right(seed: int) -> None:
    for name, sign in (("StepLeft", -1), ("StepRight", 1)):
        _, figure = _on_flat_background(name, seed)
        centre_x = (figure * np.arange(WIDTH)).sum(axis=(1, 2)) / figure.sum(axis=(1, 2))
        slope = np.polyfit(np.arange(NUM_FRAMES), centre_x, 1)[0]
        assert sign * slope > 0.5, (name, slope)  # pixels a frame


@pytest.mark.parametrize("name", CLASSES)
def test_the_figure_is_upright_in_the_picture_and_moves(name: str) -> None:
    frames, figure = _on_flat_background(name, seed=3)
    rows = np.flatnonzero(figure.any(axis=(0, 2)))
    assert rows[-1] > 0.85 * HEIGHT  # stands at the bottom
    assert np.ptp(rows) > 0.6 * HEIGHT  # fills a good part of the height
    changed = np.abs(np.diff(frames.astype(int), axis=0)).max(axis=-1) > 40
    assert 0.002 < changed.mean() < 0.3


def test_the_two_circles_are_each_other_backwards_in_time() -> None:
    phase = np.linspace(0, 2 * np.pi, 25)
    inwards, outwards = _joints("CircleIn", phase), _joints("CircleOut", phase)
    for joint, points in outwards.items():
        np.testing.assert_allclose(points[::-1], inwards[joint], atol=1e-12)
    assert outwards["hand_l"][3, 0] > outwards["hand_l"][0, 0]  # the left hand leaves the body's side outwards
    assert inwards["hand_l"][3, 0] < inwards["hand_l"][0, 0]


def test_one_hand_waves_where_the_class_says_one() -> None:
    phase = np.linspace(0, 2 * np.pi, 40)
    travel = {
        (name, hand): np.ptp(_joints(name, phase)[hand][:, 0])
        for name in ("WaveOneHand", "WaveBothHands")
        for hand in ("hand_r", "hand_l")
    }
    assert travel["WaveOneHand", "hand_l"] < 0.2 * travel["WaveOneHand", "hand_r"]
    assert travel["WaveBothHands", "hand_l"] == pytest.approx(travel["WaveBothHands", "hand_r"])


def test_the_lower_foot_is_on_the_ground_unless_the_figure_jumps() -> None:
    phase = np.linspace(0, 2 * np.pi, 40)
    for action in ACTIONS:
        joints = _joints(action.name, phase)
        lowest = np.min([joints[foot][:, 1] for foot in FEET], axis=0)
        lift = np.broadcast_to(action.pose(phase).lift, phase.shape)
        np.testing.assert_allclose(lowest, lift, atol=1e-12)


def test_limbs_keep_their_length_in_every_pose() -> None:
    phase = np.linspace(0, 2 * np.pi, 40)
    for name in CLASSES:
        joints = _joints(name, phase)
        for a, b in (("hip_r", "knee_r"), ("knee_l", "ankle_l"), ("shoulder_r", "elbow_r"), ("elbow_l", "wrist_l")):
            length = np.linalg.norm(joints[a] - joints[b], axis=1)
            np.testing.assert_allclose(length, length[0], rtol=1e-12)


# ------------------------------------------------------------------------------------------------ the folder


def test_asking_again_leaves_the_set_as_it_is(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    make_demo(tiny, "tiny", seed=5, workers=1)
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before
    assert "already holds this set" in capsys.readouterr().out


def test_another_set_in_the_folder_is_refused_by_name(tiny: Path) -> None:
    with pytest.raises(
        CatalogError, match=r"holds the demo set of size tiny, seed 5, .*not the set of size demo, seed 5"
    ):
        make_demo(tiny, "demo", seed=5)


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(CatalogError, match="something else than a demo set"):
        make_demo(tmp_path, "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_second_writer_of_the_same_folder_is_refused(tmp_path: Path) -> None:
    partial = tmp_path / ".set.partial"
    partial.mkdir()
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(CatalogError, match="another process is drawing"):
            make_demo(tmp_path / "set", "tiny")
    finally:
        os.close(descriptor)


def test_a_failed_run_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(folder: Path, *_: object) -> None:
        (folder / "half.avi").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.demo.write_videos", no_space)
    with pytest.raises(OSError, match="No space left"):
        make_demo(tmp_path / "set", "tiny")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("seed", "workers"), [(-1, 1), (0, 0)])
def test_bad_numbers_are_refused_with_the_value(tmp_path: Path, seed: int, workers: int) -> None:
    with pytest.raises(DataError, match=rf"got size 'tiny', seed {seed}, workers {workers}"):
        make_demo(tmp_path / "set", "tiny", seed=seed, workers=workers)


def test_the_command_line_answers_a_refusal_with_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    monkeypatch.setattr(sys, "argv", ["demo", "--out", str(tmp_path)])
    monkeypatch.setattr("signal.signal", lambda *_: None)  # the handlers of the test process stay
    with pytest.raises(SystemExit) as stop:
        main()
    assert str(stop.value).startswith(f"data.demo: {tmp_path} holds something else")


def test_ctrl_c_ends_the_command_and_its_processes_and_leaves_no_files(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data.demo", "--out", str(tmp_path / "set"), "--size", "tiny", "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    try:
        assert "drew" in process.stderr.readline()
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
        assert process.wait(timeout=30) == 130
        assert process.stderr.read() == "data.demo: stopped; nothing was kept\n"
    finally:
        process.kill()
        process.wait(timeout=30)
        process.stderr.close()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_sizes() -> None:
    command = [sys.executable, "-m", "data.demo", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert all(size in shown for size in SIZES)
