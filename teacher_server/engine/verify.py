"""Is a teacher sound here, how fast is it, and would bfloat16 do?

    verify_teacher(entry)            what `preceptor teacher verify` says of a version in the library
    choose_precision(card, weights)  what an import asks before it writes the card; afterwards it is fixed

bfloat16 keeps 8 bits of every number, so it is taken only where this machine computes it faster by MIN_SPEED_UP and the
answers stay close: no softmax probability off by more than MAX_DIFFERENCE, the same class for MIN_AGREEMENT of items.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from teacher_server.card import Card, Precision, TeacherCard
from teacher_server.engine.ensemble import load_teacher
from teacher_server.engine.teacher import FrozenTeacher, Teacher, check_pixels
from teacher_server.engine.weights import load_weights, network_of
from teacher_server.errors import LibraryError
from teacher_server.library import TeacherEntry
from teacher_server.protocol import TeacherId

MIN_SPEED_UP = 1.2
MAX_DIFFERENCE = 0.02
MIN_AGREEMENT = 0.99
_ROUNDS = 3
_CANDIDATE = TeacherId("candidate", 1)


@dataclass(frozen=True)
class PrecisionReport:
    """One network in both precisions, with the same chunks on one thread.

    float32_ms, bfloat16_ms: per clip, the fastest of some alternating passes. max_difference: of any softmax
    probability, at temperature 1, where it is largest. agreement: share of `items` with the same most likely class.
    problem: what the self-test said against bfloat16, "" for nothing; the figures of bfloat16 are then NaN.
    """

    float32_ms: float
    bfloat16_ms: float
    max_difference: float
    agreement: float
    items: int
    problem: str = ""

    @property
    def speed_up(self) -> float:
        """How many times as many clips a second bfloat16 answers."""
        return self.float32_ms / self.bfloat16_ms

    def objections(self) -> tuple[str, ...]:
        """Why bfloat16 should not be used, as clauses; empty when it should."""
        if self.problem:
            return (self.problem,)
        objections = []
        if not self.speed_up >= MIN_SPEED_UP:
            objections.append(f"bfloat16 is {self.speed_up:.2f} times as fast, at least {MIN_SPEED_UP:g} is asked")
        if not self.max_difference <= MAX_DIFFERENCE:
            objections.append(f"a probability is off by {self.max_difference:.4f}, at most {MAX_DIFFERENCE:g} is asked")
        if not self.agreement >= MIN_AGREEMENT:
            objections.append(f"{self.agreement:.1%} of {self.items} items agree, {MIN_AGREEMENT:.0%} is asked")
        return tuple(objections)


@dataclass(frozen=True)
class PrecisionChoice:
    """precision: for the card. report: the figures; its `objections` say why it is not bfloat16."""

    precision: Precision
    report: PrecisionReport


@dataclass(frozen=True)
class Verification:
    """A version that passed its self-test. ms_per_clip: as its card says that it is computed, on one thread.

    reports: of the network, or of an ensemble's members in their order.
    """

    teacher: TeacherId
    digest: str
    engine: str
    num_bytes: int
    ms_per_clip: float
    reports: tuple[PrecisionReport, ...]


def verify_teacher(entry: TeacherEntry, device: str = "cpu", pixels: NDArray[np.uint8] | None = None) -> Verification:
    """Loads a teacher, which tests itself, measures it, and compares the precisions.

    pixels: uint8 [N, T, H, W, 3], whole items, that the precisions are compared on beside noise. Raises LibraryError
    for a teacher that is not sound, BadQuery for pixels that do not fit it.
    """
    teacher = load_teacher(entry, device)
    chunk = _noise(entry.card)
    seconds = min(_seconds(teacher, chunk) for _ in range(_ROUNDS))
    reports = []
    for part in entry.members or (entry,):
        assert isinstance(part.card, TeacherCard)  # an ensemble has no ensembles
        reports.append(compare_precisions(part.card, load_weights(part, part.card), device, pixels))
    return Verification(
        teacher=entry.teacher,
        digest=entry.digest,
        engine=teacher.engine,
        num_bytes=teacher.num_bytes,
        ms_per_clip=1000 * seconds / len(chunk),
        reports=tuple(reports),
    )


def choose_precision(
    card: TeacherCard, weights: Mapping[str, Tensor], device: str = "cpu", pixels: NDArray[np.uint8] | None = None
) -> PrecisionChoice:
    """The precision in which a network should serve; the card's own is not looked at.

    pixels: as in `verify_teacher`. Raises LibraryError for weights that are not sound in float32, BadQuery for pixels
    that do not fit.
    """
    report = compare_precisions(card, weights, device, pixels)
    return PrecisionChoice("float32" if report.objections() else "bfloat16", report)


def compare_precisions(
    card: TeacherCard, weights: Mapping[str, Tensor], device: str = "cpu", pixels: NDArray[np.uint8] | None = None
) -> PrecisionReport:
    """Both precisions, tested and measured. Raises as `choose_precision`."""
    chunk = _noise(card)
    if pixels is not None:
        check_pixels(_CANDIDATE, card, pixels.shape)
    full = _candidate(card, weights, "float32", device)
    full.self_test("the weights in float32")
    half = _candidate(card, weights, "bfloat16", device)
    try:
        half.self_test("the weights in bfloat16")
    except LibraryError as error:
        nan = float("nan")
        return PrecisionReport(1000 * _seconds(full, chunk) / len(chunk), nan, nan, nan, 0, str(error))
    times = [(_seconds(full, chunk), _seconds(half, chunk)) for _ in range(_ROUNDS)]
    asked = [chunk] if pixels is None else [chunk, pixels]
    p = np.concatenate([_softmax(full.answer(part).logits) for part in asked])
    q = np.concatenate([_softmax(half.answer(part).logits) for part in asked])
    return PrecisionReport(
        float32_ms=1000 * min(a for a, _ in times) / len(chunk),
        bfloat16_ms=1000 * min(b for _, b in times) / len(chunk),
        max_difference=float(np.abs(p - q).max()),
        agreement=float((p.argmax(axis=1) == q.argmax(axis=1)).mean()),
        items=len(p),
    )


def _candidate(card: TeacherCard, weights: Mapping[str, Tensor], precision: Precision, device: str) -> FrozenTeacher:
    network = network_of(card, weights, f"the weights in {precision}")
    return FrozenTeacher(_CANDIDATE, card.model_copy(update={"precision": precision}), "", network, device)


def _noise(card: Card) -> NDArray[np.uint8]:
    """One full chunk, other noise than that of the self-test."""
    shape = (card.chunk_items * card.views_per_item, card.clip_len, card.crop, card.crop, 3)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def _seconds(teacher: Teacher, pixels: NDArray[np.uint8]) -> float:
    began = time.perf_counter()
    teacher.answer(pixels)
    return time.perf_counter() - began


def _softmax(logits_IK: NDArray[np.float32]) -> NDArray[np.float64]:
    exps = np.exp(logits_IK.astype(np.float64) - logits_IK.max(axis=1, keepdims=True))
    return exps / exps.sum(axis=1, keepdims=True)
