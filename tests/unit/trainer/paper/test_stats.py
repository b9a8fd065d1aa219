"""Means, deviations and paired intervals against naive loops and closed forms."""

import numpy as np
import pytest

from trainer.paper.stats import NUM_RESAMPLES, Summary, joint_bootstrap, paired_difference, summary


def naive_interval(differences, groups, seed=0):
    """The definition in loops, on the same draws."""
    names = sorted(set(groups))
    rng = np.random.default_rng(seed)
    num_seeds = len(differences)
    group_draws = rng.multinomial(len(names), [1 / len(names)] * len(names), NUM_RESAMPLES)
    seed_draws = rng.multinomial(num_seeds, [1 / num_seeds] * num_seeds, NUM_RESAMPLES)
    means = []
    rows = [row.mean() for row in differences]
    stretched = [(num_seeds / (num_seeds - 1)) ** 0.5 * (mean - sum(rows) / num_seeds) for mean in rows]
    moved = [more - (mean - sum(rows) / num_seeds) for more, mean in zip(stretched, rows, strict=True)]
    for group_counts, seed_counts in zip(group_draws, seed_draws, strict=True):
        drawn = []
        for row, times, more in zip(differences, seed_counts, moved, strict=True):
            items = []
            for name, count in zip(names, group_counts, strict=True):
                items += [value for value, group in zip(row, groups, strict=True) if group == name] * count
            wider = (len(names) / (len(names) - 1)) ** 0.5
            drawn += [row.mean() + wider * (sum(items) / len(items) - row.mean()) + more] * times
        means.append(sum(drawn) / len(drawn))
    return tuple(np.quantile(means, [0.025, 0.975]))


def test_mean_and_deviation_are_those_of_the_sample():
    found = Summary.of([0.1, 0.2, 0.6])
    assert found.mean == pytest.approx(0.3)
    assert found.std == pytest.approx(((0.04 + 0.01 + 0.09) / 2) ** 0.5)


def test_a_single_seed_has_no_deviation():
    assert Summary.of([0.5]).std is None


def test_no_value_has_no_summary():
    assert summary([]) is None


def test_the_interval_is_that_of_a_naive_loop_over_groups_and_seeds_of_unequal_size():
    rng = np.random.default_rng(1)
    groups = ["a"] * 3 + ["b"] * 1 + ["c"] * 4 + ["d"] * 2
    differences = rng.integers(-1, 2, (3, len(groups))).astype(np.float64)
    assert joint_bootstrap(differences, groups) == pytest.approx(naive_interval(differences, groups))


def test_the_interval_does_not_depend_on_the_order_of_the_items():
    rng = np.random.default_rng(2)
    groups = np.array(["a", "b", "c", "d"]).repeat(5)
    differences = rng.integers(-1, 2, (2, 20)).astype(np.float64)
    order = rng.permutation(20)
    assert joint_bootstrap(differences[:, order], groups[order]) == pytest.approx(joint_bootstrap(differences, groups))


def test_equal_differences_everywhere_leave_nothing_uncertain():
    assert joint_bootstrap(np.full((3, 8), 0.25), list("aabbccdd")) == (0.25, 0.25)


def test_seeds_that_disagree_widen_the_interval_even_if_all_groups_agree():
    differences = np.array([[0.0] * 8, [1.0] * 8])
    half = 0.5 * 2**0.5  # deviations of one half, of two seeds
    assert joint_bootstrap(differences, list("aabbccdd")) == pytest.approx((0.5 - half, 0.5 + half))


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_resampled_seeds_vary_as_the_mean_of_so_many_seeds_does(num_seeds):
    """Bounds of the 16th and 84th percentile are a standard error apart from the mean: sd / sqrt(S), with S - 1."""
    means = np.random.default_rng(5).normal(size=num_seeds)
    differences = np.repeat(means[:, None], 4, axis=1)
    draws = [joint_bootstrap(differences, list("aabb"), num_resamples=1, seed=seed)[0] for seed in range(4000)]
    assert np.std(draws) == pytest.approx(means.std(ddof=1) / num_seeds**0.5, rel=0.05)


def test_groups_that_disagree_widen_the_interval_even_if_all_seeds_agree():
    differences = np.array([[1.0, 1.0, -1.0, -1.0]] * 2)
    assert joint_bootstrap(differences, ["a", "a", "b", "b"]) == pytest.approx((-(2**0.5), 2**0.5))


@pytest.mark.parametrize("num_groups", [2, 3, 9])
def test_resampled_groups_vary_as_the_mean_of_so_many_groups_does(num_groups):
    means = np.random.default_rng(6).normal(size=num_groups)
    differences = np.repeat(means, 2)[None]
    groups = [str(group) for group in range(num_groups) for _ in range(2)]
    draws = [joint_bootstrap(differences, groups, num_resamples=1, seed=seed)[0] for seed in range(4000)]
    assert np.std(draws) == pytest.approx(means.std(ddof=1) / num_groups**0.5, rel=0.05)


def test_one_group_has_no_interval():
    found = paired_difference(np.array([[1.0, 0.0]]), ["a", "a"], seeds=(0,))
    assert (found.mean, found.interval, found.above_zero, found.below_zero) == (0.5, None, False, False)


def test_a_difference_tells_its_seeds_and_on_which_side_of_zero_it_lies():
    found = paired_difference(np.array([[1.0, 1.0], [0.5, 0.5]]), ["a", "b"], seeds=(3, 7))
    assert found.per_seed == (1.0, 0.5)
    assert found.seeds == (3, 7)
    assert found.above_zero
    assert paired_difference(np.array([[-1.0, -1.0]]), ["a", "b"], seeds=(0,)).below_zero


@pytest.mark.parametrize("shape", [(0, 2), (1, 0), (2, 2), (1, 3)])
def test_differences_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[seeds, items\]"):
        paired_difference(np.zeros(shape), ["a", "b"][: shape[1]] if shape[1] < 3 else ["a", "b"], seeds=(0,))
