"""A pool of processes that draws videos, each on its own; what is drawn is the caller's."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

import cv2
from rich.console import Console
from rich.progress import track

from data.errors import DataError

_PARENT_CHECK_S = 2.0

V = TypeVar("V")


def _start_worker() -> None:
    """One thread each; deaf to Ctrl-C, which the parent handles; gone when the parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """A killed parent cannot stop its pool, and a worker of a dead pool would wait for work for ever."""
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        parent.join(timeout=_PARENT_CHECK_S)
    os._exit(1)


@contextmanager
def _ctrl_c_delayed() -> Iterator[None]:
    """Ctrl-C waits until the end of this block. Processes started in here inherit the block, so that it cannot hit
    them before `_start_worker` runs."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def for_each(work: Callable[[V], None], videos: Sequence[V], workers: int) -> None:
    """Call `work` with every video, in `workers` processes; it and the videos must pickle.

    Raises what `work` raised first, and DataError if a process dies. No process outlives the call.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        with _ctrl_c_delayed():
            futures = [pool.submit(work, video) for video in videos]
        for done in _with_progress(futures):
            done.result()
    except BrokenProcessPool as error:
        raise DataError("a drawing process was killed (out of memory?): try again with fewer --workers") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _with_progress(futures: list[Future[None]]) -> Iterator[Future[None]]:
    """Futures as they end; a bar on a terminal, otherwise a line for each tenth of the work."""
    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(as_completed(futures), "drawing videos", total=len(futures), console=console)
        return
    start = time.monotonic()
    for count, done in enumerate(as_completed(futures), start=1):
        yield done
        if count * 10 // len(futures) > (count - 1) * 10 // len(futures):
            print(
                f"drew {count} of {len(futures)} videos, {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True
            )
