"""What a finished cell's student can do with actions, on the data set it was trained on and on the second one.

    late checkpoint ──► even clips' features (once) ──► fine-tuning of the head, probe, retrieval
                    └─► fine-tuning of all of it

All of the training list is used, whatever fraction the student saw: these labels belong to the second task, and a
fraction is about the first. Each answer is kept, under a name that changes with weights, store and question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from data.atomic import write_atomic
from data.home import store_path
from data.store import ClipStore
from trainer.evaluate.extract import PhaseProgress
from trainer.evaluate.finetune import FinetuneResult
from trainer.evaluate.finetune_recipe import FinetuneRecipe
from trainer.evaluate.protocols import EvalRequest, Workplace, evaluate
from trainer.paper.load import TransferAnswers
from trainer.paper.records import PROTOCOLS, DatasetName, Transfer, TransferProtocol
from trainer.paper.scale import Scale
from trainer.plan import student_input
from trainer.student_files import LoadedStudent

_SPLIT = "01"


class _Kept(BaseModel):
    """One answer on disk. correct, groups: of each test video."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    transfer: Transfer
    correct: tuple[bool, ...]
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Transfers:
    """Of one cell. second_store: fingerprint of the second data set, None where nothing was asked."""

    records: tuple[Transfer, ...]
    answers: TransferAnswers
    second_store: str | None


NO_TRANSFERS = Transfers((), TransferAnswers({}, {}), None)


def make_transfers(student: LoadedStudent, scale: Scale, folder: Path, progress: PhaseProgress) -> Transfers:
    """Both data sets under all four protocols. folder: where answers and what leads to them are kept.

    progress: may raise to end it early. Raises EvaluationError, StoreError.
    """
    folder = folder / student.key[:16]  # a cell that is trained again, with other weights, gets answers of its own
    folder.mkdir(parents=True, exist_ok=True)
    stores: dict[DatasetName, ClipStore] = {
        "same": ClipStore.open(store_path(scale.store)),
        "second": ClipStore.open(store_path(scale.second_store)),
    }
    kept = [
        _answer(student, store, scale, dataset, protocol, folder, progress)
        for dataset, store in stores.items()
        for protocol in PROTOCOLS
    ]
    return Transfers(
        tuple(one.transfer for one in kept),
        TransferAnswers(
            correct={(one.transfer.dataset, one.transfer.protocol): np.array(one.correct) for one in kept},
            groups={one.transfer.dataset: one.groups for one in kept},
        ),
        stores["second"].fingerprint,
    )


def _answer(
    student: LoadedStudent,
    store: ClipStore,
    scale: Scale,
    dataset: DatasetName,
    protocol: TransferProtocol,
    folder: Path,
    progress: PhaseProgress,
) -> _Kept:
    """The answer that lies there, or a new one."""
    request = EvalRequest(
        protocol=protocol if protocol in ("probe", "retrieval") else "finetune",
        spec=student.config.clip_spec,
        input_spec=student_input(student.config),
        splits=(_SPLIT,),
        recipe=_recipe(student, scale, full=protocol == "full"),
        clips_per_video=scale.transfer.clips,
    )
    path = folder / f"{dataset}-{protocol}-{request.digest(store.fingerprint, request.splits)}.json"
    known = _read(path)
    if known is not None:
        return known
    answers: list[tuple[NDArray[np.bool_], Sequence[str]]] = []
    evaluation = evaluate(
        student.network,
        store,
        request,
        student=student.source.name,
        weights_digest=student.digest,
        workplace=Workplace(folder / dataset / "features", folder / dataset / protocol, _drop),
        on_answers=lambda _split, correct, groups: answers.append((correct, groups)),
        progress=progress,
    )
    ((correct, groups),) = answers
    transfer = Transfer(
        dataset=dataset,
        protocol=protocol,
        accuracy=evaluation.mean_accuracy,
        interval=evaluation.mean_interval,
        chance=evaluation.mean_chance,
        seconds=evaluation.seconds,
    )
    kept = _Kept(transfer=transfer, correct=tuple(correct.tolist()), groups=tuple(groups))
    write_atomic(path, kept.model_dump_json().encode())
    return kept


def _recipe(student: LoadedStudent, scale: Scale, *, full: bool) -> FinetuneRecipe:
    """Seeds as the student's, so that the arms of a seed get the same new layer and the same clips."""
    transfer, seed = scale.transfer, student.config.seed
    return FinetuneRecipe(
        mode="full" if full else "head",
        epochs=transfer.full_epochs if full else transfer.head_epochs,
        lr=transfer.full_lr if full else transfer.head_lr,
        batch_size=transfer.batch_size,
        augment=transfer.augment,
        clips_per_video=transfer.clips,
        seed=seed,
        view_seed=seed,
    )


def _drop(_split: str, _result: FinetuneResult) -> None:
    """Fine-tuned networks are not kept: there would be four for each of hundreds of cells."""


def _read(path: Path) -> _Kept | None:
    """None for what is missing or was not written whole: it is made again."""
    try:
        return _Kept.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
