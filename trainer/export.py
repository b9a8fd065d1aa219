"""A trained student becomes a teacher: its tensors and a card, added to a teacher library.

    export_teacher       a checkpoint of a finished run
    export_fine_tuned    a student that `preceptor eval --protocol finetune` left, which names actions

python -m trainer.export RUN --name NAME [--library DIR]
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import tyro
from safetensors.torch import save_file
from torch import Tensor

from data.errors import DataError
from data.home import runs_folder, teachers_folder
from teacher_server.card import Provenance, TeacherCard, pretext_classes
from teacher_server.errors import TeacherError
from teacher_server.importers.plan import checked_card
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId
from teacher_server.zoo.heads import CLIPS_PER_TUPLE
from teacher_server.zoo.names import ARCH_VERSION
from trainer.checkpoint import load_network_tensors, newest_checkpoint, step_of
from trainer.config import ConfigError, RunConfig
from trainer.errors import CheckpointError
from trainer.report_data import read_metrics
from trainer.runs import RunFolder
from trainer.student_files import LoadedStudent, best_checkpoint
from trainer.teacher_facts import action_class_names

Head = Literal["pretext", "action"]


def export_teacher(
    run: RunFolder,
    name: str,
    library: TeacherLibrary,
    command: str = "",
    *,
    head: Literal["auto", "pretext", "action"] = "auto",
    classes: tuple[str, ...] | None = None,
    best: bool = False,
) -> TeacherId:
    """Adds the run's network as the next version of `name`, with one head and no projector.

    command: for the card. head: auto takes the pretext head where there is one. classes: names of an action head's
    classes; None takes them from where the run had them. best: the checkpoint that validation chose, not the newest.
    Raises ConfigError for a run that is not finished or has no such head or checkpoint, or for classes of a pretext
    head, CheckpointError for a damaged one, TeacherError for the name.
    """
    if not run.is_finished:
        raise ConfigError(f"run {run.run_id} is not finished: train it to the end first")
    config = run.read_config()
    result = run.read_result()
    checkpoint = best_checkpoint(run) if best else newest_checkpoint(run.checkpoints)
    tensors = load_network_tensors(checkpoint)
    chosen = _choose_head(run, tensors, head)
    if chosen == "pretext" and classes is not None:
        raise ConfigError(
            f"--classes names an action head's classes, run {run.run_id} is taken by its pretext head (--head)"
        )
    num_classes, num_inputs = tensors[f"{chosen}_head.linear.weight"].shape
    named = (
        pretext_classes(config.pretext_operation, config.shuffle_variant)
        if chosen == "pretext"
        else _action_classes(config, num_classes, classes)
    )
    made = Provenance(
        command=command,
        store_fingerprint=result["store_fingerprint"],
        steps=step_of(checkpoint),
        metrics=_metrics(run, result, step_of(checkpoint)),
    )
    feature_size = num_inputs // (CLIPS_PER_TUPLE if chosen == "pretext" else 1)
    card = _card(f"run {run.run_id}", config, chosen, named, feature_size, made)
    return _add(library, name, card, tensors)


def export_fine_tuned(
    student: LoadedStudent, name: str, library: TeacherLibrary, command: str = "", *, classes: tuple[str, ...] | None
) -> TeacherId:
    """Adds a fine-tuned student as the next version of `name`: an action teacher of the input that it was trained on.

    command: for the card. classes: other names than its own. Raises ConfigError for a student without an action head
    or for classes of another number, TeacherError for the name.
    """
    tensors = {key: tensor.contiguous() for key, tensor in student.network.state_dict().items()}
    if not student.classes:
        raise ConfigError(f"student {student.source} has no action head: it was not fine-tuned")
    if classes is not None and len(classes) != len(student.classes):
        raise ConfigError(f"the action head has {len(student.classes)} classes, --classes names {len(classes)}")
    feature_size = student.network.backbone.feature_size
    named = student.classes if classes is None else classes
    card = _card(str(student.source), student.config, "action", named, feature_size, Provenance(command=command))
    return _add(library, name, card, tensors)


def _card(
    source: str, config: RunConfig, head: Head, classes: tuple[str, ...], feature_size: int, provenance: Provenance
) -> TeacherCard:
    """What the settings of a student's run say of it. Raises ImportRefused, for classes that no card can have."""
    return checked_card(
        source,
        {
            "arch": config.student,
            "arch_version": ARCH_VERSION,
            "width": config.width,
            "head": head,
            "classes": classes,
            "clip_len": config.clip_len,
            "crop": config.crop,
            "modality": config.modality,
            "feature_size": feature_size,
            "provenance": provenance,
        },
    )


def _add(library: TeacherLibrary, name: str, card: TeacherCard, tensors: Mapping[str, Tensor]) -> TeacherId:
    """Backbone and the card's head, without the rest."""
    served = ("backbone.", f"{card.head}_head.")
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "model.safetensors"
        save_file({key: tensor for key, tensor in tensors.items() if key.startswith(served)}, weights)
        return library.add(name, card, weights)


def _choose_head(run: RunFolder, tensors: Mapping[str, Tensor], wish: Literal["auto", "pretext", "action"]) -> Head:
    heads: tuple[Head, Head] = ("pretext", "action")
    there = [head for head in heads if f"{head}_head.linear.weight" in tensors]
    for head in there:
        if wish in ("auto", head):
            return head
    raise ConfigError(f"run {run.run_id} has no {wish} head, it has {' and '.join(there) or 'none'} (--head)")


def _action_classes(config: RunConfig, count: int, named: tuple[str, ...] | None) -> tuple[str, ...]:
    """The names that the user gave, or those that the run had."""
    if named is None:
        return action_class_names(config, count)
    if len(named) != count:
        raise ConfigError(f"the action head has {count} classes, --classes names {len(named)}")
    return named


def _metrics(run: RunFolder, result: dict[str, object], step: int) -> dict[str, float]:
    """Accuracies for the card: validation after this step and, where the run evaluated these weights, the test
    list's."""
    validated = [epoch for epoch in read_metrics(run.metrics).epochs if epoch["step"] == step]
    metrics = {"validation_pretext_acc": float(validated[-1]["val_pretext_acc"])} if validated else {}
    if step != result["steps"]:
        return metrics
    for name in ("pretext_acc", "retrieval_top1", "probe_acc"):
        value = result[name]
        if isinstance(value, float):
            metrics[name] = value
    return metrics


def main(run: tyro.conf.Positional[str], name: str, library: Path | None = None) -> None:
    """Add a finished run's student to the teacher library.

    Args:
        run: Id of the run, a folder under $PRECEPTOR_HOME/runs.
        name: Name of the teacher; it gets the next free version.
        library: Another folder than $PRECEPTOR_HOME/teachers.
    """
    try:
        folder = RunFolder(runs_folder() / run)
        if not folder.config.is_file():
            raise ConfigError(f"no run {run!r} under {runs_folder()}")
        teacher = export_teacher(folder, name, TeacherLibrary(library or teachers_folder()))
    except (ConfigError, CheckpointError, DataError, TeacherError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{teacher} added to {library or teachers_folder()}")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m trainer.export")
