"""Retrieval against written-out answers and a naive loop."""

import math

import numpy as np
import pytest

from trainer.evaluate.retrieval import chance_top_k, first_hit_ranks, nearest, retrieval


def _one_clip(*vectors):
    return np.array(vectors, dtype=np.float32)[:, None, :]


GALLERY = _one_clip((1, 0), (0, 1), (-1, 0), (0, -1))
GALLERY_LABELS = np.array([0, 1, 2, 1])


def test_top_k_of_hand_made_features_is_as_written_out():
    # Neighbours in order: query 0 (10 degrees): 0 (class 0), 1 (class 1), 3, 2. Query 1 (80 degrees): 1, 0, 2, 3.
    queries = _one_clip((math.cos(0.17), math.sin(0.17)), (math.cos(1.4), math.sin(1.4)))
    assert retrieval(queries, GALLERY, np.array([0, 2]), GALLERY_LABELS, ks=(1, 2, 3, 4)) == {
        1: 0.5,
        2: 0.5,
        3: 1,
        4: 1,
    }
    assert first_hit_ranks(queries, GALLERY, np.array([0, 2]), GALLERY_LABELS).tolist() == [0, 2]


def test_features_of_a_video_are_averaged_over_its_clips_before_they_are_compared():
    # Alone the clips are nearest to videos 1 and 3; their mean (2, 0) points to video 0.
    query = np.array([[[2.0, 9.0], [2.0, -9.0]]], dtype=np.float32)
    assert first_hit_ranks(query, GALLERY, np.array([0]), GALLERY_LABELS).tolist() == [0]


def test_length_of_a_feature_vector_does_not_matter():
    gallery = _one_clip((100, 100), (0.001, 0))
    assert retrieval(_one_clip((1, 0.1)), gallery, np.array([1]), np.array([0, 1]), ks=(1,)) == {1: 1.0}


def test_of_equally_near_videos_the_lower_row_comes_first():
    gallery = _one_clip((1, 0), (1, 0), (1, 0))
    labels = np.array([7, 8, 9])
    queries = _one_clip((1, 0), (1, 0), (1, 0))
    assert first_hit_ranks(queries, gallery, np.array([9, 7, 8]), labels).tolist() == [2, 0, 1]


def test_k_larger_than_the_gallery_means_the_whole_gallery_and_keeps_its_key():
    # A class that the gallery lacks is not found by any k.
    queries = _one_clip((-1, 0), (0, 1))
    assert retrieval(queries, GALLERY, np.array([0, 5]), GALLERY_LABELS, ks=(1, 50)) == {1: 0.0, 50: 0.5}


def test_features_that_are_all_zero_have_cosine_zero_to_every_video():
    assert first_hit_ranks(_one_clip((0, 0)), GALLERY, np.array([1]), GALLERY_LABELS).tolist() == [1]
    nearest_is_zero = first_hit_ranks(_one_clip((-1, 0)), _one_clip((1, 0), (0, 0)), np.array([4]), np.array([3, 4]))
    assert nearest_is_zero.tolist() == [0]


def test_ranks_equal_those_of_a_naive_loop_over_more_queries_than_one_block():
    rng = np.random.default_rng(3)
    queries, gallery = rng.normal(size=(300, 2, 5)).astype(np.float32), rng.normal(size=(40, 3, 5)).astype(np.float32)
    query_labels, gallery_labels = rng.integers(0, 6, 300), rng.integers(0, 5, 40)
    wanted = []
    for features, label in zip(queries.astype(np.float64), query_labels, strict=True):
        mean = features.mean(axis=0)
        cosines = []
        for row, video in enumerate(gallery.astype(np.float64)):
            other = video.mean(axis=0)
            cosines.append((-(mean @ other) / np.linalg.norm(mean) / np.linalg.norm(other), row))
        ranked = [gallery_labels[row] for _, row in sorted(cosines)]
        wanted.append(ranked.index(label) if label in ranked else 40)
    assert first_hit_ranks(queries, gallery, query_labels, gallery_labels).tolist() == wanted


def test_nearest_videos_of_hand_made_features_are_as_written_out():
    # 10 degrees from video 0, so 80 from 1, 100 from 3 and 170 from 2.
    near = nearest(_one_clip((math.cos(math.pi / 18), math.sin(math.pi / 18))), GALLERY, 3)
    assert near.places.tolist() == [[0, 1, 3]]
    assert near.cosines[0] == pytest.approx([0.984808, 0.173648, -0.173648], abs=1e-5)


def test_of_equally_near_videos_those_with_lower_rows_are_shown_and_a_large_k_shows_all():
    near = nearest(_one_clip((1, 0), (0, 1)), _one_clip((0, 2), (1, 0), (3, 0), (0, 1)), 50)
    assert near.places.tolist() == [[1, 2, 0, 3], [0, 3, 1, 2]]
    assert near.cosines.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]


@pytest.mark.parametrize("num_queries", [1, 255, 256, 257, 513])
def test_every_query_is_answered_whatever_the_size_of_a_block(num_queries):
    queries = _one_clip(*[(1, 0)] * (num_queries - 1), (0, 1))
    labels = np.array([0] * (num_queries - 1) + [1])
    assert first_hit_ranks(queries, GALLERY, labels, GALLERY_LABELS).tolist() == [0] * num_queries
    assert len(nearest(queries, GALLERY, 2).places) == num_queries
    assert retrieval(queries, GALLERY, labels, GALLERY_LABELS, ks=(1,)) == {1: 1.0}


def test_ten_clips_of_a_video_count_as_one_video_of_their_mean():
    # Nine clips point to video 1 weakly, one to video 0 strongly: the mean (1.0, .9) is nearer to video 0.
    query = np.array([[(0.0, 1.0)] * 9 + [(10.0, 0.0)]], dtype=np.float32)
    assert first_hit_ranks(query, GALLERY, np.array([0]), GALLERY_LABELS).tolist() == [0]
    assert nearest(query, GALLERY, 1).cosines[0, 0] == pytest.approx(1 / math.hypot(1, 0.9))


def test_chance_is_the_accuracy_of_a_random_order():
    # 4 gallery videos, 2 of class 1: one draw finds it with 1/2, two draws with 1 - (2/4)(1/3) = 5/6.
    assert chance_top_k(np.array([1]), GALLERY_LABELS, 1) == pytest.approx(1 / 2)
    assert chance_top_k(np.array([1]), GALLERY_LABELS, 2) == pytest.approx(5 / 6)
    assert chance_top_k(np.array([1, 5]), GALLERY_LABELS, 50) == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("queries", "labels", "ks", "words"),
    [
        (_one_clip((1, 0)), np.array([0]), (0,), "at least 1"),
        (_one_clip((1, 0, 0)), np.array([0]), (1,), "3 features, the gallery 2"),
        (_one_clip((1, 0)), np.array([0, 1]), (1,), "query: features"),
        (np.zeros((0, 1, 2), dtype=np.float32), np.zeros(0, dtype=np.int64), (1,), "at least one video"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_both_values(queries, labels, ks, words):
    with pytest.raises(ValueError, match=words):
        retrieval(queries, GALLERY, labels, GALLERY_LABELS, ks)
