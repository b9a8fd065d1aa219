"""`ray job submit`, as the README writes it, against real heads with token authentication."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()
JOB_LIMIT_S = 280.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def head(box: Any, cwd: Path) -> Iterator[None]:
    """`ray start --head` in a folder, with free ports, so that heads of other people do not matter."""
    port, dashboard = free_port(), free_port()
    box.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-of-the-tests-32-characters-long"}
    ray = str(Path(sys.executable).with_name("ray"))
    process = box.start(
        ray, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2",
        f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}",
        f"--temp-dir={box.ray_folder}", "--object-store-memory=200000000", cwd=cwd,
    )  # fmt: skip
    box.environment |= {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    _wait_for_dashboard(dashboard, process)
    try:
        yield
    finally:
        process.terminate()
        process.communicate(timeout=60)


def _wait_for_dashboard(port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/version", timeout=5).close()
        except urllib.error.HTTPError:
            return  # it wants the token: it is there
        except OSError:
            with_pause(process)
        else:
            return
    raise AssertionError("the head's dashboard did not come up")


def with_pause(process: subprocess.Popen[str]) -> None:
    """Waits a moment, shorter if the process ends."""
    try:
        process.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        return


def submit(box: Any, command: str, cwd: Path) -> str:
    """Runs the command line in a shell, as a user does, and returns what it printed."""
    process = box.start("bash", "-c", command, cwd=cwd)
    output, _ = process.communicate(timeout=JOB_LIMIT_S)
    assert process.returncode == 0, output
    return output


def only_result(box: Any) -> dict[str, Any]:
    (path,) = (box.home / "runs").glob("*/result.json")
    return json.loads(path.read_text())


def test_word_for_word_against_a_head_that_was_started_in_the_repository(sandbox: ModuleType) -> None:
    command = "ray job submit -- python trainer/run.py --teacher r2plus1d"
    assert command in README
    with sandbox.Sandbox() as box, head(box, REPOSITORY):
        output = submit(box, command, REPOSITORY)
        assert "succeeded" in output
        result = only_result(box)
        assert result["teacher"] == "r2plus1d"
        assert result["teacher_timeline"][0]["teacher"] == "r2plus1d@1"


@pytest.mark.long
def test_with_a_working_dir_against_a_head_that_was_started_elsewhere(sandbox: ModuleType, tmp_path: Path) -> None:
    (documented,) = re.findall(r"`(ray job submit --working-dir \. --runtime-env-json [^`]*)`", README)
    with sandbox.Sandbox() as box:
        home = box.environment.pop("PRECEPTOR_HOME")  # neither the head nor the shell names it: the job does
        command = documented.replace("/shared/preceptor", home)
        assert command != documented
        with head(box, tmp_path):
            submit(box, command + " --epochs 2 --no-evaluate", REPOSITORY)
            assert only_result(box)["teacher_timeline"][0]["teacher"] == "r2plus1d@1"
