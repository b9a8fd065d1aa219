"""What a finished cell's student can do with actions, on the data set it was trained on and on the second one.

    late checkpoint ──► even clips' features (once) ──► fine-tuning of the head, probe, retrieval
                    └─► fine-tuning of all of it

All of the training list is used, whatever fraction the student saw: these labels belong to the second task, and a
fraction is about the first. Each answer is kept when it is there.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from data.atomic import write_atomic
from data.home import store_path
from data.store import ClipStore
from trainer.evaluate.extract import PhaseProgress
from trainer.evaluate.finetune import FinetuneResult
from trainer.evaluate.finetune_recipe import FinetuneRecipe
from trainer.evaluate.protocols import EvalRequest, Workplace, evaluate
from trainer.paper.records import PROTOCOLS, DatasetName, Transfer, TransferProtocol
from trainer.paper.scale import Scale
from trainer.plan import student_input
from trainer.student_files import LoadedStudent

_SPLIT = "01"


def make_transfers(student: LoadedStudent, scale: Scale, folder: Path, progress: PhaseProgress) -> tuple[Transfer, ...]:
    """Both data sets under all four protocols. folder: where answers and what leads to them are kept.

    progress: may raise to end it early. Raises EvaluationError, StoreError.
    """
    folder = folder / student.key[:16]  # a cell that is trained again, with other weights, gets answers of its own
    folder.mkdir(parents=True, exist_ok=True)
    datasets: tuple[tuple[DatasetName, str], ...] = (("same", scale.store), ("second", scale.second_store))
    found = []
    for dataset, name in datasets:
        store: ClipStore | None = None
        for protocol in PROTOCOLS:
            path = folder / f"{dataset}-{protocol}.json"
            answer = _read(path)
            if answer is None:
                store = store or ClipStore.open(store_path(name))
                answer = _transfer(student, store, scale, dataset, protocol, folder / dataset, progress)
                write_atomic(path, answer.model_dump_json().encode())
            found.append(answer)
    return tuple(found)


def _transfer(
    student: LoadedStudent,
    store: ClipStore,
    scale: Scale,
    dataset: DatasetName,
    protocol: TransferProtocol,
    folder: Path,
    progress: PhaseProgress,
) -> Transfer:
    request = EvalRequest(
        protocol=protocol if protocol in ("probe", "retrieval") else "finetune",
        spec=student.config.clip_spec,
        input_spec=student_input(student.config),
        splits=(_SPLIT,),
        recipe=_recipe(student, scale, full=protocol == "full"),
        clips_per_video=scale.transfer.clips,
    )
    evaluation = evaluate(
        student.network,
        store,
        request,
        student=student.source.name,
        weights_digest=student.digest,
        workplace=Workplace(folder / "features", folder / protocol, _drop),
        progress=progress,
    )
    return Transfer(
        dataset=dataset,
        protocol=protocol,
        accuracy=evaluation.mean_accuracy,
        interval=evaluation.mean_interval,
        chance=evaluation.mean_chance,
        seconds=evaluation.seconds,
    )


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


def _read(path: Path) -> Transfer | None:
    """None for what is missing or was not written whole: it is made again."""
    try:
        return Transfer.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
