"""Pieces of the report's page. Every text that enters a page is escaped here; a `Html` is text that was.

The page loads nothing: pictures are inlined, and its content security policy forbids the rest.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from typing import NewType

Html = NewType("Html", str)


def text(value: object) -> Html:
    """Any value as text."""
    return Html(html.escape(str(value), quote=True))


def join(parts: Iterable[Html]) -> Html:
    """One after the other, a line each."""
    return Html("\n".join(parts))


def paragraph(content: Html, css: str = "") -> Html:
    """A paragraph, with a class if one is named."""
    return Html(f'<p class="{text(css)}">{content}</p>' if css else f"<p>{content}</p>")


def section(name: str, title: str, *parts: Html) -> Html:
    """A part of the page with a heading and an anchor; nothing if it has no parts."""
    body = join(part for part in parts if part)
    if not body:
        return Html("")
    return Html(
        f'<section id="{text(name)}" aria-labelledby="{text(name)}-h">\n'
        f'<h2 id="{text(name)}-h">{text(title)}</h2>\n{body}\n</section>'
    )


def tiles(figures: Sequence[tuple[str, str, str]]) -> Html:
    """Headline numbers: (what, figure, remark) each."""
    cells = (
        f'<div class="tile"><dt>{text(what)}</dt><dd>{text(figure)}<small>{_together(remark)}</small></dd></div>'
        for what, figure, remark in figures
    )
    return Html(f'<dl class="tiles">{"".join(cells)}</dl>')


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[Html]], css: str = "") -> Html:
    """A table whose first column names the rows. It scrolls sideways by itself where the screen is narrow."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in header)
    body = "\n".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    return Html(
        f'<div class="scroll" role="region" aria-label="{text(caption)}" tabindex="0">'
        f'<table class="{text(css)}"><caption>{text(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def confusion_table(caption: str, names: Sequence[str], counts: Sequence[Sequence[int]]) -> Html:
    """A row per true class, a column per answer; each cell's ground shows its share of the row, never so strongly
    that the text on it is hard to read."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in names)
    rows = []
    for name, row in zip(names, counts, strict=True):
        total = sum(row)
        cells = "".join(_share_cell(count, total) for count in row)
        rows.append(f'<tr><th scope="row">{text(name)}</th>{cells}<td class="total">{total}</td></tr>')
    return Html(
        f'<div class="scroll" role="region" aria-label="{text(caption)}" tabindex="0">'
        f'<table class="confusion"><caption>{text(caption)}</caption>'
        f'<thead><tr><th scope="col">true ↓ &nbsp; answer →</th>{head}<th scope="col">tuples</th></tr></thead>\n'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def picture(data: bytes, kind: str, alt: str, size: tuple[int, int] | None = None, dark: bytes | None = None) -> Html:
    """An inlined picture. kind: png or jpeg; size: width and height in pixels; dark: another one for dark screens."""
    dimensions = f' width="{size[0]}" height="{size[1]}"' if size else ""
    image = f'<img src="{_data_uri(data, kind)}" alt="{text(alt)}"{dimensions}>'
    if dark is None:
        return Html(image)
    source = f'<source media="(prefers-color-scheme: dark)" srcset="{_data_uri(dark, kind)}">'
    return Html(f"<picture>{source}{image}</picture>")


def page(title: str, lead: Html, sections: Iterable[Html], footer: str) -> bytes:
    """The whole document in UTF-8. File names that are no text keep their bytes as escapes."""
    document = _PAGE.format(title=text(title), lead=lead, style=_STYLE, body=join(sections), footer=text(footer))
    return document.encode("utf-8", "backslashreplace")


def _share_cell(count: int, total: int) -> str:
    share = count / total if total else 0.0
    return f'<td style="--share:{share:.3f}">{count}<small>{100 * share:.0f} %</small></td>'


def _together(value: str) -> Html:
    """Text whose figures stay on one line with their percent signs."""
    return Html(text(value).replace(" %", "&nbsp;%"))


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{lead}
</header>
<main>
{body}
</main>
<footer>{footer}</footer>
</body>
</html>
"""

_STYLE = """
:root { --ground: #f4f6f9; --card: #ffffff; --text: #1c2430; --muted: #5c6675; --line: #e3e7ed; --accent: #0068a8; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #0f1319; --card: #171c24; --text: #e8ecf2; --muted: #9aa6b6; --line: #2c3440; --accent: #5ab4f0; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 3rem; background: var(--ground); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 0 0 .75rem; font-size: 1.15rem; }
header p { margin: .35rem 0 0; }
.muted, small, footer { color: var(--muted); }
.notice { padding: .6rem .8rem; border-left: 4px solid var(--accent); background: var(--card); border-radius: 4px; }
section { margin-top: 1.25rem; padding: 1.1rem 1.2rem 1.2rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
section p { margin: .4rem 0 .8rem; max-width: 70ch; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: .7rem; margin: 0; }
.tile { padding: .65rem .8rem; border: 1px solid var(--line); border-radius: 8px; }
.tile dt { color: var(--muted); font-size: .85rem; }
.tile dd { margin: 0; font-size: 1.4rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile small { display: block; font-size: .78rem; font-weight: 400; line-height: 1.35; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1.2rem; }
figure { margin: 0; }
figcaption { margin-bottom: .3rem; font-weight: 600; }
figcaption small { display: block; font-weight: 400; }
img { display: block; max-width: 100%; height: auto; }
.plots figure { display: flex; flex-direction: column; justify-content: space-between; }
.plots img { width: 100%; }
.tuples { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 32rem), 1fr)); gap: 1.4rem; }
.strip { display: flex; gap: .6rem; align-items: center; margin-top: .3rem; }
.strip span { flex: 0 0 3.2rem; font-size: .78rem; color: var(--muted); }
.strip img { flex: 1 1 auto; min-width: 0; border-radius: 3px; }
.strip.changed span { color: var(--accent); font-weight: 600; }
.strip.changed img { outline: 2px solid var(--accent); outline-offset: 1px; }
.scroll { overflow-x: auto; }
.scroll + .scroll, .scroll + p { margin-top: 1.1rem; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); font-size: .85rem; padding-bottom: .35rem; }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { color: var(--muted); font-weight: 600; }
tbody th { font-weight: 500; }
td code, td.wide { overflow-wrap: anywhere; }
code { font: .88em ui-monospace, "DejaVu Sans Mono", monospace; }
.confusion td, .confusion thead th { text-align: right; padding: .35rem .6rem; }
.confusion thead th:first-child { text-align: left; padding-left: 0; font-weight: 400; }
.confusion td:not(.total) { background: color-mix(in srgb, var(--accent) calc(var(--share) * 55%), var(--card)); }
.confusion td small { display: block; color: inherit; font-size: .75rem; }
details summary { cursor: pointer; font-weight: 600; }
details[open] summary { margin-bottom: .6rem; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
footer { margin-top: 1.5rem; font-size: .85rem; }
"""
