"""Which of millions of item digests are there, and where: numpy arrays instead of a dict, 24 bytes a digest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DIGEST_DTYPE = np.dtype("S16")  # compares and sorts as 16 unsigned bytes; never take single elements: they lose zeros


class DigestTable:
    """Digest -> place, for millions of digests: sorted runs, each at least twice as long as the next.

    Adding n digests one batch after the other sorts each of them about log2(n) times; looking up searches as many runs.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[NDArray[np.bytes_], NDArray[np.int64]]] = []

    def add(self, digests: NDArray[np.bytes_], places: NDArray[np.int64]) -> None:
        """digests: DIGEST_DTYPE [n]; places: int64 [n]. Of equal digests any one is found."""
        while self._runs and len(self._runs[-1][0]) < 2 * len(digests):
            older_digests, older_places = self._runs.pop()
            digests, places = np.concatenate([older_digests, digests]), np.concatenate([older_places, places])
        order = np.argsort(digests, kind="stable")
        self._runs.append((digests[order], places[order]))

    def find(self, digests: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """[len(digests)] places, -1 for digests that are not there."""
        found = np.full(len(digests), -1, dtype=np.int64)
        for run, places in self._runs:
            at = np.minimum(np.searchsorted(run, digests), len(run) - 1)
            found = np.where(run[at] == digests, places[at], found)
        return found
