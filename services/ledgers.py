"""What `preceptor ledger list` and `preceptor ledger verify` print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from data.home import ledgers_folder, teachers_folder
from teacher_server.errors import LedgerError
from teacher_server.ledger.store import Ledger, ledger_folders

if TYPE_CHECKING:
    from teacher_server.ledger.verify import LedgerCheck

EQUAL, DIFFERENT = 0, 1
_ANOTHER_CPU = 1e-3  # in raw logits and features: roundings, and no other weights
_SHOWN = 20


def list_ledgers() -> None:
    """A table on standard output, with a line for everything that is damaged. Every segment is read and checked."""
    console, folders = Console(), ledger_folders(ledgers_folder())
    if not folders:
        console.print(f"no ledgers in {ledgers_folder()}: a run with --ledger auto records one", soft_wrap=True)
        return
    problems: list[str] = []
    console.print(_table(folders, problems))
    for problem in problems:
        console.print(problem, soft_wrap=True, markup=False, highlight=False)


def verify_ledger(name: str, sample: int = 64, seed: int = 0) -> int:
    """Asks the teacher again for `sample` random items and prints what differs: 0 when nothing does, else 1.

    name: of the ledger's folder, or the beginning of one name only, as r2plus1d or r2plus1d@3.
    Raises LedgerError, and whatever says that the teacher cannot be asked.
    """
    from teacher_server.ledger import verify as ledger_verify  # late: it needs torch
    from teacher_server.library import TeacherLibrary

    if sample < 1:
        raise LedgerError(name, f"--sample must be at least 1, got {sample}")
    folder = find_ledger(ledgers_folder(), name)
    print(f"ledger {folder.name}: asking again, seed {seed}", flush=True)
    check = ledger_verify.verify_ledger(folder, TeacherLibrary(teachers_folder()), sample=sample, seed=seed)
    if not check.checks and not check.problems:
        raise LedgerError(folder.name, "it holds no answers yet: nothing was verified")
    for line in report_lines(check):
        print(line)
    return EQUAL if check.equal else DIFFERENT


def find_ledger(root: Path, name: str) -> Path:
    """The ledger that `name` means. Raises LedgerError, with the known ones, for no ledger or more than one."""
    names = [folder.name for folder in ledger_folders(root)]
    # Folders are called NAME@VERSION-DIGEST; a teacher's name may hold a hyphen as well.
    begin = f"{name}-" if "@" in name else f"{name}@"
    meant = [known for known in names if known == name or known.startswith(begin)]
    if len(meant) != 1:
        found = "more than one" if meant else "none"
        raise LedgerError(str(root), f"{found} is called {name!r}; there are: {', '.join(meant or names) or 'none'}")
    return root / meant[0]


def report_lines(check: LedgerCheck) -> list[str]:
    """Items that differ, worst first, items that could not be asked, damaged segments, and a line of totals."""
    asked = [item for item in check.checks if not item.reason]
    differing = [item for item in asked if not item.bit_equal]
    differing.sort(key=lambda item: -np.nan_to_num(item.max_difference, nan=np.inf))
    stale = [item for item in check.checks if item.reason]
    lines = [
        f"differs   item {item.digest}, row {item.row} of {item.segment}: at most {item.max_difference:.3g}"
        for item in differing
    ]
    lines = _shortened(lines) + _shortened(
        [f"not asked item {item.digest}, row {item.row} of {item.segment}: {item.reason}" for item in stale]
    )
    lines += [f"damaged   {problem}" for problem in check.problems]
    if differing and all(item.max_difference < _ANOTHER_CPU for item in differing):  # not so for NaN
        lines.append(
            "so little is what another CPU model, or another version of torch, makes of the same weights: verify it on "
            "a machine like the one that recorded it"
        )
    lines.append(
        f"{check.num_items} items, {len(check.checks)} sampled with seed {check.seed}: {len(asked) - len(differing)} "
        f"bit-equal, {len(differing)} differ, {len(stale)} not asked; damaged segments: {len(check.problems)}"
    )
    return lines


def _shortened(lines: Sequence[str]) -> list[str]:
    more = len(lines) - _SHOWN
    return [*lines[:_SHOWN], *([f"          and {more} more like these"] if more > 0 else [])]


def _table(folders: Sequence[Path], problems: list[str]) -> Table:
    """A row for each ledger; sentences about what is damaged are added to `problems`."""
    table = Table("teacher", "digest", "items", "segments", "bytes", "engine", "features")
    for folder in folders:
        try:
            ledger = Ledger.open(folder, lambda error: problems.append(str(error)))
        except LedgerError as error:
            table.add_row(folder.name, "cannot be used")
            problems.append(str(error))
            continue
        header, segments = ledger.header, ledger.segments
        featured = sum(len(segment) for segment in segments if segment.rows.features is not None)
        num_bytes = sum(segment.num_bytes for segment in segments)
        sizes = (str(len(ledger)), str(len(segments)), str(num_bytes))
        table.add_row(header.teacher, header.digest[:12], *sizes, header.engine, str(featured))
    return table
