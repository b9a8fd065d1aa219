"""The layouts as subcommands of `python -m data.ingest`, each with what it needs to find its videos and lists."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.catalogs import Catalog
from data.errors import CatalogError
from data.plugins import is_plugin_name, resolve


@dataclass(frozen=True, kw_only=True)
class Ingest(ABC):
    """What every layout has in common."""

    videos: Path
    """Folder of the videos."""
    out: Path
    """Where the store is made; no store may lie there yet."""
    size: str = "128x171"
    """Height and width of the stored frames, pixels. The demo teachers take 64x86."""
    codec: Literal["raw", "jpeg"] = "raw"
    """raw is read without a copy; jpeg takes a fifth of the space or less and is far slower to read."""
    workers: int | None = None
    """Decoding processes; by default one per core."""
    timeout_s: float = 60.0
    """Seconds that one video may take."""

    @abstractmethod
    def catalog(self) -> Catalog:
        """Reads folders and lists. Raises CatalogError."""


@dataclass(frozen=True, kw_only=True)
class Ucf101(Ingest):
    """A folder in UCF101's official layout: Class/v_Class_gNN_cNN.avi, with classInd.txt, trainlist01.txt and
    testlist01.txt (02 and 03 where they exist)."""

    lists: Path
    """Folder that holds classInd.txt and the train and test lists."""

    def catalog(self) -> Catalog:
        """Reads the folder and its lists."""
        from data.catalogs.ucf101 import read_catalog

        return read_catalog(self.videos, self.lists)


@dataclass(frozen=True, kw_only=True)
class Hmdb51(Ingest):
    """A folder in HMDB51's official layout: class/name.avi, with class_test_split1.txt for each class (split2 and
    split3 where they exist), lines "name.avi 1": 1 train, 2 test, 0 not used."""

    lists: Path
    """Folder that holds <class>_test_split1.txt and so on."""

    def catalog(self) -> Catalog:
        """Reads the folder and its lists."""
        from data.catalogs.hmdb51 import read_catalog

        return read_catalog(self.videos, self.lists)


@dataclass(frozen=True, kw_only=True)
class Folder(Ingest):
    """A plain folder for each class. It is split by train/ and test/ where it has both, else by a seed."""

    split_seed: int = 0
    """The same seed chooses the same test videos."""
    test_percent: float = 30.0
    """Percent of each class to test on."""

    def catalog(self) -> Catalog:
        """Reads the folder."""
        from data.catalogs.folder import read_catalog

        return read_catalog(self.videos, seed=self.split_seed, test_percent=self.test_percent)


@dataclass(frozen=True, kw_only=True)
class Kinetics(Ingest):
    """Videos as download scripts name them (id_000019_000029.mp4), with lists as CSV: label, youtube_id, time_start,
    time_end, split."""

    lists: Path
    """A CSV file, or a folder that holds train.csv, validate.csv and test.csv."""

    def catalog(self) -> Catalog:
        """Reads the lists and looks for their videos."""
        from data.catalogs.kinetics import read_catalog

        return read_catalog(self.videos, self.lists)


@dataclass(frozen=True, kw_only=True)
class Plugin(Ingest):
    """A catalog of your own, function(videos: Path, lists: Path | None) -> data.catalogs.Catalog; for short:
    python -m data.ingest module:function --videos DIR --out STORE."""

    function: str
    """module:function, or the name under which an installed package declares it."""
    lists: Path | None = None
    """Passed on to the function."""

    def catalog(self) -> Catalog:
        """Calls the function. Raises PluginNotFound, or CatalogError when it returns anything but a Catalog."""
        read = resolve("catalogs", self.function, trusted=True)
        if not callable(read):
            raise CatalogError(f"catalog {self.function} must be a function, it is a {type(read).__name__}")
        catalog = read(self.videos, self.lists)
        if not isinstance(catalog, Catalog):
            raise CatalogError(
                f"catalog {self.function} must return a data.catalogs.Catalog, it returned {type(catalog).__name__}"
            )
        return catalog


LAYOUTS: dict[str, Callable[..., Ingest]] = {
    "ucf101": Ucf101,
    "hmdb51": Hmdb51,
    "folder": Folder,
    "kinetics": Kinetics,
    "plugin": Plugin,
}


def with_plugin_named(arguments: Sequence[str]) -> list[str]:
    """The same arguments, with a plug-in's name in the place of the layout's spelt out: plugin --function NAME."""
    if arguments and arguments[0] not in LAYOUTS and is_plugin_name("catalogs", arguments[0]):
        return ["plugin", "--function", *arguments]
    return list(arguments)
