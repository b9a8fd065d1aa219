"""A real Prometheus watches `preceptor serve`, a training run that joins it, HTTP traffic and the exporter."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from teacher_server.library import TeacherLibrary
from teacher_server.roster.roster import Roster

pytestmark = [pytest.mark.system, pytest.mark.long, pytest.mark.timeout(900)]

DEPLOY = Path(__file__).parents[2] / "deploy"
LIMIT_S = 240.0
WINDOW = "30s"
RUN = "watched"
STEPS = f'ray_preceptor_student_steps_total{{run="{RUN}"}}'
TRAIN = (
    "--teacher alpha --crop 32 --clip-len 8 --interval 2 --batch-size 4 --epochs 100000 --no-evaluate "
    f"--resume never --checkpoint-every 1000000 --run-id {RUN}"
).split()


def dashboard_queries() -> list[str]:
    """Every query of the dashboard, its variables filled in as Grafana does for `All`."""
    panels = json.loads((DEPLOY / "grafana" / "dashboards" / "preceptor.json").read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    return [query.replace("$__rate_interval", WINDOW).replace("$run", ".*") for query in queries]


@dataclass
class Watched:
    """What runs, and how to ask Prometheus about it."""

    box: Any
    library: TeacherLibrary
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    prometheus: str = ""
    gateway: str = ""
    asked: int = 0  # answered questions to beta@1 over HTTP
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=30.0, trust_env=False))

    def start(self, name: str, *command: str, **environment: str) -> None:
        """Starts a command; what it prints goes to a file."""
        with open(self.box.root / f"{name}.log", "wb") as log:
            self.processes[name] = subprocess.Popen(
                command, env=self.box.environment | environment, cwd=DEPLOY.parent, stdout=log, stderr=log
            )

    def wait(self, name: str, what: str, check: Callable[[], Any]) -> Any:
        """Tries until `check` returns something true; fails when that process ends, or after LIMIT_S."""
        deadline = time.monotonic() + LIMIT_S
        while not (result := check()):
            log = (self.box.root / f"{name}.log").read_text(errors="replace")[-3000:]
            assert self.processes[name].poll() is None, f"{name} ended while waiting for {what}:\n{log}"
            assert time.monotonic() < deadline, f"{what} did not come within {LIMIT_S:.0f} s:\n{log}"
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.processes[name].wait(timeout=0.2)
        return result

    def printed(self, name: str, pattern: str) -> str:
        """The first group of a line that a process prints."""
        log = self.box.root / f"{name}.log"
        return self.wait(name, pattern, lambda: re.search(pattern, log.read_text(errors="replace")))[1]

    def query(self, expression: str) -> list[float]:
        """The values of an instant query."""
        answer = self.http.get(f"{self.prometheus}/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
        return [float(series["value"][1]) for series in answer["data"]["result"]]

    def total(self, expression: str) -> float:
        """The sum of an instant query's values, 0 without any."""
        return sum(self.query(expression))

    def answers(self, url: str) -> bool:
        """Whether a URL answers with 200."""
        try:
            return self.http.get(url).status_code == 200
        except httpx.TransportError:
            return False

    def ask(self, name: str) -> int:
        """A question over HTTP: its status."""
        clips = np.full((2, 8, 32, 32, 3), self.asked % 256, dtype=np.uint8)
        pixels = {"name": "pixels", "datatype": "UINT8", "shape": clips.shape, "data": clips.reshape(-1).tolist()}
        status = self.http.post(f"{self.gateway}/v2/models/{name}/infer", json={"inputs": [pixels]}).status_code
        self.asked += status == 200
        return status

    def steps(self) -> int:
        """Steps in the run's log."""
        return len(self.box.steps(RUN))

    def end(self, name: str) -> int:
        """SIGINT, as Ctrl-C; the exit code."""
        self.processes[name].send_signal(signal.SIGINT)
        return self.processes[name].wait(timeout=60)

    def close(self) -> None:
        """Ends what still runs."""
        self.http.close()
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait(timeout=10)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def watched(sandbox: ModuleType, tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Everything runs: serve, training, exporter, Prometheus."""
    if shutil.which("prometheus") is None:
        pytest.skip("Prometheus is not installed: apt-get install prometheus")
    with sandbox.Sandbox() as box:
        library = tiny.build_library(box.home / "teachers", tmp_path_factory.mktemp("weights"))
        write_finished_run(box.run_folder("earlier"))
        everything = Watched(box, library)
        try:
            start_all(everything)
            yield everything
        finally:
            everything.close()


def write_finished_run(folder: Path) -> None:
    """A run of yesterday, so that the panels about finished runs have something to show."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"student": "c3d", "teacher": "none"}))
    (folder / "result.json").write_text(json.dumps({"steps": 70, "pretext_acc": 0.625}))


def start_all(watched: Watched) -> None:
    port = free_port()
    report = {"RAY_metrics_report_interval_ms": "1000"}  # Ray's default of 10 s would make the test wait
    watched.gateway = f"http://127.0.0.1:{port}"
    watched.start("serve", sys.executable, "-m", "services.cli", "serve", "--port", str(port), **report)
    watched.start("exporter", sys.executable, "-m", "services.exporter", "--port", "0")
    start_prometheus(watched, watched.printed("exporter", r"http://(127\.0\.0\.1:\d+)/metrics"))
    address = watched.printed("serve", r"RAY_ADDRESS=(\S+)")
    joined = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"}
    watched.start("training", *watched.box.command(*TRAIN), **joined, **report)
    watched.wait("training", "ten steps", lambda: watched.steps() >= 10)


def start_prometheus(watched: Watched, exporter: str) -> None:
    """deploy/prometheus.yml with this test's places and shorter intervals."""
    root, port = watched.box.root, free_port()
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s"}
    ray, state = config["scrape_configs"]
    own, shared = "../var/scrape/*.json", ray["file_sd_configs"][0]
    assert own in shared["files"]
    ray["file_sd_configs"] = [{"files": [f"{watched.box.home}/scrape/*.json"], "refresh_interval": "1s"}]
    state["static_configs"][0]["targets"] = [exporter]
    (root / "prometheus.yml").write_text(yaml.safe_dump(config))
    watched.prometheus = f"http://127.0.0.1:{port}"
    flags = (f"--storage.tsdb.path={root}/tsdb", f"--web.listen-address=127.0.0.1:{port}")
    watched.start("prometheus", "prometheus", f"--config.file={root}/prometheus.yml", *flags)
    watched.wait("prometheus", "readiness", lambda: watched.answers(f"{watched.prometheus}/-/ready"))


def test_every_query_of_the_dashboard_gives_finite_values(watched: Watched) -> None:
    queries = dashboard_queries()
    assert len(queries) > 25

    def missing() -> dict[str, list[float]]:
        assert watched.ask("beta") == 200  # so that the gateway's rates have something to count
        values = {query: watched.query(query) for query in queries}
        return {query: found for query, found in values.items() if not found or not all(map(math.isfinite, found))}

    last: dict[str, list[float]] = {}

    def all_finite() -> bool:
        nonlocal last
        last = missing()
        return not last

    try:
        watched.wait("training", "finite values", all_finite)
    except AssertionError:
        raise AssertionError(f"without finite values: {last}") from None
    print(f"{len(queries)} queries, all finite after {watched.steps()} steps")


def test_the_students_counters_lie_between_the_logged_steps_before_and_after(watched: Watched) -> None:
    counters = {
        STEPS: 1.0,
        STEPS.replace("steps_total", "clips_total"): 12.0,  # four tuples of three clips
        f'ray_preceptor_student_phase_seconds_count{{run="{RUN}",phase="compute"}}': 1.0,
        f'preceptor_run_steps{{run="{RUN}"}}': 1.0,
    }
    for expression, each in counters.items():
        before = sum(step["clips"] for step in watched.box.steps(RUN)) / 12
        watched.wait("training", expression, lambda e=expression, b=before * each: watched.total(e) >= b)
        reported, after = watched.total(expression), watched.steps()
        print(f"{expression}: at least {before * each:.0f}, reported {reported:.0f}, at most {after * each:.0f}")
        assert before * each <= reported <= after * each


@pytest.mark.parametrize("phase", ["data", "teacher_wait", "compute"])
def test_the_students_seconds_by_phase_are_those_of_its_log(watched: Watched, phase: str) -> None:
    """Bracketed like the counters, up to the log's rounding."""
    name = f'ray_preceptor_student_seconds_total{{run="{RUN}",phase="{phase}"}}'

    def logged() -> float:
        return sum(step[f"{phase}_s"] for step in watched.box.steps(RUN))

    before = logged()
    watched.wait("training", name, lambda: watched.total(name) >= before - 0.001)
    assert before - 0.001 <= watched.total(name) <= logged() + 0.001


@pytest.mark.parametrize("bound", ["0.025", "0.1", "0.5", "+Inf"])
def test_the_students_phases_fall_into_the_buckets_of_their_logged_seconds(watched: Watched, bound: str) -> None:
    """Bracketed like the counters. Buckets are exact; a histogram's sum is not, as Ray rounds values to buckets."""
    name = f'ray_preceptor_student_phase_seconds_bucket{{run="{RUN}",phase="compute",le="{bound}"}}'

    def logged() -> int:
        return sum(step["compute_s"] <= float(bound) for step in watched.box.steps(RUN))

    before = logged()
    watched.wait("training", name, lambda: watched.total(name) >= before)
    assert before <= watched.total(name) <= logged()


def test_gateway_and_teachers_count_every_question_exactly(watched: Watched) -> None:
    """Only this test asks beta@1, and only over HTTP."""
    for _ in range(5):
        assert watched.ask("beta") == 200
    for _ in range(3):
        assert watched.ask("nobody") == 404
    route = 'route="/v2/models/{name}/infer"'
    expected = {
        f'ray_preceptor_gateway_requests_total{{{route},status="200"}}': watched.asked,
        f'ray_preceptor_gateway_requests_total{{{route},status="404"}}': 3,
        f"ray_preceptor_gateway_seconds_count{{{route}}}": watched.asked + 3,
        'ray_preceptor_teacher_replies_total{teacher="beta@1"}': watched.asked,
        'ray_preceptor_teacher_requests_total{teacher="beta@1",outcome="ok"}': watched.asked,
    }
    for expression, count in expected.items():
        watched.wait("serve", f"{expression} == {count}", lambda e=expression, c=count: watched.total(e) >= c)
        assert watched.total(expression) == count


def test_teachers_answer_every_question_of_the_student(watched: Watched) -> None:
    """At least one for each step that was made, and none but the questions in flight beyond that."""
    done = watched.steps()
    replies = 'ray_preceptor_teacher_replies_total{teacher=~"alpha@.*"}'
    watched.wait("training", replies, lambda: watched.total(replies) >= done)
    answered, prefetch = watched.total(replies), 2
    assert answered <= watched.steps() + prefetch + 1
    clips = "ray_preceptor_teacher_clips_total"
    watched.wait("training", clips, lambda: watched.total(clips) >= 12 * done + 2 * watched.asked)
    assert watched.total(clips) <= 12 * (watched.steps() + prefetch + 1) + 2 * watched.asked
    batches, everything = "ray_preceptor_teacher_batch_clips_count", "ray_preceptor_teacher_replies_total"
    held = watched.total(batches)
    assert held > 0
    watched.wait("training", f"{everything} >= {held}", lambda: watched.total(everything) >= held)


def test_a_promotion_shows_in_the_alias_and_in_the_answers_by_version(watched: Watched) -> None:
    alias, answers = 'preceptor_alias_version{alias="alpha"}', 'ray_preceptor_teacher_replies_total{teacher="alpha@2"}'
    assert (watched.total(alias), watched.total(answers)) == (1, 0)
    Roster(watched.library).promote("alpha", 2, "test")
    watched.wait("training", "the new alias", lambda: watched.total(alias) == 2)
    watched.wait("training", "answers of alpha@2", lambda: watched.total(answers) > 0)


def test_state_metrics_are_those_of_the_home(watched: Watched) -> None:
    from data.store import ClipStore

    store = ClipStore.open(watched.box.home / "stores" / "demo")
    assert watched.query('preceptor_store_videos{store="demo"}') == [len(store)]
    assert watched.query('preceptor_store_bytes{store="demo"}') == [store.num_bytes]
    assert watched.query('preceptor_run_finished{run="earlier"}') == [1]
    assert watched.query('preceptor_run_pretext_acc{run="earlier"}') == [0.625]
    assert watched.query(f'preceptor_run_finished{{run="{RUN}"}}') == [0]
    assert watched.query("preceptor_leases") == [1]
    assert watched.total("preceptor_damaged") == 0


def test_everything_ends_on_ctrl_c_and_the_scrape_target_with_it(watched: Watched) -> None:
    """Comes last."""
    assert len(list((watched.box.home / "scrape").iterdir())) == 1
    assert watched.end("training") == 130
    watched.wait("exporter", "the lease's end", lambda: watched.query("preceptor_leases") == [0])
    assert watched.answers(f"{watched.gateway}/readyz")  # the run did not end the operator's teachers
    began = time.monotonic()
    assert watched.end("serve") == 0
    print(f"`preceptor serve`: Ctrl-C to the end {time.monotonic() - began:.1f} s")
    assert watched.end("exporter") == 0
    assert list((watched.box.home / "scrape").iterdir()) == []
    watched.processes["prometheus"].terminate()
    assert watched.processes["prometheus"].wait(timeout=30) == 0
    watched.box.assert_no_process_left()
