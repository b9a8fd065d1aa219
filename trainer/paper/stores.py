"""The clip stores of a scale. Those of the built-in sets are drawn and ingested when they are missing, with smaller
frames than the stores that a newcomer trains on: hundreds of trainings need the time more than the pixels."""

from __future__ import annotations

from collections.abc import Callable

from data.demo_store import is_store, make_demo_store
from data.home import store_path
from data.store import ClipStore
from trainer.config import ConfigError
from trainer.paper.scale import Scale


def missing_stores(scale: Scale) -> tuple[str, ...]:
    """Names of the scale's stores that are not there. Raises ConfigError for one whose frames have another size than
    the scale's, StoreDamaged."""
    missing = []
    for name in (scale.store, scale.second_store):
        path = store_path(name)
        if not is_store(path):
            missing.append(name)
        elif (size := ClipStore.open(path).frame_size) != scale.frame_size:
            (height, width), (found_height, found_width) = scale.frame_size, size
            raise ConfigError(
                f"clip store {path} has frames of {found_height}x{found_width}, scale {scale.name} needs "
                f"{height}x{width}: ingest the videos again with --size {height}x{width}, or choose another scale"
            )
    return tuple(missing)


def make_stores(scale: Scale, say: Callable[[str], None]) -> None:
    """Makes what is missing, and says so. Raises ConfigError for stores that only the user can make, DataError."""
    missing = missing_stores(scale)
    if missing and not scale.built_in:
        height, width = scale.frame_size
        raise ConfigError(
            f"scale {scale.name} needs the clip store {' and '.join(missing)}, with frames of {height}x{width}: make "
            f"it with python -m data.ingest, or choose --scale demo"
        )
    for name in missing:
        say(f"the built-in data set for {name} is not there yet: making it (about a minute)")
        make_demo_store("demo" if name == scale.store else "demo2", name, frame_size=scale.frame_size, say=say)
