"""A tiny clip store, a tiny teacher library and runs of a few steps on them: one thread, no cluster."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from data.store import ClipStore, StoreWriter
from teacher_server.clients.inprocess import InProcessTeacherClient
from teacher_server.library import TeacherLibrary
from teacher_server.roster.roster import Roster
from trainer.collective import Collective
from trainer.config import RunConfig
from trainer.loop import Outcome, Trainer
from trainer.plan import Plan, make_plan
from trainer.runs import RunFolder
from trainer.teacher_facts import TeacherFacts, teacher_facts
from trainer.teaching import BoundTeacher
from trainer.timeline import Binder

FRAME_SIZE = (40, 54)
CLASSES = ("left", "right")
GROUPS = ("g01", "g02", "g03", "g04", "g05", "g06")
TEST_GROUPS = ("g05", "g06")


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors; this one is Ray's own: it passes `update_type` to pydantic's Field on import."""
    config.addinivalue_line("filterwarnings", "ignore:Using extra keyword arguments on `Field`:DeprecationWarning")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Machines that run tests have few cores."""
    torch.set_num_threads(1)


def _load_by_path(path: Path) -> ModuleType:
    """Test folders are no packages."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """Builders of tiny teachers: see tests/unit/teacher_server/tiny.py."""
    return _load_by_path(Path(__file__).parents[1] / "teacher_server" / "tiny.py")


def moving_stripes(seed: int, label: int, num_frames: int) -> np.ndarray:
    """[T, 40, 54, 3] uint8: coloured stripes that move left or right over a ground of the group's colour."""
    rng = np.random.default_rng(seed)
    t, _, x = np.meshgrid(np.arange(num_frames), np.arange(FRAME_SIZE[0]), np.arange(FRAME_SIZE[1]), indexing="ij")
    direction = 1 if label else -1
    wave = np.sin((x + direction * t) / rng.uniform(2.0, 6.0))
    colour = rng.uniform(40.0, 110.0, 3)
    noise = rng.uniform(-10.0, 10.0, (*wave.shape, 1))
    return np.clip(128 + wave[..., None] * colour + noise, 0, 255).astype(np.uint8)


def build_store(path: Path) -> ClipStore:
    """24 videos of 60 frames, 4 in each of 6 groups, and a 25th of 20 frames that is too short for a tuple: in
    train01 and, in the second split, in test02."""
    subsets: dict[str, list[str]] = {"train01": [], "test01": []}
    with StoreWriter(path, frame_size=FRAME_SIZE, classes=CLASSES) as writer:
        for seed, (group, i) in enumerate(itertools.product(GROUPS, range(4))):
            label = i % 2
            key = f"{CLASSES[label]}/v_{CLASSES[label]}_{group}_c{i:02d}"
            writer.add(key, label, group, moving_stripes(seed, label, 60))
            subsets["test01" if group in TEST_GROUPS else "train01"].append(key)
        writer.add("left/v_left_g01_c99", 0, "g01", moving_stripes(99, 0, 20))
        subsets["test02"] = [*subsets["test01"], "left/v_left_g01_c99"]
        subsets["train02"] = [*subsets["train01"]]
        subsets["train01"].append("left/v_left_g01_c99")
        writer.commit(subsets)
    return ClipStore.open(path)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    """The tiny store. Tests must not change it."""
    return build_store(tmp_path_factory.mktemp("stores") / "tiny")


@pytest.fixture(scope="session")
def _library(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_library(tmp_path_factory.mktemp("library"), tmp_path_factory.mktemp("weights")).root


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _library: Path) -> Path:
    """PRECEPTOR_HOME with teachers alpha@1, alpha@2 (pretext, fit), beta@1 (action), gamma@1 (another crop)."""
    folder = tmp_path / "home"
    (folder / "runs").mkdir(parents=True)
    shutil.copytree(_library, folder / "teachers")
    monkeypatch.setenv("PRECEPTOR_HOME", str(folder))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return folder


@pytest.fixture
def config(store: ClipStore) -> RunConfig:
    """Scratch, 12 training videos in 3 batches of 4, 2 epochs; change it with dataclasses.replace."""
    return RunConfig(
        teacher="none",
        store=str(store.path),
        width=0.125,
        clip_len=8,
        interval=2,
        crop=32,
        batch_size=4,
        val_fraction=0.25,
        epochs=2,
        num_workers=0,
        device="cpu",
        teacher_transport="in_process",
        evaluate=False,
    )


class Bench:
    """Runs in this process. `teacher_of` makes the teacher signal of an attempt; the default asks in process."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def plan(self, config: RunConfig) -> Plan:
        """The checked plan, as the training command makes it."""
        return make_plan(config, trusted=True)

    def folder(self, name: str) -> RunFolder:
        """A run's folder with its config.json left out."""
        run = RunFolder(self.home / "runs" / name)
        run.path.mkdir(exist_ok=True)
        return run

    def teacher(self, config: RunConfig, run: RunFolder, client: Any = None, kind: str = "pixels") -> Any:
        """The signal that a worker would build: bound by the roster, answered in this process."""
        ref = config.teacher_ref
        if ref is None:
            return None
        library = TeacherLibrary(self.home / "teachers")
        return BoundTeacher(
            client or InProcessTeacherClient(library),
            Binder(
                Roster(library),
                run.run_id,
                ref,
                keep_last=config.on_teacher_loss != "wait",
                budget_s=config.teacher_budget_s,
            ),
            config=config,
            run_id=run.run_id,
            store_path=Path(config.store),
            input_kind=kind,  # type: ignore[arg-type]
            facts=teacher_facts(config) or TeacherFacts(),
        )

    def attempt(
        self, config: RunConfig, run: RunFolder, *, steps: int | None = None, client: Any = None
    ) -> tuple[Outcome, Trainer]:
        """One attempt at the run; asked to stop after `steps` steps."""
        done = itertools.count(1)
        teacher = self.teacher(config, run, client)
        trainer = Trainer(
            self.plan(config),
            run,
            collective=Collective(),
            teacher=teacher,
            should_stop=lambda: next(done) == steps,
        )
        try:
            return trainer.run(), trainer
        finally:
            if teacher is not None:
                teacher.close()


@pytest.fixture
def bench(home: Path) -> Bench:
    return Bench(home)
