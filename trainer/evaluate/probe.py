"""The linear probe: how well a linear classifier reads the action from frozen features.

Batch-norm without scale and shift (every feature is brought to mean 0 and variance 1 over the training clips; with
the whole training set as one batch that is what batch-norm does) and one linear layer, trained on clips; a test
video is classified by the mean of its clips' logits.

Recipe: mean cross entropy + weight_decay / 2 * |weights|^2, minimised by L-BFGS with strong-Wolfe line search from
zero weights in float64 over the full batch. The problem is convex and nothing is drawn, so there is no seed: the
same features give the same answer.

Axis letters: V videos, M clips of a video, D features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from trainer.evaluate.pretext import confusion_matrix

BATCH_NORM_EPS = 1e-5


@dataclass(frozen=True)
class ProbeRecipe:
    """weight_decay: of the weights, not of the bias. max_iterations: of L-BFGS."""

    weight_decay: float = 1e-2
    max_iterations: int = 100


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """confusion: int64 [K, K], a row per true class and a column per answer. correct: bool [V] of the test videos."""

    accuracy: float
    train_accuracy: float  # of the training clips
    confusion: NDArray[np.int64]
    correct: NDArray[np.bool_]


def linear_probe(
    train_features: NDArray[np.float32],
    train_labels: NDArray[np.int64],
    test_features: NDArray[np.float32],
    test_labels: NDArray[np.int64],
    num_classes: int,
    recipe: ProbeRecipe | None = None,
) -> ProbeResult:
    """Trained on features [V, M, D] with labels [V] in 0 .. K-1, tried on others of that form.

    Raises ValueError for other shapes and for labels outside.
    """
    _check(train_features, train_labels, num_classes, "training")
    _check(test_features, test_labels, num_classes, "test")
    train_ND, test_VMD = _standardise(train_features, test_features)
    labels_N = torch.from_numpy(np.repeat(train_labels, train_features.shape[1]))
    weight_KD, bias_K = _fit(train_ND, labels_N, num_classes, recipe or ProbeRecipe())
    answers = F.linear(test_VMD, weight_KD, bias_K).mean(dim=1).argmax(dim=1).numpy()
    train_answers = F.linear(train_ND, weight_KD, bias_K).argmax(dim=1)
    return ProbeResult(
        accuracy=float((answers == test_labels).mean()),
        train_accuracy=float((train_answers == labels_N).double().mean()),
        confusion=confusion_matrix(test_labels, answers, num_classes),
        correct=answers == test_labels,
    )


def commonest_share(train_labels: NDArray[np.int64], test_labels: NDArray[np.int64]) -> float:
    """The accuracy of always naming the class that is commonest among the training videos: the chance level."""
    return float((test_labels == np.bincount(train_labels).argmax()).mean())


def _standardise(train: NDArray[np.float32], test: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Training clips [V*M, D] and test clips [V, M, D] in float64, by the training clips' mean and variance."""
    train_ND = torch.from_numpy(train.astype(np.float64)).flatten(0, 1)
    variance, mean = torch.var_mean(train_ND, dim=0, correction=0)
    scale = torch.rsqrt(variance + BATCH_NORM_EPS)
    return (train_ND - mean) * scale, (torch.from_numpy(test.astype(np.float64)) - mean) * scale


def _fit(x_ND: Tensor, labels_N: Tensor, num_classes: int, recipe: ProbeRecipe) -> tuple[Tensor, Tensor]:
    """Weights [K, D] and bias [K]."""
    weight = torch.zeros(num_classes, x_ND.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=recipe.max_iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x_ND, weight, bias), labels_N)
        loss = loss + recipe.weight_decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach(), bias.detach()


def _check(features: NDArray[np.float32], labels: NDArray[np.int64], num_classes: int, what: str) -> None:
    if features.ndim != 3 or len(features) == 0 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"{what}: features [videos, clips, D] and labels [videos] of at least one video are needed, "
            f"got {features.shape} and {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"{what} labels must lie in 0 .. {num_classes - 1}, got {labels.min()} .. {labels.max()}")
