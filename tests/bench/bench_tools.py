"""What the service benchmarks share: a store and teachers of a stated size, cores, intervals, a private cluster."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch
from numpy.typing import NDArray
from ray import serve
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from data.draw import draw_tuples, uniform_clips
from data.store import ClipStore, StoreWriter
from data.views import Augment, ClipSpec, ViewBatch
from teacher_server.card import PRETEXT_CLASSES, Provenance, TeacherCard
from teacher_server.engine.teacher import build_teacher_network
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId, TeacherQuery, new_request_id
from teacher_server.zoo.names import ARCH_VERSION

SPEC = ClipSpec(clip_len=16, interval=4, crop=112)
FRAME_SIZE = (128, 171)
NUM_VIDEOS = 32
NUM_FRAMES = 72
TEACHER_CORE, OTHER_CORE = 1, 0


@dataclass(frozen=True)
class Estimate:
    """A median and its 95 % bootstrap interval over `count` values."""

    median: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}] of {self.count}"


def estimate(values: Sequence[float]) -> Estimate:
    """The median of `values`, with the percentile bootstrap's interval (2,000 draws, fixed seed)."""
    array = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(0).integers(0, len(array), (2000, len(array)))
    low, high = np.percentile(np.median(array[draws], axis=1), [2.5, 97.5])
    return Estimate(float(np.median(array)), float(low), float(high), len(array))


def pin_process(core: int, pid: int = 0) -> None:
    """All threads of a process on one core; what it starts later inherits that."""
    for thread in psutil.Process(pid or os.getpid()).threads():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread.id, {core})


def pin_busiest_thread(pid: int, core: int, work: Callable[[], object]) -> None:
    """Puts the thread that `work` keeps busiest on a core of its own: in a replica, the one that runs the forward."""
    before = _thread_seconds(pid)
    work()
    after = _thread_seconds(pid)
    busiest = max(after, key=lambda thread: after[thread] - before.get(thread, 0.0))
    os.sched_setaffinity(busiest, {core})


def _thread_seconds(pid: int) -> dict[int, float]:
    return {thread.id: thread.user_time + thread.system_time for thread in psutil.Process(pid).threads()}


def build_store(path: Path) -> ClipStore:
    """Videos of drifting noise in the size of ingested UCF101: 128 x 171."""
    rng = np.random.default_rng(0)
    with StoreWriter(path, frame_size=FRAME_SIZE, classes=("a", "b")) as writer:
        for i in range(NUM_VIDEOS):
            wide = rng.integers(0, 256, (FRAME_SIZE[0], FRAME_SIZE[1] + NUM_FRAMES, 3), dtype=np.uint8)
            frames = np.stack([wide[:, t : t + FRAME_SIZE[1]] for t in range(NUM_FRAMES)])
            writer.add(f"v{i:02d}", i % 2, f"g{i // 4:02d}", frames)
        keys = [f"v{i:02d}" for i in range(NUM_VIDEOS)]
        writer.commit({"train01": keys[:24], "test01": keys[24:]})
    return ClipStore.open(path)


def add_teacher(
    library: TeacherLibrary, name: str, *, head: str = "pretext", width: float, chunk_items: int, seed: int = 0
) -> TeacherId:
    """A random r3d for 16 x 112 x 112; its forward takes as long as that of a trained one."""
    card = TeacherCard.model_validate(
        {
            "arch": "r3d",
            "arch_version": ARCH_VERSION,
            "width": width,
            "head": head,
            "classes": PRETEXT_CLASSES if head == "pretext" else ("a", "b", "c"),
            "clip_len": SPEC.clip_len,
            "crop": SPEC.crop,
            "modality": "rgb",
            "feature_size": max(8, round(width * 512 / 8) * 8),
            "chunk_items": chunk_items,
            "provenance": Provenance(command="random weights for a benchmark"),
        }
    )
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "weights.safetensors"
        save_file(build_teacher_network(card).state_dict(), path)
        return library.add(name, card, path)


def draw(store: ClipStore, head: str, items: int, seed: int) -> ViewBatch:
    """Fresh views: another seed gives other ones, so that no answer is shared by accident."""
    if head == "pretext":
        rows = (np.arange(items, dtype=np.int64) + seed) % NUM_VIDEOS
        return draw_tuples(store.videos, rows, view_seed=seed, epoch=0, spec=SPEC, augment=Augment())
    rows = np.arange(NUM_VIDEOS, dtype=np.int64)
    grid = uniform_clips(store.videos, rows, spec=SPEC, clips_per_video=8).take(
        [(seed * items + i) % (NUM_VIDEOS * 8) for i in range(items)]
    )
    records = grid.records.copy()
    records["jitter"], records["brightness"] = 1, 1 + (seed % 4_000_000) * 2e-7
    records["contrast"] = records["saturation"] = 1
    return ViewBatch(records, 1, grid.store_fingerprint)


def question(
    store: ClipStore, teacher: TeacherId, batch: ViewBatch, pixels: NDArray[np.uint8] | None = None, run: str = "bench"
) -> TeacherQuery:
    """A question about views, with their pixels where there are some."""
    return TeacherQuery(
        request_id=new_request_id(),
        teacher=teacher,
        temperature=4.0,
        views_per_item=batch.views_per_item,
        run=run,
        views=batch.to_bytes(),
        store=str(store.path),
        pixels=pixels,
        timeout_s=120.0,
    )


@contextlib.contextmanager
def private_cluster(num_cpus: int, core: int | None) -> Iterator[None]:
    """A Ray cluster of this process; all of its processes stay on `core`, if one is given."""
    if core is not None:
        pin_process(core)
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's 15 would put replicas behind processes that Ray did not start. Ray wants the name in small letters.
    os.environ.update(RAY_worker_niceness="0")
    root = str(Path(__file__).parents[2])
    here = str(Path(__file__).parent)
    ray.init(
        address="local",
        namespace="preceptor",
        num_cpus=num_cpus,
        include_dashboard=False,
        object_store_memory=2**30,
        log_to_driver=False,
        logging_level=logging.WARNING,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join([root, here])}},
    )
    try:
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


def counted(count: int, what: str) -> Iterator[int]:
    """0, 1, ..., and on standard error how many are done."""
    for i in range(count):
        print(f"\r{what}: {i} of {count}", end="", file=sys.stderr, flush=True)
        yield i
    print(f"\r{what}: {count} of {count}", file=sys.stderr, flush=True)


def print_rows(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on standard output."""
    table = Table(*header, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row))
    Console(width=140).print(table)


def write_json(path: Path, results: dict[str, Any]) -> None:
    """The figures, with the machine's load and the time."""

    def plain(value: object) -> object:
        return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)

    results = {"when": time.strftime("%Y-%m-%d %H:%M"), "cores": os.cpu_count(), **results}
    path.write_text(json.dumps(results, indent=1, default=plain) + "\n")
