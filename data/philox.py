"""Philox4x32-10, the counter-based random generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
(SC 2011), vectorised over counters.

A counter-based generator is a pure function (key, counter) -> 128 random bits. Nothing is carried from draw to
draw, so a number does not depend on who draws it, in which order, or on how many others are drawn.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = 0x9E3779B9
_WEYL_1 = 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_ROUNDS = 10


class Slot(IntEnum):
    """Who draws: no two purposes share a slot, so that their numbers are independent under one seed and key."""

    CLIP = 0  # and 1 and 2: the clips of a tuple
    SINGLE_CLIP = 3
    FOLDER_SPLIT = 0xFFF9
    EVEN_CLIP = 0xFFFA
    SHUFFLED_ANSWER = 0xFFFB
    NEGATIVE = 0xFFFC
    FRACTION = 0xFFFD
    HOLD_OUT = 0xFFFE
    TUPLE = 0xFFFF


def philox4x32(counter_N4: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """128 random bits for each counter.

    counter_N4: [N, 4] unsigned 32-bit words (held in uint64); key: two 32-bit words.
    Returns [N, 4] unsigned 32-bit words, held in uint64.
    """
    c0, c1, c2, c3 = (counter_N4[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(_ROUNDS):
        product_0 = _MULTIPLIER_0 * c0
        product_1 = _MULTIPLIER_1 * c2
        c0, c1, c2, c3 = (
            (product_1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            product_1 & _LOW,
            (product_0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            product_0 & _LOW,
        )
        k0 = (k0 + _WEYL_0) & 0xFFFFFFFF
        k1 = (k1 + _WEYL_1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1)


def uniform(seed: int, stream: ArrayLike, epoch: int, slot: int, field: int) -> NDArray[np.float64]:
    """One float64 in [0, 1) for each stream.

    seed: 64 bits; stream: [N] uint64, which thing is drawn for; epoch: 32 bits; slot and field: 16 bits each, which
    of the thing's numbers this is.
    """
    streams = np.atleast_1d(np.asarray(stream, dtype=np.uint64))
    counter = np.empty((len(streams), 4), dtype=np.uint64)
    counter[:, 0] = streams & _LOW
    counter[:, 1] = streams >> _SHIFT
    counter[:, 2] = epoch & 0xFFFFFFFF
    counter[:, 3] = ((slot & 0xFFFF) << 16) | (field & 0xFFFF)
    words = philox4x32(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    # 53 bits: the most that a float64 in [0, 1) holds evenly.
    bits = ((words[:, 0] << _SHIFT) | words[:, 1]) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53
