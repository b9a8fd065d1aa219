"""The memory bank against loops over its rows: what is drawn, what is moved, and what the contrast makes of it."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from trainer.bank import MemoryBank, draw_others
from trainer.losses import contrast_with_bank

GRID = list(itertools.product((1, 2, 5), (2, 4, 9), (3, 16), (0.07, 0.5, 1.0)))


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def make(num_videos=12, **changes):
    torch.manual_seed(0)
    return MemoryBank(num_videos, 8, **({"num_negatives": 4, "momentum": 0.5, "seed": 7} | changes))


def naive(z1, z2, remembered1, remembered2, temperature):
    """Both directions, one exponential at a time."""
    total = 0.0
    for i in range(len(z1)):
        for z, remembered in ((z1[i], remembered2[i]), (z2[i], remembered1[i])):
            weights = [math.exp(sum(a * b for a, b in zip(z, row, strict=True)) / temperature) for row in remembered]
            total -= math.log(weights[0] / sum(weights))
    return total / len(z1)


@pytest.mark.parametrize(("batch", "rows", "size", "temperature"), GRID)
def test_the_contrast_with_the_bank_equals_naive_loops(batch, rows, size, temperature):
    z1, z2 = unit(batch, size, seed=1), unit(batch, size, seed=2)
    remembered1, remembered2 = unit(batch, rows, size, seed=3), unit(batch, rows, size, seed=4)
    expected = naive(*(x.tolist() for x in (z1, z2, remembered1, remembered2)), temperature)
    got = contrast_with_bank(z1, z2, remembered1, remembered2, temperature)
    assert got.item() == pytest.approx(expected, rel=1e-10)


def test_the_gradient_of_the_contrast_with_the_bank_agrees_with_finite_differences():
    remembered1, remembered2 = unit(3, 4, 5, seed=3), unit(3, 4, 5, seed=4)
    inputs = (unit(3, 5, seed=1).requires_grad_(), unit(3, 5, seed=2).requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: contrast_with_bank(a, b, remembered1, remembered2, 0.5), inputs)


def test_no_gradient_reaches_the_bank():
    remembered = unit(2, 3, 4, seed=3).requires_grad_()
    contrast_with_bank(unit(2, 4).requires_grad_(), unit(2, 4), remembered, remembered).backward()
    assert remembered.grad is None


def test_rows_that_do_not_go_with_the_features_are_refused():
    with pytest.raises(ValueError, match=r"\[B,M,D\] of the banks .* features \[2, 4\], got \[3, 5, 4\]"):
        contrast_with_bank(unit(2, 4), unit(2, 4), unit(2, 5, 4), unit(3, 5, 4))
    with pytest.raises(ValueError, match="M >= 2"):
        contrast_with_bank(unit(2, 4), unit(2, 4), unit(2, 1, 4), unit(2, 1, 4))
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        contrast_with_bank(unit(2, 4), unit(2, 4), unit(2, 3, 4), unit(2, 3, 4), 0)


@pytest.mark.parametrize(("num_videos", "count"), [(2, 1), (3, 1), (10, 4), (10, 8), (10, 9), (5000, 1024)])
def test_no_video_is_among_its_own_negatives(num_videos, count):
    positions = np.array([0, 1, num_videos - 1])
    for step in range(20):
        others = draw_others(positions, num_videos, count=count, view_seed=3, step=step)
        assert others.shape == (3, count)
        assert not (others == positions[:, None]).any()
        assert others.min() >= 0
        assert others.max() < num_videos


def test_all_others_serve_once_where_so_many_are_asked_for():
    others = draw_others(np.array([2, 0]), 5, count=4, view_seed=0, step=0)
    assert others.tolist() == [[0, 1, 3, 4], [1, 2, 3, 4]]
    assert make(num_videos=5, num_negatives=1024).num_negatives == 4


def test_negatives_are_drawn_evenly_among_the_others():
    """Chi-square with 8 degrees of freedom; its 99.9 % quantile is 26.1."""
    draws = [draw_others(np.array([4]), 10, count=8, view_seed=1, step=step) for step in range(1000)]
    counts = np.bincount(np.concatenate(draws).reshape(-1), minlength=10)
    expected = 8000 / 9
    assert counts[4] == 0
    assert sum((count - expected) ** 2 / expected for i, count in enumerate(counts) if i != 4) < 26.1


def test_a_draw_depends_on_seed_step_and_video_and_not_on_who_else_is_drawn_for():
    whole = draw_others(np.array([3, 8, 5]), 50, count=6, view_seed=1, step=9)
    for i, position in enumerate((3, 8, 5)):
        alone = draw_others(np.array([position]), 50, count=6, view_seed=1, step=9)
        assert np.array_equal(alone[0], whole[i])
    for other in ({"view_seed": 2, "step": 9}, {"view_seed": 1, "step": 10}):
        assert not np.array_equal(draw_others(np.array([3, 8, 5]), 50, count=6, **other), whole)


def test_the_rows_of_a_video_begin_with_its_own():
    rows = make().rows(5, torch.tensor([11, 0]))
    assert rows[:, 0].tolist() == [11, 0]
    expected = draw_others(np.array([11, 0]), 12, count=4, view_seed=7, step=5)
    assert rows[:, 1:].tolist() == expected.tolist()


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_an_update_moves_the_rows_of_the_batch_and_no_others(momentum):
    bank = make(momentum=momentum)
    before = [bank.first_ND.clone(), bank.third_ND.clone()]
    z1, z2 = unit(2, 8, seed=1).float(), unit(2, 8, seed=2).float()
    bank.update(torch.tensor([9, 3]), z1, z2)
    for old, new, z in zip(before, (bank.first_ND, bank.third_ND), (z1, z2), strict=True):
        for video in range(12):
            if video not in (9, 3):
                assert torch.equal(new[video], old[video])
                continue
            row = z[0] if video == 9 else z[1]
            mixed = [momentum * a + (1 - momentum) * b for a, b in zip(old[video].tolist(), row.tolist(), strict=True)]
            length = math.sqrt(sum(value * value for value in mixed))
            assert new[video].tolist() == pytest.approx([value / length for value in mixed], abs=1e-6)


def test_a_bank_starts_with_rows_of_length_1_that_the_seed_fixes():
    bank, same = make(), make()
    torch.manual_seed(1)
    other = MemoryBank(12, 8, num_negatives=4, momentum=0.5, seed=7)
    assert torch.equal(bank.first_ND, same.first_ND)
    assert not torch.equal(bank.first_ND, other.first_ND)
    assert not torch.equal(bank.first_ND, bank.third_ND)
    assert torch.allclose(bank.third_ND.norm(dim=1), torch.ones(12))
    assert not list(bank.parameters())


def test_a_bank_of_one_video_is_refused():
    with pytest.raises(ValueError, match=r"at least 2 training videos .*, got 1"):
        make(num_videos=1)
