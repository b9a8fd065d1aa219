"""The losses against naive double loops in plain Python, closed-form gradients and single-process results."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.losses import (
    LossTerms,
    Term,
    contrast_in_batch,
    distill_loss,
    entropies,
    hint_loss,
    linear_cka,
    pretext_loss,
    shuffled_rows,
    smoothed_logits,
)

CONTRAST_GRID = list(itertools.product((2, 3, 5, 7), (3, 8, 16), (0.07, 0.5, 1.0)))
DISTILL_GRID = list(itertools.product((2, 3, 7), (2, 5, 12), (1.0, 2.5, 4.0)))


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(randn(*shape, seed=seed), dim=1)


def softmax(row: list[float]) -> list[float]:
    weights = [math.exp(value - max(row)) for value in row]
    return [weight / sum(weights) for weight in weights]


def naive_contrast(z1: list[list[float]], z2: list[list[float]], temperature: float) -> float:
    def similarity(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return math.exp(dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b)) / temperature)

    total = 0.0
    for i in range(len(z1)):
        positive = similarity(z1[i], z2[i])
        same_view = other_view = 0.0
        for j in range(len(z1)):
            if j != i:
                same_view += similarity(z1[i], z1[j])
                other_view += similarity(z1[i], z2[j])
        total -= math.log(positive / (positive + same_view))
        total -= math.log(positive / (positive + other_view))
    return total / len(z1)


def naive_distill(student: list[list[float]], softened: list[list[float]], tau: float) -> float:
    total = 0.0
    for s_row, t_row in zip(student, softened, strict=True):
        p, q = softmax(t_row), softmax([s / tau for s in s_row])
        for k in range(len(s_row)):
            total += p[k] * (math.log(p[k]) - math.log(q[k]))
    return tau * tau * total / len(student)


# --- pretext


@pytest.mark.parametrize(("batch", "classes"), [(1, 2), (2, 5), (7, 5), (4, 12)])
def test_pretext_equals_naive_cross_entropy(batch: int, classes: int) -> None:
    logits = randn(batch, classes, scale=3)
    labels = [(3 * i + 1) % classes for i in range(batch)]
    naive = -sum(math.log(softmax(row)[label]) for row, label in zip(logits.tolist(), labels, strict=True)) / batch
    assert pretext_loss(logits, torch.tensor(labels)).item() == pytest.approx(naive, rel=1e-12)


def test_pretext_refuses_labels_of_another_length() -> None:
    with pytest.raises(ValueError, match=r"got \[3, 5\] and \[2\]"):
        pretext_loss(randn(3, 5), torch.zeros(2, dtype=torch.int64))


# --- contrast


@pytest.mark.parametrize(("batch", "size", "temperature"), CONTRAST_GRID)
def test_contrast_equals_naive_loops(batch: int, size: int, temperature: float) -> None:
    z1, z2 = unit(batch, size, seed=1), unit(batch, size, seed=2)
    expected = naive_contrast(z1.tolist(), z2.tolist(), temperature)
    assert contrast_in_batch(z1, z2, temperature).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("batch", [2, 5])
def test_contrast_of_equal_features_is_two_log_b(batch: int) -> None:
    z = unit(1, 8).expand(batch, 8)
    assert contrast_in_batch(z, z).item() == pytest.approx(2 * math.log(batch), rel=1e-12)


def test_contrast_is_near_zero_when_videos_are_orthogonal_and_clips_agree() -> None:
    z = torch.eye(4, dtype=torch.float64)
    expected = 2 * math.log1p(3 * math.exp(-1 / 0.07))
    assert contrast_in_batch(z, z).item() == pytest.approx(expected, rel=1e-6)


def test_contrast_is_finite_in_float32_where_exp_overflows() -> None:
    z1 = F.normalize(randn(4, 8, seed=1).float(), dim=1).requires_grad_()
    loss = contrast_in_batch(z1, -z1.detach(), temperature=0.005)  # exp(1 / .005) is far beyond float32
    loss.backward()
    assert loss.item() == pytest.approx(_contrast_by_logs(z1.detach().double(), 0.005), rel=1e-4)
    assert torch.isfinite(z1.grad).all()


def _contrast_by_logs(z: Tensor, temperature: float) -> float:
    """The loss for z2 = -z1 with the largest exponent taken out by hand."""
    total = 0.0
    for i in range(len(z)):
        positive = -float(z[i] @ z[i]) / temperature
        for sign in (1.0, -1.0):
            row = [sign * float(z[i] @ z[j]) / temperature for j in range(len(z)) if j != i] + [positive]
            total += max(row) + math.log(sum(math.exp(value - max(row)) for value in row)) - positive
    return total / len(z)


def test_gradient_of_contrast_agrees_with_finite_differences() -> None:
    z1, z2 = unit(3, 4, seed=1).requires_grad_(), unit(3, 4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: contrast_in_batch(a, b, 0.5), (z1, z2))


@pytest.mark.parametrize(("batch", "first"), [(4, 2), (6, 1), (2, 1), (5, 3)])
def test_gradients_of_two_ranks_own_rows_are_those_of_the_global_batch(batch: int, first: int) -> None:
    """What trainer.step relies on: each rank takes the global loss with only its own rows carrying gradient."""
    whole = [unit(batch, 8, seed=1).requires_grad_(), unit(batch, 8, seed=2).requires_grad_()]
    contrast_in_batch(*whole).backward()
    for own in (slice(0, first), slice(first, batch)):
        mine = [z.detach()[own].clone().requires_grad_() for z in whole]
        gathered = [z.detach().clone() for z in whole]
        for rows, z in zip(mine, gathered, strict=True):
            z[own] = rows
        contrast_in_batch(*gathered).backward()
        for rows, z in zip(mine, whole, strict=True):
            torch.testing.assert_close(rows.grad, z.grad[own], rtol=1e-10, atol=1e-12)


def test_contrast_refuses_a_single_video() -> None:
    with pytest.raises(ValueError, match="at least 2 videos"):
        contrast_in_batch(unit(1, 8), unit(1, 8))


def test_contrast_refuses_other_shapes_and_temperatures() -> None:
    with pytest.raises(ValueError, match=r"\[4, 8\] and \[3, 8\]"):
        contrast_in_batch(unit(4, 8), unit(3, 8))
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        contrast_in_batch(unit(4, 8), unit(4, 8), 0)


# --- distillation


@pytest.mark.parametrize(("batch", "classes", "tau"), DISTILL_GRID)
def test_distill_equals_naive_loops(batch: int, classes: int, tau: float) -> None:
    student, teacher = randn(batch, classes, seed=1, scale=3), randn(batch, classes, seed=2, scale=3)
    expected = naive_distill(student.tolist(), (teacher / tau).tolist(), tau)
    assert distill_loss(student, teacher / tau, tau).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("batch", "classes", "tau"), DISTILL_GRID)
def test_gradient_of_distill_is_the_closed_form(batch: int, classes: int, tau: float) -> None:
    student = randn(batch, classes, seed=1, scale=3).requires_grad_()
    raw_teacher = randn(batch, classes, seed=2, scale=3)
    distill_loss(student, raw_teacher / tau, tau).backward()
    expected = tau * (torch.softmax(student.detach() / tau, 1) - torch.softmax(raw_teacher / tau, 1)) / batch
    torch.testing.assert_close(student.grad, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_a_student_that_equals_its_teacher_has_no_loss_and_no_gradient(tau: float) -> None:
    student = randn(3, 5, scale=3).requires_grad_()
    loss = distill_loss(student, student.detach() / tau, tau)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().max() < 1e-15


def test_softened_logits_are_not_divided_again() -> None:
    student, raw = randn(3, 5, seed=1), randn(3, 5, seed=2, scale=5)
    twice = distill_loss(student, raw / 4.0 / 4.0, 4.0)
    assert distill_loss(student, raw / 4.0, 4.0).item() != pytest.approx(twice.item(), rel=1e-2)


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = randn(3, 5, seed=1).requires_grad_(), randn(3, 5, seed=2).requires_grad_()
    distill_loss(student, teacher, 4.0).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("junk", [0.0, 1e30, math.nan, math.inf])
def test_masked_rows_do_not_contribute_whatever_they_hold(junk: float) -> None:
    mask = torch.tensor([True, False, True, False])
    student, teacher = randn(4, 5, seed=1).requires_grad_(), randn(4, 5, seed=2)
    teacher[~mask] = junk
    loss = distill_loss(student, teacher, 4.0, mask)
    loss.backward()
    kept = student.detach()[mask].requires_grad_()
    expected = distill_loss(kept, teacher[mask], 4.0)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(student.grad[mask], kept.grad, rtol=1e-12, atol=1e-14)
    assert not student.grad[~mask].any()


def test_a_batch_without_answers_gives_zero_and_zero_gradient() -> None:
    student = randn(3, 5).requires_grad_()
    loss = distill_loss(student, torch.full((3, 5), math.nan), 4.0, torch.zeros(3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


def test_a_mask_of_all_true_changes_nothing() -> None:
    student, teacher = randn(4, 5, seed=1), randn(4, 5, seed=2)
    masked = distill_loss(student, teacher, 4.0, torch.ones(4, dtype=torch.bool))
    assert masked.item() == pytest.approx(distill_loss(student, teacher, 4.0).item(), rel=1e-14)


def test_half_precision_replies_are_taken_in_the_students_precision() -> None:
    student, teacher = randn(3, 5, seed=1).float(), randn(3, 5, seed=2).half()
    loss = distill_loss(student, teacher, 4.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(naive_distill(student.tolist(), teacher.tolist(), 4.0), rel=1e-5)


def test_distill_refuses_other_class_counts_masks_and_temperatures() -> None:
    with pytest.raises(ValueError, match=r"\[3, 5\] and \[3, 4\]"):
        distill_loss(randn(3, 5), randn(3, 4), 4.0)
    with pytest.raises(ValueError, match="temperature must be positive, got -1"):
        distill_loss(randn(3, 5), randn(3, 5), -1.0)
    with pytest.raises(ValueError, match=r"mask must be \[3\] of bool, got \[3\] of torch.float32"):
        distill_loss(randn(3, 5), randn(3, 5), 4.0, torch.ones(3))


# --- total


def three_terms(alpha: float = 0.5, lambda_kd: float = 1.0) -> LossTerms:
    return LossTerms(
        (
            Term("pretext", torch.tensor(2.0)),
            Term("contrast", torch.tensor(3.0), alpha, "global"),
            Term("distill", torch.tensor(5.0), lambda_kd, "answered"),
        )
    )


def test_total_weighs_the_terms() -> None:
    assert three_terms().total.item() == 2.0 + 1.5 + 5.0
    assert three_terms(alpha=2.0, lambda_kd=9.0).total.item() == 2.0 + 2.0 * 3.0 + 9.0 * 5.0


def test_a_term_that_is_off_is_not_summed() -> None:
    terms = LossTerms(three_terms().terms[:1])
    assert terms.total.item() == 2.0
    assert terms.value("contrast") is None


def test_gradient_of_the_total_is_the_weighted_sum_of_the_gradients() -> None:
    x = torch.tensor(1.5, requires_grad=True)
    terms = LossTerms((Term("a", x.square()), Term("b", x.exp(), 0.5), Term("c", x.sin(), 2.0, "answered")))
    terms.total.backward()
    assert x.grad.item() == pytest.approx(2 * 1.5 + 0.5 * math.exp(1.5) + 2 * math.cos(1.5), rel=1e-6)


@pytest.mark.parametrize("all_answered", [False, True])
def test_the_parts_of_the_workers_add_up_to_the_global_loss(all_answered: bool) -> None:
    """Two workers of 3 and 1 tuples; what is global already is counted once a worker, as its gradient is split."""
    shares = torch.tensor([0.75, 0.25])
    answered_shares = shares if all_answered else torch.tensor([0.4, 0.6])
    values = ((2.0, 5.0), (6.0, 1.0))
    total = 0.0
    for share, answered_share, (pretext, distill) in zip(shares, answered_shares, values, strict=True):
        terms = LossTerms(
            (Term("pretext", torch.tensor(pretext)), Term("distill", torch.tensor(distill), 3.0, "answered"))
        )
        total += terms.of_worker(share, answered_share, all_answered=all_answered).item()
        contrast = Term("contrast", torch.tensor(7.0), 0.5, "global")
        more = LossTerms((*terms.terms, contrast)).of_worker(share, answered_share, all_answered=all_answered)
        alone = terms.of_worker(share, answered_share, all_answered=all_answered)
        assert more.item() == pytest.approx(alone.item() + 3.5, rel=1e-6)
    first, second = answered_shares.tolist()
    assert total == pytest.approx(0.75 * 2 + 0.25 * 6 + 3 * (first * 5 + second * 1), rel=1e-6)


# --- controls


@pytest.mark.parametrize(("classes", "scale"), list(itertools.product((2, 5, 12), (0.0, 0.3, 3.0, 10.0))))
def test_smoothing_has_the_entropy_of_the_answer_and_the_form_of_label_smoothing(classes: int, scale: float) -> None:
    softened = randn(6, classes, seed=1, scale=scale)
    labels = [i % classes for i in range(6)]
    for row, answer, label in zip(
        smoothed_logits(softened, torch.tensor(labels)).tolist(), softened.tolist(), labels, strict=True
    ):
        p = softmax(row)
        assert entropy(p) == pytest.approx(entropy(softmax(answer)), abs=1e-6)
        others = [p[k] for k in range(classes) if k != label]
        assert max(others) == pytest.approx(min(others), rel=1e-9)
        assert p[label] >= max(others) - 1e-6  # so soft as even, never against the label


def entropy(p: list[float]) -> float:
    return -sum(value * math.log(value) for value in p if value > 0)


@pytest.mark.parametrize("entropy", [0.0, 0.3, 1.0, math.log(5)])
def test_smoothing_with_an_entropy_of_its_own_has_that_one_in_every_row(entropy: float) -> None:
    junk = torch.tensor([[9.0, -3.0, 0.0, 1.0, 2.0], [float("nan")] * 5])
    got = smoothed_logits(junk, torch.tensor([1, 4]), torch.full((2,), entropy, dtype=torch.float64)).double()
    assert entropies(got).tolist() == pytest.approx([entropy] * 2, abs=1e-6)
    assert got.argmax(dim=1).tolist() == [1, 4] or entropy == math.log(5)


def test_smoothing_at_a_written_out_point() -> None:
    """Three classes and eps = .3: .7, .15, .15."""
    softened = torch.tensor([[0.15, 0.7, 0.15]], dtype=torch.float64).log()
    got = torch.softmax(smoothed_logits(softened, torch.tensor([2])), dim=1)
    assert got[0].tolist() == pytest.approx([0.15, 0.15, 0.7], abs=1e-9)


def test_smoothing_stays_finite_for_answers_without_doubt_and_for_junk() -> None:
    rows = torch.tensor([[200.0, 0.0, 0.0], [math.nan, 0.0, 0.0]])
    labels = torch.tensor([1, 1])
    smoothed = smoothed_logits(rows, labels)
    assert torch.isfinite(smoothed).all()
    assert torch.softmax(smoothed, dim=1)[0, 1].item() == pytest.approx(1.0)
    assert torch.isfinite(distill_loss(torch.zeros(2, 3), smoothed, 4.0))


SHUFFLE_LABELS = np.array([0, 1, 0, 2, 1, 0, 0, 1, 3])
SHUFFLE_ANSWERED = np.array([True, True, True, True, True, False, True, True, True])


def test_answers_are_shuffled_within_their_label_only() -> None:
    seen: set[tuple[int, ...]] = set()
    for step in range(60):
        rows = shuffled_rows(SHUFFLE_LABELS, SHUFFLE_ANSWERED, view_seed=1, step=step)
        assert sorted(rows.tolist()) == list(range(9))
        assert np.array_equal(SHUFFLE_LABELS[rows], SHUFFLE_LABELS)
        assert rows[5] == 5  # nobody answered it: it neither gives nor takes
        assert set(np.flatnonzero(rows == np.arange(9))) == {3, 5, 8}  # 3 and 8 are alone with their labels
        assert np.array_equal(rows, shuffled_rows(SHUFFLE_LABELS, SHUFFLE_ANSWERED, view_seed=1, step=step))
        seen.add(tuple(rows[[0, 2, 6]].tolist()))
    assert seen == {(2, 6, 0), (6, 0, 2)}


# --- hint


@pytest.mark.parametrize(("batch", "size"), [(1, 2), (3, 5), (7, 16)])
def test_hint_equals_naive_loops(batch: int, size: int) -> None:
    student, teacher = randn(batch, size, seed=1, scale=3), randn(batch, size, seed=2)
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        s_length, t_length = (math.sqrt(sum(value * value for value in row)) for row in (s, t))
        total += sum((a / s_length - b / t_length) ** 2 for a, b in zip(s, t, strict=True))
    assert hint_loss(student, teacher).item() == pytest.approx(total / batch, rel=1e-10)


def test_hints_of_unanswered_tuples_do_not_contribute_whatever_they_hold() -> None:
    mask = torch.tensor([True, False, True])
    student, teacher = randn(3, 4, seed=1).requires_grad_(), randn(3, 4, seed=2)
    teacher[1] = math.nan
    loss = hint_loss(student, teacher, mask)
    loss.backward()
    assert loss.item() == pytest.approx(hint_loss(student[mask], teacher[mask]).item(), rel=1e-12)
    assert not student.grad[1].any()
    assert hint_loss(student, teacher, torch.zeros(3, dtype=torch.bool)).item() == 0


def test_features_that_point_the_same_way_give_no_hint_and_opposite_ones_four() -> None:
    features = randn(3, 4, seed=1)
    assert hint_loss(5 * features, features).item() == pytest.approx(0, abs=1e-12)
    assert hint_loss(-features, features).item() == pytest.approx(4, rel=1e-12)
    with pytest.raises(ValueError, match=r"\[3, 4\] and \[3, 5\]"):
        hint_loss(features, randn(3, 5))


@pytest.mark.parametrize(("items", "size", "teacher_size"), [(3, 2, 5), (8, 4, 4), (16, 6, 2)])
def test_cka_is_that_of_the_feature_covariances(items: int, size: int, teacher_size: int) -> None:
    """The form over features, ||Y^T X||^2 / (||X^T X|| ||Y^T Y||), entry by entry."""
    student, teacher = randn(items, size, seed=1), randn(items, teacher_size, seed=2)
    columns = [[[v - sum(c) / items for v in c] for c in z.T.tolist()] for z in (student, teacher)]

    def squares(a: list[list[float]], b: list[list[float]]) -> float:
        return sum(sum(x * y for x, y in zip(p, q, strict=True)) ** 2 for p in a for q in b)

    x, y = columns
    expected = squares(x, y) / math.sqrt(squares(x, x) * squares(y, y))
    assert linear_cka(student, teacher) == pytest.approx(expected, rel=1e-10)


def test_cka_does_not_see_rotation_scale_and_offset() -> None:
    student = randn(8, 4, seed=1)
    rotation = torch.linalg.qr(randn(4, 4, seed=2)).Q
    assert linear_cka(student, 3 * student @ rotation + 7) == pytest.approx(1.0, rel=1e-10)


def test_cka_of_what_does_not_vary_is_none() -> None:
    assert linear_cka(randn(1, 4), randn(1, 4)) is None
    assert linear_cka(torch.ones(5, 4), randn(5, 4)) is None
