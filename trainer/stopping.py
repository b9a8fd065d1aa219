"""How a user stops a run: the first Ctrl-C leaves a file. The workers, wherever they are, look for it after every step;
they save and end. A later Ctrl-C ends at once.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

_SAME_PRESS_S = 1.0  # `timeout` and shells may send one request twice


@contextlib.contextmanager
def stop_on_signals(stop_request: Path) -> Iterator[None]:
    """SIGINT and SIGTERM ask for a stop; a later one ends at once. Installed after ray.init, which sets its own."""
    asked_at: list[float] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        if asked_at and time.monotonic() - asked_at[0] > _SAME_PRESS_S:
            raise KeyboardInterrupt
        if not asked_at:
            asked_at.append(time.monotonic())
            stop_request.write_text(f"{signal.Signals(number).name}\n")

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
