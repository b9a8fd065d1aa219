"""From steps to student batches, ahead of the training loop.

    producer thread:  sampler.views(step) -> gather -> render -> teacher.put(step, views, pixels)
                                                        |
                                   at most `prefetch` steps between the two
                                                        |
    training loop:    next(loader):  prepare pixels  +  teacher.get()  ->  StudentBatch

Pixels are rendered once; a teacher that takes pixels gets the same array. A step takes a slot before it is rendered
and frees it when its answer is there, which bounds both memory and the questions in flight. An error of the producer
is raised by the next `next()`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from data.input_spec import InputSpec
from data.prepare import prepare
from data.render import render_batch
from data.store import ClipStore
from data.views import VIEWS_PER_TUPLE, ViewBatch
from teacher_server.protocol import Binding
from trainer.batch import StudentBatch
from trainer.sampler import Sampler
from trainer.timeline import TimelineEntry

_POLL_S = 0.2  # how soon a waiting thread notices that the other one has ended


@dataclass(frozen=True)
class Asking:
    """What one answer has cost: questions asked again, tries given up on, items that came from a ledger."""

    retries: int = 0
    dropped: int = 0
    replayed: int = 0


@dataclass(frozen=True)
class TeacherAnswer:
    """Softened logits float32 [B, K] for one step, and the version that the step is bound to.

    mask: bool [B], False where no teacher answered and the numbers mean nothing; None when all tuples were answered.
    features: float32 [B, D], None unless they were asked for.
    """

    logits: NDArray[np.float32]
    binding: Binding
    mask: NDArray[np.bool_] | None = None
    asking: Asking = Asking()
    features: NDArray[np.float32] | None = None


class TeacherSignal(Protocol):
    """A teacher that is asked ahead: `put` in the producer thread, `get` in the training loop, both in step order."""

    def restore(self, timeline: Sequence[TimelineEntry], steps_done: int) -> None:
        """Before an attempt's first question: what the steps before were bound to. Raises TeacherUnavailable."""

    def put(self, step: int, views: ViewBatch, pixels: NDArray[np.uint8]) -> None:
        """Asks about a step's tuples without waiting for the answer."""

    def get(self) -> TeacherAnswer:
        """The answer to the oldest open question. Raises TeacherUnavailable when its budget is spent, NotInLedger when
        a ledger alone answers and has nothing."""

    def flush(self) -> None:
        """Makes durable what was recorded of the answers so far. Raises LedgerError when that cannot be."""

    def ask_roster_again(self) -> None:
        """Another worker is bound to another version: the next block is asked about, whatever failed before."""

    def stop(self) -> None:
        """Ends a `put` that waits; called from another thread, when no step is wanted any more."""

    def close(self) -> None:
        """Drops what is in flight."""


@dataclass(frozen=True)
class LoadedStep:
    """A batch, what it was drawn as, and the seconds that the loop waited for pixels and for the teacher.

    binding: the version that the step is bound to, whether it answered or not; None for scratch.
    """

    step: int
    views: ViewBatch
    batch: StudentBatch
    binding: Binding | None
    asking: Asking
    data_s: float
    teacher_wait_s: float


@dataclass(frozen=True)
class _Rendered:
    step: int
    views: ViewBatch
    pixels: NDArray[np.uint8]


class Loader:
    """Iterates over the steps first .. stop-1 of one worker. Use it as a context: the thread runs inside it only.

    labels: the class of each video of the store, for a run with a supervised term; None keeps them away.
    """

    def __init__(
        self,
        sampler: Sampler,
        store: ClipStore,
        input_spec: InputSpec,
        teacher: TeacherSignal | None,
        *,
        first: int,
        stop: int,
        rank: int = 0,
        world: int = 1,
        prefetch: int = 2,
        device: torch.device | None = None,
        labels: NDArray[np.int64] | None = None,
    ) -> None:
        self._sampler = sampler
        self._store = store
        self._input_spec = input_spec
        self._teacher = teacher
        self._steps = range(first, stop)
        self._rank = rank
        self._world = world
        self._device = device or torch.device("cpu")
        self._labels = labels
        self._slots = threading.Semaphore(prefetch)
        self._queue: queue.SimpleQueue[_Rendered | BaseException] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._producer = threading.Thread(target=self._produce, name="loader", daemon=True)

    def __enter__(self) -> Loader:
        self._producer.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the producer thread."""
        self._closed.set()
        if self._teacher is not None:
            self._teacher.stop()
        self._producer.join(timeout=10.0)

    def __iter__(self) -> Iterator[LoadedStep]:
        for _ in self._steps:
            yield self._next()

    def _next(self) -> LoadedStep:
        began = time.perf_counter()
        rendered = self._take()
        if isinstance(rendered, BaseException):
            raise rendered
        clips = _split_tuple(prepare(rendered.pixels, self._input_spec).to(self._device))
        data_s = time.perf_counter() - began
        answer = None if self._teacher is None else self._teacher.get()
        wait_s = time.perf_counter() - began - data_s
        self._slots.release()
        batch = self._batch(rendered, clips, answer)
        if answer is None:
            return LoadedStep(rendered.step, rendered.views, batch, None, Asking(), data_s, 0.0)
        return LoadedStep(rendered.step, rendered.views, batch, answer.binding, answer.asking, data_s, wait_s)

    def _batch(
        self,
        rendered: _Rendered,
        clips: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        answer: TeacherAnswer | None,
    ) -> StudentBatch:
        """One converter from arrays to tensors on the student's device; answers are copied, because they arrive as
        read-only memory."""

        def tensor(array: NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(array.copy()).to(self._device)

        views = rendered.views
        labels = None if self._labels is None else self._labels[views.records["video"][::VIEWS_PER_TUPLE]]
        batch = StudentBatch(
            clips,
            tensor(views.pretext_labels),
            None,
            step=rendered.step,
            positions=tensor(self._sampler.positions(views)),
            action_labels=None if labels is None else tensor(labels),
        )
        if answer is None:
            return batch
        return replace(
            batch,
            teacher_logits=tensor(answer.logits),
            teacher_mask=None if answer.mask is None else tensor(answer.mask),
            teacher_features=None if answer.features is None else tensor(answer.features),
        )

    def _take(self) -> _Rendered | BaseException:
        while True:
            try:
                return self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                if not self._producer.is_alive() and self._queue.empty():
                    raise RuntimeError("the loader's thread ended without a batch") from None

    def _produce(self) -> None:
        """The thread's body. Whatever goes wrong is handed to the training loop, which raises it."""
        try:
            for step in self._steps:
                if not self._take_slot():
                    return
                views = self._sampler.views(step, self._rank, self._world)
                pixels = render_batch(self._store.gather(views), views)
                if self._teacher is not None:
                    self._teacher.put(step, views, pixels)
                self._queue.put(_Rendered(step, views, pixels))
        except BaseException as error:
            self._queue.put(error)

    def _take_slot(self) -> bool:
        """Waits for room; False once the loader is closed."""
        while not self._closed.is_set():
            if self._slots.acquire(timeout=_POLL_S):
                return True
        return False


def _split_tuple(clips_NCTHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[3B, C, T, H, W], tuple by tuple, -> three [B, C, T, H, W], clip position by clip position."""
    by_tuple = clips_NCTHW.unflatten(0, (-1, VIEWS_PER_TUPLE))
    # Channels last: the 3-D convolutions of the CPU are a quarter faster on it.
    layout = torch.channels_last_3d
    first, middle, last = (by_tuple[:, i].contiguous(memory_format=layout) for i in range(VIEWS_PER_TUPLE))
    return first, middle, last
