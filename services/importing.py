"""What `preceptor teacher import` does: read, plan, show, test, add."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.home import runs_folder
from teacher_server.card import TeacherCard
from teacher_server.importers.errors import ImportRefused
from teacher_server.importers.layouts import shortened
from teacher_server.importers.wishes import Wishes
from teacher_server.library import TeacherEntry, TeacherLibrary
from teacher_server.protocol import TeacherId
from trainer.config import ConfigError

if TYPE_CHECKING:
    from teacher_server.importers.plan import ImportPlan
    from teacher_server.importers.source import Source

RUN_PREFIX = "run:"
# All else stands in the student's own settings.
_WISHES_OF_STUDENTS = ("head", "classes", "precision", "resize", "compile", "chunk_items")


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names, one a line, in the order of the head's rows; empty lines are left out. Raises ConfigError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--classes {path} cannot be read: {error}") from None
    return tuple(line.strip() for line in lines if line.strip())


@dataclasses.dataclass(frozen=True)
class ImportMode:
    """trust_pickle: Python code in a checkpoint may run. dry_run: nothing is added. device: where it is tested."""

    trust_pickle: bool = False
    dry_run: bool = False
    device: str = "cpu"


def import_teacher(
    source: str, name: str, wishes: Wishes, library: TeacherLibrary, mode: ImportMode
) -> TeacherId | None:
    """Adds the weights as the next version of `name`, after showing what they were taken for; None for a dry run.

    Raises ImportRefused, ConfigError or TeacherError; the library is then as it was.
    """
    if source.startswith(RUN_PREFIX):
        return _import_run(source.removeprefix(RUN_PREFIX), name, wishes, library, mode)
    if Path(source).is_dir():
        return _import_fine_tuned(Path(source), name, wishes, library, mode)
    _refuse_part_of_student(Path(source))
    from teacher_server.importers.install import install, with_best_precision
    from teacher_server.importers.plan import make_plan
    from teacher_server.importers.source import read_source

    read = read_source(Path(source), trust_pickle=mode.trust_pickle)
    plan = make_plan(read, wishes, f"preceptor teacher import {read.file}")
    console = Console()
    console.print(_table(f"{source} as {name}", _rows_of_file(plan, read)))
    if wishes.precision == "auto" and not mode.dry_run:
        plan = with_best_precision(plan, mode.device)
    for note in plan.notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False)
    return None if mode.dry_run else install(plan, name, library, mode.device)


def _rows_of_file(plan: ImportPlan, source: Source) -> dict[str, str]:
    return {
        "names": f"{plan.layout.name}, {len(plan.tensors)} tensors",
        **_rows_of_card(plan.card),
        "dropped": shortened(plan.dropped) or "nothing",
        "unused": shortened((*plan.unused, *source.left_out)) or "nothing",
        "sha256": source.sha256,
    }


def _rows_of_student(entry: TeacherEntry, card: TeacherCard) -> dict[str, str]:
    made = card.provenance
    metrics = ", ".join(f"{name} {value:.3f}" for name, value in sorted(made.metrics.items()))
    trained = {"trained": f"{made.steps} steps on store {made.store_fingerprint[:12]}", "metrics": metrics or "none"}
    return _rows_of_card(card) | (trained if made.steps else {}) | {"sha256": entry.weights_sha256}


def _rows_of_card(card: TeacherCard) -> dict[str, str]:
    others = ", other sizes are resized" if card.resize else ""
    return {
        "network": f"{card.arch}, width {card.width:g}, {card.feature_size} features",
        "head": f"{card.head}, {len(card.classes)} classes: {shortened(card.classes)}",
        "input": f"{card.modality}, {card.clip_len} frames of {card.crop}x{card.crop}{others}",
        "mean, std": f"{card.mean}, {card.std}",
    }


def _table(title: str, rows: dict[str, str]) -> Table:
    """What the weights were taken for."""
    table = Table("what", "taken for", title=Text(title))
    for what, taken_for in rows.items():
        table.add_row(what, Text(taken_for))  # names in a file are no markup
    return table


def _import_run(run_id: str, name: str, wishes: Wishes, library: TeacherLibrary, mode: ImportMode) -> TeacherId | None:
    """run_id: of its newest checkpoint, with `:best` behind it of the one that validation chose."""
    from trainer.checkpoint import BEST
    from trainer.export import export_teacher
    from trainer.runs import RunFolder

    source = f"{RUN_PREFIX}{run_id}"
    _refuse_flags_of_files(source, wishes, mode)
    name_of_run, colon, which = run_id.partition(":")
    folder = RunFolder(runs_folder() / name_of_run)
    if not folder.config.is_file() or (colon and which != BEST):
        raise ImportRefused(source, f"there is no such run under {runs_folder()}; expected run:ID or run:ID:{BEST}")

    def export(trial: TeacherLibrary) -> TeacherId:
        command = f"preceptor teacher import {source}"
        return export_teacher(
            folder, name, trial, command, head=wishes.head, classes=wishes.classes, best=which == BEST
        )

    return _import_student(source, name, wishes, library, mode, export)


def _import_fine_tuned(
    folder: Path, name: str, wishes: Wishes, library: TeacherLibrary, mode: ImportMode
) -> TeacherId | None:
    """A student that fine-tuning left; `preceptor eval` names its folder."""
    from trainer.export import export_fine_tuned
    from trainer.student_files import CARD, load_student

    source = str(folder)
    if not (folder / CARD).is_file():
        raise ImportRefused(
            source, f"it is a folder without {CARD}; expected a file, the folder of a fine-tuned student, or run:ID"
        )
    _refuse_flags_of_files(source, wishes, mode)
    if wishes.head == "pretext":
        raise ConfigError(f"{source} was fine-tuned and has an action head only: leave out --head pretext")

    def export(trial: TeacherLibrary) -> TeacherId:
        command = f"preceptor teacher import {'/'.join(folder.resolve().parts[-4:])}"
        return export_fine_tuned(load_student(folder), name, trial, command, classes=wishes.classes)

    return _import_student(source, name, wishes, library, mode, export)


def _refuse_part_of_student(file: Path) -> None:
    """Raises ImportRefused for the weights of a fine-tuned student without their card, which says what they see."""
    from trainer.student_files import CARD

    if (file.parent / CARD).is_file():
        raise ImportRefused(str(file), f"{CARD} beside it says what it was trained on: import the folder {file.parent}")


def _import_student(
    source: str,
    name: str,
    wishes: Wishes,
    library: TeacherLibrary,
    mode: ImportMode,
    export: Callable[[TeacherLibrary], TeacherId],
) -> TeacherId | None:
    """A student of this project: its own settings say all that the card needs. It is tried in a library of its own
    first. export: adds it to a library."""
    from safetensors.torch import load_file

    from teacher_server.engine.teacher import FrozenTeacher
    from teacher_server.importers.install import best_precision
    from teacher_server.importers.plan import checked_card
    from trainer.errors import CheckpointError

    with tempfile.TemporaryDirectory(prefix="preceptor-import-") as scratch:
        trial = TeacherLibrary(Path(scratch))
        try:
            entry = trial.entry(export(trial))
        except CheckpointError as error:
            raise ImportRefused(source, str(error)) from None
        assert isinstance(entry.card, TeacherCard)  # a student is one network
        changes = {"resize": wishes.resize, "compile": wishes.compile, "chunk_items": wishes.chunk_items}
        card = checked_card(source, entry.card.model_dump() | changes)
        console = Console()
        console.print(_table(f"{source} as {name}", _rows_of_student(entry, card)))
        if mode.dry_run:
            return None
        if wishes.precision == "auto":
            card, note = best_precision(card, load_file(entry.weights), mode.device)
            console.print(f"note: {note}", soft_wrap=True, markup=False)
        else:
            card = card.model_copy(update={"precision": wishes.precision})
        FrozenTeacher.load(trial.entry(trial.add(name, card, entry.weights)), mode.device)  # tests itself
        return library.add(name, card, entry.weights)


def _refuse_flags_of_files(source: str, wishes: Wishes, mode: ImportMode) -> None:
    """Raises ConfigError for what means something for files only."""
    fields = [f for f in dataclasses.fields(Wishes) if f.name not in _WISHES_OF_STUDENTS]
    changed = [f.name for f in fields if getattr(wishes, f.name) != f.default]
    if changed:
        flags = ", ".join("--" + field.replace("_", "-") for field in changed)
        raise ConfigError(f"the card of {source} comes from its run: leave out {flags}")
    if mode.trust_pickle:
        raise ConfigError(f"{source} holds no pickle, students are kept as safetensors: leave out --trust-pickle")
