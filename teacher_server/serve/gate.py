"""The gate before a swap: how far a new version's answers are from the old one's. Pure arithmetic, no Ray, no torch.

Axis letters: I items, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teacher_server.promotion import NO_ITEMS, GateReport

GATE_ITEMS = 32  # that each replica compares, of those it was asked last


@dataclass(frozen=True)
class ForwardTime:
    """Seconds of forward passes, and the clips that they were computed for, padding included."""

    seconds: float = 0.0
    clips: int = 0

    def __add__(self, other: ForwardTime) -> ForwardTime:
        return ForwardTime(self.seconds + other.seconds, self.clips + other.clips)

    def __sub__(self, other: ForwardTime) -> ForwardTime:
        return ForwardTime(self.seconds - other.seconds, self.clips - other.clips)

    @property
    def ms_per_clip(self) -> float:
        """0 without clips."""
        return 1000 * self.seconds / self.clips if self.clips else 0.0


def compare_logits(
    old_IK: NDArray[np.float32], new_IK: NDArray[np.float32], old_time: ForwardTime, new_time: ForwardTime
) -> GateReport:
    """Two versions' raw logits for the same items. Not finite ones give a KL divergence that is not finite."""
    old, new = _log_softmax(old_IK), _log_softmax(new_IK)
    return GateReport(
        items=len(old_IK),
        agreement=float(np.mean(old.argmax(axis=1) == new.argmax(axis=1))),
        kl=float(np.mean((np.exp(old) * (old - new)).sum(axis=1))),
        old_ms=old_time.ms_per_clip,
        new_ms=new_time.ms_per_clip,
    )


def merge_reports(reports: Sequence[GateReport]) -> GateReport:
    """One report of several replicas, each weighted by its items."""
    items = sum(report.items for report in reports)
    if not items:
        return NO_ITEMS

    def mean(name: str) -> float:
        return sum(getattr(report, name) * report.items for report in reports if report.items) / items

    return GateReport(items, mean("agreement"), mean("kl"), mean("old_ms"), mean("new_ms"))


def _log_softmax(logits_IK: NDArray[np.float32]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # what is not finite stays so
        shifted = logits_IK.astype(np.float64) - logits_IK.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
