"""Serve's autoscaling by waiting clips, on a real cluster: more replicas under a backlog, fewer when it is gone."""

from __future__ import annotations

import time
from types import ModuleType

import pytest

from data.store import ClipStore
from teacher_server.errors import TeacherUnavailable
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId, TeacherRef
from teacher_server.serve.deployment import DeployOptions, TeacherService
from teacher_server.serve.replica_state import ReplicaState

pytestmark = [pytest.mark.system, pytest.mark.long, pytest.mark.timeout(600)]

NAME = "scaled"
PATIENCE_S = 300.0  # a replica is given up after 2 minutes of lull
NUM_STUDENTS = 8


def wait_for_replicas(service: TeacherService, num: int) -> list[ReplicaState]:
    """Their states, once there are so many."""
    deadline, states = time.monotonic() + PATIENCE_S, []
    while time.monotonic() < deadline:
        try:
            states = service.describe()
        except TeacherUnavailable:  # one has just ended
            states = []
        if len(states) == num:
            return states
        time.sleep(0.2)
    raise AssertionError(f"{len(states)} replicas after {PATIENCE_S:.0f} s, {num} are expected")


def test_a_backlog_brings_a_replica_and_its_end_takes_it_away_and_no_question_is_lost(
    ray_cluster: None,  # noqa: ARG001 the cluster must run
    tiny: ModuleType, load: ModuleType, seed: int, tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    store: ClipStore = tiny.build_store(tmp_path_factory.mktemp("stores") / "tiny")
    library, scratch = TeacherLibrary(tmp_path_factory.mktemp("library")), tmp_path_factory.mktemp("weights")
    for version in (1, 2):
        card = tiny.make_card()
        library.add(NAME, card, tiny.save_random_weights(card, scratch / f"{version}.safetensors", version))
    oracle = load.ContentOracle(library, load.make_pool(tiny, store, 16, seed))
    for version in (1, 2):
        oracle.learn(TeacherId(NAME, version))
    service = TeacherService.connect(library.root)
    service.deploy(DeployOptions(num_replicas=1, max_replicas=2, target_queued_clips=6))
    (first,) = wait_for_replicas(service, 1)
    with load.Students(service, TeacherRef(NAME), oracle, NUM_STUDENTS, seed) as students:
        students.wait_for(50)
        service.promote(NAME, 2, "test")  # so that the new replica must read in the roster what is wanted by now
        states = wait_for_replicas(service, 2)
        assert first.pid in {state.pid for state in states}
        for state in states:
            assert str(TeacherId(NAME, 2)) in state.teachers
        answered = {state.pid: state.batch_clips for state in states}
        students.wait_for(200)
        now = {state.pid: state.batch_clips for state in wait_for_replicas(service, 2)}
        assert all(now[pid] > clips for pid, clips in answered.items())  # both answer
    assert not students.wrong, students.wrong[:5]
    wait_for_replicas(service, 1)
    service.delete()
