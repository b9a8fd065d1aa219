"""Other things that a student can follow in place of its teacher's answers: controls that tell knowledge from
regularisation.

    shuffled       the answers of other tuples with the same pretext label: right on the label, wrong on the tuple
    smoothed       label smoothing with each answer's own entropy: of the teacher only how sure it is of each tuple
    smoothed_mean  label smoothing with the batch's mean entropy: of the teacher only how sure it is on the whole

Axis letters: G tuples of the global batch, B of any, K classes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from data.philox import Slot, uniform

_BISECTIONS = 60  # halvings until a float64 share has no more bits to gain
_SMALLEST_SHARE = 1e-12  # of the other classes: its logarithm is finite


def shuffled_rows(
    labels_G: NDArray[np.int64], answered_G: NDArray[np.bool_], *, view_seed: int, step: int
) -> NDArray[np.int64]:
    """int64 [G]: whose answer each tuple gets: in a drawn order of the answered tuples of its label, the next one's.

    So nobody gets its own, but a tuple that is alone with its label; tuples without an answer keep theirs. The draw
    depends on seed, step and place in the global batch only.
    """
    rows = np.arange(len(labels_G))
    place = uniform(view_seed, rows, step, Slot.SHUFFLED_ANSWER, 0)
    answered = rows[answered_G]
    drawn = answered[np.lexsort((place[answered], labels_G[answered]))]  # label by label
    changes = np.flatnonzero(np.diff(labels_G[drawn])) + 1
    for of_label in np.split(drawn, changes):
        rows[of_label] = np.roll(of_label, -1)
    return rows


def entropies(softened_BK: Tensor) -> Tensor:
    """float64 [B], of softmax(softened), in nats, from 0 to log K."""
    log_p = F.log_softmax(softened_BK.double(), dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def smoothed_logits(softened_BK: Tensor, labels_B: Tensor, entropy_B: Tensor | None = None) -> Tensor:
    """[B,K] softened logits of label smoothing: the label's class has 1-eps, the others share eps evenly.

    eps is solved for by bisection in each row, so that the distribution has the entropy of softmax(softened), or the
    one given in nats; it grows with eps from 0 to log K at eps = (K-1)/K. An entropy that is not finite gives some
    finite row.
    """
    if entropy_B is None:
        entropy_B = entropies(softened_BK)
    others = softened_BK.shape[1] - 1
    low_B = torch.zeros_like(entropy_B)
    high_B = torch.full_like(entropy_B, others / (others + 1))
    for _ in range(_BISECTIONS):
        middle_B = (low_B + high_B) / 2
        too_low_B = _smoothing_entropy(middle_B, others) < entropy_B
        low_B, high_B = torch.where(too_low_B, middle_B, low_B), torch.where(too_low_B, high_B, middle_B)
    share_B1 = ((low_B + high_B) / 2).clamp(min=_SMALLEST_SHARE).unsqueeze(1)
    rest = (share_B1.log() - math.log(others)).expand_as(softened_BK)
    logits = rest.scatter(1, labels_B.unsqueeze(1), torch.log1p(-share_B1))
    return logits.to(softened_BK.dtype)


def _smoothing_entropy(eps_B: Tensor, others: int) -> Tensor:
    """-(1-eps) log(1-eps) - eps log(eps / others), in nats."""
    return -torch.xlogy(1 - eps_B, 1 - eps_B) - torch.xlogy(eps_B, eps_B) + eps_B * math.log(others)
