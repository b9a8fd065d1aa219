"""Evaluations on disk: asked once, answered from then on.

    $PRECEPTOR_HOME/evaluations/<the student's key: weights and architecture>/
        <key>.json              the Evaluation; key: hash of the store's fingerprint and the protocol's settings
        <key>.html              its page
        <key>/splitNN/model/    the fine-tuned student, which `load_student` reads
        features/               of clips, shared by all questions about these weights

An attempt that was ended early goes on with what lies in <key>/ and features/.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from data.atomic import write_atomic
from data.home import evaluations_folder
from data.store import ClipStore
from trainer.evaluate.exposure import splits_to_ask, training_rows
from trainer.evaluate.extract import PhaseProgress
from trainer.evaluate.finetune import FinetuneResult
from trainer.evaluate.finetune_state import PROGRESS
from trainer.evaluate.page import evaluation_page
from trainer.evaluate.protocols import Workplace, evaluate, printable
from trainer.evaluate.records import Evaluation
from trainer.evaluate.request import EvalRequest
from trainer.evaluate.splits import split_names, splits_of
from trainer.lessons import lesson_on
from trainer.student_files import LoadedStudent, save_student

MODEL_FOLDER = "model"


@dataclass(frozen=True)
class EvaluationFiles:
    """Paths of one question about one student. folder: that of the weights."""

    folder: Path
    key: str

    @property
    def record(self) -> Path:
        """The Evaluation."""
        return self.folder / f"{self.key}.json"

    @property
    def page(self) -> Path:
        """The self-contained page."""
        return self.folder / f"{self.key}.html"

    @property
    def work(self) -> Path:
        """What an unfinished attempt left, and fine-tuned students."""
        return self.folder / self.key

    @property
    def features(self) -> Path:
        """Features of clips."""
        return self.folder / "features"

    def model(self, split: str) -> Path:
        """The student that was fine-tuned on a split."""
        return self.work / f"split{split}" / MODEL_FOLDER


@dataclass(frozen=True)
class Answer:
    """An evaluation, where it lies, and whether it lay there before."""

    evaluation: Evaluation
    files: EvaluationFiles
    was_there: bool


def evaluation_files(student: LoadedStudent, store: ClipStore, request: EvalRequest) -> EvaluationFiles:
    """Where the answer to this question lies, or will."""
    key = request.digest(store.fingerprint, request.splits or split_names(store))
    return EvaluationFiles(evaluations_folder() / student.key, f"{request.protocol}-{key}")


def ask(
    student: LoadedStudent,
    store: ClipStore,
    request: EvalRequest,
    *,
    device: str = "cpu",
    force: bool = False,
    progress: PhaseProgress | None = None,
) -> Answer:
    """The answer that lies there, or a new one. force: forget the old one and all that was kept of this student.

    A request that names no splits is about those whose test videos are new to the student. The network is moved to the
    device. Raises EvaluationError for what does not go together, OSError.
    """
    splits = splits_to_ask(student.lessons, store, request.splits, request.protocol)
    request = dataclasses.replace(request, splits=splits)
    files = evaluation_files(student, store, request)
    if force:
        files.record.unlink(missing_ok=True)
        for folder in (files.work, files.features):
            shutil.rmtree(folder, ignore_errors=True)
    trained_on = training_rows(student.lessons, store)
    kept = _read(files.record)
    if kept is not None:
        known = _as_seen(kept, store, request, trained_on)
        if known != kept or not files.page.is_file():
            _write(files, known, store)
        return Answer(known, files, was_there=True)

    def keep(split: str, result: FinetuneResult) -> None:
        name = f"train{split}"
        lessons = (*student.lessons, lesson_on(store, store.subset(name), name, used_labels=True))
        classes = printable(store.classes)
        save_student(files.model(split), result.network, student.config, classes, store.frame_size, lessons)

    evaluation = evaluate(
        student.network.to(torch.device(device)),
        store,
        request,
        student=_name(student),
        weights_digest=student.digest,
        trained_on=trained_on,
        workplace=Workplace(files.features, files.work, keep),
        progress=progress,
    )
    _write(files, evaluation, store)
    for progress_file in files.work.glob(f"*/{PROGRESS}"):  # the record is whole, and holds all that counts
        progress_file.unlink()
    return Answer(evaluation, files, was_there=False)


def _write(files: EvaluationFiles, evaluation: Evaluation, store: ClipStore) -> None:
    """The record goes last: where it lies, the page does."""
    files.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(files.page, evaluation_page(evaluation, store))
    write_atomic(files.record, evaluation.model_dump_json(indent=1).encode() + b"\n")


def _as_seen(
    kept: Evaluation, store: ClipStore, request: EvalRequest, trained_on: NDArray[np.int64] | None
) -> Evaluation:
    """The record with what is known today of the student's training: the store of its run may have come back."""
    seen = {split.name: split.num_seen(trained_on) for split in splits_of(store, request.splits, request.num_frames)}
    scores = tuple(score.model_copy(update={"test_seen": seen[score.split]}) for score in kept.splits)
    return kept.model_copy(update={"splits": scores})


def _read(file: Path) -> Evaluation | None:
    """None for a record that is missing, or not what was written: it is made again."""
    try:
        return Evaluation.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None


def _name(student: LoadedStudent) -> str:
    """run/checkpoint, or the last parts of a fine-tuned student's folder."""
    parts = [part for part in student.source.parts if part != "checkpoints"]
    return "/".join(parts[-2:])
