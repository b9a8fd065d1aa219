"""Which views a step trains on: independent of workers, of the starting step and of the training seed."""

import dataclasses

import numpy as np
import pytest

from data.draw import draw_tuples, epoch_order
from data.errors import ViewError
from data.render import render_batch
from data.store import ClipStore
from data.views import Augment
from trainer.config import ConfigError, RunConfig
from trainer.sampler import Sampler, count_whole, split_rows, write_train_list


def make(store, config, num_rows=None):
    train, _, _, _ = split_rows(store, config)
    return Sampler(store.videos, train[:num_rows], config, trusted=True)


def test_a_step_is_a_slice_of_its_epoch_drawn_in_one_piece(store, config):
    sampler = make(store, config)
    train, _, _, _ = split_rows(store, config)
    for step in range(6):
        epoch = step // 3
        order = epoch_order(store.videos, train, view_seed=0, epoch=epoch)
        drawn = draw_tuples(
            store.videos, order, view_seed=0, epoch=epoch, spec=config.clip_spec, augment=Augment(enabled=True)
        )
        start = step % 3 * 4
        assert sampler.views(step).to_bytes() == drawn.items(start, start + 4).to_bytes()


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [4, 5])
def test_the_shares_of_the_workers_make_up_the_same_step(store, config, world, batch_size):
    config = dataclasses.replace(config, batch_size=batch_size)
    alone, shared = make(store, config), make(store, dataclasses.replace(config, num_workers=world))
    for step in range(shared.steps_per_epoch):
        whole = alone.views(step).item_digests(store.videos)
        shares = [shared.views(step, rank, world).item_digests(store.videos) for rank in range(world)]
        assert [digest for share in shares for digest in share] == whole
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_views_do_not_depend_on_the_step_that_the_run_starts_with(store, config):
    from_start = make(store, config)
    expected = [from_start.views(step).to_bytes() for step in range(6)]
    for first in (1, 4, 5):
        sampler = make(store, config)
        assert [sampler.views(step).to_bytes() for step in range(first, 6)] == expected[first:]


def test_every_training_video_occurs_once_an_epoch_in_another_order(store, config):
    sampler = make(store, config)
    train, _, _, _ = split_rows(store, config)
    epochs = []
    for epoch in range(2):
        rows = [sampler.views(3 * epoch + i).records["video"][::3].tolist() for i in range(3)]
        epochs.append([row for step in rows for row in step])
        assert sorted(epochs[-1]) == sorted(train.tolist())
    assert epochs[0] != epochs[1]


def test_the_training_seed_changes_no_view_and_the_view_seed_does(store, config):
    views = make(store, config).views(0).to_bytes()
    assert make(store, dataclasses.replace(config, seed=5)).views(0).to_bytes() == views
    assert make(store, dataclasses.replace(config, view_seed=5)).views(0).to_bytes() != views


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "workers", "sizes"),
    [
        (12, 4, 0, [4, 4, 4]),
        (12, 5, 0, [5, 5, 2]),
        (11, 5, 0, [5, 5]),  # a rest of one tuple has no negatives
        (12, 5, 3, [5, 5]),  # a rest of two does not reach three workers
        (3, 16, 0, [3]),
        (2, 16, 2, [2]),
    ],
)
def test_the_last_batch_counts_if_every_worker_gets_a_tuple_of_it(store, config, num_rows, batch_size, workers, sizes):
    config = dataclasses.replace(config, batch_size=batch_size, num_workers=workers)
    sampler = make(store, config, num_rows)
    assert [sampler.views(step).num_items for step in range(sampler.steps_per_epoch)] == sizes
    assert sampler.total_steps == 2 * len(sizes)


@pytest.mark.parametrize(("num_rows", "workers"), [(1, 0), (2, 3)])
def test_no_run_has_epochs_without_steps(store, config, num_rows, workers):
    config = dataclasses.replace(config, batch_size=4, num_workers=workers)
    with pytest.raises(ConfigError, match=f"^{num_rows} training videos make no batch of at least {max(2, workers)}"):
        make(store, config, num_rows)


def test_the_run_may_end_within_an_epoch(store, config):
    sampler = make(store, dataclasses.replace(config, max_steps=4))
    assert (sampler.total_steps, sampler.total_epochs) == (4, 2)
    assert [sampler.is_validated(step) for step in range(4)] == [False, False, True, True]
    assert sampler.validated_epochs == (1, 2)
    assert [sampler.epoch_of(step) for step in range(4)] == [0, 0, 0, 1]
    assert make(store, dataclasses.replace(config, max_steps=99)).total_steps == 6


def groups_of(store, rows):
    return {store.groups[row] for row in rows}


@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.5, 0.75])
def test_held_out_groups_are_whole_and_the_test_list_is_on_neither_side(store, config, fraction):
    train, validation, test, left_out = split_rows(store, dataclasses.replace(config, val_fraction=fraction))
    assert len(groups_of(store, validation)) == max(1, round(4 * fraction))
    assert not groups_of(store, train) & groups_of(store, validation)
    assert set(test.tolist()) == {row for row in range(len(store)) if store.groups[row] in ("g05", "g06")}
    assert not set(test.tolist()) & {*train.tolist(), *validation.tolist()}
    assert len(train) + len(validation) == 16
    assert left_out == 1


def test_the_hold_out_is_the_same_for_every_seed_and_view_seed(store, config):
    expected = [part.tolist() for part in split_rows(store, config)[:3]]
    for seed in (1, 7):
        changed = dataclasses.replace(config, seed=seed, view_seed=seed)
        assert [part.tolist() for part in split_rows(store, changed)[:3]] == expected


def test_a_split_that_leaves_nothing_to_train_on_is_refused(store, config):
    with pytest.raises(ConfigError, match="16 training videos in 4 groups cannot be split for validation"):
        split_rows(store, dataclasses.replace(config, val_fraction=0.99))


def test_lists_that_share_a_video_are_refused_with_their_flags(store, config, monkeypatch):
    lists = {"train01": np.array([0, 1, 2, 4, 5]), "test01": np.array([8, 2, 9, 1])}
    monkeypatch.setattr(ClipStore, "subset", lambda _self, name: lists[name])
    with pytest.raises(ConfigError, match="2 of the 4 videos of --test-subset test01 are in --train-subset train01"):
        split_rows(store, config)


def test_videos_that_are_all_too_short_are_refused_with_the_length_that_is_needed(store):
    config = RunConfig(store=str(store.path), clip_len=16, interval=8, crop=32)
    with pytest.raises(ConfigError, match="64 frames that a tuple needs: choose a smaller --clip-len or --interval"):
        split_rows(store, config)


def test_a_video_that_just_fits_is_used(store, config):
    fits = dataclasses.replace(config, clip_len=16, interval=6)  # 3 * 16 + 2 * 6 = 60 frames
    train, validation, _, left_out = split_rows(store, fits)
    assert (len(train) + len(validation), left_out) == (16, 1)
    starts = Sampler(store.videos, train, fits).views(0).records["start"].reshape(-1, 3)
    assert np.array_equal(starts, [[0, 22, 44]] * 4)


def test_groups_whose_names_are_not_utf_8_are_held_out_like_others(store, config, monkeypatch):
    monkeypatch.setattr(store, "groups", tuple(f"{group}\udce9" for group in store.groups))
    train, validation, _, _ = split_rows(store, config)
    assert not {store.groups[row] for row in train} & {store.groups[row] for row in validation}
    assert len(validation)


def keys_of(store, rows):
    return {store.videos.keys[row] for row in rows}


def test_fractions_are_nested_and_leave_validation_and_test_whole(store, config):
    parts = {f: split_rows(store, dataclasses.replace(config, fraction=f)) for f in (100.0, 50.0, 25.0)}
    whole = parts[100.0]
    for part in parts.values():
        assert [part[1].tolist(), part[2].tolist(), part[3]] == [whole[1].tolist(), whole[2].tolist(), whole[3]]
    sets = [keys_of(store, parts[f][0]) for f in (25.0, 50.0, 100.0)]
    assert sets[0] < sets[1] < sets[2]
    sizes = np.bincount(store.labels[whole[0]])
    for f in (50.0, 25.0):
        counts = np.bincount(store.labels[parts[f][0]], minlength=len(sizes))
        assert counts.tolist() == [max(1, int(f * n / 100 + 0.5)) if n else 0 for n in sizes]


def test_the_subset_seed_chooses_the_fraction_and_no_other_seed_does(store, config):
    half = dataclasses.replace(config, fraction=50.0)
    expected = split_rows(store, half)[0].tolist()
    assert split_rows(store, dataclasses.replace(half, seed=4, view_seed=4))[0].tolist() == expected
    others = {tuple(split_rows(store, dataclasses.replace(half, subset_seed=s))[0].tolist()) for s in range(6)}
    assert len(others) > 1


def test_the_smallest_fraction_is_one_video_of_each_class_in_one_batch(store, config):
    tiny = dataclasses.replace(config, fraction=0.001)
    train = split_rows(store, tiny)[0]
    assert sorted(store.labels[train].tolist()) == sorted(set(store.labels[split_rows(store, config)[0]].tolist()))
    sampler = Sampler(store.videos, train, tiny)
    assert (sampler.steps_per_epoch, sampler.views(0).num_items) == (1, len(train))


def test_a_fraction_that_leaves_one_video_is_refused_in_a_sentence(store, config, monkeypatch):
    monkeypatch.setattr(store, "labels", np.zeros_like(store.labels))
    with pytest.raises(ConfigError, match="--fraction 1 leaves 1 of 12 training videos, a batch needs at least 2"):
        split_rows(store, dataclasses.replace(config, fraction=1.0))


def test_equal_steps_take_as_many_steps_as_the_whole_list_in_more_epochs(store, config):
    equal = dataclasses.replace(config, fraction=0.001, equal_steps=True)
    sampler = Sampler(store.videos, split_rows(store, equal)[0], equal, count_whole(store, equal))
    assert count_whole(store, equal) == 12
    assert (sampler.total_steps, sampler.steps_per_epoch, sampler.total_epochs) == (6, 1, 6)
    assert len({sampler.views(step).to_bytes() for step in range(6)}) == 6
    stopped = dataclasses.replace(equal, max_steps=4)
    assert Sampler(store.videos, split_rows(store, stopped)[0], stopped, 12).total_steps == 4
    with pytest.raises(ConfigError, match="num_whole must be given"):
        Sampler(store.videos, split_rows(store, equal)[0], equal)


def test_with_equal_steps_a_fraction_is_validated_as_often_as_the_whole_list(store, config):
    """5 epochs of 3 steps on the whole list: 15 epochs of 1 step; 5 rounded up to 8, so that quarters are there."""
    equal = dataclasses.replace(config, fraction=0.001, equal_steps=True, epochs=5)
    sampler = Sampler(store.videos, split_rows(store, equal)[0], equal, count_whole(store, equal))
    assert (sampler.total_epochs, sampler.steps_per_epoch) == (15, 1)
    assert sampler.validated_epochs == (2, 4, 6, 8, 9, 11, 13, 15)
    assert [step + 1 for step in range(15) if sampler.is_validated(step)] == list(sampler.validated_epochs)
    stopped = dataclasses.replace(equal, max_steps=7)
    stopped_sampler = Sampler(store.videos, split_rows(store, stopped)[0], stopped, 12)
    assert stopped_sampler.validated_epochs == (2, 4, 6, 7)
    assert [step + 1 for step in range(7) if stopped_sampler.is_validated(step)] == [2, 4, 6, 7]


def test_at_100_percent_equal_steps_change_nothing(store, config):
    equal = dataclasses.replace(config, equal_steps=True)
    train = split_rows(store, equal)[0]
    ours, plain = Sampler(store.videos, train, equal, count_whole(store, equal)), make(store, config)
    assert (ours.total_steps, ours.total_epochs) == (plain.total_steps, plain.total_epochs)


def test_the_list_of_a_run_names_the_videos_that_it_trains_on(store, config, tmp_path):
    train = split_rows(store, dataclasses.replace(config, fraction=50.0))[0]
    write_train_list(tmp_path / "train_list.txt", store, train)
    assert (tmp_path / "train_list.txt").read_text().splitlines() == [store.videos.keys[row] for row in train]


def test_a_run_with_its_own_operation_loads_it_and_names_it_in_every_view(store, config, tmp_path, monkeypatch):
    (tmp_path / "sampler_operation.py").write_text("def mirror(clip):\n    return clip[:, :, ::-1]\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("PRECEPTOR_PLUGINS", raising=False)
    own = dataclasses.replace(config, pretext_operation="sampler_operation:mirror")
    with pytest.raises(ViewError, match="PRECEPTOR_PLUGINS=sampler_operation:mirror"):  # nobody has typed it
        Sampler(store.videos, split_rows(store, own)[0], own)
    views = make(store, own).views(0)
    assert views.operation == "sampler_operation:mirror"
    assert render_batch(store.gather(views), views).shape[0] == len(views)
    with pytest.raises(ViewError, match="has no absent"):
        make(store, dataclasses.replace(config, pretext_operation="sampler_operation:absent"))
