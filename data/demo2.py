"""The second built-in data set: other actions in another style of drawing, as video files in HMDB51's layout.

    python -m data.demo2 --out DIR
    DIR/videos/<class>/<film>_<class>_f_<cm|nm>_np1_<fr|le|ri>_<goo|med|bad>_<n>.avi       176x128, 15 a second
    DIR/lists/<class>_test_split<1|2|3>.txt   lines "name.avi 1": 1 train, 2 test
    DIR/demo.json                             which set this is

It is what a student of the first set is carried over to, as from UCF101 to HMDB51. A film is the group: it shares
figure and landscape, over all classes. Split 1 of every size tests on films 1 to 45 and trains on films from 46 on, and
a smaller size takes the first of each. Splits 2 and 3 test on the first and the next of split 1's training films. The
size full2 has HMDB51's own 70 training and 30 test videos of each class. The tags of a name tell the truth: whether
the camera moves, from where the figure is seen, how coarsely the file is encoded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from data.atomic import sync_file
from data.demo2_motions import ACTIONS
from data.demo2_pictures import HEIGHT, MAX_FRAMES, MIN_FRAMES, WIDTH, Shot, Sketch, draw_frames, draw_shot, draw_sketch
from data.demo_backgrounds import Frames
from data.demo_folder import new_set, run_command, write_text
from data.demo_pool import for_each
from data.demo_scenes import FPS
from data.demo_videos import encode_video
from data.errors import DataError

VERSION = 1  # of the pixels: any change to what is drawn or how it is encoded makes another set
FIRST_TRAIN_FILM = 46
_SKETCH_STREAM, _SHOT_STREAM = 2, 3  # 0 and 1 are the first set's
_QUALITIES = (("goo", 3), ("med", 6), ("bad", 10))  # tag, quantizer of the encoder
_TITLES = ("Film_{:03d}", "#{:03d}_Reel(HQ)", "Pen & Ink {:03d}", "L'encre_{:03d}", "Film_{:03d}_[2nd]")

Demo2Size = Literal["demo2", "full2", "tiny2"]


@dataclass(frozen=True)
class SizeSpec:
    """Films and clips of each film, for each class."""

    test_films: int
    train_films: int
    clips: int


SIZES: dict[Demo2Size, SizeSpec] = {
    "tiny2": SizeSpec(test_films=2, train_films=4, clips=1),
    "demo2": SizeSpec(test_films=6, train_films=14, clips=2),
    "full2": SizeSpec(test_films=15, train_films=35, clips=2),
}


@dataclass(frozen=True)
class Demo2Video:
    """One video of the set; `action` is a position in ACTIONS, film and clip count from 1."""

    action: int
    film: int
    clip: int


def films_of(size: Demo2Size) -> tuple[int, ...]:
    """Numbers of the films: split 1 tests on the first of them."""
    spec = SIZES[size]
    test = range(1, spec.test_films + 1)
    return (*test, *range(FIRST_TRAIN_FILM, FIRST_TRAIN_FILM + spec.train_films))


def videos_of(size: Demo2Size) -> list[Demo2Video]:
    """Every video of a size, by class, film and clip."""
    clips = range(1, SIZES[size].clips + 1)
    return [
        Demo2Video(action, film, clip) for action in range(len(ACTIONS)) for film in films_of(size) for clip in clips
    ]


def is_test(size: Demo2Size, split: int, film: int) -> bool:
    """Whether a split, 1 to 3, tests on this film: 1 on the first few films, 2 on the next, 3 on those after."""
    count = SIZES[size].test_films
    return film in films_of(size)[count * (split - 1) : count * split]


def sketch_of(seed: int, film: int) -> Sketch:
    """Figure and landscape of a film, the same for every class."""
    return draw_sketch(np.random.default_rng(np.random.SeedSequence([seed, _SKETCH_STREAM, film])))


def shot_of(seed: int, video: Demo2Video) -> Shot:
    """How a video is shot."""
    key = [seed, _SHOT_STREAM, video.action, video.film, video.clip]
    return draw_shot(np.random.default_rng(np.random.SeedSequence(key)), ACTIONS[video.action])


def draw_video(seed: int, video: Demo2Video) -> Frames:
    """The frames of one video before encoding, uint8 [T, H, W, 3], RGB."""
    return draw_frames(ACTIONS[video.action], sketch_of(seed, video.film), shot_of(seed, video))


def name_of(seed: int, video: Demo2Video) -> str:
    """The file's name, as HMDB51 makes them: film, class, tags, number."""
    shot = shot_of(seed, video)
    view = "fr" if abs(shot.yaw) < 30 else "le" if shot.mirrored else "ri"
    tags = f"f_{'cm' if shot.moving else 'nm'}_np1_{view}_{_quality(video)[0]}_{video.clip - 1}"
    title = _TITLES[video.film % len(_TITLES)].format(video.film)
    return f"{title}_{ACTIONS[video.action].name}_{tags}.avi"


def make_demo2(out: Path, size: Demo2Size = "demo2", seed: int = 0, workers: int | None = None) -> None:
    """Draw the data set into the new folder `out`; a folder that already holds the same set is left as it is.

    workers: processes, by default one for each core. Raises CatalogError if something else lies at `out`, DataError
    for a bad argument, OSError if files cannot be written. The folder appears whole or not at all.
    """
    out = out.absolute()
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if size not in SIZES or seed < 0 or workers < 1:
        raise DataError(
            f"size must be one of {', '.join(SIZES)}, seed at least 0 and workers at least 1, "
            f"got size {size!r}, seed {seed}, workers {workers}"
        )
    videos = videos_of(size)
    summary = f"{len(ACTIONS)} classes, {len(videos)} videos in {len(films_of(size))} films"
    with new_set(out, _marker(size, seed, videos), summary) as folder:
        if folder is not None:
            for action in ACTIONS:
                (folder / "videos" / action.name).mkdir(parents=True)
            for_each(partial(_write_video, folder / "videos", seed), videos, workers)
            _write_lists(folder / "lists", size, seed, videos)


def _quality(video: Demo2Video) -> tuple[str, int]:
    return _QUALITIES[(video.action + video.film + video.clip) % len(_QUALITIES)]


def _write_video(folder: Path, seed: int, video: Demo2Video) -> None:
    path = folder / ACTIONS[video.action].name / name_of(seed, video)
    encode_video(path, draw_video(seed, video), avi_quantizer=_quality(video)[1])
    sync_file(path)


def _marker(size: Demo2Size, seed: int, videos: list[Demo2Video]) -> dict[str, object]:
    return {
        "kind": "preceptor second demo set",
        "version": VERSION,
        "size": size,
        "seed": seed,
        "videos": len(videos),
        "frames_per_video": [MIN_FRAMES, MAX_FRAMES],
        "height": HEIGHT,
        "width": WIDTH,
        "fps": FPS,
    }


def _write_lists(folder: Path, size: Demo2Size, seed: int, videos: list[Demo2Video]) -> None:
    folder.mkdir()
    for number, action in enumerate(ACTIONS):
        of_class = [video for video in videos if video.action == number]
        for split in (1, 2, 3):
            lines = [f"{name_of(seed, video)} {1 + is_test(size, split, video.film)} \n" for video in of_class]
            write_text(folder / f"{action.name}_test_split{split}.txt", "".join(lines))


# ------------------------------------------------------------------------------------------------ command line


def _command(
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    size: Demo2Size = "demo2",
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Draw the second built-in data set: pen drawings of 8 actions in landscapes, in HMDB51's layout.

    Writes DIR/videos/<class>/<name>.avi and DIR/lists/<class>_test_split{1,2,3}.txt.

    Args:
        out: Folder to make. If it already holds the same set, nothing is done.
        size: demo2: 224 training and 96 test videos in each split. full2: HMDB51's 70 and 30 of each class. tiny2: 32
            and 16, for tests. Smaller sizes are parts of larger ones.
        seed: The same seed gives the same videos.
        workers: Processes that draw; one for each core if not given.
    """
    make_demo2(out, size, seed, workers)


def main() -> None:
    """Entry point of `python -m data.demo2`."""
    run_command(_command, "data.demo2")


if __name__ == "__main__":
    main()
