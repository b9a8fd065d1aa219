"""What a private cluster leaves behind in the roster file, without starting one."""

import contextlib
import dataclasses

import pytest

import trainer.launch as module
from teacher_server.clients.serve import APP_NAME
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId
from teacher_server.roster.roster import Roster
from trainer.cluster import Cluster

ALPHA = TeacherId("alpha", 1)


@pytest.fixture
def roster(home):
    return Roster(TeacherLibrary(home / "teachers"))


def clusters(monkeypatch, at_end, *, private=True):
    """Stands in for cluster.connected; at_end is called when the cluster has ended."""

    @contextlib.contextmanager
    def connected(_config):
        try:
            yield Cluster(private=private, node_id="ours")
        finally:
            at_end()

    monkeypatch.setattr(module, "connected", connected)


def serve(roster, node, run):
    """Notes the app of a cluster and a run's lease on it, as a roster actor does."""
    app = f"{node}/{APP_NAME}"
    roster.acquire(run, app, ALPHA, deploying=True, cluster_address=node)
    roster.note_app(app, node)
    return app


@pytest.fixture
def plan(bench, config):
    return bench.plan(dataclasses.replace(config, teacher="alpha", teacher_transport="serve"))


def test_a_private_cluster_that_has_ended_leaves_nothing_in_the_roster_and_others_stay(roster, plan, monkeypatch):
    before = []
    clusters(monkeypatch, lambda: before.append(set(roster.state().leases)))
    other = serve(roster, "another", "beside")
    with contextlib.suppress(KeyboardInterrupt), module._cluster(plan):
        serve(roster, "ours", "run")
        raise KeyboardInterrupt
    assert before == [{"run", "beside"}]
    assert set(roster.state().leases) == {"beside"}
    assert set(roster.state().apps) == {other}


def test_a_cluster_that_goes_on_keeps_its_leases(roster, plan, monkeypatch):
    clusters(monkeypatch, lambda: None, private=False)
    with module._cluster(plan):
        app = serve(roster, "ours", "run")
    assert (set(roster.state().leases), set(roster.state().apps)) == ({"run"}, {app})


def test_a_roster_file_that_cannot_be_read_does_not_fail_the_run(roster, plan, monkeypatch):
    clusters(monkeypatch, lambda: None)
    with module._cluster(plan):
        roster.path.write_text("{")
    assert roster.path.read_text() == "{"
