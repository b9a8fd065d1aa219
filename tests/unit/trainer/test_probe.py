"""The linear probe and the bootstrap against closed forms."""

import numpy as np
import pytest
import torch

from trainer.evaluate.bootstrap import bootstrap_interval, bootstrap_mean_interval
from trainer.evaluate.probe import BATCH_NORM_EPS, ProbeRecipe, linear_probe


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These problems are too small to share: on a busy machine threads cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _clusters(rng, num_videos, num_classes=4, clips=3, size=16, noise=0.1):
    """Each class around its own corner, at very different scales of the features."""
    labels = np.arange(num_videos) % num_classes
    centres = np.eye(num_classes, size) * 5
    features = centres[labels][:, None, :] + rng.normal(scale=noise, size=(num_videos, clips, size))
    return (features * np.logspace(-2, 2, size)).astype(np.float32), labels


def test_linearly_separable_features_are_all_told_apart():
    rng = np.random.default_rng(0)
    result = linear_probe(*_clusters(rng, 80), *_clusters(rng, 40), num_classes=4)
    assert result.accuracy == result.train_accuracy == 1.0
    assert result.confusion.tolist() == np.diag([10, 10, 10, 10]).tolist()
    assert result.correct.all()


def test_shuffled_labels_give_chance():
    rng = np.random.default_rng(1)
    features, labels = _clusters(rng, 400)
    test_features, test_labels = _clusters(rng, 400)
    result = linear_probe(features, rng.permutation(labels), test_features, rng.permutation(test_labels), num_classes=4)
    assert abs(result.accuracy - 0.25) < 0.1  # 4.6 standard deviations of 400 guesses


def test_a_test_video_is_classified_by_the_mean_of_its_clips_logits():
    train = np.array([[[-1.0]], [[1.0]]], dtype=np.float32)
    # Two clips lean to class 1 and one, much further off, to class 0.
    test = np.array([[[0.5], [0.5], [-3.0]]], dtype=np.float32)
    result = linear_probe(train, np.array([0, 1]), test, np.array([0]), num_classes=2)
    assert result.accuracy == 1.0


def test_the_weights_are_the_minimum_of_the_stated_loss():
    # Two clips at -1 and 1 have variance 1, so x = 1/sqrt(1+eps). By symmetry the logits are -w x and w x with
    # w = |W| per class, and the minimum of log(1 + exp(-2wx)) + decay * w^2 has its derivative zero:
    # decay * w = x / (1 + exp(2wx)).
    decay, x = 0.1, 1 / np.sqrt(1 + BATCH_NORM_EPS)
    low, high = 0.0, 10.0
    for _ in range(100):
        w = (low + high) / 2
        low, high = (w, high) if decay * w < x / (1 + np.exp(2 * w * x)) else (low, w)
    from trainer.evaluate.probe import _fit, _standardise

    train = np.array([[[-1.0]], [[1.0]]], dtype=np.float32)
    train_ND, _ = _standardise(train, train)
    weight, bias = _fit(train_ND, torch.tensor([0, 1]), 2, ProbeRecipe(weight_decay=decay))
    torch.testing.assert_close(weight, torch.tensor([[-w], [w]], dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(bias, torch.zeros(2, dtype=torch.float64), atol=1e-8, rtol=0)


def test_the_same_features_give_the_same_answer_also_without_gradients_around():
    rng = np.random.default_rng(2)
    train, test = _clusters(rng, 60, noise=3), _clusters(rng, 60, noise=3)
    first = linear_probe(*train, *test, num_classes=4)
    torch.manual_seed(5)
    with torch.no_grad():
        second = linear_probe(*train, *test, num_classes=4)
    assert 0.25 < first.accuracy < 1.0
    assert first.confusion.tolist() == second.confusion.tolist()


def test_a_feature_that_never_changes_does_no_harm():
    train, labels = _clusters(np.random.default_rng(3), 40)
    train[:, :, 0] = 7.0
    result = linear_probe(train, labels, train, labels, num_classes=4)
    assert result.train_accuracy == 1.0


@pytest.mark.parametrize(
    ("labels", "words"), [([0, 4], "0 .. 3, got 0 .. 4"), ([0], "labels .videos."), ([-1, 0], "got -1 .. 0")]
)
def test_labels_that_do_not_fit_are_refused(labels, words):
    features = np.zeros((2, 1, 3), dtype=np.float32)
    with pytest.raises(ValueError, match=words):
        linear_probe(features, np.array(labels), features, np.array([0, 1]), num_classes=4)


def test_interval_of_independent_answers_is_that_of_the_normal_distribution():
    rng = np.random.default_rng(0)
    correct = rng.random(400) < 0.6
    low, high = bootstrap_interval(correct, [str(i) for i in range(400)], seed=0)
    deviation = np.sqrt(correct.mean() * (1 - correct.mean()) / 400)
    assert low == pytest.approx(correct.mean() - 1.96 * deviation, abs=0.008)
    assert high == pytest.approx(correct.mean() + 1.96 * deviation, abs=0.008)


def test_answers_of_one_group_move_together():
    # Two groups, one all right and one all wrong: a resample holds 0, 1 or 2 of the first, so means are 0, .5 or 1.
    correct = np.array([True] * 50 + [False] * 50)
    assert bootstrap_interval(correct, ["a"] * 50 + ["b"] * 50, seed=0) == (0.0, 1.0)


def test_one_group_has_no_interval_and_a_wrong_number_of_names_is_refused():
    assert bootstrap_interval(np.array([True, False]), ["a", "a"], seed=0) is None
    with pytest.raises(ValueError, match="2 answers need as many group names, got 1"):
        bootstrap_interval(np.array([True, False]), ["a"], seed=0)


def test_the_interval_of_a_mean_of_splits_draws_a_group_for_all_its_splits_at_once():
    """Splits that share their groups move together; splits of different groups move apart and their mean less."""
    right = np.array([True] * 10 + [False] * 10)
    groups = [f"g{i}" for i in range(20)]
    one = bootstrap_interval(right, groups, seed=0)
    assert bootstrap_mean_interval([right, right], [groups, groups], seed=0) == one
    others = [f"h{i}" for i in range(20)]
    low, high = bootstrap_mean_interval([right, right], [groups, others], seed=0)
    assert one[0] < low < high < one[1]


def test_a_split_whose_groups_were_not_drawn_does_not_count_in_that_draw():
    # Two groups, a split each: half of the draws hold both (mean .5), the others one of them (1 or 0).
    low, high = bootstrap_mean_interval([np.array([True]), np.array([False])], [["a"], ["b"]], seed=0)
    assert (low, high) == (0.0, 1.0)
    assert bootstrap_mean_interval([np.array([True])] * 2, [["a"]] * 2, seed=0) is None
