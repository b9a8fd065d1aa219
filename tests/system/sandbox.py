"""A user's surroundings for system tests: a PRECEPTOR_HOME of its own, a folder for Ray's files of its own, and the
built-in data set in its smallest size. Every process that is started here can be found again by that folder."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).parents[2]
START_LIMIT_S = 240.0


@functools.cache
def tiny_store() -> Path:
    """The built-in set in its smallest size, drawn and ingested once per test session."""
    home = Path(tempfile.mkdtemp(prefix="pc-data-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    environment = {**os.environ, "PRECEPTOR_HOME": str(home)}
    command = [sys.executable, "-m", "data.demo_store", "--size", "tiny"]
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, timeout=300, stdout=subprocess.DEVNULL)
    return home / "stores" / "tiny"


class Sandbox:
    """Use it as a context: what it started and wrote is gone afterwards."""

    def __init__(self) -> None:
        # Short: Ray's sockets lie below it, and their names have a limit of 107 characters.
        self.root = Path(tempfile.mkdtemp(prefix="pc-", dir="/tmp"))
        self.home = self.root / "home"
        self.ray_folder = self.root / "ray"
        (self.home / "stores").mkdir(parents=True)
        (self.home / "stores" / "demo").symlink_to(tiny_store())
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PRECEPTOR_HOME": str(self.home),
            "RAY_TMPDIR": str(self.root),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "200",
        }

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        shutil.rmtree(self.root, ignore_errors=True)

    def command(self, *flags: str) -> list[str]:
        """The training command; the store `demo` is the tiny one."""
        return [sys.executable, "trainer/run.py", *flags]

    def train(self, *flags: str) -> tuple[int, str]:
        """Runs the training command to its end: exit code and everything it printed."""
        process = self.start_training(*flags)
        output, _ = process.communicate(timeout=START_LIMIT_S)
        return process.returncode, output

    def start_training(self, *flags: str) -> subprocess.Popen[str]:
        """Starts the training command."""
        return self.start(*self.command(*flags))

    def start(self, *command: str, cwd: Path = REPOSITORY) -> subprocess.Popen[str]:
        """Starts any command in these surroundings."""
        return subprocess.Popen(
            command, cwd=cwd, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run_folder(self, run_id: str) -> Path:
        """A run's folder."""
        return self.home / "runs" / run_id

    def records(self, run_id: str) -> list[dict[str, Any]]:
        """The whole lines of a run's metrics."""
        path = self.run_folder(run_id) / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def steps(self, run_id: str) -> list[dict[str, Any]]:
        """The step records in order; of a step that a resumed run did again, the last."""
        last = {record["step"]: record for record in self.records(run_id) if record["kind"] == "step"}
        return [last[step] for step in sorted(last)]

    def losses(self, run_id: str) -> list[tuple[float, float]]:
        """Loss and distillation term by step."""
        return [(record["loss"], record["distill"]) for record in self.steps(run_id)]

    def logged_views(self, run_id: str) -> dict[int, list[str]]:
        """Step -> item digests of all workers, in rank order."""
        views: dict[int, list[str]] = {}
        for path in sorted(self.run_folder(run_id).glob("views-rank*.jsonl")):
            of_rank = {line["step"]: line["items"] for line in map(json.loads, path.read_text().splitlines())}
            for step, items in of_rank.items():
                views.setdefault(step, []).extend(items)
        return views

    def newest_checkpoint(self, run_id: str) -> Path:
        """The last checkpoint's folder."""
        return max((self.run_folder(run_id) / "checkpoints").glob("step-*"))

    def weights(self, run_id: str) -> bytes:
        """All tensors of the newest checkpoint: network, batch-norm statistics, momentum."""
        return (self.newest_checkpoint(run_id) / "state.safetensors").read_bytes()

    def wait_for_steps(self, run_id: str, count: int, process: subprocess.Popen[str]) -> None:
        """Returns when so many steps are done; fails when the process ends before."""
        deadline = time.monotonic() + START_LIMIT_S
        while len(self.steps(run_id)) < count:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, f"{run_id} did not reach step {count}"
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.05)

    def wait_for_process(self, name: str, process: subprocess.Popen[str]) -> None:
        """Returns when a process of that title was started here; fails when the command ends before."""
        deadline = time.monotonic() + START_LIMIT_S
        while not any(name in " ".join(_title(each)) for each in self.processes()):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, f"no process {name}"
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.05)

    def processes(self) -> list[psutil.Process]:
        """Living processes that were started in these surroundings, found by their environment."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                alive = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
                if alive and process.environ().get("RAY_TMPDIR") == str(self.root):
                    found.append(process)
        return found

    def assert_no_process_left(self) -> None:
        """The command is over: what it started must be gone, at the latest a moment later."""
        _, alive = psutil.wait_procs(self.processes(), timeout=5)
        assert not alive, [process.cmdline() for process in alive]

    def kill_training_worker(self) -> None:
        """SIGKILL to the one Ray Train worker."""
        workers = [p for p in self.processes() if "RayTrainWorker" in " ".join(_title(p))]
        assert workers, [_title(p)[:1] for p in self.processes()]
        workers[0].send_signal(signal.SIGKILL)


def _title(process: psutil.Process) -> list[str]:
    """Its command line; empty for a process that has just ended."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []
