"""The teacher service beside the bare engine, beside `@serve.batch`, and beside pixels sent as float32.

    python tests/bench/serving.py [--seconds S] [--rounds N] [--json FILE] [--only PART ...]

A teacher whose forward takes at least 20 ms a clip has one compute thread on core 1; everything else (Ray, clients,
rendering, gateway) stays on core 0. The bare engine loops on core 1 over rendered pixels in the same batches. Loop and
service work in turn; a round's ratio is the service's rate over the mean of the loop before and after it.

    saturation   views, shared pixels, 8 clients of 2 clips, HTTP with views: clips/s over the bare engine's
    batching     forwards and latency on one trace, against @serve.batch
    by-value     clips/s against float32 pixels by value
    wire         bytes of a clip that cross the connection, views and pixels over HTTP
    latency      p50 and p99 at 25, 50, 75 and 90 % of the saturated rate
    fairness     a light run alone, and beside one that asks ten times as much; shares of equal runs
    swap         seconds of a promotion by phase, idle and under load, and the longest wait of a question
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
from bench_tools import (
    OTHER_CORE,
    SPEC,
    TEACHER_CORE,
    add_teacher,
    build_store,
    counted,
    draw,
    estimate,
    pin_busiest_thread,
    print_rows,
    private_cluster,
    question,
    write_json,
)
from callers import Answered, Caller, Load, pass_shape
from counting import CountingForwarder
from engine_loop import EngineLoop
from peers import BatchedViews, FloatPixels
from ray import serve

from data.home import VARIABLE
from data.input_spec import InputSpec
from data.prepare import prepare
from data.render import render_batch
from data.store import ClipStore
from teacher_server.clients.http import HttpTeacherClient
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId, TeacherRef
from teacher_server.serve.deployment import TeacherService

PARTS = ("saturation", "batching", "by-value", "wire", "latency", "fairness", "swap")
WIDTH = 0.25
TUPLE_CHUNK, CLIP_CHUNK = 4, 4  # items of a forward pass: 12 clips, 4 clips
TRACE_QUESTIONS = 80
WIRE_QUESTIONS = 20
LATENCY_QUESTIONS = 200  # the 99th percentile of fewer is little more than the longest
PACED_QUESTIONS = 100
LEAST_MS_PER_CLIP = 20.0
FLOORS = {"views": 0.95, "shared pixels": 0.95, "8 clients of 2 clips": 0.90, "HTTP with views": 0.90}
EQUAL_RUNS = ((4, 4), (8, 4), (16, 4))  # items of a question, questions in flight
PORT = 8123


class Bench:
    """The deployed service with its teachers, and how a part of the benchmark uses them."""

    def __init__(self, home: Path, seconds: float, rounds: int) -> None:
        self.home, self.seconds, self.rounds = home, seconds, rounds
        self.store = build_store(home / "stores" / "bench")
        self.library = TeacherLibrary(home / "teachers")
        self.tuples = add_teacher(self.library, "tuples", width=WIDTH, chunk_items=TUPLE_CHUNK)
        add_teacher(self.library, "tuples", width=WIDTH, chunk_items=TUPLE_CHUNK, seed=1)
        self.clips = add_teacher(self.library, "clips", head="action", width=WIDTH, chunk_items=CLIP_CHUNK)
        self.light = add_teacher(self.library, "light", width=WIDTH / 2, chunk_items=TUPLE_CHUNK)
        self.results: dict[str, Any] = {}

    def deploy(self) -> None:
        """One replica, its forward thread alone on core 1."""
        self.service = TeacherService.connect(self.library.root)
        self.service.deploy()
        for name in ("tuples", "clips", "light"):
            self.service.acquire(f"bench-{name}", TeacherRef(name))
        (replica,) = self.service.describe()
        for seed, teacher in enumerate((self.tuples, self.clips, self.light)):
            # Every teacher computes in a thread of its own.
            pin_busiest_thread(replica.pid, TEACHER_CORE, lambda t=teacher, s=seed: self._keep_busy(t, 10**9 + 10 * s))

    @functools.cached_property
    def gateway(self) -> str:
        """Its URL."""
        from services.asking import GatewayOptions
        from services.serving import deploy_gateway

        deploy_gateway(self.library.root, GatewayOptions())
        return f"http://127.0.0.1:{PORT}"

    def _keep_busy(self, teacher: TeacherId, seed: int) -> None:
        client, head = self.service.client(), "action" if teacher == self.clips else "pretext"
        for i in range(4):
            batch = draw(self.store, head, 2 * TUPLE_CHUNK, seed + i)
            client.submit(question(self.store, teacher, batch)).result(60)

    def callers(self, count: int, load: Load) -> list[Any]:
        """So many client processes, ready."""
        callers = [Caller.remote(str(self.store.path), load, seed) for seed in range(1, count + 1)]
        ray.get([each.ready.remote() for each in callers])
        return callers

    def saturate(self, callers: list[Any]) -> float:
        """Clips per second of all callers together."""
        answers: list[Answered] = ray.get([each.saturate.remote(1.5, self.seconds) for each in callers])
        return sum(each.clips / each.seconds for each in answers)


def saturation(bench: Bench) -> None:
    arms = {
        "views": (1, Load(bench.tuples, "pretext", TUPLE_CHUNK, depth=4)),
        "shared pixels": (1, Load(bench.tuples, "pretext", TUPLE_CHUNK, depth=4, pixels=True)),
        "8 clients of 2 clips": (8, Load(bench.clips, "action", 2, depth=1)),
        "HTTP with views": (1, Load(bench.tuples, "pretext", TUPLE_CHUNK, depth=4, url=bench.gateway)),
    }
    rows, figures = [], {}
    for name, (count, load) in arms.items():
        chunk = TUPLE_CHUNK if load.head == "pretext" else CLIP_CHUNK
        shape = pass_shape(load, chunk)
        callers = bench.callers(count, load)
        with EngineLoop(bench.library.root, load.teacher, shape, TEACHER_CORE) as loop:
            ratios, loop_rates = alternate(bench, name, callers, loop, shape[0])
        for caller in callers:
            ray.kill(caller)
        ratio, rate = estimate(ratios), estimate(loop_rates)
        ms = 1000 / rate.median
        floor = FLOORS[name]
        figures[name] = {"ratio": ratio, "engine clips/s": rate, "engine ms per clip": ms, "asked": floor}
        rows.append((name, f"{rate.median:.1f}", f"{ms:.1f}", str(ratio), floor, verdict(ratio.median >= floor)))
        if ms < LEAST_MS_PER_CLIP:
            print(f"the forward takes {ms:.1f} ms a clip, at least {LEAST_MS_PER_CLIP:g} are wanted")
    print_rows(
        "service over the bare engine, clips/s",
        ("questions", "engine clips/s", "engine ms/clip", "service / engine", "asked", ""),
        rows,
    )
    bench.results["saturation"] = figures


def alternate(
    bench: Bench, name: str, callers: list[Any], loop: EngineLoop, clips: int
) -> tuple[list[float], list[float]]:
    """Ratios by round, and the loop's rates."""
    loop.start(3)
    passes = max(3, round(bench.seconds / (loop.wait() / 3)))

    def bare() -> float:
        loop.start(passes)
        return passes * clips / loop.wait()

    before, ratios, rates = bare(), [], []
    for _ in counted(bench.rounds, f"{name}, rounds"):
        served = bench.saturate(callers)
        after = bare()
        ratios.append(served / ((before + after) / 2))
        rates.append(after)
        before = after
    return ratios, rates


def batching(bench: Bench) -> None:
    """A trace of 2-clip questions at 80 % of the engine's rate, the same for both, in alternation."""
    load = Load(bench.clips, "action", 2, depth=1)
    (caller,) = bench.callers(1, Load(bench.clips, "action", 2, depth=8))
    peer = serve.run(
        BatchedViews.bind(str(bench.library.root), bench.clips, str(bench.store.path), CLIP_CHUNK // load.items),
        name="peer",
        route_prefix=None,
    )
    pin_peer(bench, lambda seed: peer.ask.remote(draw(bench.store, "action", 4, seed).to_bytes()).result(timeout_s=60))
    arms: dict[str, tuple[Callable[[Any], object], Callable[[], int]]] = {
        "preceptor": (lambda batch: bench_ask(bench, batch), lambda: bench.service.describe()[0].batches),
        "@serve.batch": (
            lambda batch: peer.ask.remote(batch.to_bytes()).result(timeout_s=120),
            lambda: peer.forwards.remote().result(timeout_s=60),
        ),
    }
    forwards = dict.fromkeys(arms, 0)
    waits_s: dict[str, list[float]] = {name: [] for name in arms}
    for i in counted(bench.rounds, "batching, traces"):
        rate = bench.saturate([caller])
        trace = np.cumsum(np.random.default_rng(i).exponential(load.items / (0.8 * rate), TRACE_QUESTIONS))
        for name in list(arms)[:: 1 if i % 2 else -1]:
            ask, count = arms[name]
            before = count()
            waits_s[name] += play(ask, bench.store, trace)
            forwards[name] += count() - before
    serve.delete("peer")
    ray.kill(caller)
    rows = [(name, forwards[name], *percentiles(waits_s[name])) for name in arms]
    title = f"{bench.rounds} traces of {TRACE_QUESTIONS} questions of 2 clips at 80 % load"
    print_rows(title, ("", "forwards", "p50 ms", "p99 ms"), rows)
    bench.results["batching"] = {name: {"forwards": n, "p50 ms": p50, "p99 ms": p99} for name, n, p50, p99 in rows}


def bench_ask(bench: Bench, batch: Any) -> None:
    bench.service.client().submit(question(bench.store, bench.clips, batch)).result(120)


def play(ask: Callable[[Any], object], store: ClipStore, moments: np.ndarray) -> list[float]:
    """Latencies of an open loop, from the moment that a question was due."""
    from concurrent.futures import ThreadPoolExecutor

    batches = [draw(store, "action", 2, 10_000 + i) for i in range(len(moments))]
    began = time.perf_counter()

    def one(i: int) -> float:
        ask(batches[i])
        return time.perf_counter() - began - float(moments[i])

    futures = []
    with ThreadPoolExecutor(64) as threads:
        for i, moment in enumerate(moments):
            time.sleep(max(0.0, began + float(moment) - time.perf_counter()))
            futures.append(threads.submit(one, i))
    return [future.result() for future in futures]


def pin_peer(bench: Bench, ask: Callable[[int], object]) -> None:
    """The peer's forward thread goes where ours is."""
    import psutil

    ours = {state.pid for state in bench.service.describe()}
    children = psutil.Process().children(recursive=True)
    found = [p for p in children if "ServeReplica:peer" in " ".join(p.cmdline()) and p.pid not in ours]
    assert len(found) == 1, [p.cmdline() for p in found]
    pin_busiest_thread(found[0].pid, TEACHER_CORE, lambda: [ask(seed) for seed in range(4)])


def by_value(bench: Bench) -> None:
    """Both at saturation from one client with 4 questions in flight; the pixels are rendered and normalised by it."""
    peer = serve.run(FloatPixels.bind(str(bench.library.root), bench.tuples, 4), name="peer", route_prefix=None)
    spec = InputSpec(modality="rgb", crop=SPEC.crop)

    def floats(seed: int) -> np.ndarray:
        batch = draw(bench.store, "pretext", TUPLE_CHUNK, seed)
        return prepare(render_batch(bench.store.gather(batch), batch), spec).numpy()

    pin_peer(bench, lambda seed: peer.ask.remote(floats(seed)).result(timeout_s=60))
    client = bench.service.client()
    arms = {
        "views": lambda seed: (
            client.submit(
                question(bench.store, bench.tuples, draw(bench.store, "pretext", TUPLE_CHUNK, 10**8 + seed))
            ).result
        ),
        "float32 pixels by value": lambda seed: _by_value(peer, floats(seed)),
    }
    rates: dict[str, list[float]] = {name: [] for name in arms}
    seed = 0
    for _ in counted(bench.rounds, "by value, rounds"):
        for name, submit in arms.items():
            rate, seed = window(submit, seed, bench.seconds)
            rates[name].append(rate)
    serve.delete("peer")
    rows = [(name, str(estimate(rates[name]))) for name in arms]
    print_rows("views against pixels by value", ("", "clips/s"), rows)
    ratio = estimate([a / b for a, b in zip(*rates.values(), strict=True)])
    print(f"views / float32 pixels by value: {ratio}\n")
    bench.results["by-value"] = {"clips/s": {n: estimate(r) for n, r in rates.items()}, "ratio": ratio}


def _by_value(peer: Any, clips: np.ndarray) -> Callable[[float], object]:
    response = peer.ask.remote(clips)
    return lambda timeout_s: response.result(timeout_s=timeout_s)


def window(submit: Callable[[int], Callable[[float], object]], seed: int, seconds: float) -> tuple[float, int]:
    """Clips per second with 4 questions in flight, filling left out; and the next seed."""
    waiting = []
    for _ in range(4):
        waiting.append(submit(seed))
        seed += 1
    for _ in range(2):
        waiting.pop(0)(60.0)
        waiting.append(submit(seed))
        seed += 1
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        waiting.pop(0)(60.0)
        count += 1
        waiting.append(submit(seed))
        seed += 1
    rate = count * TUPLE_CHUNK * 3 / (time.perf_counter() - began)
    for each in waiting:
        each(60.0)
    return rate, seed


def wire(bench: Bench) -> None:
    """Questions of a training step, 16 tuples, over one connection; heads and answers counted too."""
    batch = draw(bench.store, "pretext", 16, 1)
    pixels = render_batch(bench.store.gather(batch), batch)
    float_bytes = 4 * pixels[0].size
    rows: list[tuple[object, ...]] = [("float32 pixels, bare", float_bytes, "", 1)]
    figures = {}
    assert bench.gateway  # it runs
    for name, given in (("views", None), ("uint8 pixels", pixels)):
        with CountingForwarder(PORT) as forwarder:
            client = HttpTeacherClient(forwarder.url)
            for i in range(WIRE_QUESTIONS):
                views = draw(bench.store, "pretext", 16, 10**7 + i)
                client.submit(question(bench.store, bench.tuples, views, given)).result(120)
            client.close()
            clips = WIRE_QUESTIONS * len(batch)
            sent, received = forwarder.sent / clips, forwarder.received / clips
        rows.append((name, sent, received, f"1/{float_bytes / sent:,.0f}"))
        figures[name] = {"sent": sent, "received": received}
    title = f"bytes of a clip over HTTP, {WIRE_QUESTIONS} questions of {len(batch)} clips, heads included"
    print_rows(title, ("", "sent", "received", "of float32"), rows)
    bench.results["wire"] = figures


def latency(bench: Bench) -> None:
    """Questions of one chunk at random moments."""
    (caller,) = bench.callers(1, Load(bench.tuples, "pretext", TUPLE_CHUNK, depth=4))
    rate = bench.saturate([caller]) / (3 * TUPLE_CHUNK)
    rows, figures = [], {}
    for share in (0.25, 0.5, 0.75, 0.9):
        answered: Answered = ray.get(caller.at_rate.remote(share * rate, LATENCY_QUESTIONS, seed=7))
        p50, p99 = percentiles(list(answered.latencies))
        rows.append((f"{share:.0%}", LATENCY_QUESTIONS, p50, p99))
        figures[f"{share:.0%}"] = {"questions": LATENCY_QUESTIONS, "p50 ms": p50, "p99 ms": p99}
    print_rows("latency of 12-clip questions by load", ("load", "questions", "p50 ms", "p99 ms"), rows)
    ray.kill(caller)
    bench.results["latency"] = figures


def fairness(bench: Bench) -> None:
    """The light run asks a training step's question (16 tuples, 48 clips), computes four times as long as the answer
    took, and asks again; the greedy one keeps ten such questions in flight."""
    (caller,) = bench.callers(1, Load(bench.light, "pretext", 16, depth=1))
    took = float(np.median(ray.get(caller.paced.remote(0.0, 8)).latencies))
    alone: Answered = ray.get(caller.paced.remote(4 * took, PACED_QUESTIONS))
    (greedy,) = bench.callers(1, Load(bench.light, "pretext", 16, depth=10))
    running = greedy.keep_asking.remote()
    time.sleep(5 * took)
    beside: Answered = ray.get(caller.paced.remote(4 * took, PACED_QUESTIONS))
    ray.get(greedy.stop.remote())
    ray.get(running)
    ray.kill(greedy)
    rows = [("alone", *percentiles(list(alone.latencies))), ("beside", *percentiles(list(beside.latencies)))]
    print_rows("a light run", ("", "p50 ms", "p99 ms"), rows)
    ratio = rows[1][2] / rows[0][2]
    print(f"p99 beside a greedy run / alone: {ratio:.2f}, at most 1.5 asked: {verdict(ratio <= 1.5)}")
    ray.kill(caller)
    # Equal in weight, not in what they have waiting: whoever is served first come, first served gets by that.
    equal = [bench.callers(1, Load(bench.tuples, "pretext", items, depth))[0] for items, depth in EQUAL_RUNS]
    answers = ray.get([each.saturate.remote(2.0, 5 * bench.seconds) for each in equal])
    shares = np.array([each.clips / each.seconds for each in answers])
    waiting = np.array([items * depth for items, depth in EQUAL_RUNS], dtype=float)
    print_rows(
        "runs of equal weight",
        ("items x in flight", "clips/s", "first come, first served"),
        [
            (f"{items} x {depth}", share, part * shares.sum())
            for (items, depth), share, part in zip(EQUAL_RUNS, shares, waiting / waiting.sum(), strict=True)
        ],
    )
    index = jain(shares)
    print(
        f"Jain index {index:.4f}, at least .98 asked: {verdict(index >= 0.98)}; first come, first served would give "
        f"{jain(waiting):.4f}\n"
    )
    for each in equal:
        ray.kill(each)
    bench.results["fairness"] = {"p99 ratio": ratio, "rows": rows, "shares": shares.tolist(), "jain": index}


def swap(bench: Bench) -> None:
    """Promotions to and fro."""
    (caller,) = bench.callers(1, Load(bench.tuples, "pretext", TUPLE_CHUNK, depth=1))
    rows, figures = [], {}
    baseline_s = None
    for name, loaded in (("idle", False), ("under load", True)):
        if loaded:
            baseline = caller.ask_until_stopped.remote()
            time.sleep(10)
            ray.get(caller.stop.remote())
            baseline_s = ray.get(baseline)[1]
        asking = caller.ask_until_stopped.remote() if loaded else None
        time.sleep(0.5)
        done = []
        for i in range(6):  # even: the loaded ones begin where the idle ones began
            done.append(bench.service.promote("tuples", 2 - i % 2, "bench"))
            if i == 0 and not loaded:
                first = done.pop()  # it loads the version; the later ones find it resident
                figures["first, idle"] = first.seconds
                rows.append(("first, idle", *(f"{1000 * s:.1f}" for s in first.seconds.values()), ""))
        longest = ""
        if asking is not None:
            ray.get(caller.stop.remote())
            longest = f"{1000 * ray.get(asking)[1]:.0f} (without swaps {1000 * baseline_s:.0f})"
        phases = {p: float(np.median([each.seconds[p] for each in done])) for p in done[0].seconds}
        figures[name] = {**phases, "longest wait of a question ms": longest}
        rows.append((name, *(f"{1000 * s:.1f}" for s in phases.values()), longest))
    header = ("promotion", *(f"{p} ms" for p in phases), "longest wait ms")
    print_rows("swap by phase (median)", header, rows)
    ray.kill(caller)
    bench.results["swap"] = figures


def jain(shares: np.ndarray) -> float:
    """1 for equal shares, 1 / n when one of n has all (Jain, Chiu and Hawe 1984)."""
    return float(shares.sum() ** 2 / (len(shares) * (shares**2).sum()))


def percentiles(latencies: list[float]) -> tuple[float, float]:
    """p50 and p99 in milliseconds."""
    p50, p99 = np.percentile(np.asarray(latencies) * 1000, [50, 99])
    return float(p50), float(p99)


def verdict(reached: bool) -> str:
    return "ok" if reached else "NOT REACHED"


def main() -> int:
    import os

    from services.serving import start_http

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measured window")
    parser.add_argument("--rounds", type=int, default=10, help="alternations of loop and service")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    parts = dict(zip(PARTS, (saturation, batching, by_value, wire, latency, fairness, swap), strict=True))
    with tempfile.TemporaryDirectory(prefix="pc-bench-", dir="/tmp") as scratch:
        os.environ[VARIABLE] = scratch
        bench = Bench(Path(scratch), args.seconds, args.rounds)
        with private_cluster(num_cpus=4, core=OTHER_CORE):
            start_http("127.0.0.1", PORT)
            bench.deploy()
            for name in args.only:
                parts[name](bench)
    if args.json:
        write_json(args.json, bench.results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
