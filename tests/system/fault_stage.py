"""Where training runs meet faults: a cluster that outlives them, teachers on it, and runs as a user starts them.

    this process ── private cluster ── `preceptor serve`: teachers, gateway
         │                                  ▲            ▲
         └── trainer/run.py ... ── RAY_ADDRESS           └── --gateway URL, from a home of its own

Runs are small: the tiny store, clips of 8 frames of 32x32, two random teachers `alpha@1` and `alpha@2`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray

from teacher_server.errors import TeacherUnavailable
from teacher_server.library import TeacherLibrary
from teacher_server.serve.app import DeployOptions
from teacher_server.serve.deployment import TeacherService

SETTINGS = (
    "--teacher", "alpha@1", "--clip-len", "8", "--crop", "32", "--no-evaluate", "--checkpoint-every", "4",
)  # fmt: skip
STEPS_PER_EPOCH = 3
IN_DRIVER = ("--num-workers", "0")
LOCAL = (*IN_DRIVER, "--teacher-transport", "in_process")
PATIENCE_S = 240.0


@dataclass(frozen=True)
class Stall:
    """The longest step before any fault, the first one left out, and the longest one after this fault, in seconds."""

    normal_s: float
    longest_s: float

    @classmethod
    def of(cls, steps: list[dict[str, Any]], at: int, until: int, first_fault: int | None = None) -> Stall:
        """From step records; the fault came after step `at`, the run's first one after step `first_fault`."""
        before = at if first_fault is None else first_fault
        return cls(
            max(record["seconds"] for record in steps if 2 <= record["step"] <= before),
            max(record["seconds"] for record in steps if at < record["step"] <= until),
        )

    def check(self, limit_s: float) -> None:
        """No step after the fault took longer than a normal one and the limit."""
        assert self.longest_s <= self.normal_s + limit_s, f"{self}: a stall of more than one step + {limit_s:g} s"

    def __str__(self) -> str:
        return f"longest step {self.longest_s:.2f} s, before {self.normal_s:.2f} s"


class Stage:
    """The surroundings `box`, the library in its home, and the service on this process's cluster."""

    def __init__(self, box: Any, elsewhere: Any, tiny: Any, scratch: Path) -> None:
        self.box = box
        self.elsewhere = elsewhere
        self.library: TeacherLibrary = tiny.build_library(box.home / "teachers", scratch)
        address = ray.get_runtime_context().gcs_address
        self._on_cluster = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"}
        self._replicas = 0
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.gateway = f"http://127.0.0.1:{port}"
        self.service = TeacherService.connect(self.library.root)

    def serve(self) -> None:
        """The operator's teachers and gateway, by the real command."""
        self.run_command("-m", "services.cli", "serve", "--port", self.gateway.rpartition(":")[2])
        self._replicas = 1

    def teachers(self, num: int) -> list[int]:
        """The process ids of the replicas, once there are so many and no other app."""
        if num != self._replicas:
            self.service.delete()
            if num:
                self.service.deploy(DeployOptions(num_replicas=num))
            self._replicas = num
        return self.wait_for_replicas(num) if num else []

    def wait_for_replicas(self, num: int) -> list[int]:
        """Until the dead ones are replaced."""
        pids: list[int] = []

        def are_there() -> bool:
            with contextlib.suppress(TeacherUnavailable):  # one that has just died may be asked
                pids[:] = sorted(state.pid for state in self.service.describe())
            return len(pids) == num and all(map(psutil.pid_exists, pids))

        wait_until(are_there, f"{num} replicas")
        return pids

    def start(self, run_id: str, *flags: str) -> subprocess.Popen[str]:
        """A training command that joins the cluster."""
        return self._start("trainer/run.py", *SETTINGS, "--run-id", run_id, *flags, environment=self._on_cluster)

    def start_alone(self, run_id: str, *flags: str) -> subprocess.Popen[str]:
        """One that knows of no cluster."""
        return self._start("trainer/run.py", *SETTINGS, "--run-id", run_id, *flags)

    def run_command(self, *command: str, joined: bool = True) -> str:
        """Runs a Python command to its end; it must succeed. joined: it is told of the cluster."""
        process = self._start(*command, environment=self._on_cluster if joined else {})
        return finish(process, 0)

    def _start(self, *command: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        before = self.box.environment
        self.box.environment = before | (environment or {})
        try:
            return self.box.start(sys.executable, *command)
        finally:
            self.box.environment = before

    def result(self, run_id: str) -> dict[str, Any]:
        """A finished run's result.json."""
        return json.loads((self.box.run_folder(run_id) / "result.json").read_text())

    def count(self, run_id: str) -> int:
        """Steps done."""
        return len(self.box.steps(run_id))

    def stall(self, run_id: str, at: int, until: int = sys.maxsize, *, first_fault: int | None = None) -> Stall:
        """How a fault after step `at` showed up to step `until`. first_fault: of the run, if there was an earlier."""
        return Stall.of(self.box.steps(run_id), at, until, first_fault)

    def kill_training_worker(self) -> None:
        """SIGKILL to the one Ray Train worker of this process's cluster."""
        (worker,) = training_workers()
        worker.send_signal(signal.SIGKILL)

    def kill_command(self, process: subprocess.Popen[str]) -> None:
        """SIGKILL to the whole command; returns when the cluster has noticed."""
        process.kill()
        process.communicate(timeout=60)
        wait_until(lambda: not training_workers(), "the end of the killed command's worker")


def finish(process: subprocess.Popen[str], code: int) -> str:
    """What a command printed, once it has ended with this exit code."""
    output, _ = process.communicate(timeout=10 * PATIENCE_S)
    assert process.returncode == code, output
    return output


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Looks every 20 ms."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, f"{what} did not come within {PATIENCE_S:.0f} s"
        time.sleep(0.02)


def training_workers() -> list[psutil.Process]:
    """The living Ray Train workers of this process's cluster, whose processes descend from this one."""
    found = []
    for process in psutil.Process(os.getpid()).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found
