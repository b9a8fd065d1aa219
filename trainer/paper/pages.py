"""The results of a paper folder as pages for people and as numbers for programs.

    cells/  --read--> grid --> findings, claims --> document --> results.md, results.html, results.tex, *.png
    run.json ---------'              '-----------------------> results.json

A partial grid gives the same pages with dashes, and says what is missing.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from data.atomic import write_atomic
from trainer.paper.as_html import html
from trainer.paper.as_latex import latex
from trainer.paper.as_markdown import markdown
from trainer.paper.claims import Claim
from trainer.paper.control_figure import controls_picture
from trainer.paper.curve_claims import all_claims
from trainer.paper.document import Column, Document, Entry, Paragraph, Picture, Section, Table, Tile
from trainer.paper.figures import cost_picture, curves, gains, milestone_picture
from trainer.paper.findings import Findings, find, measured_pairs
from trainer.paper.load import Grid, read_grid
from trainer.paper.published import TABLE_OF_FRACTION
from trainer.paper.side_tables import (
    claims_table,
    controls_table,
    cost_table,
    milestone_table,
    teachers_table,
    transfer_table,
)
from trainer.paper.stats import LEVEL, NUM_RESAMPLES
from trainer.paper.tables import accuracy_table, literature_table, overall_table
from trainer.paper.words import points

_SHOWN_MISSING = 40  # of a grid with hundreds of cells, the rest is counted
_FOOTER = "Written by Preceptor from the cells' result.json and answers.npz. The same cells give the same page."


@dataclass(frozen=True)
class Numbers:
    """What results.json holds. run: run.json as it stood."""

    findings: Findings
    claims: tuple[Claim, ...]
    run: Mapping[str, Any]


def write_results(folder: Path, out: Path) -> None:
    """Writes results.md, results.html, results.tex, results.json and the PNGs of `folder`'s cells into `out`.

    Each file is whole or absent. `out` is made where it is missing. Raises PaperFolderError when `folder` cannot be
    read, OSError when `out` cannot be written to.
    """
    grid = read_grid(folder)
    findings, claims = find(grid), all_claims(grid)
    document = results_document(grid, findings, claims)
    out.mkdir(parents=True, exist_ok=True)
    for picture in document.pictures:
        write_atomic(out / f"{picture.name}.png", picture.light)
    write_atomic(out / "results.json", results_json(Numbers(findings, claims, grid.run)))
    write_atomic(out / "results.tex", latex(document).encode())
    write_atomic(out / "results.html", html(document, _FOOTER))
    write_atomic(out / "results.md", markdown(document).encode())


def results_json(numbers: Numbers) -> bytes:
    """All numbers. What run.json says goes in as it is; there is no NaN."""
    content = TypeAdapter(Numbers).dump_python(numbers, mode="json")
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode()


def results_document(grid: Grid, findings: Findings, claims: Sequence[Claim]) -> Document:
    """The pages' content, in the order of reading: answers first, then tables, then how it was made."""
    sections = [
        Section("claims", "The claims, answered", (claims_table(claims),)),
        Section("gains", "Early gains at a glance", (gains(findings),)),
        *(_share_section(grid, findings, fraction) for fraction in findings.fractions),
        Section("overall", "All shares together (Table 7)", (overall_table(findings), literature_table(findings))),
        *_controls(findings),
        Section("speed", "How soon", (milestone_picture(findings), *_each(findings, milestone_table))),
        Section("cost", "What it costs", (cost_picture(findings), *_each(findings, cost_table), *_teachers(findings))),
        Section("reading", "How to read this", tuple(map(Paragraph, _reading(grid.run, findings)))),
        Section("missing", "What is missing", tuple(_missing(findings))),
        Section("origin", "How it was made", tuple(_origin(grid.run, findings))),
    ]
    return Document(
        "Results of the paper's experiments", _lead(grid, findings), _tiles(grid, findings, claims), tuple(sections)
    )


def _lead(grid: Grid, findings: Findings) -> tuple[Paragraph, ...]:
    scale = grid.run.get("scale")
    parts = [
        Paragraph(
            "Knowledge distillation for video action recognition: three students, each from scratch and under two "
            f"teachers, on {len(findings.fractions)} shares of the training data, with {len(findings.seeds)} seeds"
            + (f", at scale {scale}." if isinstance(scale, str) else ".")
        )
    ]
    if findings.num_cells < findings.num_expected:
        note = f"This is not the whole grid: {findings.num_cells} of {findings.num_expected} cells are there."
        parts.append(Paragraph(f"{note} Verdicts and means are of those.", notice=True))
    return tuple(parts)


def _tiles(grid: Grid, findings: Findings, claims: Sequence[Claim]) -> tuple[Tile, ...]:
    own = next(claim for claim in claims if claim.source == "project")
    paper = [claim.verdict for claim in claims if claim.source == "paper"]
    tiles = [
        Tile("This project's claim", own.verdict, "early gains beyond the controls"),
        Tile("The paper's claims", f"{paper.count('supported')} of {len(paper)}", "supported by these numbers"),
    ]
    for fraction in findings.fractions:
        found = list(measured_pairs(grid, fraction, "early").values())
        if found:
            mean = sum(gain.mean for gain in found) / len(found)
            above = sum(gain.above_zero for gain in found)
            remark = f"points, mean of {len(found)} pairs; {above} with an interval above 0"
            tiles.append(Tile(f"Early gain, {fraction:g} % of data", points(mean), remark))
    tiles.append(Tile("Cells", f"{findings.num_cells} of {findings.num_expected}", f"{len(findings.seeds)} seeds"))
    return tuple(tiles)


def _share_section(grid: Grid, findings: Findings, fraction: float) -> Section:
    number = TABLE_OF_FRACTION.get(fraction)
    blocks: list[Table | Picture] = [accuracy_table(findings, fraction), curves(grid, fraction)]
    action = transfer_table(findings, fraction)
    if action is not None:
        blocks.append(action)
    title = f"{fraction:g} % of the data{f' (Table {number})' if number else ''}"
    return Section(f"share-{fraction:g}".replace(".", "-"), title, tuple(blocks))


def _each(findings: Findings, table: Any) -> Iterator[Table]:
    return (table(findings, fraction) for fraction in findings.fractions)


def _controls(findings: Findings) -> Iterator[Section]:
    picture, table = controls_picture(findings), controls_table(findings)
    if picture is not None and table is not None:
        yield Section("controls", "Controls: knowledge or regularisation", (picture, table))


def _teachers(findings: Findings) -> Iterator[Table]:
    table = teachers_table(findings)
    if table is not None:
        yield table


def _reading(run: Mapping[str, Any], findings: Findings) -> Iterator[str]:
    settings = run.get("settings")
    built_in = isinstance(settings, Mapping) and settings.get("built_in") is True
    group = "gNN, in the built-in set one person before one background" if built_in else "gNN of all classes together"
    yield (
        "Pretext accuracy is the share of test tuples whose operation (one of five) is named right; guessing gives "
        "20 %. It is never mixed with action accuracy. Stages end after 25, 75 and 100 % of the epochs (the paper's "
        "50, 150 and 200 of 200). At equal epochs a smaller share of the data means fewer steps, so the tables "
        "show both."
    )
    yield (
        "A gain is distillation minus scratch of the same student, share of the data and seed, answer by answer on the "
        f"same test views. Its interval is the middle {100 * LEVEL:g} % of {NUM_RESAMPLES:,} resamples: each draws as "
        f"many groups of test videos ({group}) and as many seeds as there are, with replacement, both at once, and a "
        "seed brings its distilled and its scratch run; what groups and what seeds deviate by is stretched by "
        "sqrt(G/(G-1)) and sqrt(S/(S-1)), which resampling so few of them loses. It says how far the mean gain would "
        "move with other groups and other seeds of the same kind. It does not cover other data sets, splits or "
        "settings, says nothing of seeds when there is one, and is not adjusted for how many gains are compared. In "
        "simulations with nine groups and three seeds a gain that is 0 is shown as different from 0 about one time in "
        "ten where runs differ by group, and one in five where they differ by seed alone, instead of one in twenty; "
        f"here are {findings.num_groups} groups and {len(findings.seeds)} seeds. All students of a full-data teacher, "
        "of every seed, learn from one network, and so do those of an untrained one: an interval says nothing of other "
        "networks of that architecture, trained or drawn anew."
    )
    yield (
        "Training accuracy is that of the last epoch's tuples: augmented, and each before its own update, with the "
        "batch's statistics. Validation and test are centre crops without augmentation, with the running statistics. "
        "So the three curves of a run are not on one scale; those of two runs are. Which videos a share below 100 % "
        "holds changes with the seed, so a deviation over seeds has that in it too."
    )
    yield (
        "The full-data teachers have seen all training videos, also when their students see 2 % of them; the "
        "matched-data teachers have seen what their students see. Both are shown, apart. They differ by more than the "
        "data: a matched teacher is the scratch student of that share and seed, trained for as many epochs as any "
        "student and on the very views that its own students learn from; the full-data teachers have a seed and views "
        "of their own, and the number of epochs that the settings below name."
    )


def _missing(findings: Findings) -> Iterator[Paragraph | Table]:
    if not findings.missing and not findings.refused:
        yield Paragraph(f"Nothing: all {findings.num_expected} cells are there and were read.")
    if findings.missing:
        shown = ", ".join(findings.missing[:_SHOWN_MISSING])
        rest = len(findings.missing) - _SHOWN_MISSING
        more = f" and {rest} more" if rest > 0 else ""
        yield Paragraph(f"{len(findings.missing)} cells were not run, or not yet: {shown}{more}.")
    if findings.refused:
        rows = tuple((Entry(refusal.name), Entry(refusal.reason)) for refusal in findings.refused)
        columns = (Column("folder"), Column("why it is left out", wrap=True))
        yield Table("refused", "Cells that were found and do not count", columns, rows)


def _origin(run: Mapping[str, Any], findings: Findings) -> Iterator[Paragraph | Table]:
    yield Paragraph(f"{findings.num_items} test tuples in {findings.num_groups} groups answered by every cell.")
    rows = tuple((Entry(name), Entry(value)) for name, value in _facts(run) if name != "cells")
    if not rows:
        yield Paragraph("There is no run.json: command, machine, versions and dates are not on record.", notice=True)
        return
    yield Table("origin", "Command, machine, versions, dates", (Column("what"), Column("value", wrap=True)), rows)


def _facts(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of run.json, named by their path. A list is one leaf, a command as a shell reads it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _facts(inner, f"{name} {key}".strip())
    elif isinstance(value, list):
        texts = [str(part) for part in value]
        yield name, shlex.join(texts) if name.endswith("command") else ", ".join(texts)
    else:
        yield name, str(value)
