"""The end of a run: the final evaluation and result.json. Done by rank 0 alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from data.store import ClipStore
from trainer.answers import write_answers
from trainer.checkpoint import TrainingState
from trainer.config import RunConfig
from trainer.evaluate.final import EvalOptions, EvalResult, evaluate_student
from trainer.plan import Plan, student_input
from trainer.records import EVALUATION_FIGURES, summary
from trainer.runs import RunFolder
from trainer.sampler import Sampler, split_rows


class Stopped(Exception):
    """Raised inside the evaluation when a stop is asked for."""


def write_result(
    run: RunFolder,
    plan: Plan,
    store: ClipStore,
    sampler: Sampler,
    state: TrainingState,
    num_steps: int,
    should_stop: Callable[[], bool],
) -> None:
    """Evaluates the student as it is after the last step, unless the settings say no, and writes result.json.

    Raises Stopped when should_stop says so in between; then there is no result.
    """
    config = plan.config
    train_rows, val_rows, test_rows, left_out = split_rows(store, config)
    num_epochs = sampler.epoch_of(num_steps - 1) + 1
    num_videos = {"train": len(train_rows), "validation": len(val_rows), "test": len(test_rows), "left_out": left_out}
    result = {
        **summary(state, config, run_id=run.run_id, num_steps=num_steps, num_epochs=num_epochs),
        "stopped_early": num_steps < sampler.total_steps,
        "store_fingerprint": store.fingerprint,
        "num_videos": num_videos,
    }
    if config.evaluate:
        # Action labels belong to another task than the run's: all of both lists counts, as in `preceptor eval`.
        lists = store.subset(config.train_subset), store.subset(config.test_subset)
        evaluation = _evaluate(config, store, state, *lists, should_stop)
        write_answers(run.answers, evaluation.answers)
        result["evaluation"] = evaluation.to_json()
        for name in EVALUATION_FIGURES:
            result[name] = getattr(evaluation, name)
    run.write_json(run.result, result)


def _evaluate(
    config: RunConfig,
    store: ClipStore,
    state: TrainingState,
    train_rows: NDArray[np.int64],
    test_rows: NDArray[np.int64],
    should_stop: Callable[[], bool],
) -> EvalResult:
    def poll(_phase: str, _done: int, _total: int) -> None:
        if should_stop():
            raise Stopped

    return evaluate_student(
        state.network,
        store,
        train_rows=train_rows,
        test_rows=test_rows,
        spec=config.clip_spec,
        input_spec=student_input(config),
        options=EvalOptions(
            tuples_per_video=config.eval_tuples,
            clips_per_video=config.eval_clips,
            view_seed=config.view_seed,
            seed=config.seed,
            any_swap=config.any_swap,
            shuffle=config.shuffle_variant,
            operation=config.pretext_operation,
        ),
        progress=poll,
    )
