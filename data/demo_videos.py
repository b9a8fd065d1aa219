"""Drawing and encoding of the built-in data set's videos, each on its own, by a pool of processes.

Each video has its own generator, keyed by (seed, class, group, clip): neither the number of workers nor what else is
drawn changes a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np

from data.atomic import sync_file
from data.demo_backgrounds import Frames
from data.demo_figures import ACTIONS
from data.demo_pool import for_each
from data.demo_scenes import FPS, Scene, draw_frames, draw_scene, draw_take

FIRST_TRAIN_GROUP = 46
_SCENE_STREAM, _TAKE_STREAM = 0, 1  # keep a group's generator apart from a clip's


@dataclass(frozen=True)
class DemoVideo:
    """One video of the set; `action` is a position in ACTIONS, group and clip count from 1."""

    action: int
    group: int
    clip: int

    @property
    def is_train(self) -> bool:
        return self.group >= FIRST_TRAIN_GROUP

    @property
    def name(self) -> str:
        """Class/v_Class_gNN_cNN.ext, as list files have it. Both containers occur in every class and split."""
        name = ACTIONS[self.action].name
        extension = ("avi", "mp4")[(self.action + self.group + self.clip) % 2]
        return f"{name}/v_{name}_g{self.group:02d}_c{self.clip:02d}.{extension}"


def scene_of(seed: int, group: int) -> Scene:
    """The actor and background of a group, the same for every class."""
    return draw_scene(np.random.default_rng(np.random.SeedSequence([seed, _SCENE_STREAM, group])))


def draw_video(seed: int, video: DemoVideo) -> Frames:
    """The frames of one video before encoding, uint8 [T, H, W, 3], RGB."""
    key = [seed, _TAKE_STREAM, video.action, video.group, video.clip]
    action = ACTIONS[video.action]
    take = draw_take(np.random.default_rng(np.random.SeedSequence(key)), action)
    return draw_frames(action, scene_of(seed, video.group), take)


_ENCODERS = {".avi": "mpeg4", ".mp4": "libx264"}
_AVI_QUANTIZER = 4  # 2 is the finest, 31 the coarsest
# x264's macroblock tree (core 165, AVX-512) gives other bytes from run to run when the height is no multiple of 16.
_X264 = {"preset": "veryfast", "crf": "23", "x264-params": "mbtree=0"}


def encode_video(path: Path, frames_THWC: Frames, avi_quantizer: int = _AVI_QUANTIZER) -> None:
    """Write frames to a new .avi or .mp4 file. One thread, so the same frames give the same bytes."""
    mpeg4 = {"qmin": str(avi_quantizer), "qmax": str(avi_quantizer)}
    options = mpeg4 if path.suffix == ".avi" else _X264
    with av.open(str(path), "w") as container:
        stream = container.add_stream(_ENCODERS[path.suffix], rate=FPS, options=options)
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for index, rgb in enumerate(frames_THWC):
            frame = av.VideoFrame.from_ndarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420), format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _write_video(folder: Path, seed: int, video: DemoVideo) -> None:
    path = folder / video.name
    encode_video(path, draw_video(seed, video))
    sync_file(path)


def write_videos(folder: Path, seed: int, videos: list[DemoVideo], workers: int) -> None:
    """Draw and encode every video below `folder`, whose class folders exist, in `workers` processes.

    Raises what drawing or writing raised first, and DataError if a process dies. No process outlives the call.
    """
    for_each(partial(_write_video, folder, seed), videos, workers)
