"""A document as one HTML page that loads nothing: pictures are inlined, for light and for dark screens."""

from __future__ import annotations

from trainer.paper.document import Document, Entry, Paragraph, Picture, Table
from trainer.report_html import Html, join, page, paragraph, picture, section, table, text, tiles


def html(document: Document, footer: str) -> bytes:
    """The page in UTF-8."""
    headline = tiles([(tile.what, tile.figure, tile.remark) for tile in document.tiles]) if document.tiles else Html("")
    lead = join([*(_paragraph(part) for part in document.lead), _contents(document)])
    sections = (
        section(part.anchor, part.title, *(_block(block) for block in part.blocks)) for part in document.sections
    )
    return page(document.title, lead, [headline, *sections], footer)


def _contents(document: Document) -> Html:
    links = (f'<a href="#{text(part.anchor)}">{text(part.title)}</a>' for part in document.sections)
    return Html(f'<nav aria-label="Contents"><p>{" · ".join(links)}</p></nav>')


def _block(block: Paragraph | Picture | Table) -> Html:
    if isinstance(block, Paragraph):
        return _paragraph(block)
    if isinstance(block, Picture):
        alt = f"{block.title}. {block.about}"
        caption = f"<figcaption>{text(block.title)}<small>{text(block.about)}</small></figcaption>"
        image = picture(block.light, "png", alt, dark=block.dark)
        return Html(f'<figure style="margin-top: 1.2rem">{caption}{image}</figure>')
    notes = (paragraph(text(note), "muted") for note in block.notes)
    header = [column.title for column in block.columns]
    rows = (
        [_entry(entry, column.wrap) for entry, column in zip(row, block.columns, strict=True)] for row in block.rows
    )
    return join([table(block.title, header, rows), *notes])


def _paragraph(block: Paragraph) -> Html:
    return paragraph(text(block.text), "notice" if block.notice else "")


def _entry(entry: Entry, wrap: bool) -> Html:
    body, small = text(entry.text), text(entry.small)
    if not wrap:  # a figure and its deviation read as one only on one line
        body, small = Html(body.replace(" ", "&nbsp;")), Html(small.replace(" ", "&nbsp;"))
    if entry.strong:
        body = Html(f"<strong>{body}</strong>")
    return Html(f"{body}<br><small>{small}</small>" if entry.small else body)
