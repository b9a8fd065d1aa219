"""Video files to frames. Files come from anywhere: `data.decode_pool` runs this where a crash or a hang does no harm.

Axis letters: T frames, H, W.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from data.errors import VideoError

RESIZE = f"libswscale BILINEAR, av {av.__version__}"  # resize kernels differ between libraries and versions
MAX_SOURCE_SIDE = 8192  # pixels
MAX_VIDEO_BYTES = 512 * 1024**2  # of resized frames: 8,000 frames of 128x171
# Without it, damaged streams decode to wrong pictures and no error is raised.
_STRICT = {"err_detect": "explode"}
# Play lists are containers to FFmpeg too: a "video" could name other files of this machine, or addresses elsewhere.
_ONLY_VIDEO_FILES = {
    "protocol_whitelist": "file",
    "format_whitelist": "avi,mov,mp4,matroska,webm,mpeg,mpegts,flv,asf,ogg",
}


def decode(file: Path, frame_size: tuple[int, int]) -> NDArray[np.uint8]:
    """All frames of a video, [T, H, W, 3] RGB, resized to frame_size (height, width) with libswscale's BILINEAR.

    Frames are counted as they come out: what headers say about their number and times is often wrong.
    Raises VideoError with the reason when the file is not a video that decodes without an error from start to end.
    """
    _check_file(file)
    try:
        # Tags that are not UTF-8 are common and harmless.
        with av.open(f"file:{file}", metadata_errors="ignore", options=_STRICT | _ONLY_VIDEO_FILES) as container:
            frames = _frames(container, file, frame_size)
    except VideoError:
        raise
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        raise VideoError(str(file), _reason(error)) from error
    if not frames:
        raise VideoError(str(file), "it holds no frames")
    return np.stack(frames)


def _check_file(file: Path) -> None:
    """Anything but a readable regular file is refused before it is opened: opening a pipe would wait for ever."""
    try:
        status = file.stat()
    except OSError as error:
        raise VideoError(str(file), f"it cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(str(file), "it is not a regular file")
    if not status.st_size:
        raise VideoError(str(file), "it is empty")


def _frames(container: Any, file: Path, frame_size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    stream = next(iter(container.streams.video), None)
    if stream is None or stream.codec_context is None:
        raise VideoError(str(file), "it holds no video stream that can be decoded")
    stream.codec_context.thread_count = 1  # videos run in parallel, one a core
    stream.codec_context.options = _STRICT
    reformatter = VideoReformatter()  # keeps its scaling tables from frame to frame
    height, width = frame_size
    limit = MAX_VIDEO_BYTES // (height * width * 3)
    frames: list[NDArray[np.uint8]] = []
    for frame in container.decode(stream):
        if max(frame.height, frame.width) > MAX_SOURCE_SIDE:
            raise VideoError(
                str(file), f"frames of {frame.height}x{frame.width} exceed {MAX_SOURCE_SIDE} pixels a side"
            )
        if len(frames) == limit:
            raise VideoError(str(file), f"it has more than {limit} frames: cut it into shorter ones")
        resized = reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation="BILINEAR", threads=1
        )
        frames.append(resized.to_ndarray().astype(np.uint8, copy=False))
    return frames


def _reason(error: Exception) -> str:
    if isinstance(error, av.error.InvalidDataError | av.error.ArgumentError | av.error.EOFError):
        return "it is damaged or not a video"
    if isinstance(error, MemoryError):
        return "its frames do not fit into memory"
    return f"it cannot be decoded ({getattr(error, 'strerror', None) or error})"
