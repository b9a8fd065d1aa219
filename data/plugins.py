"""What users bring along: networks, losses, pretext operations and catalogs of their own, found by name.

    module:function      an object of an importable module, as Python's entry points write it
    name                 an entry point that an installed package declares in the group preceptor.<kind>

Importing a module runs it, so where a name comes from decides. A name that the user typed is trusted. One that was read
from a file (a teacher's card) is loaded only if an installed package declares it, under that name or as that
module:function, or if the environment variable PRECEPTOR_PLUGINS lists it: a card must never be able to run code.
Built-in names are the caller's: it looks in its own table first.
"""

from __future__ import annotations

import importlib
import os
import re
from typing import TYPE_CHECKING, Literal

from data.errors import DataError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Kind = Literal["architectures", "losses", "pretext", "catalogs"]

VARIABLE = "PRECEPTOR_PLUGINS"
_DOTTED = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_REFERENCE = re.compile(rf"({_DOTTED}):({_DOTTED})", re.ASCII)


class PluginError(DataError):
    """A plug-in cannot be used. Arguments: its kind, its name, why and what to do."""

    def __init__(self, kind: str, name: str, reason: str) -> None:
        super().__init__(kind, name, reason)
        self.kind = kind
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"plug-in {self.name!r} ({self.kind}): {self.reason}"


class PluginNotFound(PluginError):
    """Nothing is there under that name, or its module cannot be imported."""


class PluginNotAllowed(PluginError):
    """The name comes from a file, and nobody on this machine has allowed it."""


def is_plugin_name(kind: Kind, name: str) -> bool:
    """Whether the name can mean a plug-in: it is written as module:function, or an installed package declares it.

    Imports nothing of the plug-in.
    """
    return _REFERENCE.fullmatch(name) is not None or _declared(kind, name) is not None


def resolve(kind: Kind, name: str, *, trusted: bool) -> object:
    """The object that a plug-in's name means; its module is imported only if it may be.

    trusted: whether the user typed the name. Raises PluginNotAllowed, PluginNotFound.
    """
    declared = _declared(kind, name)
    reference = declared.value if declared is not None else name
    found = _REFERENCE.fullmatch(reference)
    if found is None:
        raise PluginNotFound(
            kind, name, f"no installed package declares it in the group preceptor.{kind}; write module:function"
        )
    if declared is None and not trusted and name not in _listed():
        raise PluginNotAllowed(
            kind,
            name,
            "it was read from a file, and no installed package declares it; if you trust that code, "
            f"start every process with {VARIABLE}={name} (several: with commas)",
        )
    return _load(kind, name, found[1], found[2])


def _load(kind: Kind, name: str, module: str, path: str) -> object:
    """Whatever a foreign module raises while it is imported becomes one sentence; the cause is kept."""
    try:
        value: object = importlib.import_module(module)
    except Exception as error:
        raise PluginNotFound(
            kind, name, f"importing {module} failed with {type(error).__name__}: {error}; is it on PYTHONPATH?"
        ) from error
    for part in path.split("."):
        if not hasattr(value, part):
            raise PluginNotFound(kind, name, f"module {module} has no {path}")
        value = getattr(value, part)
    return value


def _declared(kind: Kind, name: str) -> EntryPoint | None:
    """The entry point with that name, or with that module:function. Raises PluginError when packages disagree."""
    from importlib.metadata import entry_points  # late: it takes as long to import as all of data.errors

    fitting = [point for point in entry_points(group=f"preceptor.{kind}") if name in (point.name, point.value)]
    if len({point.value for point in fitting}) > 1:
        values = ", ".join(sorted({point.value for point in fitting}))
        raise PluginError(kind, name, f"several packages declare it ({values}): name one as module:function")
    return fitting[0] if fitting else None


def _listed() -> frozenset[str]:
    return frozenset(part.strip() for part in os.environ.get(VARIABLE, "").split(","))
