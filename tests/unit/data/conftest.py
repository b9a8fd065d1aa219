"""Small real videos and folders in UCF101's layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

VideoMaker = Callable[..., Path]


def _encode(
    path: Path, *, num_frames: int = 12, seed: int = 0, codec: str = "mpeg4", size: tuple[int, int] = (48, 64)
) -> Path:
    """A moving box before random tiles, encoded with PyAV; size is (height, width)."""
    rng = np.random.default_rng(seed)
    height, width = size
    tiles = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=15)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for t in range(num_frames):
            picture = tiles.copy()
            picture[8:24, t % (width - 16) : t % (width - 16) + 16] = (255, 16 * t % 256, 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def encode_video() -> VideoMaker:
    """encode_video(path, num_frames=12, seed=0, codec="mpeg4", size=(48, 64)) -> path."""
    return _encode


class UcfFolder:
    """A data set in UCF101's layout, small: two classes, three groups, twelve frames a video and more."""

    CLASSES = ("Bow", "HandstandPushups")

    def __init__(self, root: Path) -> None:
        self.videos = root / "videos"
        self.lists = root / "lists"
        self.train: list[str] = []
        self.test: list[str] = []

    def build(self) -> UcfFolder:
        """Six videos: groups 1 and 2 for training, 3 for testing. The second class's files spell it otherwise."""
        seed = 0
        for group in (1, 2, 3):
            for folder, spelt, extension, codec in (
                ("Bow", "Bow", "avi", "mpeg4"),
                ("HandstandPushups", "HandStandPushups", "mp4", "libx264"),
            ):
                name = f"{folder}/v_{spelt}_g{group:02d}_c01.{extension}"
                _encode(self.videos / name, num_frames=12 + seed, seed=seed, codec=codec)
                (self.test if group == 3 else self.train).append(name)
                seed += 1
        self.write_lists()
        return self

    def write_lists(self) -> None:
        self.lists.mkdir(parents=True, exist_ok=True)
        (self.lists / "classInd.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(self.CLASSES, 1)))
        numbers = {name: i for i, name in enumerate(self.CLASSES, 1)}
        (self.lists / "trainlist01.txt").write_text("".join(f"{v} {numbers[v.split('/')[0]]}\n" for v in self.train))
        (self.lists / "testlist01.txt").write_text("".join(f"{v}\n" for v in self.test))


@pytest.fixture
def ucf_folder(tmp_path: Path) -> UcfFolder:
    return UcfFolder(tmp_path / "ucf").build()
