"""The last steps of an import: the network runs on this machine, in both precisions, then it enters the library."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from teacher_server.card import TeacherCard
from teacher_server.engine.teacher import FrozenTeacher
from teacher_server.engine.verify import choose_precision
from teacher_server.importers.plan import ImportPlan
from teacher_server.library import WEIGHTS, TeacherLibrary
from teacher_server.protocol import TeacherId


def with_best_precision(plan: ImportPlan, device: str = "cpu") -> ImportPlan:
    """The plan with the precision that this machine should serve it in, and a note that says why.

    Raises LibraryError for weights that are not sound.
    """
    card, note = best_precision(plan.card, plan.tensors, device)
    return dataclasses.replace(plan, card=card, notes=(*plan.notes, note))


def best_precision(card: TeacherCard, tensors: Mapping[str, Tensor], device: str = "cpu") -> tuple[TeacherCard, str]:
    """The card with the precision that this machine should serve it in, and why. Raises as `with_best_precision`."""
    choice = choose_precision(card, tensors, device)
    report = choice.report
    reasons = "; ".join(report.objections()) or f"{report.speed_up:.2f} times as fast and close enough"
    return card.model_copy(update={"precision": choice.precision}), f"computed in {choice.precision}: {reasons}"


def install(plan: ImportPlan, name: str, library: TeacherLibrary, device: str = "cpu") -> TeacherId:
    """Adds the plan's teacher as the next version of `name`.

    Raises LibraryError when the self-test fails (values that are not finite, answers that do not repeat), BadQuery
    for a name that cannot be; the library is then as it was.
    """
    with tempfile.TemporaryDirectory(prefix="preceptor-import-") as folder:
        weights = Path(folder) / WEIGHTS
        save_file(plan.tensors, weights)
        trial = TeacherLibrary(Path(folder) / "trial")
        FrozenTeacher.load(trial.entry(trial.add(name, plan.card, weights)), device)  # tests itself
        return library.add(name, plan.card, weights)
