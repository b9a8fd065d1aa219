"""One job in one worker process: a training to its end, and all that is asked of it afterwards.

    teacher in the library? ──► Trainer (goes on from its checkpoint) ──► answers of the stages ──► transfers
                                                                               │                        │
    teachers/<id>.json   or   cells/<id>/answers.npz, then result.json  ◄──────┴────────────────────────┘

result.json is written last, so a cell that has one is whole. Everything before it can be ended at any point and goes
on from there: training from its checkpoints, transfers one by one.
"""

from __future__ import annotations

import io
import shutil
import time
from typing import Any

import numpy as np

from data.atomic import write_atomic
from data.home import store_path, teachers_folder
from data.store import ClipStore
from teacher_server.library import TeacherLibrary
from trainer.checkpoint import BEST
from trainer.config import NO_TEACHER
from trainer.errors import TrainingFailed
from trainer.paper.controls import control_kind
from trainer.paper.load import ANSWERS_NAME, RESULT_NAME
from trainer.paper.plan import Job, scratch_of, teacher_of
from trainer.paper.records import STAGES, Cell, CellResult, Cost, TeacherKey, TeacherResult
from trainer.paper.scale import student_config, teacher_config
from trainer.paper.stages import (
    chosen_points,
    make_curve,
    make_stages,
    step_seconds,
)
from trainer.paper.teachers import PaperTeachers
from trainer.paper.training import Stopped, Trained, train
from trainer.paper.transfer import NO_TRANSFERS, Transfers, make_transfers
from trainer.paper.work import Report, Workshop
from trainer.plan import Plan, make_plan
from trainer.runs import RunFolder
from trainer.student_files import LoadedStudent

TRANSFER = "transfer"


def run_job(shop: Workshop, job: Job) -> Report:
    """Does one job, or what is left of it. Whatever goes wrong with it is told, because the others must go on."""
    began = time.monotonic()
    try:
        if job.cell is not None:
            _run_cell(shop, job.cell)
        else:
            assert job.teacher is not None
            _run_teacher(shop, job.teacher, job.id)
    except Stopped:
        return Report(job.id, "stopped", "stopped on request", time.monotonic() - began)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        return Report(job.id, "failed", reason, time.monotonic() - began)
    return Report(job.id, "done", "", time.monotonic() - began)


def _run_teacher(shop: Workshop, key: TeacherKey, job_id: str) -> None:
    config = teacher_config(shop.scale, key, shop.choices)
    trained = train(shop, config, job_id)
    _teachers(shop, trained.plan).add_trained(key, config, trained.as_teacher)


def _run_cell(shop: Workshop, cell: Cell) -> None:
    """The result is there when this returns."""
    teacher = _teacher(shop, cell)
    config = student_config(shop.scale, cell, NO_TEACHER if teacher is None else teacher.teacher, shop.choices)
    trained = train(shop, config, cell.id)
    student = trained.student()
    student.network.to(trained.plan.device)

    def poll(_phase: str, _done: int, _total: int) -> None:
        if shop.stop_request.exists():
            raise Stopped

    transfers = NO_TRANSFERS
    if control_kind(cell.arm) is None:  # a control asks whether a gain in the pretext task is knowledge, no more
        transfers = make_transfers(student, shop.scale, trained.run.path / TRANSFER, poll)
    _write_result(shop, cell, trained, student, teacher, transfers)
    _clean_up(trained.run)


def _teachers(shop: Workshop, plan: Plan) -> PaperTeachers:
    return PaperTeachers(shop.folder, TeacherLibrary(plan.library_root), plan.device)


def _teacher(shop: Workshop, cell: Cell) -> TeacherResult | None:
    """Who teaches the cell, added to the library if need be; None for scratch."""
    key = teacher_of(cell)
    if key is None:
        return None
    if key.data == "untrained":
        config = student_config(shop.scale, cell, NO_TEACHER, shop.choices)
        return _teachers(shop, make_plan(config)).add_untrained(key, config)
    if key.data == "matched":
        config = student_config(shop.scale, scratch_of(key), NO_TEACHER, shop.choices)
        scratch = train(shop, config, scratch_of(key).id)  # trained already: it is read
        return _teachers(shop, scratch.plan).add_trained(key, config, scratch.as_teacher)
    known = PaperTeachers(shop.folder, TeacherLibrary(teachers_folder()), "cpu").find(key)
    if known is None:
        raise TrainingFailed(f"teacher {key.id} is not there: its own training comes first")
    return known


def _write_result(
    shop: Workshop,
    cell: Cell,
    trained: Trained,
    student: LoadedStudent,
    teacher: TeacherResult | None,
    transfers: Transfers,
) -> None:
    store = ClipStore.open(store_path(shop.scale.store))
    known = trained.run.read_result()
    answered = {span["digest"] for span in known["teacher_timeline"]}
    if answered != (set() if teacher is None else {teacher.digest}):
        raise TrainingFailed(
            f"run {trained.run.path} learned from {', '.join(sorted(answered)) or 'nobody'}, this cell's teacher is "
            f"{'nobody' if teacher is None else teacher.digest}: remove that folder to train it again"
        )
    videos = known["num_videos"]
    result = CellResult(
        cell=cell,
        curve=make_curve(trained.metrics, trained.points, shop.scale.curve_points),
        stages=make_stages(trained.points, trained.num_epochs),
        transfers=transfers.records,
        cost=_cost(trained, teacher, transfers),
        num_train=videos["train"],
        num_validation=videos["validation"],
        num_test=videos["test"],
        epochs=trained.num_epochs,
        steps=trained.num_steps,
        teacher=None if teacher is None else teacher.teacher,
        teacher_digest=None if teacher is None else teacher.digest,
        teacher_test_acc=None if teacher is None else teacher.test_acc,
        store_fingerprint=store.fingerprint,
        second_store_fingerprint=transfers.second_store,
        weights_sha256=student.digest,
    )
    folder = shop.cell_folder(cell.id)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / ANSWERS_NAME, _answers(trained, store, transfers))
    write_atomic(folder / RESULT_NAME, result.model_dump_json(indent=1).encode() + b"\n")


def _answers(trained: Trained, store: ClipStore, transfers: Transfers) -> bytes:
    """answers.npz, as trainer.paper.records describes it."""
    chosen = chosen_points(trained.points, trained.num_epochs)
    arrays: dict[str, Any] = {f"correct_{name}": point.correct for (name, _), point in zip(STAGES, chosen, strict=True)}
    for (dataset, protocol), correct in transfers.answers.correct.items():
        arrays[f"correct_{dataset}_{protocol}"] = correct
    for dataset, groups in transfers.answers.groups.items():
        arrays[f"groups_{dataset}"] = np.array(groups, dtype=str)
    rows = chosen[-1].rows
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        groups=np.array([store.groups[row] for row in rows], dtype=str),
        keys=np.array([store.videos.keys[row] for row in rows], dtype=str),
        **arrays,
    )
    return buffer.getvalue()


def _cost(trained: Trained, teacher: TeacherResult | None, transfers: Transfers) -> Cost:
    """A question that the run repeats, because its views come again, is answered once and charged once."""
    config = trained.plan.config
    num_items = sum(int(line["clips"]) for line in trained.metrics.steps) // 3
    view_sets = min(config.views_per_video or trained.num_epochs, trained.num_epochs)
    distinct = min(num_items, trained.plan.num_train * view_sets)
    replayed = int(trained.run.read_result()["replayed_items"])
    return Cost(
        student_s=trained.num_steps * step_seconds(trained.metrics),
        evaluation_s=sum(point.seconds for point in trained.points) + sum(one.seconds for one in transfers.records),
        teacher_inference_s=0.0 if teacher is None else distinct * teacher.item_s,
        teacher_training_s=0.0 if teacher is None else teacher.training_s,
        asked_items=0 if teacher is None else num_items - replayed,
        replayed_items=replayed,
    )


def _clean_up(run: RunFolder) -> None:
    """Of hundreds of runs only the checkpoint that counts is kept, and of the transfers only the answers."""
    best = (run.checkpoints / BEST).resolve()
    for path in (*run.checkpoints.glob("step-*"), *(run.path / TRANSFER).glob("*")):
        if path.is_dir() and path.resolve() != best:
            shutil.rmtree(path, ignore_errors=True)
