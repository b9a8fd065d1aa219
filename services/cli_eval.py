"""The `preceptor eval` command: what it takes; what it does is imported when it runs."""

from __future__ import annotations

from typing import Literal

from services.arguments import Checkpoint


def evaluate(
    checkpoint: Checkpoint,
    store: str = "",
    protocol: Literal["finetune", "probe", "retrieval", "pretext"] = "finetune",
    mode: Literal["head", "full"] = "head",
    splits: str = "",
    epochs: int = 150,
    lr: float = 1e-3,
    batch_size: int = 8,
    augment: bool = True,
    clips: int = 10,
    tuples: int = 3,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    force: bool = False,
    json: bool = False,
) -> int:
    """Evaluate a trained student, on the data set of its training or another, for each official split and their mean.

    The result is kept under PRECEPTOR_HOME/evaluations with a page for people: a second call shows it at once. What
    Ctrl-C ends goes on with the next call.

    Example: preceptor eval my-run --store demo2 --protocol finetune --mode full --splits 01

    Args:
        checkpoint: id of a run (its newest checkpoint), RUN:best, or the folder of a run, of a checkpoint or
            of a student that was fine-tuned here before.
        store: clip store, a name or a path; that of the training by default. Its classes are those to tell apart.
        protocol: finetune and probe train a linear layer on top, retrieval looks for near videos, pretext asks for the
            operation done to a tuple.
        mode: of finetune: head trains only the new layer (the paper's definition), full the backbone too.
        splits: numbers such as 01,02,03; by default all whose test videos the student was not trained on.
        epochs: of finetune.
        lr: of finetune.
        batch_size: clips per step of finetune.
        augment: of finetune: random augmented clips; without it fixed ones, which is far faster in mode head.
        clips: even clips per video, for all but pretext.
        tuples: places per video at which pretext tries every operation.
        seed: of the new layer, of the clips and of the intervals.
        device: where to compute.
        force: compute again what lies there, and all that was kept of this student.
        json: print the result as JSON.
    """
    from services.evaluating import EvalWish, evaluate_and_print

    wish = EvalWish(
        checkpoint=checkpoint,
        store=store,
        protocol=protocol,
        mode=mode,
        splits=tuple(part.strip() for part in splits.split(",") if part.strip()),
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        augment=augment,
        clips=clips,
        tuples=tuples,
        seed=seed,
        device=device,
        force=force,
        json=json,
    )
    return evaluate_and_print(wish)
