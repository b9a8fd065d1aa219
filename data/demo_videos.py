"""Drawing and encoding of the built-in data set's videos, each on its own, by a pool of processes.

Each video has its own generator, keyed by (seed, class, group, clip): neither the number of workers nor what else is
drawn changes a pixel.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from data.atomic import sync_file
from data.demo_backgrounds import Frames
from data.demo_figures import ACTIONS
from data.demo_scenes import FPS, Scene, draw_frames, draw_scene, draw_take
from data.errors import DataError

FIRST_TRAIN_GROUP = 46
_SCENE_STREAM, _TAKE_STREAM = 0, 1  # keep a group's generator apart from a clip's
_PARENT_CHECK_S = 2.0


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


_ENCODERS: dict[str, tuple[str, dict[str, str]]] = {
    ".avi": ("mpeg4", {"qmin": "4", "qmax": "4"}),
    # x264's macroblock tree (core 165, AVX-512) gives other bytes from run to run when the height is no multiple of 16.
    ".mp4": ("libx264", {"preset": "veryfast", "crf": "23", "x264-params": "mbtree=0"}),
}


def encode_video(path: Path, frames_THWC: Frames) -> None:
    """Write frames to a new .avi or .mp4 file. One thread, so the same frames give the same bytes."""
    encoder, options = _ENCODERS[path.suffix]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=FPS, options=options)
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


# ------------------------------------------------------------------------------------------------ the pool


def _start_worker() -> None:
    """One thread each; deaf to Ctrl-C, which the parent handles; gone when the parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """A killed parent cannot stop its pool, and a worker of a dead pool would wait for work for ever."""
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        parent.join(timeout=_PARENT_CHECK_S)
    os._exit(1)


@contextmanager
def _ctrl_c_delayed() -> Iterator[None]:
    """Ctrl-C waits until the end of this block. Processes started in here inherit the block, so that it cannot hit
    them before `_start_worker` runs."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def write_videos(folder: Path, seed: int, videos: list[DemoVideo], workers: int) -> None:
    """Draw and encode every video below `folder`, whose class folders exist, in `workers` processes.

    Raises what drawing or writing raised first, and DataError if a process dies. No process outlives the call.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        with _ctrl_c_delayed():
            futures = [pool.submit(_write_video, folder, seed, video) for video in videos]
        for done in _with_progress(futures):
            done.result()
    except BrokenProcessPool as error:
        raise DataError("a drawing process was killed (out of memory?): try again with fewer --workers") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _with_progress(futures: list[Future[None]]) -> Iterator[Future[None]]:
    """Futures as they end; a bar on a terminal, otherwise a line for each tenth of the work."""
    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(as_completed(futures), "drawing videos", total=len(futures), console=console)
        return
    start = time.monotonic()
    for count, done in enumerate(as_completed(futures), start=1):
        yield done
        if count * 10 // len(futures) > (count - 1) * 10 // len(futures):
            print(
                f"drew {count} of {len(futures)} videos, {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True
            )
