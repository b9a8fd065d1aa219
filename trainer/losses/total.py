"""The weighted sum of the terms, and what each worker contributes to it.

term          mean over                 weighted by its share of
"tuples"      this worker's tuples      the global batch's tuples
"answered"    those with an answer      the global batch's answered tuples
"global"      the global batch          nothing: every worker has the whole value
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Over = Literal["tuples", "answered", "global"]


@dataclass(frozen=True)
class Term:
    """One term of the loss, a 0-d tensor without its weight, and what it is a mean over."""

    name: str
    value: Tensor
    weight: float = 1.0
    over: Over = "tuples"

    @property
    def weighted(self) -> Tensor:
        """What it adds to the sum."""
        return self.weight * self.value


@dataclass(frozen=True)
class LossTerms:
    """The terms in use, in the order in which they are summed; one that is off is not there.

    The sum is Camarena et al. 2024, Eq. 7 (pretext + alpha * contrast + lambda * distill, alpha after PCL) and what
    was turned on besides.
    """

    terms: tuple[Term, ...]

    def value(self, name: str) -> Tensor | None:
        """The unweighted term, None when it is off."""
        return next((term.value for term in self.terms if term.name == name), None)

    @property
    def total(self) -> Tensor:
        """The weighted sum."""
        return _sum([term.weighted for term in self.terms])

    def of_worker(self, share: Tensor, answered_share: Tensor, *, all_answered: bool) -> Tensor:
        """This worker's part of the global loss, for gradients that are summed over the workers.

        share, answered_share: 0-d, how much of the global batch's tuples and of its answered ones are this worker's;
        one and the same if all_answered, all tuples of the global batch were. The workers' parts add up to the global
        loss for all terms but the global ones: of these each worker's own rows carry their part of the gradient.
        """
        tuples, answered, whole = (
            [term.weighted for term in self.terms if term.over == over] for over in ("tuples", "answered", "global")
        )
        if all_answered:  # one share: the sum is weighted once, which rounds once
            tuples, answered = [*tuples, *answered], []
        total = share * _sum(tuples)
        if answered:
            total = total + answered_share * _sum(answered)
        return _sum([total, *whole])


def _sum(values: list[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
