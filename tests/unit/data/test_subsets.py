"""Fractions of a list: how many of each class, nested, the same for the same seed, and their list files."""

import numpy as np
import pytest

from data.errors import DataError
from data.subsets import count_of, take_fraction, write_list

SIZES = (42, 40, 3, 1, 17)  # videos of each class
LABELS = np.repeat(np.arange(len(SIZES)), SIZES)
KEYS = [f"Class{label}/video{i}" for i, label in enumerate(LABELS)]


def chosen(percent: float, seed: int = 0) -> set[str]:
    return {KEYS[i] for i in take_fraction(KEYS, LABELS, percent, seed)}


@pytest.mark.parametrize("percent", [100.0, 50.0, 25.0, 12.5, 2.0, 0.001])
def test_each_class_gives_its_share_rounded_half_up_and_at_least_one(percent):
    counts = [sum(key.startswith(f"Class{label}/") for key in chosen(percent)) for label in range(len(SIZES))]
    assert counts == [max(1, int(percent * size / 100 + 0.5)) for size in SIZES]


@pytest.mark.parametrize(
    ("num_videos", "percent", "count"),
    [(1, 2, 1), (25, 2, 1), (75, 2, 2), (74, 2, 1), (3, 50, 2), (10, 25, 3), (9, 25, 2), (50, 0.7, 1), (150, 0.7, 1),
     (215, 0.7, 2), (1000, 0.15, 2)],
)  # fmt: skip
def test_halves_are_rounded_up_whatever_the_percentage_is_as_a_float(num_videos, percent, count):
    assert count_of(num_videos, percent) == count


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_smaller_fractions_lie_inside_larger_ones(seed):
    sets = [chosen(percent, seed) for percent in (2.0, 25.0, 50.0, 100.0)]
    assert sets[0] < sets[1] < sets[2] < sets[3] == set(KEYS)


def test_the_same_seed_gives_the_same_videos_and_another_seed_others():
    assert chosen(25.0, 3) == chosen(25.0, 3)
    assert len({frozenset(chosen(25.0, seed)) for seed in range(8)}) == 8


def test_the_choice_does_not_depend_on_the_order_of_the_list():
    shuffled = np.random.default_rng(0).permutation(len(KEYS))
    keys = [KEYS[i] for i in shuffled]
    assert {keys[i] for i in take_fraction(keys, LABELS[shuffled], 25.0, 0)} == chosen(25.0)


def test_a_class_is_drawn_alike_whatever_other_classes_there_are():
    alone = take_fraction(KEYS[:42], LABELS[:42], 25.0, 0)
    assert {KEYS[i] for i in alone} == {key for key in chosen(25.0) if key.startswith("Class0/")}


def test_positions_are_ascending_so_that_the_order_of_the_list_is_kept():
    positions = take_fraction(KEYS, LABELS, 50.0, 0)
    assert positions.tolist() == sorted(set(positions.tolist()))


def test_every_video_of_a_class_is_about_equally_likely():
    counts = np.zeros(42)
    for seed in range(400):
        counts[take_fraction(KEYS[:42], LABELS[:42], 50.0, seed)] += 1
    assert counts.sum() == 400 * 21
    assert np.abs(counts - 200).max() < 5 * 10  # 10: the deviation of 400 fair tosses


@pytest.mark.parametrize("percent", [0.0, -1.0, 100.1, float("nan")])
def test_a_percentage_out_of_range_is_refused_with_its_value(percent):
    with pytest.raises(DataError, match=rf"above 0 and at most 100 percent, got {percent}"):
        take_fraction(KEYS, LABELS, percent, 0)


def test_a_list_file_has_a_key_in_each_line_whatever_characters_it_holds(tmp_path):
    keys = ("a b/x#1", "brush_hair/\u00fc'\"", "c/\udce9t\udce9", "d/\r tab\t")
    write_list(tmp_path / "list.txt", keys)
    assert (tmp_path / "list.txt").read_bytes() == (b"a b/x#1\nbrush_hair/\xc3\xbc'\"\nc/\xe9t\xe9\nd/\r tab\t\n")


def test_keys_that_would_break_a_list_file_are_refused(tmp_path):
    for key in ("", "two\nlines"):
        with pytest.raises(DataError, match="a key in each line"):
            write_list(tmp_path / "list.txt", ["a", key])
    assert list(tmp_path.iterdir()) == []
