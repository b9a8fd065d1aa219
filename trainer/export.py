"""A trained student becomes a teacher: its newest checkpoint and a card, added to a teacher library.

python -m trainer.export RUN --name NAME [--library DIR]
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import tyro
from safetensors.torch import save_file

from data.errors import DataError
from data.home import runs_folder, teachers_folder
from teacher_server.card import PRETEXT_CLASSES, Provenance, TeacherCard
from teacher_server.errors import TeacherError
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId
from teacher_server.zoo.names import ARCH_VERSION
from teacher_server.zoo.registry import build_backbone
from trainer.checkpoint import load_network_tensors, newest_checkpoint
from trainer.config import ConfigError, RunConfig, from_json
from trainer.errors import CheckpointError
from trainer.report_data import read_metrics
from trainer.runs import RunFolder


def export_teacher(run: RunFolder, name: str, library: TeacherLibrary, command: str = "") -> TeacherId:
    """Adds the run's network, without its projector, as the next version of `name`; the card records `command`.

    Raises ConfigError for a run that is not finished, CheckpointError for a damaged one, TeacherError for the name.
    """
    if not run.is_finished:
        raise ConfigError(f"run {run.run_id} is not finished: train it to the end first")
    config = read_config(run)
    result = run.read_result()
    tensors = load_network_tensors(newest_checkpoint(run.checkpoints))
    served = {key: tensor for key, tensor in tensors.items() if not key.startswith("projector.")}
    card = TeacherCard(
        arch=config.student,
        arch_version=ARCH_VERSION,
        width=config.width,
        head="pretext",
        classes=PRETEXT_CLASSES,
        clip_len=config.clip_len,
        crop=config.crop,
        modality=config.modality,
        feature_size=build_backbone(config.student, config.width).feature_size,
        provenance=Provenance(
            command=command,
            store_fingerprint=result["store_fingerprint"],
            steps=result["steps"],
            metrics=_metrics(run, result),
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "model.safetensors"
        save_file(served, weights)
        return library.add(name, card, weights)


def read_config(run: RunFolder) -> RunConfig:
    """The settings that a run was started with."""
    fields = json.loads(run.config.read_bytes())
    fields.pop("identity")
    return from_json(fields)


def _metrics(run: RunFolder, result: dict[str, object]) -> dict[str, float]:
    """Accuracies for the card: the last epoch's validation and, where the run evaluated, the test list's."""
    epochs = read_metrics(run.metrics).epochs
    metrics = {"validation_pretext_acc": float(epochs[-1]["val_pretext_acc"])} if epochs else {}
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
