"""What a run writes about itself: the record of a step in metrics.jsonl, and result.json."""

from __future__ import annotations

import dataclasses
from typing import Any

from trainer.checkpoint import TrainingState
from trainer.config import RunConfig
from trainer.loader import LoadedStep
from trainer.log import rounded
from trainer.step import StepNumbers
from trainer.totals import Selection, Totals

EVALUATION_FIGURES = ("pretext_acc", "pretext_balanced_acc", "retrieval_top1", "retrieval_top5", "probe_acc")


def step_record(
    loaded: LoadedStep,
    numbers: StepNumbers,
    totals: Totals,
    *,
    epoch: int,
    lr: float,
    seconds: float,
    clips: int,
    weights: str | None,
) -> dict[str, Any]:
    """The figures of one step. clips: of the global batch. totals: after this step; what asking has cost is given as
    sums over the run, because it comes in bursts. weights: digest of the student after the step; with all bits of the
    loss it is what `preceptor verify` compares."""
    return {
        "epoch": epoch,
        "lr": lr,
        **rounded(numbers),
        "loss_bits": numbers.loss.hex(),
        "weights": weights,
        "seconds": round(seconds, 6),
        "data_s": round(loaded.data_s, 6),
        "teacher_wait_s": round(loaded.teacher_wait_s, 6),
        "compute_s": round(seconds - loaded.data_s - loaded.teacher_wait_s, 6),
        "clips": clips,
        "teacher": None if loaded.binding is None else str(loaded.binding.teacher),
        "teacher_retries": totals.teacher_retries,
        "teacher_dropped": totals.teacher_dropped,
    }


def summary(state: TrainingState, config: RunConfig, *, run_id: str, num_steps: int, num_epochs: int) -> dict[str, Any]:
    """result.json without the evaluation, whose figures are None here, and without the store."""
    totals = state.totals
    return {
        "run": run_id,
        "teacher": config.teacher,
        "student": config.student,
        **dict.fromkeys(EVALUATION_FIGURES),
        "steps": num_steps,
        "epochs": num_epochs,
        "seconds": round(totals.seconds, 3),
        "clips_per_second": round(totals.clips / totals.seconds, 3) if totals.seconds else 0.0,
        "teacher_wait_s": round(totals.teacher_wait_s, 3),
        "teacher_wait_share": round(totals.teacher_wait_s / totals.seconds, 6) if totals.seconds else 0.0,
        "teacher_retries": totals.teacher_retries,
        "teacher_dropped": totals.teacher_dropped,
        "replayed_items": totals.replayed_items,
        "kd_skipped": totals.kd_skipped,
        **_best(state.selection),
        "teacher_timeline": [dataclasses.asdict(entry) for entry in state.timeline],
        "seed": config.seed,
        "view_seed": config.view_seed,
    }


def _best(selection: Selection) -> dict[str, Any]:
    """Which checkpoint validation has chosen; `checkpoints/best` is that one."""
    return {
        "best_step": selection.best_step,
        "best_val_balanced_acc": round(selection.best_balanced_acc, 6),
        "best_val_loss": round(selection.best_loss, 6),
    }
