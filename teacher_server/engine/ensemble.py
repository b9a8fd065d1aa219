"""Several frozen teachers that answer as one.

    pixels ──► member 1 ──► raw logits ─┐
           ──► member 2 ──► raw logits ─┴─► log(sum of weight * softmax(raw))    features: one after the other

The logits are log-probabilities, so their softmax at temperature 1 is the weighted mean of the members' softmax.

Axis letters: M members, I items, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from teacher_server.card import EnsembleCard
from teacher_server.engine.teacher import FrozenTeacher, Teacher, TeacherAnswer, check_pixels
from teacher_server.library import TeacherEntry
from teacher_server.protocol import TeacherId


def load_teacher(entry: TeacherEntry, device: str = "cpu", num_threads: int = 1) -> Teacher:
    """The teacher of an entry, loaded and tested: one network, or an ensemble with networks of its own.

    Raises LibraryError that names the file and what is wrong with it.
    """
    if not isinstance(entry.card, EnsembleCard):
        return FrozenTeacher.load(entry, device, num_threads)
    members = [FrozenTeacher.load(member, device, num_threads) for member in entry.members]
    return FrozenEnsemble(entry.teacher, entry.card, entry.digest, members)


class FrozenEnsemble:
    """The weighted mean of several teachers' probabilities. Threads may share it.

    members: in the order of the card. Each makes passes of its own card's size, one member after the other.
    """

    def __init__(self, teacher: TeacherId, card: EnsembleCard, digest: str, members: Sequence[Teacher]) -> None:
        self.teacher = teacher
        self.card = card
        self.digest = digest
        self._members = tuple(members)

    @property
    def engine(self) -> str:
        """On what answers are computed."""
        return self._members[0].engine

    @property
    def num_bytes(self) -> int:
        """Memory of all members' parameters and buffers."""
        return sum(member.num_bytes for member in self._members)

    def answer(self, pixels_NTHW3: NDArray[np.uint8]) -> TeacherAnswer:
        """Logits and features for whole items; any number of them. Raises BadQuery for pixels that do not fit."""
        self.check_pixels(pixels_NTHW3.shape)
        answers = [member.answer(pixels_NTHW3) for member in self._members]
        logits = mean_probability([answer.logits for answer in answers], [m.weight for m in self.card.members])
        return TeacherAnswer(logits, np.concatenate([answer.features for answer in answers], axis=1))

    def check_pixels(self, shape: tuple[int, ...]) -> None:
        """Raises BadQuery unless pixels of this shape [N, T, H, W, 3] can be answered."""
        check_pixels(self.teacher, self.card, shape)


def mean_probability(raw_MIK: Sequence[NDArray[np.float32]], weights: Sequence[float]) -> NDArray[np.float32]:
    """log(sum over m of weights[m] * softmax(raw[m])) as float32 [I, K].

    In float64 and in logarithms throughout, so that no probability is lost, however small: every value is finite.
    """
    logits = np.asarray(raw_MIK, dtype=np.float64)
    logits -= logits.max(axis=2, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=2, keepdims=True))
    logits += np.log(weights)[:, None, None]
    return np.logaddexp.reduce(logits, axis=0).astype(np.float32)
