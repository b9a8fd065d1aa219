"""Where a command finds the service: a gateway that is named, RAY_ADDRESS, the roster's file, or nowhere."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from services.finding import Place, check_reachable, find_place, operator_control
from services.offline import OfflineControl
from teacher_server.clients.http_control import HttpOperatorControl
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId
from teacher_server.roster.roster import LEASE_TTL_S, Roster
from trainer.config import ConfigError

NOW = 1_000_000.0
ONE, TWO = "127.0.0.1:6379", "127.0.0.1:7000"


@pytest.fixture
def roster(library: TeacherLibrary) -> Roster:
    return Roster(library, clock=lambda: NOW)


def lease(roster: Roster, run: str, address: str) -> None:
    roster.acquire(run, f"{address}/app", TeacherId("alpha", 1), deploying=True, cluster_address=address)


def test_a_gateway_that_is_named_comes_first(library: TeacherLibrary) -> None:
    place = find_place(library, "http://127.0.0.1:8000", {"RAY_ADDRESS": ONE}, NOW)
    assert place == Place(gateway="http://127.0.0.1:8000")


def test_the_environment_comes_before_the_roster(library: TeacherLibrary, roster: Roster) -> None:
    lease(roster, "run", TWO)
    assert find_place(library, "", {"RAY_ADDRESS": ONE}, NOW) == Place(address=ONE)


def test_a_live_lease_tells_the_cluster(library: TeacherLibrary, roster: Roster) -> None:
    lease(roster, "run", ONE)
    lease(roster, "another run", ONE)
    assert find_place(library, "", {}, NOW) == Place(address=ONE)


def test_an_app_of_an_operator_tells_the_cluster(library: TeacherLibrary, roster: Roster) -> None:
    roster.note_app("app", ONE)
    assert find_place(library, "", {}, NOW) == Place(address=ONE)


def test_what_has_expired_is_not_believed(library: TeacherLibrary, roster: Roster) -> None:
    lease(roster, "run", ONE)
    roster.note_app("app", ONE)
    assert find_place(library, "", {}, NOW + LEASE_TTL_S + 1) == Place()


def test_several_clusters_are_named_and_refused(library: TeacherLibrary, roster: Roster) -> None:
    lease(roster, "run", TWO)
    roster.note_app("app", ONE)
    with pytest.raises(ConfigError, match=f"2 clusters serve this library \\({ONE}, {TWO}\\): name one in RAY_ADDRESS"):
        find_place(library, "", {}, NOW)


def test_without_a_service_the_files_are_changed_here(library: TeacherLibrary) -> None:
    with operator_control(find_place(library, "", {}, NOW), library) as control:
        assert isinstance(control, OfflineControl)


def test_a_gateway_is_asked_over_http(library: TeacherLibrary) -> None:
    with operator_control(Place(gateway="http://127.0.0.1:8000"), library) as control:
        assert isinstance(control, HttpOperatorControl)


def test_finding_writes_nothing(tmp_path: Path) -> None:
    library = TeacherLibrary(tmp_path / "teachers")
    assert find_place(library, "", {}, NOW) == Place()
    assert not library.root.exists()


def test_a_cluster_that_is_gone_is_told_before_ray_tries(
    library: TeacherLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        check_reachable(address)
    with (
        pytest.raises(
            ConfigError, match=f"nobody answers at {address} \\(Connection refused\\): if that cluster has just"
        ),
        operator_control(Place(address=address), library),
    ):
        pass


@pytest.mark.parametrize("address", ["auto", "ray://head:10001", "local"])
def test_addresses_that_are_no_host_and_port_are_left_to_ray(address: str) -> None:
    check_reachable(address)
