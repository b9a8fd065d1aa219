"""Which architectures exist. Light on purpose: no torch here, so that `--help` and light clients stay fast."""

from __future__ import annotations

ARCHITECTURES: tuple[str, ...] = ("c3d", "r3d", "r2plus1d")
ARCH_VERSION = 2
"""Part of every teacher digest: goes up whenever the same weights would give other numbers."""


class UnknownArchitecture(ValueError):
    """No architecture has that name. Argument: the name that was asked for."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"unknown architecture {self.name!r}: choose one of {', '.join(ARCHITECTURES)}"
