"""The built-in data sets as clip stores: drawn by data.demo and data.demo2, read by the ingest of UCF101 and HMDB51.

python -m data.demo_store [--size demo|full|tiny|demo2|full2|tiny2]
$PRECEPTOR_HOME/datasets/<size>   the video files        $PRECEPTOR_HOME/stores/<size>   the store
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import tyro

from data.catalogs import Catalog, hmdb51, ucf101
from data.demo import SIZES, make_demo
from data.demo2 import SIZES as SIZES_2
from data.demo2 import make_demo2
from data.errors import DataError, StoreMissing
from data.home import home, store_path
from data.ingest import ingest_catalog
from data.store import ClipStore

StoreSize = Literal["demo", "full", "tiny", "demo2", "full2", "tiny2"]

_print = partial(print, flush=True)
FRAME_SIZE = (64, 86)  # height, width: small enough for a laptop to train on


def make_demo_store(
    size: StoreSize = "demo",
    store: str = "",
    *,
    frame_size: tuple[int, int] = FRAME_SIZE,
    say: Callable[[str], None] = _print,
) -> Path:
    """Draws and ingests the set of this size; what is there already is kept. Returns the store's path.

    demo2, full2 and tiny2 are sizes of the second set: other actions, another style, HMDB51's layout.
    store: its name, if not that of the size.

    Raises DataError, for a damaged store too, or OSError when the folders cannot be written.
    """
    target = store_path(store or size)
    if is_store(target):
        return target
    videos = home() / "datasets" / size
    videos.parent.mkdir(parents=True, exist_ok=True)
    catalog = _draw(videos, size)
    target.parent.mkdir(parents=True, exist_ok=True)
    report = ingest_catalog(catalog, target, frame_size=frame_size)
    say(
        f"{target}: {report.num_videos} videos, {report.num_frames} frames, {report.num_bytes / 1e6:.0f} MB, "
        f"{report.seconds:.0f} s, store {report.fingerprint[:12]}"
    )
    return target


def _draw(out: Path, size: StoreSize) -> Catalog:
    """The video files of a set, unless they are there, and what its lists say."""
    if size in SIZES:
        make_demo(out, size)
        return ucf101.read_catalog(out / "videos", out / "lists")
    if size in SIZES_2:
        make_demo2(out, size)
        return hmdb51.read_catalog(out / "videos", out / "lists")
    raise DataError(f"there is no built-in data set {size!r}: choose one of {', '.join((*SIZES, *SIZES_2))}")


def is_store(path: Path) -> bool:
    """Whether a store was published there. Raises StoreDamaged when it cannot be read."""
    try:
        ClipStore.open(path)
    except StoreMissing:
        return False
    return True


def main(size: StoreSize = "demo") -> None:
    """Draw a built-in data set and ingest it into a clip store under PRECEPTOR_HOME.

    Args:
        size: demo is for laptops, full (ten times that) is what the bundled teachers learned from, tiny is for tests.
            demo2, full2 and tiny2 are the second set, with other actions in another style, to carry students over to.
    """
    try:
        if is_store(store_path(size)):
            print(f"{store_path(size)} is there already")
        make_demo_store(size)
    except (DataError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        print("stopped; nothing was kept", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    tyro.cli(main, prog="python -m data.demo_store")
