"""A student in a process of its own that trains, on request, so many steps with or without a teacher.

The product's own parts: Sampler, Loader, BoundTeacher, train_step. What Ray Train adds around them is the same with
and without a teacher, and left out.

    arm          teacher
    alone        none; the distillation term is off
    beside       none; at every step an unconnected forward of the same size begins on the other core
    served       on Ray Serve
    in_process   in this process, as a thread
    replay       the ledger alone
    record       on Ray Serve, and written to the ledger
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import torch
from bench_tools import SPEC, pin_process
from engine_loop import EngineLoop

from data.store import ClipStore
from teacher_server.clients.inprocess import InProcessTeacherClient
from teacher_server.contract import TeacherClient
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId, TeacherRef
from teacher_server.roster.roster import Roster
from trainer.collective import Collective
from trainer.config import RunConfig
from trainer.loader import Loader, TeacherSignal
from trainer.plan import student_input
from trainer.sampler import Sampler, split_rows
from trainer.start import new_state
from trainer.step import train_step
from trainer.teacher_facts import TeacherFacts
from trainer.teaching import BoundTeacher
from trainer.timeline import Binder, TimelineEntry

Arm = Literal["alone", "beside", "served", "in_process", "replay", "record"]
FILL_STEPS = 2  # the pipeline's depth: the first steps of a block wait for pixels and answers


@dataclass(frozen=True)
class Setup:
    """What a student needs. core: None leaves it where the system puts it. address: of the Ray cluster."""

    home: Path
    teacher: TeacherId
    digest: str
    batch_size: int
    width: float
    address: str
    core: int | None
    view_seed: int
    beside_core: int = 1
    views_per_video: int = 0


@dataclass(frozen=True)
class Block:
    """Steps to train."""

    arm: Arm
    steps: int


@dataclass(frozen=True)
class Trained:
    """seconds: per step, fill left out; distilled: steps on which the distillation term was applied; teacher_wait_s:
    in all; began and ended: readings of time.time of the measured steps."""

    seconds: tuple[float, ...]
    distilled: int
    teacher_wait_s: float
    began: float
    ended: float


class StudentProcess:
    """The parent's handle."""

    def __init__(self, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(child, setup))
        self._process.start()
        atexit.register(self._process.kill)  # on Ctrl-C; multiprocessing would wait for it
        self._connection.recv()

    @property
    def pid(self) -> int:
        """The child's process id."""
        assert self._process.pid is not None
        return self._process.pid

    def start(self, block: Block) -> None:
        """Begins a block."""
        self._connection.send(block)

    def wait(self) -> Trained:
        """Its figures."""
        return self._connection.recv()

    def train(self, block: Block) -> Trained:
        """Both."""
        self.start(block)
        return self.wait()

    def end(self) -> None:
        """Ends the process."""
        self._connection.send(None)
        self._process.join(timeout=30)


class Student:
    """Network, optimiser and sampler; steps go on from block to block."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._config = RunConfig(
            store=str(setup.home / "stores" / "bench"),
            width=setup.width,
            clip_len=SPEC.clip_len,
            interval=SPEC.interval,
            crop=SPEC.crop,
            batch_size=setup.batch_size,
            epochs=100_000,
            view_seed=setup.view_seed,
            views_per_video=setup.views_per_video,
            modality="rgb",
            lr=1e-3,
            weight_decay=0.0,
            device="cpu",
        )
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self._store = ClipStore.open(self._config.store)
        train_rows, *_ = split_rows(self._store, self._config)
        assert len(train_rows) % setup.batch_size == 0, "the last batch of an epoch would be smaller, its step shorter"
        self._sampler = Sampler(self._store.videos, train_rows, self._config)
        self._state = new_state(self._config, torch.device("cpu"), num_train=len(train_rows), teacher=TeacherFacts())
        self._collective = Collective()
        self._beside: EngineLoop | None = None
        self._next = {"record": 0, "replay": 0}
        self._fresh = 0

    def train(self, block: Block) -> Trained:
        """Fills the pipeline, then measures `block.steps` steps."""
        first = self._first(block)
        each_step, after = self._forward_beside() if block.arm == "beside" else (lambda: None, lambda: None)
        stop = first + FILL_STEPS + block.steps
        signal = self._signal(block.arm)
        seconds, distilled, waited = [], 0, 0.0
        loader = Loader(
            self._sampler, self._store, student_input(self._config), signal, first=first, stop=stop + FILL_STEPS
        )
        began_at = 0.0
        with loader, contextlib.closing(signal) if signal is not None else contextlib.nullcontext():
            steps = iter(loader)
            for step in range(first, stop):
                began = time.perf_counter()
                each_step()
                loaded = next(steps)
                numbers = train_step(self._state, loaded.batch, self._config, self._collective, self._config.kd_weight)
                if step - first == FILL_STEPS - 1:
                    began_at = time.time()
                if step - first >= FILL_STEPS:
                    seconds.append(time.perf_counter() - began)
                    distilled += numbers.distill is not None
                    waited += loaded.teacher_wait_s
            ended_at = time.time()
        after()
        return Trained(tuple(seconds), distilled, waited, began_at, ended_at)

    def _first(self, block: Block) -> int:
        """Recorded and replayed steps are the same ones; all others are new."""
        count = 2 * FILL_STEPS + block.steps
        if block.arm in self._next:
            first = self._next[block.arm]
            self._next[block.arm] = first + count
            return first
        self._fresh += count
        return 10_000_000 + self._fresh

    def _forward_beside(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """Begins a forward pass at each step, if the last one is over; and waits for the last."""
        if self._beside is None:
            shape = (3 * self._setup.batch_size, SPEC.clip_len, SPEC.crop, SPEC.crop, 3)
            library = self._setup.home / "teachers"
            self._beside = EngineLoop(library, self._setup.teacher, shape, self._setup.beside_core)
        beside, running = self._beside, [False]

        def after() -> None:
            if running[0]:
                beside.wait()

        def step() -> None:
            after()
            beside.start(1)
            running[0] = True

        return step, after

    def _signal(self, arm: Arm) -> TeacherSignal | None:
        if arm in ("alone", "beside"):
            return None
        setup = self._setup
        return BoundTeacher(
            self._client(arm),
            Binder(
                Roster(TeacherLibrary(setup.home / "teachers")),
                "student",
                TeacherRef(setup.teacher.name),
                recorded=[TimelineEntry(0, str(setup.teacher), setup.digest)],
            ),
            config=self._config,
            run_id=f"student-{os.getpid()}",
            store_path=self._store.path,
            input_kind="pixels",
        )

    def _client(self, arm: Arm) -> TeacherClient:
        setup = self._setup
        if arm == "in_process":
            return InProcessTeacherClient(TeacherLibrary(setup.home / "teachers"))
        if arm == "served":
            return _serve_client(setup.address)
        from teacher_server.ledger.client import LedgerClient

        inner = _serve_client(setup.address) if arm == "record" else None
        return LedgerClient(setup.home / "ledgers", arm, inner=inner, digest_of=lambda _: setup.digest)


def _serve_client(address: str) -> TeacherClient:
    import ray

    from teacher_server.clients.serve import ServeTeacherClient

    if not ray.is_initialized():
        ray.init(address=address, namespace="preceptor", log_to_driver=False)
    return ServeTeacherClient()


def _serve(connection: Connection, setup: Setup) -> None:
    """The child's body."""
    if setup.core is not None:
        pin_process(setup.core)
    student = Student(setup)
    connection.send("ready")
    while (block := connection.recv()) is not None:
        connection.send(student.train(block))
    if student._beside is not None:
        student._beside.__exit__()
