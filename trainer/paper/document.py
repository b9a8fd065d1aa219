"""What the pages are made of: plain data, written once and rendered as Markdown, HTML and LaTeX.

All texts here are plain Unicode; each renderer escapes them for its format.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A place in a table. small: a remark set smaller; strong: set in bold."""

    text: str
    small: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Column:
    """A heading. wrap: the column holds sentences and may break lines."""

    title: str
    wrap: bool = False


@dataclass(frozen=True)
class Table:
    """name: for labels, a word of letters, digits and hyphens. breaks: rows (from 0) that a thin line stands above.
    notes: below the table."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    breaks: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.name}: a row has {len(row)} entries for {len(self.columns)} columns")


@dataclass(frozen=True)
class Picture:
    """A PNG in both themes. name: of its file, without .png. about: what it shows, for people who do not see it."""

    name: str
    title: str
    about: str
    light: bytes
    dark: bytes


@dataclass(frozen=True)
class Paragraph:
    """A few sentences. notice: set apart, for what a reader must not miss."""

    text: str
    notice: bool = False


@dataclass(frozen=True)
class Section:
    """anchor: for links, a word of letters, digits and hyphens."""

    anchor: str
    title: str
    blocks: tuple[Paragraph | Picture | Table, ...]


@dataclass(frozen=True)
class Tile:
    """A headline figure."""

    what: str
    figure: str
    remark: str


@dataclass(frozen=True)
class Document:
    """A page. lead: under its title."""

    title: str
    lead: tuple[Paragraph, ...]
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All of them, in the order of reading."""
        blocks = (block for section in self.sections for block in section.blocks)
        return tuple(block for block in blocks if isinstance(block, Picture))
