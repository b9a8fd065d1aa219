"""A replica without Ray: what it loads first, what it does when a forward pass fails, and its half of the gate."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from data.errors import StoreMissing, StoreUnreadable
from data.store import ClipStore
from teacher_server.batching.batcher import Part
from teacher_server.engine.ensemble import load_teacher
from teacher_server.engine.teacher import Teacher, TeacherAnswer
from teacher_server.errors import BadQuery, TeacherUnavailable, UnknownTeacher
from teacher_server.library import WEIGHTS, TeacherEntry, TeacherLibrary
from teacher_server.promotion import NO_ITEMS, AliasRequest
from teacher_server.protocol import TeacherId, TeacherRef
from teacher_server.roster.roster import Roster
from teacher_server.serve import replica as replica_module
from teacher_server.serve.app import initial_aliases
from teacher_server.serve.replica import Replica

pytestmark = pytest.mark.usefixtures("no_bundled")

ONE, TWO = TeacherId("alpha", 1), TeacherId("alpha", 2)
LARGE = 2**40


class Failing:
    """A teacher whose forward passes fail while `error` is set, on a device that this machine need not have."""

    def __init__(self, real: Teacher, errors: list[Exception]) -> None:
        self._real = real
        self._errors = errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def answer(self, pixels: Any) -> TeacherAnswer:
        if self._errors:
            raise self._errors.pop()
        return self._real.answer(pixels)


@pytest.fixture
def own_library(library: TeacherLibrary, tmp_path: Path) -> TeacherLibrary:
    """A copy that a test may put a roster into."""
    return TeacherLibrary(shutil.copytree(library.root, tmp_path / "library"))


@pytest.fixture
def errors(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """What the next forward passes fail with. A replica's device is a name only."""
    errors: list[Exception] = []

    def load(entry: TeacherEntry, device: str, num_threads: int) -> Failing:
        assert device in ("cpu", "cuda")
        return Failing(load_teacher(entry, "cpu", num_threads), errors)

    monkeypatch.setattr(replica_module, "load_teacher", load)
    return errors


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica names its node when it describes itself."""
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "node"))


def make(library: TeacherLibrary, *, device: str = "cpu", budget: int = LARGE, app_key: str | None = None) -> Replica:
    return Replica(
        str(library.root), num_threads=1, device=device, max_queued_clips=64, budget_bytes=budget, app_key=app_key
    )


@pytest.mark.parametrize(
    ("device", "error", "healthy"),
    [
        ("cpu", RuntimeError("could not create a primitive"), True),
        ("cpu", MemoryError("no room"), True),
        ("cuda", torch.OutOfMemoryError("CUDA out of memory"), True),
        ("cuda", RuntimeError("CUDA error: an illegal memory access\nwas encountered"), False),
    ],
)
def test_a_forward_pass_that_fails_can_be_asked_again_elsewhere_and_a_faulty_gpu_ends_the_replica(
    own_library: TeacherLibrary,
    store: ClipStore,
    tiny: ModuleType,
    errors: list[Exception],
    device: str,
    error: Exception,
    healthy: bool,
) -> None:
    async def scene() -> None:
        replica = make(own_library, device=device)
        await replica.prepare(ONE)
        replica.check_health()
        errors.append(error)
        refusal = await replica.infer(tiny.views_query(store, tiny.draw(store, 2)))
        assert isinstance(refusal, TeacherUnavailable)
        assert "its forward pass failed: " + type(error).__name__ in str(refusal)
        if healthy:
            replica.check_health()
            assert not isinstance(await replica.infer(tiny.views_query(store, tiny.draw(store, 2))), Exception)
        else:
            with pytest.raises(RuntimeError, match="an illegal memory access was encountered"):
                replica.check_health()

    asyncio.run(scene())


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "Input/output error"), MemoryError("no room"), StoreUnreadable("store", "no more files")],
)
def test_clips_that_cannot_be_read_now_can_be_asked_for_again(
    own_library: TeacherLibrary,
    store: ClipStore,
    tiny: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    real, left = replica_module.load_pixels, [error]

    def load_pixels(*args: Any) -> Any:
        if left:
            raise left.pop()
        return real(*args)

    async def scene() -> None:
        replica = make(own_library)
        await replica.prepare(ONE)
        monkeypatch.setattr(replica_module, "load_pixels", load_pixels)
        query = tiny.views_query(store, tiny.draw(store, 2))
        refusal = await replica.infer(query)
        assert isinstance(refusal, TeacherUnavailable)
        assert f"the clips could not be read: {type(error).__name__}" in str(refusal)
        assert not isinstance(await replica.infer(query), Exception)

    asyncio.run(scene())


@pytest.mark.parametrize("reason", ["Permission denied", "File name too long", "this is no path", "no path: Could not"])
def test_a_store_that_this_machine_cannot_open_is_missing_here(
    own_library: TeacherLibrary, store: ClipStore, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    paths = {
        "File name too long": "/" + 300 * "x",
        "this is no path": "/a\0b",
        "no path: Could not": "~nobody-at-all/x",
    }
    if reason == "Permission denied":  # as root one may read everything

        def refuse(path: Path) -> int:
            raise PermissionError(errno.EACCES, reason, str(path))

        monkeypatch.setattr("data.manifest.latest_generation", refuse)

    async def scene() -> None:
        replica = make(own_library)
        await replica.prepare(ONE)
        query = tiny.views_query(store, tiny.draw(store, 2), store=paths.get(reason, str(store.path)))
        refusal = await replica.infer(query)
        assert isinstance(refusal, StoreMissing)
        assert reason in str(refusal)

    asyncio.run(scene())


@pytest.mark.parametrize(("hangs", "what"), [("load_pixels", "reading clips"), ("answer_together", "a forward pass")])
def test_a_replica_that_hangs_is_no_longer_healthy(
    own_library: TeacherLibrary,
    store: ClipStore,
    tiny: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    hangs: str,
    what: str,
) -> None:
    """On a store whose disk does not answer, or in a forward pass that does not come back."""
    began, may_end, real = threading.Event(), threading.Event(), getattr(replica_module, hangs)

    def hang(*args: object) -> object:
        began.set()
        assert may_end.wait(timeout=20)
        return real(*args)

    async def scene() -> None:
        replica = make(own_library)
        await replica.prepare(ONE)
        monkeypatch.setattr(replica_module, hangs, hang)
        asked = asyncio.ensure_future(replica.infer(tiny.views_query(store, tiny.draw(store, 2))))
        assert await asyncio.to_thread(began.wait, 20)
        replica.check_health()
        monkeypatch.setattr(replica._batcher, "_clock", lambda: time.monotonic() + replica_module.STUCK_AFTER_S + 1)
        with pytest.raises(RuntimeError, match=f"{what} has taken 301 s, at most 300 s are expected"):
            replica.check_health()
        may_end.set()
        await asked
        replica.check_health()

    asyncio.run(scene())


def test_a_refusal_of_the_teacher_itself_stays_what_it_is(
    own_library: TeacherLibrary, store: ClipStore, tiny: ModuleType, errors: list[Exception]
) -> None:
    async def scene() -> None:
        replica = make(own_library, device="cuda")
        await replica.prepare(ONE)
        errors.append(BadQuery("no such pixels"))
        assert isinstance(await replica.infer(tiny.views_query(store, tiny.draw(store, 2))), BadQuery)
        replica.check_health()

    asyncio.run(scene())


def test_an_initial_state_is_loaded_and_what_cannot_be_is_remembered(
    own_library: TeacherLibrary, tiny: ModuleType
) -> None:
    gamma = own_library.root / "gamma" / "1"
    tiny.replace_weights(gamma, (gamma / WEIGHTS).read_bytes()[:-1000])

    async def scene() -> None:
        replica = make(own_library)
        assert (await replica.describe()).teachers == {}
        await replica.begin_with([TWO, TeacherId("gamma", 1)])
        state = await replica.describe()
        assert (list(state.teachers), list(state.failed)) == (["alpha@2"], ["gamma@1"])
        Roster(own_library).promote("alpha", 1, "ann")
        await replica.begin_with([TWO])  # it is no wish to move an alias
        assert list((await replica.describe()).teachers) == ["alpha@1", "alpha@2"]
        with pytest.raises(UnknownTeacher):
            await replica.begin_with([TeacherId("alpha", 9)])

    asyncio.run(scene())
    assert Roster(own_library).aliases()["alpha"] == ONE


@pytest.mark.parametrize(
    "config",
    [None, [], {}, {"aliases": {}}, {"aliases": [1]}, {"aliases": ["alpha@1", "alpha@2"]}, {"aliases": [], "x": 1}],
)
def test_a_user_config_of_another_form_is_refused(config: object) -> None:
    with pytest.raises(BadQuery, match="user_config takes"):
        initial_aliases(config)


def test_a_user_config_names_versions() -> None:
    assert initial_aliases({"aliases": ["alpha@2", "beta@1"]}) == [TWO, TeacherId("beta", 1)]
    with pytest.raises(BadQuery, match="names no version"):
        initial_aliases({"aliases": ["alpha"]})


def test_a_version_that_is_only_being_prepared_takes_no_room_of_what_is_needed(own_library: TeacherLibrary) -> None:
    roster = Roster(own_library)
    roster.promote("alpha", 2, "ann")
    roster.begin(AliasRequest("alpha", 1, "ann"), "here/app")

    async def scene() -> None:
        one_fits = own_library.entry(TWO).weights.stat().st_size
        replica = make(own_library, budget=one_fits, app_key="here/app")
        state = await replica.describe()
        assert list(state.teachers) == ["alpha@2"]
        assert state.failed.keys() == {"alpha@1"}
        assert "of the replica's budget" in state.failed["alpha@1"]

    asyncio.run(scene())


def test_a_replica_loads_nothing_for_the_runs_and_promotions_of_another_cluster(own_library: TeacherLibrary) -> None:
    roster = Roster(own_library)
    roster.resolve(TeacherRef("beta"))
    roster.begin(AliasRequest("alpha", 2, "ann"), "there/app")
    roster.acquire("run", "there/app", TeacherId("gamma", 1), deploying=True)
    roster.acquire("mine", "here/app", ONE, deploying=True)

    async def scene() -> None:
        assert list((await make(own_library, app_key="here/app").describe()).teachers) == ["alpha@1", "beta@1"]

    asyncio.run(scene())


def test_the_first_pass_of_a_clip_shape_is_part_of_preparing_and_no_latency(
    own_library: TeacherLibrary, store: ClipStore, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that only forward passes move: 100 s for the first of a version and shape, 1 s for every other."""
    now, seen = [0.0], set()
    plain = replica_module.answer_together

    def answer(teacher: Teacher, parts: Sequence[Part[Any]]) -> list[TeacherAnswer]:
        kind = (teacher.teacher, parts[0].loaded.shape[1:])
        now[0] += 1.0 if kind in seen else 100.0
        seen.add(kind)
        return plain(teacher, parts)

    monkeypatch.setattr(replica_module, "answer_together", answer)
    monkeypatch.setattr(replica_module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    async def scene() -> None:
        replica = make(own_library)
        await replica.prepare(ONE)
        for spec in (tiny.SPEC, dataclasses.replace(tiny.SPEC, clip_len=9)):
            await replica.infer(tiny.views_query(store, tiny.draw(store, 6, spec=spec)))  # two chunks of 4 items
        await replica.prepare(TWO)
        report = await replica.compare(ONE, TWO, 64, 10_000.0)
        assert (report.items, report.old_ms, report.new_ms) == (12, 1000 / 12, 1000 / 12)  # a chunk is 12 clips

    asyncio.run(scene())
    assert len(seen) == 4


def test_a_comparison_without_any_time_left_compares_nothing(
    own_library: TeacherLibrary, store: ClipStore, tiny: ModuleType
) -> None:
    async def scene() -> None:
        replica = make(own_library)
        for teacher in (ONE, TWO):
            await replica.prepare(teacher)
        await replica.infer(tiny.views_query(store, tiny.draw(store, 5)))
        assert await replica.compare(ONE, TWO, 5, 0.0) == NO_ITEMS
        assert (await replica.compare(ONE, TWO, 5, 2000.0)).items == 5  # more than a question may wait

    asyncio.run(scene())
