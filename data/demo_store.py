"""The built-in data set as a clip store: drawn by data.demo, read by the same ingest that UCF101 takes.

python -m data.demo_store [--size demo|full|tiny]
$PRECEPTOR_HOME/datasets/<size>   the video files        $PRECEPTOR_HOME/stores/<size>   the store
"""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

from data.catalogs.ucf101 import read_catalog
from data.demo import DemoSize, make_demo
from data.errors import DataError, StoreMissing
from data.home import home, store_path
from data.ingest import ingest_catalog
from data.store import ClipStore

FRAME_SIZE = (64, 86)  # height, width: small enough for a laptop to train on


def make_demo_store(size: DemoSize = "demo") -> Path:
    """Draws and ingests the set of this size; what is there already is kept. Returns the store's path.

    Raises DataError, for a damaged store too, or OSError when the folders cannot be written.
    """
    target = store_path(size)
    if is_store(target):
        return target
    videos = home() / "datasets" / size
    videos.parent.mkdir(parents=True, exist_ok=True)
    make_demo(videos, size)
    target.parent.mkdir(parents=True, exist_ok=True)
    report = ingest_catalog(read_catalog(videos / "videos", videos / "lists"), target, frame_size=FRAME_SIZE)
    print(
        f"{target}: {report.num_videos} videos, {report.num_frames} frames, {report.num_bytes / 1e6:.0f} MB, "
        f"{report.seconds:.0f} s, store {report.fingerprint[:12]}",
        flush=True,
    )
    return target


def is_store(path: Path) -> bool:
    """Whether a store was published there. Raises StoreDamaged when it cannot be read."""
    try:
        ClipStore.open(path)
    except StoreMissing:
        return False
    return True


def main(size: DemoSize = "demo") -> None:
    """Draw the built-in data set and ingest it into a clip store under PRECEPTOR_HOME.

    Args:
        size: demo is for laptops, full (ten times that) is what the bundled teachers learned from, tiny is for tests.
    """
    try:
        make_demo_store(size)
    except (DataError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        print("stopped; nothing was kept", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    tyro.cli(main, prog="python -m data.demo_store")
