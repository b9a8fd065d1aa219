"""Render a tuple of 3 x 16 x 112 x 112 on one core: data.render against the same operations one by one in torch.

    python tests/bench/render.py [--repeats N] [--json FILE]

Both arms work in turn on the same drawn views; every clip gets the whole colour jitter, grayscale as drawn, and blur
in none or in all of them. The pretext operation is left out of both. Prints medians with 95 % intervals and the
ratio; exits 1 when ours takes more than a quarter of torch's time. A third arm, torch with the hue rewritten by hand
without branches, is shown for what it is worth and not judged.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.draw import draw_tuples
from data.render import render_batch
from data.views import Augment, ClipSpec, VideoTable, ViewBatch, key_hash

LIMIT = 0.25
FRAME_SIZE = (128, 171)
SPEC = ClipSpec(clip_len=16, interval=8, crop=112)
CASES = {
    "without blur": Augment(jitter_p=1.0, blur_p=0.0),
    "with blur": Augment(jitter_p=1.0, blur_p=1.0),
}
Arm = Callable[[list[NDArray[np.uint8]], ViewBatch], object]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=60, help="tuples per case")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    if args.repeats < 10:
        parser.error(f"--repeats must be at least 10 for an interval, got {args.repeats}")
    use_one_core()
    results = {name: measure(augment, args.repeats) for name, augment in CASES.items()}
    for name, result in results.items():
        print(name)
        for figure, (median, low, high) in result.items():
            print(f"  {figure:<42}{median:9.3f}   [{low:.3f}, {high:.3f}]")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    worst = max(result["ratio ours / torch"][0] for result in results.values())
    print(f"largest ratio {worst:.3f}, at most {LIMIT} wanted: {'ok' if worst <= LIMIT else 'TOO SLOW'}")
    return int(worst > LIMIT)


def use_one_core() -> None:
    """Pin this process to one core and its libraries to one thread."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def measure(augment: Augment, repeats: int) -> dict[str, tuple[float, float, float]]:
    """Median and 95 % interval of each arm's milliseconds per tuple, and of the ratios tuple by tuple."""
    reference = load_reference()
    arms: dict[str, Arm] = {
        "torch": lambda frames, batch: [
            reference.render_reference(clip, view) for clip, view in zip(frames, batch.records, strict=True)
        ],
        "ours": render_batch,
        "torch, hue by hand": lambda frames, batch: [
            reference.render_reference(clip, view, hue=hue_without_branches)
            for clip, view in zip(frames, batch.records, strict=True)
        ],
    }
    seconds = time_arms(arms, drawn_tuples(augment, repeats))
    result = {f"{name}, ms per tuple": interval([1e3 * s for s in times]) for name, times in seconds.items()}
    for name in ("torch", "torch, hue by hand"):
        result[f"ratio ours / {name}"] = interval(
            [ours / theirs for ours, theirs in zip(seconds["ours"], seconds[name], strict=True)]
        )
    return result


def time_arms(arms: dict[str, Arm], tuples: list[ViewBatch]) -> dict[str, list[float]]:
    """Seconds of each arm on each tuple, the arms taking turns; the first tuple warms up and is not counted."""
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (SPEC.clip_len, *FRAME_SIZE, 3), dtype=np.uint8) for _ in range(3)]
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for batch in [tuples[0], *tuples]:
        for name, arm in arms.items():
            begin = time.perf_counter()
            arm(frames, batch)
            seconds[name].append(time.perf_counter() - begin)
    return {name: times[1:] for name, times in seconds.items()}


def drawn_tuples(augment: Augment, count: int) -> list[ViewBatch]:
    """Training tuples as the loader draws them, without their pretext operation."""
    keys = tuple(f"video{i}" for i in range(count))
    hashes = np.array([key_hash(key) for key in keys], dtype=np.uint64)
    lengths = np.full(count, SPEC.tuple_span, dtype=np.int64)
    videos = VideoTable("00" * 16, keys, hashes, hashes, lengths, FRAME_SIZE)
    batch = draw_tuples(videos, np.arange(count), view_seed=0, epoch=0, spec=SPEC, augment=augment)
    batch.records["pretext"] = batch.records["variant"] = 0
    return [batch.items(i, i + 1) for i in range(count)]


def hue_without_branches(x_T3HW: Tensor, turn: float) -> Tensor:
    """adjust_hue as v - spread * clamp(min(k, 4 - k), 0, 1) with k = (n + h) mod 6 and n = 5, 3, 1 for R, G, B."""
    r, g, b = x_T3HW.unbind(1)
    v = x_T3HW.amax(1)
    spread = v - x_T3HW.amin(1)
    inverse = torch.where(spread == 0, 1.0, spread).reciprocal_()
    h = torch.where(v == r, (g - b) * inverse, torch.where(v == g, (b - r) * inverse + 2, (r - g) * inverse + 4))
    h.add_(6 * turn)
    out = torch.empty_like(x_T3HW)
    for channel, n in enumerate((5, 3, 1)):
        k = h + n
        k.sub_(torch.floor(k / 6).mul_(6))
        torch.sub(v, torch.minimum(k, 4 - k).clamp_(0, 1).mul_(spread), out=out[:, channel])
    return out


def interval(values: list[float]) -> tuple[float, float, float]:
    """Median, and the order statistics that hold it with 95 % confidence (normal approximation to the binomial)."""
    ordered = sorted(values)
    n = len(ordered)
    margin = 0.98 * n**0.5
    low, high = max(0, int(n / 2 - margin)), min(n - 1, int(n / 2 + margin))
    return float(np.median(ordered)), ordered[low], ordered[high]


def load_reference() -> ModuleType:
    """The operation-by-operation renderer that the tests compare with."""
    path = Path(__file__).parents[1] / "unit" / "data" / "reference_render.py"
    spec = importlib.util.spec_from_file_location("reference_render", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"the reference renderer is missing: {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
