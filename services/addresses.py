"""Where the gateway listens, and who reaches it there: without a token it must be this machine only."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from teacher_server.contract import OPERATOR_TOKEN_VARIABLE, TOKEN_VARIABLE
from trainer.config import ConfigError

_SET_A_TOKEN = (
    f"set a token in {TOKEN_VARIABLE} (or in {OPERATOR_TOKEN_VARIABLE} alone, which every request then needs)"
)


@dataclass(frozen=True)
class HttpAddress:
    """Where Serve's HTTP proxy listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """Without a path."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


def check_address(host: str, *, has_token: bool) -> None:
    """Raises ConfigError unless the address is loopback or there is a token. An operator's token alone is enough:
    services.guards then wants it for everything."""
    if not has_token and not is_loopback(host):
        raise ConfigError(f"--host {host} can be reached from other machines: {_SET_A_TOKEN}, or use 127.0.0.1")


def check_running_address(address: HttpAddress, *, has_token: bool) -> None:
    """The same for where Serve really listens: one that ran already keeps its address, whatever --host says."""
    if not has_token and not is_loopback(address.host):
        raise ConfigError(
            f"Serve runs on this cluster already and listens on {address.host}:{address.port}, which can be reached "
            f"from other machines: {_SET_A_TOKEN}; --host does not move it, and nothing was deployed"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it; names other than localhost count as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_port_is_free(host: str, port: int) -> None:
    """Raises ConfigError at once; Serve would find out only after the cluster was started."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"--host {host} --port {port} cannot be used: {reason}") from None
