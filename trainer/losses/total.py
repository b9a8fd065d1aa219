"""The weighted sum of the terms."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LossTerms:
    """The loss of one step by term, unweighted, and their weighted sum; 0-d tensors, None for a term not in use."""

    pretext: Tensor
    contrast: Tensor | None
    distill: Tensor | None
    total: Tensor

    def as_floats(self) -> dict[str, float]:
        """The terms in use by name, for logs. Waits for the device."""
        terms = {"pretext": self.pretext, "contrast": self.contrast, "distill": self.distill, "total": self.total}
        return {name: float(term.detach()) for name, term in terms.items() if term is not None}


def total_loss(
    pretext: Tensor,
    contrast: Tensor | None = None,
    distill: Tensor | None = None,
    *,
    alpha: float = 0.5,
    lambda_kd: float = 1.0,
) -> LossTerms:
    """pretext + alpha * contrast + lambda_kd * distill (Camarena et al. 2024, Eq. 7; alpha after PCL).

    A term that is None is off: `scratch` has no distill term.
    """
    total = pretext
    if contrast is not None:
        total = total + alpha * contrast
    if distill is not None:
        total = total + lambda_kd * distill
    return LossTerms(pretext, contrast, distill, total)
