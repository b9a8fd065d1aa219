"""Promise 12: it runs for long. 60 % of the load that can be served, half of it over HTTP, a swap a minute, 1 % bad
requests; meanwhile every process of the cluster is looked at, in the full form for 30 minutes.

    two callers ──► Serve handle │ gateway ──► one replica          every second: resident memory, threads, files of
        bound by the roster in blocks, as students are              all processes, shared memory of the machine
    operator    ──► promote the other version, evict the one that was left, every minute

Progress goes to the file that PRECEPTOR_SOAK_LOG names, a line a minute.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import ray

from data.store import ClipStore
from teacher_server.errors import TeacherInUse
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId, TeacherQuery, TeacherRef, new_request_id
from teacher_server.serve.deployment import TeacherService

pytestmark = [pytest.mark.system, pytest.mark.long]

NAME = "soak"
LOAD = 0.6
BAD_SHARE = 0.01
BLOCK_QUESTIONS = 8
PATIENCE_S = 60.0
CAPACITY_S = 10.0
GROWTH_SHARE, GROWTH_MIB = 0.02, 32.0
SLACK_HANDLES = 2  # threads and files: a pool may have been looked at while it grew
BAD = {
    "pixels of another size": "BadQuery",
    "an unknown version": "UnknownTeacher",
    "items of other views": "BadQuery",
    "a store that is nowhere": "StoreMissing",
    "views that are none": "BadQuery",
}


@dataclasses.dataclass(frozen=True)
class Form:
    """How long. A swap comes every `period_s` seconds."""

    periods: int
    period_s: float


SHORT, FULL = Form(3, 10.0), Form(30, 60.0)


@pytest.fixture(scope="module")
def form(full: bool) -> Form:
    return FULL if full else SHORT


@pytest.fixture(scope="module")
def store(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    return tiny.build_store(tmp_path_factory.mktemp("stores") / "tiny")


@pytest.fixture(scope="module")
def library(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> TeacherLibrary:
    library, scratch = TeacherLibrary(tmp_path_factory.mktemp("library")), tmp_path_factory.mktemp("weights")
    for version in (1, 2):
        card = tiny.make_card()
        library.add(NAME, card, tiny.save_random_weights(card, scratch / f"{version}.safetensors", version))
    return library


def make_caller(run: str, library_root: Path, url: str, pool: list[TeacherQuery]) -> Any:
    """An actor of a process of its own: it asks over HTTP where there is a URL. A class made here travels by value."""
    with_views = [query for query in pool if query.views is not None]
    raw = ("items of other views", "views that are none")  # over HTTP our client refuses these before it sends them

    @ray.remote(num_cpus=0, max_concurrency=2)
    class Caller:
        def __init__(self) -> None:
            from teacher_server.clients.http import HttpTeacherClient

            self._service = TeacherService.connect(library_root)
            self._client = HttpTeacherClient(url) if url else self._service.client()
            self._rng = random.Random(run)
            self._asked = 0
            self._binding: Any = None
            self._service.acquire(run, TeacherRef(NAME))

        def pid(self) -> int:
            return os.getpid()

        def saturate(self, seconds: float, depth: int) -> float:
            """Answers a second to as many threads that ask one question after the other."""
            began = time.monotonic()

            def ask(_: int) -> int:
                count = 0
                while time.monotonic() < began + seconds:
                    count += self._ask(self._good()) == "answered"
                return count

            with ThreadPoolExecutor(depth) as threads:
                answered = sum(threads.map(ask, range(depth)))
            return answered / (time.monotonic() - began)

        def at_rate(self, seconds: float, per_s: float) -> dict[str, int]:
            """An open loop; how many questions of each kind ended how, as `kind: outcome`."""
            began, counts, lock = time.monotonic(), Counter[str](), threading.Lock()

            def ask(kind: str, query: TeacherQuery) -> None:
                outcome = self._post_nonsense() if url and kind in raw else self._ask(query)
                with lock:
                    counts[f"{kind}: {outcome}"] += 1

            with ThreadPoolExecutor(64) as threads:
                for i in range(int(seconds * per_s)):
                    time.sleep(max(0.0, began + i / per_s - time.monotonic()))
                    query, kind = self._good(), "good"
                    if self._rng.random() < BAD_SHARE:
                        kind = self._rng.choice(list(BAD))
                        query = self._spoilt(self._good(with_views), kind)
                    threads.submit(ask, kind, query)
            return dict(counts)

        def _post_nonsense(self) -> str:
            """Views that are none, past our client; the code of the refusal."""
            views = b"no views"
            tensor = {"name": "views", "datatype": "UINT8", "shape": [len(views)]}
            inputs = [tensor | {"parameters": {"binary_data_size": len(views)}}]
            head = json.dumps({"inputs": inputs, "parameters": {"store": "tiny"}}).encode()
            headers = {"Inference-Header-Content-Length": str(len(head))}
            answer = httpx.post(
                f"{url}/v2/models/{NAME}/infer", content=head + views, headers=headers, timeout=PATIENCE_S
            )
            return str(answer.json().get("code", "answered"))

        def release(self) -> None:
            self._service.release(run)
            self._client.close()

        def _good(self, questions: list[TeacherQuery] = pool) -> TeacherQuery:
            if self._asked % BLOCK_QUESTIONS == 0:
                self._binding = self._service.bind(run, TeacherRef(NAME), self._asked // BLOCK_QUESTIONS)
            self._asked += 1
            query = self._rng.choice(questions)
            return dataclasses.replace(query, request_id=new_request_id(), teacher=self._binding.teacher, run=run)

        def _spoilt(self, query: TeacherQuery, kind: str) -> TeacherQuery:
            changes: dict[str, dict[str, Any]] = {
                "pixels of another size": {"pixels": np.zeros((3, 8, 30, 30, 3), np.uint8), "views": None},
                "an unknown version": {"teacher": TeacherId(NAME, 99)},
                "items of other views": {"views_per_item": 1},
                "a store that is nowhere": {"store": f"{query.store}-nowhere"},
                "views that are none": {"views": b"no views"},
            }
            return dataclasses.replace(query, **{"pixels": None, **changes[kind]})

        def _ask(self, query: TeacherQuery) -> str:
            from data.errors import DataError
            from teacher_server.errors import TeacherError

            try:
                self._client.submit(query).result(PATIENCE_S)
            except (TeacherError, DataError) as error:
                return type(error).__name__
            return "answered"

    return Caller.remote()


class Watch:
    """Memory in MiB, threads and open files of each process below this one at each look; how many there are of them;
    and shared memory."""

    def __init__(self, without: set[int]) -> None:
        self.samples: defaultdict[str, list[tuple[float, ...]]] = defaultdict(list)
        self._without = without
        self._names: dict[psutil.Process, str] = {}

    def look(self) -> None:
        """Once more."""
        children = [each for each in psutil.Process().children(recursive=True) if each.pid not in self._without]
        for process in children:
            try:
                if process not in self._names:
                    self._names[process] = _name(process)  # later it would name the method that runs
                with process.oneshot():
                    rss, threads, files = process.memory_info().rss, process.num_threads(), process.num_fds()
            except psutil.Error:
                continue  # a worker that Ray had started ahead and did not need
            self.samples[self._names[process]].append((rss / 2**20, threads, files))
        self.samples["number of processes"].append((len(children),))
        self.samples["shared memory"].append((psutil.disk_usage("/dev/shm").used / 2**20,))

    def thirds(self) -> dict[str, list[tuple[float, float]]]:
        """Of each process that lived to the end: the medians of middle and last third, of each figure."""
        longest = max(map(len, self.samples.values()))
        found = {}
        for name, rows in self.samples.items():
            if len(rows) > 0.98 * longest:
                middle, last = (np.array(part) for part in np.array_split(np.array(rows), 3)[1:])
                found[name] = list(zip(np.median(middle, axis=0), np.median(last, axis=0), strict=True))
        return found


def _name(process: psutil.Process) -> str:
    """What Ray calls it, without the method that it is in; a program's file name for others."""
    line = process.cmdline() or [""]
    title = line[0].split(".")[0] if line[0].startswith("ray::") else " ".join(Path(word).name for word in line[:3])
    return f"{title[:60].strip()} ({process.pid})"


def evict_left(service: TeacherService, version: int) -> None:
    """Once the callers have moved on."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            service.evict(TeacherId(NAME, version), "soak")
            return
        except TeacherInUse:
            assert time.monotonic() < deadline
        time.sleep(0.25)


def note(line: str) -> None:
    """For whoever waits."""
    print(line, flush=True)
    if path := os.environ.get("PRECEPTOR_SOAK_LOG"):
        with Path(path).open("a") as log:
            log.write(line + "\n")


@pytest.mark.usefixtures("ray_cluster")
def test_memory_threads_files_and_shared_memory_stay_flat(
    library: TeacherLibrary, store: ClipStore, tiny: ModuleType, load: ModuleType,
    gateway: Callable[[Path, Path], str], form: Form, seed: int, figure: Callable[[int, str, str], None],
) -> None:  # fmt: skip
    url = gateway(library.root, store.path.parent)
    service = TeacherService.connect(library.root)
    pool = load.make_pool(tiny, store, 32, seed)
    callers = [make_caller(run, library.root, address, pool) for run, address in (("by handle", ""), ("http", url))]
    pids = set(ray.get([caller.pid.remote() for caller in callers]))
    ray.get([caller.saturate.remote(2.0, 2) for caller in callers])  # everything has started
    capacity = sum(ray.get([caller.saturate.remote(CAPACITY_S, 2) for caller in callers]))
    counts: Counter[str] = Counter()
    version, left, began = 1, 0, time.monotonic()
    watch = Watch(pids)
    with load.every(1.0, watch.look):
        for period in range(form.periods):
            asking = [caller.at_rate.remote(form.period_s, LOAD * capacity / len(callers)) for caller in callers]
            if left:  # a period ago: the callers have moved on, or do so now
                evict_left(service, left)
            left, version = version, 3 - version
            service.promote(NAME, version, "soak", expected=left)
            for found in ray.get(asking):
                counts.update(found)
            note(f"{period + 1} of {form.periods} periods, {time.monotonic() - began:.0f} s, {dict(counts)}")
    ray.get([caller.release.remote() for caller in callers])
    thirds = watch.thirds()
    for name, figures in thirds.items():
        note(f"{name}: " + ", ".join(f"{middle:.1f} -> {last:.1f}" for middle, last in figures))
    growth = {name: last - middle for name, ((middle, last), *_) in thirds.items()}
    worst = max(growth, key=growth.__getitem__)
    figure(
        12,
        f"{time.monotonic() - began:.0f} s, {counts.total()} questions at {LOAD:.0%} of {capacity:.0f}/s, "
        f"{form.periods} swaps, {counts.total() - counts['good: answered']} refused; resident memory of the last third "
        f"over the middle one: at most {growth[worst]:+.1f} MiB ({worst}), of {len(thirds) - 2} processes",
        f"within {GROWTH_SHARE:.0%} and {GROWTH_MIB:.0f} MiB; threads, files and shared memory flat",
    )
    expected = {"good: answered", *(f"{kind}: {outcome}" for kind, outcome in BAD.items())}
    assert set(counts) <= expected, counts
    assert sum(counts[name] for name in expected - {"good: answered"}) > 0
    for wanted in ("ServeReplica:preceptor-teachers", "ServeReplica:preceptor-gateway", "RosterActor", "ProxyActor"):
        assert any(wanted in name for name in thirds), (wanted, list(thirds))
    for name, ((middle, last), *handles) in thirds.items():
        assert last - middle <= GROWTH_MIB, name
        if form is FULL:  # the short form is still warming up
            # Ray's own head processes (the GCS and its monitors) log and count; theirs is printed, and bounded above.
            is_ours = name.startswith(("ray::", "number"))
            assert last <= (1 + GROWTH_SHARE) * middle or not is_ours, name
            assert all(after <= before + SLACK_HANDLES for before, after in handles), name
    service.delete()
