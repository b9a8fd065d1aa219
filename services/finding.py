"""Where the teachers of a library are served, for commands that change them.

--gateway URL      -> through HTTP
RAY_ADDRESS        -> that cluster
the roster's file  -> the one cluster on which teachers of this library are served now; several are an error
none of these      -> nobody serves them: the command works on the files alone
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from services.offline import OfflineControl
from teacher_server.contract import OPERATOR_TOKEN_VARIABLE, TOKEN_VARIABLE, OperatorControl, TeacherClient
from teacher_server.library import TeacherLibrary
from teacher_server.roster.roster import Roster
from trainer.config import ConfigError, RunConfig

_REACHABLE_WITHIN_S = 5.0


@dataclass(frozen=True)
class Place:
    """A gateway's URL, or a cluster's address as RAY_ADDRESS takes it; neither: nobody serves the library."""

    gateway: str = ""
    address: str = ""

    def __str__(self) -> str:
        if self.gateway:
            return f"the gateway {self.gateway}"
        return f"the cluster {self.address}" if self.address else "no service runs: this process and the roster's file"


def find_place(library: TeacherLibrary, gateway: str, environ: Mapping[str, str], now: float) -> Place:
    """Raises ConfigError, which names them, when several clusters serve this library. now: seconds since 1970."""
    if gateway:
        return Place(gateway=gateway)
    if environ.get("RAY_ADDRESS"):
        return Place(address=environ["RAY_ADDRESS"])
    addresses = Roster(library).state().addresses(now)
    if len(addresses) > 1:
        raise ConfigError(
            f"{len(addresses)} clusters serve this library ({', '.join(addresses)}): name one in RAY_ADDRESS"
        )
    return Place(address=addresses[0]) if addresses else Place()


def find(library: TeacherLibrary, gateway: str) -> Place:
    """`find_place` now, with this process's environment."""
    return find_place(library, gateway, os.environ, time.time())


@contextlib.contextmanager
def operator_control(place: Place, library: TeacherLibrary) -> Iterator[OperatorControl]:
    """What changes the teachers there, for the time of the block."""
    if place.gateway:
        from teacher_server.clients.http_control import HttpOperatorControl

        yield HttpOperatorControl(place.gateway, token(OPERATOR_TOKEN_VARIABLE))
    elif place.address:
        with _joined(place):
            from teacher_server.serve.deployment import TeacherService

            yield TeacherService.connect(library.root)
    else:
        yield OfflineControl(library)


@contextlib.contextmanager
def teacher_client(place: Place, library: TeacherLibrary) -> Iterator[TeacherClient]:
    """What asks the teachers there, for the time of the block."""
    with contextlib.ExitStack() as stack:
        client: TeacherClient
        if place.gateway:
            from teacher_server.clients.http import HttpTeacherClient

            client = HttpTeacherClient(place.gateway, token(TOKEN_VARIABLE))
        elif place.address:
            stack.enter_context(_joined(place))
            from teacher_server.clients.serve import ServeTeacherClient

            client = ServeTeacherClient()
        else:
            from teacher_server.clients.inprocess import InProcessTeacherClient

            client = InProcessTeacherClient(library)
        stack.callback(client.close)
        yield client


@contextlib.contextmanager
def _joined(place: Place) -> Iterator[None]:
    """This process belongs to the cluster. Its token is the one that Ray keeps for the user. Raises ConfigError."""
    check_reachable(place.address)
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray reads both from the environment
    os.environ["RAY_ADDRESS"] = place.address
    from trainer.cluster import connected

    with connected(RunConfig()):
        yield


def check_reachable(address: str) -> None:
    """Raises ConfigError at once when nobody listens at host:port; Ray would try for minutes. Other forms of an
    address, such as `auto`, are left to Ray."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHABLE_WITHIN_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"nobody answers at {address} ({getattr(error, 'strerror', None) or error}): if that cluster has just "
            "ended, wait two minutes until the roster no longer believes in it; otherwise name one in RAY_ADDRESS"
        ) from None


def token(variable: str) -> str | None:
    """The bearer token for a gateway, from this environment variable; None when it is unset or empty."""
    return os.environ.get(variable) or None
