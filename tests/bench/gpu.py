"""The teachers' networks on a GPU beside the card's own limits, and rendering on it beside the CPU renderer.

    PYTHONPATH=. python tests/bench/gpu.py [--device cuda] [--width 1] [--clips N] [--arch NAME ...] [--json FILE]

Needs torch, numpy and this repository, not installed; no Ray. Rendering also needs xxhash and OpenCV, and is left out,
with a line that says so, where they are not. For each network, clips 3 x 16 x 112 x 112:

    float32         eager, as trained, without TF32
    bf16            batch-norm folded, bfloat16, channels-last-3d, head left out
    + compile       the same through torch.compile with fixed shapes
    + graph         the eager bf16 network replayed as one CUDA graph

`share of peak` is 2 x multiply-adds a second over the rate of a large bf16 matrix product measured here. `over floor`
is the time over the network's own floor: the sum over its layers of the larger of operations / that rate and bytes
moved (input, output, weights, in bf16) / the copy rate measured here.
On a CPU (--device cpu) it runs small, to show that the script works; its figures mean nothing there.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from teacher_server.zoo.fold import fold_batch_norm
from teacher_server.zoo.names import ARCHITECTURES
from teacher_server.zoo.registry import build_backbone

if TYPE_CHECKING:
    from data.views import ViewBatch

CLIP_LEN, CROP = 16, 112
FRAME_SIZE = (128, 171)
REPEATS = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--width", type=float, default=1.0, help="width multiplier of the networks")
    parser.add_argument("--clips", type=int, default=96, help="clips per forward pass")
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no usable GPU on this machine; --device cpu shows that the script works")
    device = torch.device(args.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # as teachers run
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    flops, copy_rate = matrix_rate(device), copy_bytes_per_s(device)
    print(
        f"{name}, torch {torch.__version__}: bf16 matrix product {flops / 1e12:.1f} TFLOP/s, "
        f"copy {copy_rate / 1e9:.0f} GB/s"
    )
    results: dict[str, object] = {"device": name, "bf16 TFLOP/s": flops / 1e12, "copy GB/s": copy_rate / 1e9}
    for arch in args.arch:
        results[arch] = measure_network(arch, args.width, args.clips, device, flops, copy_rate)
    try:
        results["render"] = measure_render(device)
    except ModuleNotFoundError as error:
        print(f"\nrendering is left out: there is no {error.name}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def measure_network(
    arch: str, width: float, clips: int, device: torch.device, flops: float, copy_rate: float
) -> dict[str, dict[str, float]]:
    """Clips per second, share of the peak and time over the floor for each way to run the network."""
    torch.manual_seed(0)
    network = build_backbone(arch, width).eval().requires_grad_(False)
    x = torch.randn(clips, 3, CLIP_LEN, CROP, CROP)
    layers = layer_costs(network, x[:1])
    operations = clips * sum(2 * macs for macs, _, _ in layers)
    floor_s = sum(
        max(2 * clips * macs / flops, (clips * moved + weights) / copy_rate) for macs, moved, weights in layers
    )
    plain = network.to(device)
    folded = copy.deepcopy(network)
    fold_batch_norm(folded)
    layout = torch.channels_last_3d
    fast = folded.to(device=device, dtype=torch.bfloat16, memory_format=layout)  # type: ignore[call-overload]
    x32 = x.to(device)
    x16 = x32.to(torch.bfloat16).contiguous(memory_format=layout)
    ways: dict[str, Callable[[], Tensor]] = {
        "float32": lambda: plain(x32),
        "bf16": lambda: fast(x16),
        "+ compile": compiled(fast, x16),
    }
    if device.type == "cuda":
        ways["+ graph"] = graphed(fast, x16)
    print(
        f"\n{arch}, width {width:g}: {operations / clips / 2e9:.2f} GMAC a clip, "
        f"floor {1000 * floor_s:.2f} ms for {clips}"
    )
    found = {}
    with torch.inference_mode():
        reference = plain(x32)
        for way, run in ways.items():
            seconds = median_seconds(run, device)
            difference = float((run().float() - reference).abs().max() / reference.abs().max())
            found[way] = {
                "clips/s": clips / seconds,
                "share of peak": operations / seconds / flops,
                "over floor": seconds / floor_s,
                "largest relative difference of features": difference,
            }
            print(
                f"  {way:<10} {clips / seconds:10.1f} clips/s   {operations / seconds / flops:6.1%} of peak   "
                f"{seconds / floor_s:6.2f} x floor   features differ by {difference:.1e}"
            )
    return found


def layer_costs(network: nn.Module, x: Tensor) -> list[tuple[int, int, int]]:
    """For one clip and each convolution: multiply-adds, bytes in and out, bytes of weights; bf16 has 2 bytes."""
    costs: list[tuple[int, int, int]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        macs = output.numel() * weight[0].numel()
        costs.append((macs, 2 * (inputs[0].numel() + output.numel()), 2 * weight.numel()))

    hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, nn.Conv3d)]
    with torch.inference_mode():
        network(x)
    for hook in hooks:
        hook.remove()
    return costs


def compiled(network: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Through torch.compile, for this one shape."""
    fast = torch.compile(network, dynamic=False)
    return lambda: fast(x)


def graphed(network: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """As one CUDA graph; the replay's output lies in the graph's own memory."""
    side = torch.cuda.Stream()
    with torch.inference_mode(), torch.cuda.stream(side):
        for _ in range(3):
            network(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        output = network(x)

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def measure_render(device: torch.device) -> dict[str, float]:
    """16 tuples with the default augmentation: seconds of both renderers, and how far their pixels are apart."""
    from data.render import render_batch
    from data.render_torch import render_on_device

    rng = np.random.default_rng(0)
    batch = draw_views(16)
    frames = [rng.integers(0, 256, (CLIP_LEN, *FRAME_SIZE, 3), dtype=np.uint8) for _ in range(len(batch))]
    cpu_s = median_seconds(lambda: render_batch(frames, batch), torch.device("cpu"))
    device_s = median_seconds(lambda: render_on_device(frames, batch, device), device)
    difference = np.abs(render_on_device(frames, batch, device).cpu().numpy().astype(int) - render_batch(frames, batch))
    apart, largest = float((difference > 0).mean()), int(difference.max())
    print(
        f"\nrender, {len(batch)} clips: {1000 * cpu_s:.1f} ms on one CPU thread, {1000 * device_s:.1f} ms on "
        f"{device.type} with the copy there; {apart:.4%} of the values differ, by at most {largest} grey level(s)"
    )
    return {"cpu ms": 1000 * cpu_s, "device ms": 1000 * device_s, "share that differs": apart, "largest": largest}


def draw_views(items: int) -> ViewBatch:
    """Tuples with the default augmentation."""
    from data.draw import draw_tuples
    from data.views import Augment, ClipSpec, VideoTable, key_hash

    keys = tuple(f"v{i}" for i in range(items))
    table = VideoTable(
        fingerprint="00" * 16,
        keys=keys,
        key_hashes=np.array([key_hash(key) for key in keys], dtype=np.uint64),
        content_hashes=np.zeros(items, dtype=np.uint64),
        num_frames=np.full(items, 100, dtype=np.int64),
        frame_size=FRAME_SIZE,
    )
    rows = np.arange(items, dtype=np.int64)
    return draw_tuples(
        table, rows, view_seed=0, epoch=0, spec=ClipSpec(clip_len=CLIP_LEN, interval=8, crop=CROP), augment=Augment()
    )


def median_seconds(run: Callable[[], object], device: torch.device) -> float:
    """Median of REPEATS runs after three to warm up."""
    times = []
    for i in range(REPEATS + 3):
        synchronize(device)
        began = time.perf_counter()
        run()
        synchronize(device)
        if i >= 3:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def matrix_rate(device: torch.device) -> float:
    """Operations per second of a square bf16 matrix product, the best of three sizes."""
    sizes = (4096, 8192, 16384) if device.type == "cuda" else (512, 1024)
    rates = []
    for n in sizes:
        a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
        rates.append(2 * n**3 / median_seconds(lambda a=a, b=b: a @ b, device))
    return max(rates)


def copy_bytes_per_s(device: torch.device) -> float:
    """Bytes read and written per second by a copy within the device's memory."""
    count = 2**30 if device.type == "cuda" else 2**26
    source = torch.ones(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * count / median_seconds(lambda: target.copy_(source), device)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    raise SystemExit(main())
