"""What a promotion asks for and what it reports. Needs neither torch nor Ray.

prepare (all replicas load and test the new version) -> gate (it answers recorded views) -> commit (one record)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from teacher_server.errors import BadQuery
from teacher_server.protocol import TeacherId, new_request_id


@dataclass(frozen=True)
class AliasRequest:
    """An alias that is to point elsewhere. version: None for the one before the last promotion, a rollback.

    expected: the version that it must point to now. change_id: the same when the call is repeated.
    """

    name: str
    version: int | None
    who: str
    expected: int | None = None
    change_id: str = field(default_factory=new_request_id)


@dataclass(frozen=True)
class GateFloors:
    """How far a new version may be from the old one; None: anything goes. KL in nats, at temperature 1."""

    min_agreement: float | None = None
    max_kl: float | None = None
    max_latency_ratio: float | None = None

    def __post_init__(self) -> None:
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise BadQuery(f"the least agreement is a share from 0 to 1, got {self.min_agreement:g}")
        for name, value in (("KL divergence", self.max_kl), ("ratio of latencies", self.max_latency_ratio)):
            if value is not None and not value >= 0:
                raise BadQuery(f"the largest {name} must be a number >= 0, got {value:g}")

    @property
    def any(self) -> bool:
        """Whether there is a floor at all."""
        return any(x is not None for x in (self.min_agreement, self.max_kl, self.max_latency_ratio))


@dataclass(frozen=True)
class GateReport:
    """The new version beside the old one on `items` recently asked items.

    agreement: share of items on which both choose the same class. kl: mean KL(old || new) of the probabilities, nats.
    old_ms, new_ms: milliseconds of the forward pass per clip. With no items the four are 0.
    """

    items: int
    agreement: float
    kl: float
    old_ms: float
    new_ms: float

    def figures(self) -> str:
        """All of it, for people."""
        if self.items == 0:
            return "no recorded views to compare on"
        return (
            f"agreement {self.agreement:.1%} on {self.items} items, KL {self.kl:.4f} nats, "
            f"{self.old_ms:.2f} -> {self.new_ms:.2f} ms per clip"
        )

    def refusals(self, floors: GateFloors) -> tuple[str, ...]:
        """Why this report does not pass, as sentences; empty when it does. Without items no floor is passed."""
        if not floors.any:
            return ()
        if self.items == 0:
            return ("no views were recorded yet that it could be compared on, and a floor was set",)
        reasons = []
        if floors.min_agreement is not None and self.agreement < floors.min_agreement:
            reasons.append(f"it agrees on {self.agreement:.1%} of {self.items} items, {floors.min_agreement:.1%} asked")
        if floors.max_kl is not None and not self.kl <= floors.max_kl:
            reasons.append(f"its KL divergence is {self.kl:.4f} nats, at most {floors.max_kl:.4f} asked")
        ratio = self.new_ms / self.old_ms if self.old_ms > 0 else float("inf")
        if floors.max_latency_ratio is not None and ratio > floors.max_latency_ratio:
            reasons.append(f"it takes {ratio:.2f} times as long, at most {floors.max_latency_ratio:.2f} asked")
        return tuple(reasons)


NO_ITEMS = GateReport(items=0, agreement=0.0, kl=0.0, old_ms=0.0, new_ms=0.0)


@dataclass(frozen=True)
class Promotion:
    """What a promotion or rollback did. previous: None for a new alias. seconds: prepare, gate, commit."""

    teacher: TeacherId
    previous: TeacherId | None
    gate: GateReport | None = None
    seconds: dict[str, float] = field(default_factory=dict)
