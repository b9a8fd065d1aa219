"""A document as LaTeX that compiles by itself, its tables set with booktabs. Pictures are files beside it.

The tables are whole `table` environments, so each can be copied into a paper; they need booktabs, adjustbox and
amssymb. Their titles have the paper's numbers, so LaTeX gives them none.
"""

from __future__ import annotations

import re

from trainer.paper.document import Document, Entry, Paragraph, Picture, Table

_REPLACEMENTS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "%": r"\%",
    "&": r"\&",
    "_": r"\_",
    "#": r"\#",
    "$": r"\$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "←": r"$\leftarrow$",
    "→": r"$\rightarrow$",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "✓": r"$\checkmark$",
    "✗": r"$\times$",
    "○": r"$\circ$",
    "·": r"$\cdot$",
}
_SPECIAL = re.compile("-(?=-)|[" + re.escape("".join(_REPLACEMENTS)) + "]")
_UNKNOWN = re.compile("[^ -~\u00a1-\u017f" + "".join(c for c in _REPLACEMENTS if c > "\u017f") + "]")

_HEAD = r"""\documentclass[a4paper,landscape,10pt]{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage[margin=18mm]{geometry}
\usepackage[labelformat=empty]{caption}
\usepackage{adjustbox,amssymb,booktabs,graphicx,textcomp}
\setlength{\parindent}{0pt}
\setlength{\parskip}{4pt}
\begin{document}"""


def escape(value: str) -> str:
    """Text that shows as itself, on one line; each character is replaced once, so that nothing is escaped twice.

    A character that the fonts of plain LaTeX lack becomes a question mark: it would stop the compiler.
    """
    plain = _UNKNOWN.sub("?", " ".join(value.split()))
    # Two hyphens, as options of commands have them, would be set as one dash.
    return _SPECIAL.sub(lambda found: _REPLACEMENTS.get(found.group(), "-{}"), plain)


def latex(document: Document) -> str:
    """A whole file."""
    parts = [_HEAD, rf"\section*{{{escape(document.title)}}}", *(_paragraph(part) for part in document.lead)]
    if document.tiles:
        items = (
            rf"\item {escape(t.what)}: \textbf{{{escape(t.figure)}}}{f' ({escape(t.remark)})' if t.remark else ''}"
            for t in document.tiles
        )
        parts.append("\n".join([r"\begin{itemize}", *items, r"\end{itemize}"]))
    for section in document.sections:
        parts += [rf"\clearpage\subsection*{{{escape(section.title)}}}", *(_block(block) for block in section.blocks)]
    return "\n\n".join([*parts, r"\end{document}"]) + "\n"


def _block(block: Paragraph | Picture | Table) -> str:
    if isinstance(block, Paragraph):
        return _paragraph(block)
    return _picture(block) if isinstance(block, Picture) else _table(block)


def _paragraph(block: Paragraph) -> str:
    return rf"\textbf{{{escape(block.text)}}}" if block.notice else escape(block.text)


def _picture(block: Picture) -> str:
    caption = escape(f"{block.title}. {block.about}")
    return "\n".join(
        [
            r"\begin{figure}[!htbp]",
            r"\centering",
            rf"\includegraphics[width=\textwidth,height=.8\textheight,keepaspectratio]{{{block.name}.png}}",
            rf"\caption{{{caption}}}",
            rf"\label{{fig:{block.name}}}",
            r"\end{figure}",
        ]
    )


def _table(table: Table) -> str:
    kinds = "".join("p{60mm}" if column.wrap else "l" for column in table.columns)
    body = []
    for number, row in enumerate(table.rows):
        if number in table.breaks:
            body.append(r"\midrule")
        body.append(_line([_entry(entry) for entry in row]))
    return "\n".join(
        [
            r"\begin{table}[!htbp]",
            r"\centering\small",
            rf"\caption{{{escape(table.title)}}}",
            rf"\label{{tab:{table.name}}}",
            r"\begin{adjustbox}{max width=\textwidth,max totalheight=.75\textheight}",
            rf"\begin{{tabular}}{{{kinds}}}",
            r"\toprule",
            _line([escape(column.title) for column in table.columns]),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{adjustbox}",
            *(rf"\par\smallskip{{\footnotesize {escape(note)}\par}}" for note in table.notes),
            r"\end{table}",
        ]
    )


def _line(cells: list[str]) -> str:
    # The braces keep a cell that begins with [ from being read as the option of the \\ before it.
    return " & ".join(f"{{{cell}}}" for cell in cells) + r" \\"


def _entry(entry: Entry) -> str:
    body = escape(entry.text)
    if entry.strong and body:
        body = rf"\textbf{{{body}}}"
    return rf"{body} {{\scriptsize {escape(entry.small)}}}" if entry.small else body
