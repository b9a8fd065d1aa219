"""Fine-tuning: the action accuracy of a student with a new linear layer, in both meanings of the word.

    mode head   only the new layer is trained, on features of the frozen backbone in evaluation mode
                (the paper's definition: "only the added layer is trained")
    mode full   backbone and new layer are trained

    training clips -> prepare -> backbone -> new linear layer -> cross entropy -> SGD
    test videos    -> 10 even clips, centre crop -> the same -> mean of the logits -> top-1

Training clips are drawn by the counter-based generator, so that they depend on nothing but recipe, epoch and video.
With `augment` off they are the even clips of each video, one of them per epoch; in mode head their features are then
computed once, which is the same computation in less time. It can stop between any two steps and go on from the file
that `finetune_state` keeps, to the same end.

Axis letters: V videos, M clips of a video, B samples, D features, K classes, E epochs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from data.input_spec import InputSpec
from data.store import ClipStore
from data.views import ClipSpec
from teacher_server.zoo.heads import ActionHead
from teacher_server.zoo.network import VideoNetwork
from trainer.checkpoint import seed_step
from trainer.errors import EvaluationError
from trainer.evaluate.extract import PhaseProgress, clip_features, frozen, phase_of
from trainer.evaluate.finetune_clips import TrainingClips
from trainer.evaluate.finetune_recipe import FinetuneRecipe
from trainer.evaluate.finetune_state import TuningFile, TuningState, tuning_key
from trainer.evaluate.pretext import confusion_matrix

PHASE = "fine-tuning"


@dataclass(frozen=True, eq=False)
class SplitFeatures:
    """Features of the frozen student: float32 [V, M, D] of the training and of the test videos, in order."""

    train_VMD: NDArray[np.float32]
    test_VMD: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class FinetuneResult:
    """accuracy: top-1 of the test videos. train_accuracy: of the last epoch's clips, while they were trained on.

    logits_VK: of the test videos, mean over clips. correct: bool [V]. confusion: int64 [K, K], a row per true class.
    losses: float64 [E], mean cross entropy of each epoch. network: the fine-tuned student with its action head, in
    evaluation mode; in mode head its backbone is a copy of the one that was given.
    """

    accuracy: float
    train_accuracy: float
    logits_VK: NDArray[np.float32]
    correct: NDArray[np.bool_]
    confusion: NDArray[np.int64]
    losses: NDArray[np.float64]
    network: VideoNetwork


def finetune(
    network: VideoNetwork,
    store: ClipStore,
    *,
    train_rows: NDArray[np.int64],
    test_rows: NDArray[np.int64],
    spec: ClipSpec,
    input_spec: InputSpec,
    recipe: FinetuneRecipe | None = None,
    features: SplitFeatures | None = None,
    folder: Path | None = None,
    batch_clips: int = 64,
    progress: PhaseProgress | None = None,
) -> FinetuneResult:
    """Trains a new linear layer for the store's classes on train_rows and tries it on test_rows; none is left out.

    network: stays as it is. features: what is known already of the frozen student, with recipe.clips_per_video clips;
    only for mode head. folder: where the state is kept between attempts; None keeps nothing. progress: called after
    every step and forward pass; the state is saved before an exception that it raises goes on.
    Raises VideoTooShort, EvaluationError when the loss is not finite, ValueError for features that do not fit.
    """
    recipe = recipe or FinetuneRecipe()
    _check(train_rows, test_rows, features, recipe)
    tuned = with_action_head(network, len(store.classes), recipe)

    def features_of(rows: NDArray[np.int64], phase: str) -> NDArray[np.float32]:
        done = phase_of(progress, phase)
        return clip_features(tuned, store, rows, spec, input_spec, recipe.clips_per_video, batch_clips, done)

    train_VMD = None
    if recipe.mode == "head" and not recipe.augment:
        train_VMD = features_of(train_rows, "training clips") if features is None else features.train_VMD
    inputs = TrainingClips(tuned, store, train_rows, spec, input_spec, recipe, train_VMD)
    state = TuningState.start(
        tuned, recipe.mode == "full", recipe.epochs, recipe.lr, recipe.momentum, recipe.weight_decay
    )
    file = (
        None if folder is None else TuningFile(folder, tuning_key(recipe, spec, input_spec, store, train_rows, network))
    )
    _train(state, inputs, store.labels, recipe, file, phase_of(progress, PHASE))
    tuned.eval()
    test_VMD = features_of(test_rows, "test clips") if features is None else features.test_VMD
    logits_VK = mean_logits(tuned, test_VMD)
    return _result(tuned, logits_VK, store.labels[test_rows], state, len(train_rows))


def with_action_head(network: VideoNetwork, num_classes: int, recipe: FinetuneRecipe) -> VideoNetwork:
    """A copy with a new action head and no other; its weights come from recipe.seed alone."""
    tuned = copy.deepcopy(network)
    device = next(network.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        head = ActionHead(network.feature_size, num_classes)
    tuned.action_head = head.to(device)
    tuned.pretext_head = None
    tuned.projector = None
    return tuned.requires_grad_(True).eval()


def mean_logits(network: VideoNetwork, features_VMD: NDArray[np.float32]) -> NDArray[np.float32]:
    """[V, K]: the action head on each clip's features, mean over the clips of a video. ValueError without that head."""
    if network.action_head is None:
        raise ValueError("this network has no action head: fine-tune it first")
    device = next(network.parameters()).device
    with frozen(network):
        return network.action_head(torch.from_numpy(features_VMD).to(device)).mean(dim=1).cpu().numpy()


def _train(
    state: TuningState,
    inputs: TrainingClips,
    labels: NDArray[np.int64],
    recipe: FinetuneRecipe,
    file: TuningFile | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    """All steps that are left. Whatever ends it early between two steps, the state is saved first."""
    if file is not None:
        file.load(state)
    head = state.network.action_head
    assert head is not None
    # Evaluation mode keeps a frozen backbone's batch-norm statistics as they are.
    state.network.train(recipe.mode == "full")
    steps_per_epoch = len(inputs.bounds)
    total = recipe.epochs * steps_per_epoch
    while state.step < total:
        seed_step(recipe.seed, state.step)
        features_BD, rows = inputs.batch(state.step)
        wanted_B = torch.from_numpy(labels[rows]).to(features_BD.device)
        logits_BK = head(features_BD)
        loss = F.cross_entropy(logits_BK, wanted_B)
        if not torch.isfinite(loss):
            raise EvaluationError(
                f"the loss of fine-tuning is not finite at step {state.step + 1}: choose a smaller lr"
            )
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        state.optimizer.step()
        correct = int((logits_BK.argmax(dim=1) == wanted_B).sum())
        state.sums_E2[state.step // steps_per_epoch] += torch.tensor([loss.item() * len(rows), correct])
        state.step += 1
        _between_steps(state, total, file, progress)
    if file is not None:
        file.save(state)


def _between_steps(
    state: TuningState, total: int, file: TuningFile | None, progress: Callable[[int, int], None] | None
) -> None:
    """Shows how far it is; what ends it here finds the state saved."""
    try:
        if progress is not None:
            progress(state.step, total)
    except BaseException:
        if file is not None:
            file.save(state)
        raise
    if file is not None:
        file.save_now_and_then(state)


def _result(
    tuned: VideoNetwork,
    logits_VK: NDArray[np.float32],
    labels: NDArray[np.int64],
    state: TuningState,
    num_train: int,
) -> FinetuneResult:
    if not np.isfinite(logits_VK).all():
        raise EvaluationError("the fine-tuned network gives logits that are not finite: choose a smaller lr")
    answers = logits_VK.argmax(axis=1)
    means_E2 = (state.sums_E2 / num_train).numpy()
    return FinetuneResult(
        accuracy=float((answers == labels).mean()),
        train_accuracy=float(means_E2[-1, 1]),
        logits_VK=logits_VK,
        correct=answers == labels,
        confusion=confusion_matrix(labels, answers, logits_VK.shape[1]),
        losses=means_E2[:, 0],
        network=tuned,
    )


def _check(
    train_rows: NDArray[np.int64],
    test_rows: NDArray[np.int64],
    features: SplitFeatures | None,
    recipe: FinetuneRecipe,
) -> None:
    if not len(train_rows) or not len(test_rows):
        raise ValueError(f"videos to train on and to test are needed, got {len(train_rows)} and {len(test_rows)}")
    if features is None:
        return
    if recipe.mode == "full":
        raise ValueError("features of the frozen backbone are of no use in mode full, which changes the backbone")
    for name, array, rows in (("train", features.train_VMD, train_rows), ("test", features.test_VMD, test_rows)):
        if array.ndim != 3 or array.shape[:2] != (len(rows), recipe.clips_per_video):
            raise ValueError(
                f"{name} features must be [{len(rows)} videos, {recipe.clips_per_video} clips, D], got {array.shape}"
            )
