"""The layouts that can be imported, and the choice among them. Names and shapes only, no tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from teacher_server.importers import native, torchvision, vcop
from teacher_server.importers.errors import ImportRefused
from teacher_server.importers.layout import Layout, Shape
from teacher_server.zoo.names import ARCHITECTURES, is_architecture_name

AUTO = "auto"
LAYOUTS: tuple[Layout, ...] = (*native.LAYOUTS, *vcop.LAYOUTS, *torchvision.LAYOUTS, *torchvision.PCL_LAYOUTS)
_NAMES_SHOWN = 6


@dataclass(frozen=True)
class Renaming:
    """ours: their name -> our name, of all that the layout knows. unused: their names that it does not know."""

    ours: dict[str, str]
    unused: tuple[str, ...]


def choose_layout(source: str, shapes: Mapping[str, Shape], layout: str = AUTO, arch: str | None = None) -> Layout:
    """The layout whose stem is among the tensors, of which `shapes` has names and shapes. layout, arch: restrict the
    choice; a plug-in's architecture has one layout only.

    Raises ImportRefused, with some of the names, when none or several fit.
    """
    there = sorted(shapes)
    asked = [x for x in _layouts_of(arch) if layout in (AUTO, x.name) and arch in (None, x.arch)]
    fitting = [x for x in asked if x.recognises(shapes)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ImportRefused(source, f"its names fit {_list(fitting)}: choose with --layout and --arch")
    raise ImportRefused(
        source,
        f"its {len(there)} tensors ({shortened(there)}) fit none of {_list(asked)}",
    )


def _layouts_of(arch: str | None) -> tuple[Layout, ...]:
    if arch is None or arch in ARCHITECTURES or not is_architecture_name(arch):
        return LAYOUTS
    return (native.plugin_layout(arch),)


def rename(source: str, layout: Layout, names: Iterable[str]) -> Renaming:
    """Their names in ours. Raises ImportRefused when two of them mean the same tensor."""
    ours: dict[str, str] = {}
    owners: dict[str, str] = {}
    unused = []
    for name in sorted(names):
        target = layout.ours(name)
        if target is None:
            unused.append(name)
            continue
        if target in owners:
            raise ImportRefused(source, f"{owners[target]} and {name} are the same tensor in layout {layout.name}")
        owners[target] = name
        ours[name] = target
    return Renaming(ours, tuple(unused))


def shortened(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - _NAMES_SHOWN} more" if len(listed) > _NAMES_SHOWN else ""
    return ", ".join(name[:100] for name in listed[:_NAMES_SHOWN]) + more


def _list(layouts: list[Layout]) -> str:
    return ", ".join(f"{layout.name}/{layout.arch}" for layout in layouts) or "the layouts asked for"
