"""A document as Markdown with pipe tables, in the dialect that forges show."""

from __future__ import annotations

import re

from trainer.paper.document import Document, Entry, Paragraph, Picture, Table

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


def escape(value: str) -> str:
    """Text that shows as itself, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(value.split()))


def markdown(document: Document) -> str:
    """The page; its pictures are files beside it."""
    parts = [f"# {escape(document.title)}", *(_paragraph(part) for part in document.lead)]
    if document.tiles:
        lines = (
            f"- {escape(t.what)}: **{escape(t.figure)}**{f' ({escape(t.remark)})' if t.remark else ''}"
            for t in document.tiles
        )
        parts.append("\n".join(lines))
    for section in document.sections:
        parts += [f"## {escape(section.title)}", *(_block(block) for block in section.blocks)]
    return "\n\n".join(parts) + "\n"


def _block(block: Paragraph | Picture | Table) -> str:
    if isinstance(block, Paragraph):
        return _paragraph(block)
    if isinstance(block, Picture):
        return f"![{escape(f'{block.title}. {block.about}')}]({block.name}.png)\n\n*{escape(block.title)}*"
    return _table(block)


def _paragraph(block: Paragraph) -> str:
    return f"> {escape(block.text)}" if block.notice else escape(block.text)


def _table(table: Table) -> str:
    lines = [
        _line([escape(column.title) for column in table.columns]),
        _line(["---"] * len(table.columns)),
        *(_line([_entry(entry) for entry in row]) for row in table.rows),
    ]
    return "\n\n".join([f"**{escape(table.title)}**", "\n".join(lines), *(escape(note) for note in table.notes)])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _entry(entry: Entry) -> str:
    body = escape(entry.text)
    if entry.strong and body:
        body = f"**{body}**"
    return f"{body}<br>{escape(entry.small)}" if entry.small else body
