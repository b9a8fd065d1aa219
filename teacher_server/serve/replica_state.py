"""What a replica tells the roster and its users. Needs neither torch nor Ray."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReplicaState:
    """What a replica says of itself. teachers: `name@version` -> digest; failed: -> why it could not be loaded.

    batches, batch_requests, batch_clips: forward passes so far, and what they held in all. shared: questions answered
    without one of their own. resident_bytes: memory that the loaded weights take, of budget_bytes at most.
    """

    pid: int
    node_id: str
    device: str
    library_root: str
    teachers: dict[str, str]
    failed: dict[str, str]
    queued_clips: int
    batches: int
    batch_requests: int
    batch_clips: int
    shared: int
    resident_bytes: int
    budget_bytes: int
