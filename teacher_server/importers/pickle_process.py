"""Starts the process that reads a pickle (teacher_server.importers.read_pickle) and says how it ended.

This process never unpickles: it gets safetensors and JSON back, or an ImportRefused. The child gets a copy of the
environment's few variables that Python and torch need and none of the others, a session of its own so that all of it
can be ended, and limits on time and memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from teacher_server.importers.errors import ImportRefused

READER = "teacher_server.importers.read_pickle"
_ROOT = Path(__file__).resolve().parents[2]
_INHERITED = ("LD_LIBRARY_PATH", "LANG", "LC_ALL")
_MAX_OUTCOME_BYTES = 2**20
_MESSAGE_CHARS = 200


@dataclass(frozen=True)
class Limits:
    """seconds: of wall clock and of CPU, torch's own start included in the first. memory_bytes: beyond torch's own."""

    seconds: float = 120.0
    memory_bytes: int = 2**30

    @classmethod
    def for_file(cls, num_bytes: int) -> Limits:
        """A checkpoint is in memory up to three times: as read, as copied, as written."""
        return cls(memory_bytes=2**30 + 4 * num_bytes)


def to_safetensors(name: str, source: Path, target: Path, *, trust_pickle: bool, limits: Limits) -> tuple[str, ...]:
    """Writes the checkpoint's tensors to `target` (*.safetensors); the names of what was left out.

    name: how messages call the source. Raises ImportRefused when the file is refused and when the child dies, takes
    too long or takes too much memory.
    """
    log = target.with_suffix(".log")
    with open(log, "wb") as output:
        child = subprocess.Popen(
            _command(source, target, trust_pickle, limits),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(target.parent),
            cwd=target.parent,
            start_new_session=True,
        )
        try:
            in_time = _ended_within(child, limits.seconds)
        finally:
            code = _end(child)
    if not in_time:
        raise ImportRefused(name, f"reading it took longer than {limits.seconds:g} s")
    return _outcome(name, target.with_suffix(".json"), code, log, limits)


def _command(source: Path, target: Path, trust_pickle: bool, limits: Limits) -> list[str]:
    flags = ["--memory-bytes", str(limits.memory_bytes), "--cpu-seconds", str(max(1, round(limits.seconds)))]
    trust = ["--trust-pickle"] if trust_pickle else []
    return [sys.executable, "-P", "-s", "-m", READER, str(source), str(target), *trust, *flags]


def _environment(scratch: Path) -> dict[str, str]:
    """One thread and one memory arena: each further one reserves address space, which is limited."""
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    own = {"PYTHONPATH": str(_ROOT), "HOME": str(scratch), "TMPDIR": str(scratch)}
    return kept | own | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}


def _ended_within(child: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether it ended in time. It is not reaped, so its number stays its own until `_end` has used it."""
    descriptor = os.pidfd_open(child.pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(descriptor)


def _end(child: subprocess.Popen[bytes]) -> int:
    """Ends the child and whatever it started, also when it has ended itself; its return code.

    It leads a session and a group of its own, whose number is its pid: never this process's group.
    """
    with contextlib.suppress(ProcessLookupError):  # somebody reaped it, and nothing else of its group is left
        os.killpg(child.pid, signal.SIGKILL)
    return child.wait()


def _outcome(name: str, path: Path, code: int, log: Path, limits: Limits) -> tuple[str, ...]:
    try:
        outcome = json.loads(path.read_bytes()[:_MAX_OUTCOME_BYTES])
    except (OSError, ValueError):
        raise ImportRefused(name, f"the process that read it {_ending(code, limits)}{_last_words(log)}") from None
    if "error" in outcome or code != 0:
        raise ImportRefused(name, str(outcome.get("error", f"the process that read it {_ending(code, limits)}")))
    return tuple(str(entry) for entry in outcome["left_out"])


def _ending(code: int, limits: Limits) -> str:
    if code == -signal.SIGXCPU:
        return f"took more than {limits.seconds:g} s of CPU time"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}: it may have taken more memory than there is"
    return f"ended with code {code}"


def _last_words(log: Path) -> str:
    """The last line that the child wrote, printable and short; empty when there is none."""
    with open(log, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = file.read().decode(errors="replace").strip().splitlines()
    line = "".join(char for char in lines[-1] if char.isprintable())[:_MESSAGE_CHARS] if lines else ""
    return f" ({line})" if line else ""
