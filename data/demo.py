"""The built-in data set: real video files of drawn figures, in UCF101's layout.

    python -m data.demo --out DIR
    DIR/videos/<Class>/v_<Class>_gNN_cNN.avi (MPEG-4) or .mp4 (H.264), 160x120, 15 frames a second, 4 seconds
    DIR/lists/classInd.txt, trainlist01.txt, testlist01.txt
    DIR/demo.json                            which set this is

A group (gNN) shares actor and background, over all classes. Test groups are g01 to g45 and training groups start at
g46, in every size; a smaller size takes the first of each, so it is a part of the larger one and no test group of
any size is a training group of another. Each video has its own generator, keyed by (seed, class, group, clip):
neither the number of workers nor the size changes a pixel.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from data.demo_backgrounds import HEIGHT, WIDTH
from data.demo_figures import ACTIONS
from data.demo_folder import new_set, run_command, write_text
from data.demo_scenes import FPS, NUM_FRAMES
from data.demo_videos import FIRST_TRAIN_GROUP, DemoVideo, write_videos
from data.errors import DataError

VERSION = 1  # of the pixels: any change to what is drawn or how it is encoded makes another set

DemoSize = Literal["demo", "full", "tiny"]


@dataclass(frozen=True)
class SizeSpec:
    """Groups and clips per group, for each class."""

    test_groups: int
    train_groups: int
    clips: int


SIZES: dict[DemoSize, SizeSpec] = {
    "tiny": SizeSpec(test_groups=2, train_groups=4, clips=1),
    "demo": SizeSpec(test_groups=9, train_groups=21, clips=2),
    "full": SizeSpec(test_groups=45, train_groups=105, clips=4),
}


def videos_of(size: DemoSize) -> list[DemoVideo]:
    """Every video of a size, by class, group and clip."""
    spec = SIZES[size]
    groups = (
        *range(1, spec.test_groups + 1),
        *range(FIRST_TRAIN_GROUP, FIRST_TRAIN_GROUP + spec.train_groups),
    )
    clips = range(1, spec.clips + 1)
    return [DemoVideo(action, group, clip) for action in range(len(ACTIONS)) for group in groups for clip in clips]


def make_demo(out: Path, size: DemoSize = "demo", seed: int = 0, workers: int | None = None) -> None:
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
    with new_set(out, _marker(size, seed, videos), _summary(videos)) as folder:
        if folder is not None:
            for action in ACTIONS:
                (folder / "videos" / action.name).mkdir(parents=True)
            write_videos(folder / "videos", seed, videos, workers)
            _write_lists(folder / "lists", videos)


def _summary(videos: list[DemoVideo]) -> str:
    train = sum(video.is_train for video in videos)
    return f"{len(ACTIONS)} classes, {train} training and {len(videos) - train} test videos"


def _marker(size: DemoSize, seed: int, videos: list[DemoVideo]) -> dict[str, object]:
    return {
        "kind": "preceptor demo set",
        "version": VERSION,
        "size": size,
        "seed": seed,
        "videos": len(videos),
        "frames_per_video": NUM_FRAMES,
        "height": HEIGHT,
        "width": WIDTH,
        "fps": FPS,
    }


def _write_lists(folder: Path, videos: list[DemoVideo]) -> None:
    folder.mkdir()
    classes = [f"{index} {action.name}" for index, action in enumerate(ACTIONS, start=1)]
    train = [f"{video.name} {video.action + 1}" for video in videos if video.is_train]
    test = [video.name for video in videos if not video.is_train]
    for name, lines in (("classInd.txt", classes), ("trainlist01.txt", train), ("testlist01.txt", test)):
        write_text(folder / name, "".join(f"{line}\n" for line in lines))


# ------------------------------------------------------------------------------------------------ command line


def _command(
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    size: DemoSize = "demo",
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Draw the built-in data set: video files of moving figures in 14 action classes, in UCF101's layout.

    Writes DIR/videos/<Class>/v_<Class>_gNN_cNN.avi (or .mp4) and DIR/lists/{classInd,trainlist01,testlist01}.txt.

    Args:
        out: Folder to make. If it already holds the same set, nothing is done.
        size: demo: 588 training and 252 test videos, 55 MB, half a minute on two cores. full: ten times that.
            tiny: 56 and 28, for tests. Smaller sizes are parts of larger ones.
        seed: The same seed gives the same videos.
        workers: Processes that draw; one for each core if not given.
    """
    make_demo(out, size, seed, workers)


def main() -> None:
    """Entry point of `python -m data.demo`."""
    run_command(_command, "data.demo")


if __name__ == "__main__":
    main()
