"""Which architectures exist. Light on purpose: no torch here, so that `--help` and light clients stay fast."""

from __future__ import annotations

from data.plugins import is_plugin_name

PAPER_ARCHITECTURES: tuple[str, ...] = ("c3d", "r3d", "r2plus1d")
"""The paper's three, of which bundled teachers exist."""
TORCHVISION_ARCHITECTURES: tuple[str, ...] = ("r3d_18", "r2plus1d_18", "mc3_18")
ARCHITECTURES: tuple[str, ...] = (*PAPER_ARCHITECTURES, *TORCHVISION_ARCHITECTURES)
ARCH_VERSION = 2
"""Part of every teacher digest: goes up whenever the same weights would give other numbers."""


class UnknownArchitecture(ValueError):
    """No architecture has that name. Argument: the name that was asked for."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return (
            f"unknown architecture {self.name!r}: choose one of {', '.join(ARCHITECTURES)}, or one of your own as "
            "module:function"
        )


def is_architecture_name(name: str) -> bool:
    """Whether the name is built in or can mean a plug-in; nothing of the plug-in is imported."""
    return name in ARCHITECTURES or is_plugin_name("architectures", name)
