"""Drawing, packing and naming of views, and the generator beneath, against known answers and written-out results."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.draw import draw_tuples, epoch_order, eval_tuples, long_enough, uniform_clips
from data.errors import VideoTooShort, ViewError
from data.philox import philox4x32, uniform
from data.views import (
    JITTER_ORDERS,
    QUADRANT_ORDERS,
    REMOTE,
    SEGMENT_SWAPS,
    VIEW_DTYPE,
    Augment,
    ClipSpec,
    Pretext,
    VideoTable,
    ViewBatch,
    frame_order,
    key_hash,
    segment_bounds,
)

SPEC = ClipSpec(clip_len=10, interval=8, crop=56)  # a tuple spans 46 frames
FRAME_SIZE = (64, 86)


def make_table(num_videos=40, num_frames=100, first=0):
    """Videos video<first>, video<first + 1>, ...; a length for all, or one each."""
    keys = tuple(f"video{i}" for i in range(first, first + num_videos))
    hashes = np.array([key_hash(key) for key in keys], dtype=np.uint64)
    lengths = np.broadcast_to(np.asarray(num_frames, dtype=np.int64), num_videos).copy()
    return VideoTable("ab" * 16, keys, hashes, hashes ^ np.uint64(0xFFFF), lengths, FRAME_SIZE)


def rows_of(table):
    return np.arange(len(table.keys))


def draw(table, rows=None, *, view_seed=1, epoch=2, augment=None, **kwargs):
    rows = rows_of(table) if rows is None else np.asarray(rows)
    kwargs = {"spec": SPEC, "augment": augment or Augment()} | kwargs
    return draw_tuples(table, rows, view_seed=view_seed, epoch=epoch, **kwargs)


def assert_share(flags, probability):
    """The share of true flags lies within five standard deviations of a binomial."""
    n = len(flags)
    assert abs(np.sum(flags) - n * probability) <= 5 * np.sqrt(n * probability * (1 - probability))


# --- the generator


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    assert philox4x32(np.array([counter], dtype=np.uint64), key)[0].tolist() == expected


def test_uniform_takes_53_bits_of_the_first_two_words():
    # Counter (0, 0, 0, 0) and key (0, 0) are the first known answer.
    assert uniform(0, [0], 0, 0, 0)[0] == ((0x6627E8D5 << 32 | 0xE169C58D) >> 11) / 2**53


def test_uniform_puts_each_argument_into_bits_of_its_own():
    calls = [(0, 0, 0, 0, 0), (1, 0, 0, 0, 0), (1 << 32, 0, 0, 0, 0), (0, 1, 0, 0, 0), (0, 1 << 32, 0, 0, 0)]
    calls += [(0, 0, 1, 0, 0), (0, 0, 0, 1, 0), (0, 0, 0, 0, 1)]
    values = [uniform(seed, [stream], epoch, slot, field)[0] for seed, stream, epoch, slot, field in calls]
    assert len(set(values)) == len(calls)


def test_uniform_is_uniform_over_streams():
    values = uniform(7, np.arange(20_000), 3, 1, 4)
    assert values.min() >= 0
    assert values.max() < 1
    for cell in range(10):
        assert_share((values * 10).astype(int) == cell, 0.1)


# --- drawing


def test_a_tuple_is_the_same_in_any_subset_and_order():
    table = make_table()
    everything = draw(table)
    chosen = [31, 4, 4, 17]
    assert draw(table, chosen).to_bytes() == everything.take(chosen).to_bytes()
    for row in (0, 39):
        assert draw(table, [row]).to_bytes() == everything.items(row, row + 1).to_bytes()


def test_a_draw_follows_the_video_key_and_not_its_row():
    table, shifted = make_table(40), make_table(20, first=20)
    here, there = draw(table, np.arange(20, 40)), draw(shifted)
    assert here.item_digests(table) == there.item_digests(shifted)
    assert here.to_bytes() != there.to_bytes()  # the rows differ


@pytest.mark.parametrize("change", [{"view_seed": 2}, {"epoch": 3}, {"view_seed": 1 + (1 << 40)}])
def test_another_seed_or_epoch_draws_other_views(change):
    table = make_table()
    one, other = draw(table).records, draw(table, **change).records
    assert np.mean(one["brightness"] == other["brightness"]) < 0.5
    assert np.mean(one["start"] == other["start"]) < 0.5


def test_the_clips_of_a_tuple_lie_an_interval_apart_and_draw_their_own_augmentation():
    records = draw(make_table(2000)).records.reshape(-1, 3)
    assert np.all(np.diff(records["start"].astype(int), axis=1) == 18)
    for name in ("crop_y", "crop_x", "hue", "blur_sigma", "flip"):
        assert np.any(records[name][:, 0] != records[name][:, 1])
        assert np.any(records[name][:, 1] != records[name][:, 2])


@pytest.mark.parametrize("room", [0, 1, 5])
def test_starts_cover_exactly_what_fits(room):
    table = make_table(2000, num_frames=SPEC.tuple_span + room)
    starts = draw(table).records["start"][::3]
    assert np.unique(starts).tolist() == list(range(room + 1))
    for start in range(room + 1):
        assert_share(starts == start, 1 / (room + 1))


def test_crops_cover_exactly_what_fits():
    records = draw(make_table(2000)).records
    assert np.unique(records["crop_y"]).tolist() == list(range(64 - 56 + 1))
    assert np.unique(records["crop_x"]).tolist() == list(range(86 - 56 + 1))
    assert np.all(records["crop_h"] == 56)
    assert np.all(records["crop_w"] == 56)


def test_pretext_labels_are_uniform_and_only_on_the_middle_clip():
    batch = draw(make_table(10_000))
    for label in range(5):
        assert_share(batch.pretext_labels == label, 0.2)
    records = batch.records.reshape(-1, 3)
    assert not records["pretext"][:, [0, 2]].any()
    assert not records["variant"][:, [0, 2]].any()


@pytest.mark.parametrize(("any_swap", "swaps"), [(False, range(3)), (True, range(6))])
def test_variants_are_uniform_over_those_of_their_operation(any_swap, swaps):
    middle = draw(make_table(20_000), any_swap=any_swap).records[1::3]
    variants = {
        Pretext.UNCHANGED: range(1),
        Pretext.ROTATION: range(1, 4),
        Pretext.SPATIAL_PERMUTATION: range(1, 24),
        Pretext.TEMPORAL_SWAP: swaps,
        Pretext.TEMPORAL_SHUFFLE: range(1),
    }
    for label, allowed in variants.items():
        drawn = middle["variant"][middle["pretext"] == label]
        assert set(drawn.tolist()) == set(allowed)
        for variant in allowed:
            assert_share(drawn == variant, 1 / len(allowed))


def test_augmentation_has_its_probabilities_and_ranges():
    records = draw(make_table(10_000)).records
    jittered = records[records["jitter"] == 1]
    for flags, probability in ((records["jitter"], 0.8), (records["gray"], 0.2), (records["flip"], 0.5)):
        assert_share(flags == 1, probability)
    assert_share(records["blur_sigma"] > 0, 0.5)
    for order in range(24):
        assert_share(jittered["jitter_order"] == order, 1 / 24)
    for name, low, high in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0.6, 1.4),
        ("saturation", 0.6, 1.4),
        ("hue", -0.1, 0.1),
    ):
        assert_uniform_between(jittered[name], low, high)
    assert_uniform_between(records["blur_sigma"][records["blur_sigma"] > 0], 0.1, 2.0)


def assert_uniform_between(values, low, high):
    assert values.min() >= np.float32(low)
    assert values.max() <= np.float32(high)
    for cell in range(4):
        assert_share(((values - low) / (high - low) * 4).astype(int) == cell, 0.25)


def test_fields_that_do_not_apply_are_zero():
    records = draw(make_table(1000)).records
    plain = records[records["jitter"] == 0]
    assert len(plain)
    for name in ("jitter_order", "brightness", "contrast", "saturation", "hue"):
        assert not plain[name].any()
    unaugmented = draw(make_table(1000), augment=Augment(enabled=False)).records
    for name in ("jitter", "gray", "flip", "blur_sigma"):
        assert not unaugmented[name].any()


def test_switching_augmentation_off_changes_neither_starts_nor_crops_nor_labels():
    table = make_table()
    on, off = draw(table).records, draw(table, augment=Augment(enabled=False)).records
    for name in ("video", "start", "crop_y", "crop_x", "pretext", "variant"):
        assert np.array_equal(on[name], off[name])


@pytest.mark.parametrize(("num_frames", "has_room"), [(46, False), (65, False), (66, True), (67, True), (130, True)])
def test_remote_clips_lie_at_least_a_clip_length_away_from_the_tuple(num_frames, has_room):
    batch = draw(make_table(5000, num_frames=num_frames), shuffle=REMOTE)
    records = batch.records.reshape(-1, 3)
    is_remote = records["pretext"][:, 1] == Pretext.TEMPORAL_SHUFFLE
    assert is_remote.any() == has_room
    first = records["start"][is_remote, 0].astype(int)
    remote = records["start"][is_remote, 1].astype(int)
    assert np.all((remote + 10 <= first - 10) | (remote >= first + 46 + 10))
    assert np.all((remote >= 0) & (remote + 10 <= num_frames))
    assert np.all(records["variant"][is_remote, 1] == REMOTE)


def test_remote_clips_reach_every_allowed_start():
    batch = draw(make_table(100_000, num_frames=90), shuffle=REMOTE)
    records = batch.records.reshape(-1, 3)
    remote = records[records["pretext"][:, 1] == Pretext.TEMPORAL_SHUFFLE]
    for first in (0, 22, 44):  # the tuple at 22 spans frames 22 to 67
        allowed = [s for s in range(81) if s + 20 <= first or s >= first + 56]
        assert np.unique(remote["start"][remote["start"][:, 0] == first, 1]).tolist() == allowed


def test_videos_without_room_for_a_remote_clip_share_the_other_four_labels_evenly():
    labels = draw(make_table(10_000, num_frames=50), shuffle=REMOTE).pretext_labels
    for label in range(4):
        assert_share(labels == label, 0.25)


def test_a_video_that_is_too_short_is_named_with_both_lengths():
    table = make_table(3, num_frames=[46, 45, 90])
    assert long_enough(table, rows_of(table), 46).tolist() == [True, False, True]
    with pytest.raises(VideoTooShort, match="video video1 has 45 frames, 46 are needed"):
        draw(table)


def test_a_crop_larger_than_the_frame_is_refused():
    with pytest.raises(ViewError, match="crop 65 does not fit into stored frames of 64x86"):
        draw(make_table(1), spec=ClipSpec(crop=65))


@pytest.mark.parametrize("fields", [{"clip_len": 7}, {"interval": -1}, {"crop": 7}])
def test_an_impossible_clip_spec_is_refused(fields):
    with pytest.raises(ViewError, match="are needed"):
        ClipSpec(**fields)


def test_the_span_of_a_tuple_is_that_of_the_method():
    assert ClipSpec(clip_len=10).tuple_span == 46
    assert ClipSpec(clip_len=16).tuple_span == 64


# --- order of an epoch


def test_an_epoch_shows_every_video_once_in_an_order_of_its_own():
    table = make_table()
    orders = [epoch_order(table, rows_of(table), view_seed=1, epoch=e).tolist() for e in range(3)]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_the_order_of_a_subset_is_the_subset_of_the_order():
    table = make_table()
    subset = np.array([30, 2, 9, 25, 11])
    everything = epoch_order(table, rows_of(table), view_seed=1, epoch=5).tolist()
    expected = [row for row in everything if row in subset]
    assert epoch_order(table, subset, view_seed=1, epoch=5).tolist() == expected


# --- evaluation


def test_eval_tuples_are_written_out_here():
    table = make_table(2, num_frames=[46, 57])
    batch = eval_tuples(table, rows_of(table), view_seed=0, spec=SPEC, tuples_per_video=3)
    records = batch.records.reshape(2, 3, 5, 3)
    assert batch.views_per_item == 3
    assert batch.pretext_labels.tolist() == [0, 1, 2, 3, 4] * 6
    assert np.all(records["start"][0] == [0, 18, 36])
    assert records["start"][1, :, 0].tolist() == [[0, 18, 36], [5, 23, 41], [11, 29, 47]]
    assert np.all(records["start"][1] == records["start"][1, :, :1])
    assert np.all(records["video"] == np.array([0, 1])[:, None, None, None])
    assert np.all(records["crop_y"] == 4)
    assert np.all(records["crop_x"] == 15)
    for name in ("jitter", "gray", "flip", "blur_sigma"):
        assert not records[name].any()


def test_one_eval_tuple_per_video_lies_in_the_middle():
    table = make_table(1, num_frames=57)
    batch = eval_tuples(table, rows_of(table), view_seed=0, spec=SPEC, tuples_per_video=1)
    assert batch.records["start"][:3].tolist() == [5, 23, 41]


def test_eval_variants_are_drawn_for_each_tuple_and_stay_with_the_key():
    table = make_table(300)
    batch = eval_tuples(table, rows_of(table), view_seed=0, spec=SPEC, tuples_per_video=2)
    variants = batch.records["variant"].reshape(300, 2, 5, 3)[..., 1]
    assert set(variants[:, :, 1].ravel()) == {1, 2, 3}
    assert set(variants[:, :, 2].ravel()) == set(range(1, 24))
    assert set(variants[:, :, 3].ravel()) == {0, 1, 2}
    assert not variants[:, :, [0, 4]].any()
    assert np.any(variants[:, 0, 2] != variants[:, 1, 2])
    subset = eval_tuples(table, np.array([7]), view_seed=0, spec=SPEC, tuples_per_video=2)
    assert subset.to_bytes() == batch.items(70, 80).to_bytes()


def test_uniform_clips_are_written_out_here():
    table = make_table(2, num_frames=[10, 33])
    batch = uniform_clips(table, np.array([1, 0]), spec=SPEC, clips_per_video=5)
    assert batch.views_per_item == 1
    assert batch.records["video"].tolist() == [1] * 5 + [0] * 5
    assert batch.records["start"].tolist() == [0, 5, 11, 17, 23] + [0] * 5
    for name, value in (("clip_len", 10), ("crop_h", 56), ("crop_w", 56), ("crop_y", 4), ("crop_x", 15)):
        assert np.all(batch.records[name] == value)
    assert not batch.records["pretext"].any()


def test_uniform_clips_need_a_clip_and_no_more():
    with pytest.raises(VideoTooShort, match="9 frames, 10 are needed"):
        uniform_clips(make_table(1, num_frames=9), np.array([0]), spec=SPEC, clips_per_video=2)


# --- pretext tables


def test_segments_of_10_and_16_frames():
    assert [segment_bounds(10, i) for i in range(4)] == [(0, 2), (2, 5), (5, 7), (7, 10)]
    assert [segment_bounds(16, i) for i in range(4)] == [(0, 4), (4, 8), (8, 12), (12, 16)]


@pytest.mark.parametrize("num_frames", range(8, 33))
def test_a_temporal_swap_is_a_permutation_and_never_the_identity(num_frames):
    for variant in range(len(SEGMENT_SWAPS)):
        order = frame_order(Pretext.TEMPORAL_SWAP, variant, num_frames).tolist()
        assert sorted(order) == list(range(num_frames))
        assert order != list(range(num_frames))


def test_the_tables_of_orders_begin_with_the_identity_and_repeat_nothing():
    for table in (JITTER_ORDERS, QUADRANT_ORDERS):
        assert table[0] == (0, 1, 2, 3)
        assert len(set(table)) == 24


# --- batches and bytes


def test_items_take_and_labels_keep_tuples_whole():
    batch = draw(make_table(6))
    assert (len(batch), batch.num_items) == (18, 6)
    assert batch.items(2, 4).records["video"].tolist() == [2, 2, 2, 3, 3, 3]
    assert batch.take([5, 0]).records["video"].tolist() == [5, 5, 5, 0, 0, 0]
    assert batch.take([5, 0]).pretext_labels.tolist() == batch.pretext_labels[[5, 0]].tolist()


@pytest.mark.parametrize(
    ("records", "views_per_item"),
    [(np.zeros(4, VIEW_DTYPE), 3), (np.zeros(3, VIEW_DTYPE), 0), (np.zeros((1, 3), VIEW_DTYPE), 3), (np.zeros(3), 3)],
)
def test_a_batch_that_is_no_whole_items_of_views_is_refused(records, views_per_item):
    with pytest.raises(ViewError):
        ViewBatch(records, views_per_item, "00" * 16)


def test_bytes_come_back_as_the_same_batch_within_64_bytes_a_clip():
    batch = draw(make_table(16))
    blob = batch.to_bytes()
    back = ViewBatch.from_bytes(blob)
    assert np.array_equal(back.records, batch.records)
    assert (back.views_per_item, back.store_fingerprint) == (3, "ab" * 16)
    assert back.to_bytes() == blob
    assert len(blob) <= 64 * len(batch)
    assert len(draw(make_table(1)).to_bytes()) <= 64 * 3


@given(st.binary(max_size=200))
def test_garbage_is_refused(blob):
    with pytest.raises(ViewError):
        ViewBatch.from_bytes(blob)


def test_a_cut_lengthened_or_relabelled_blob_is_refused():
    blob = draw(make_table(2)).to_bytes()
    for length in range(len(blob)):
        with pytest.raises(ViewError):
            ViewBatch.from_bytes(blob[:length])
    for broken in (blob + b"\0", b"XXXX" + blob[4:], blob[:4] + b"\2\0" + blob[6:]):
        with pytest.raises(ViewError):
            ViewBatch.from_bytes(broken)
    for views_per_item in (0, 4):
        with pytest.raises(ViewError, match="whole items"):
            ViewBatch.from_bytes(blob[:6] + bytes([views_per_item, 0]) + blob[8:])


# --- digests


def test_digests_do_not_depend_on_row_numbers_or_batch():
    table = make_table(40)
    grown = VideoTable(
        "cd" * 16,
        ("new", *table.keys),
        np.concatenate([[np.uint64(5)], table.key_hashes]),
        np.concatenate([[np.uint64(6)], table.content_hashes]),
        np.concatenate([[100], table.num_frames]),
        FRAME_SIZE,
    )
    digests = draw(table).item_digests(table)
    assert draw(grown, np.arange(1, 41)).item_digests(grown) == digests
    assert draw(table, [3]).item_digests(table) == [digests[3]]
    assert len(set(digests)) == 40
    assert {len(digest) for digest in digests} == {16}


@pytest.mark.parametrize("name", [name for name in VIEW_DTYPE.names if name != "video"])
@pytest.mark.parametrize("clip", [0, 1, 2])
def test_a_digest_changes_with_every_field_of_every_view(name, clip):
    table = make_table(1)
    batch = draw(table)
    changed = batch.records.copy()
    changed[name][clip] += 1
    other = ViewBatch(changed, 3, batch.store_fingerprint)
    assert other.item_digests(table) != batch.item_digests(table)


def test_a_digest_changes_with_the_video_its_content_and_the_grouping():
    table = make_table(3)
    batch = draw(table, [0])
    digest = batch.item_digests(table)
    renamed = dataclasses.replace(table, key_hashes=table.key_hashes + np.uint64(1))
    edited = dataclasses.replace(table, content_hashes=table.content_hashes + np.uint64(1))
    moved = batch.records.copy()
    moved["video"][2] = 1
    assert batch.item_digests(renamed) != digest
    assert batch.item_digests(edited) != digest
    assert ViewBatch(moved, 3, batch.store_fingerprint).item_digests(table) != digest
    single = ViewBatch(batch.records[:1], 1, batch.store_fingerprint).item_digests(table)
    assert single != ViewBatch(batch.records, 3, batch.store_fingerprint).item_digests(table)


def test_the_fingerprint_of_the_store_is_no_part_of_a_digest():
    table = make_table(2)
    batch = draw(table)
    assert ViewBatch(batch.records, 3, "00" * 16).item_digests(table) == batch.item_digests(table)


def test_generator_and_schema_are_pinned():
    """Recorded answers: if this fails, views of old runs and ledgers no longer mean what they said."""
    table = make_table(2)
    batch = draw(table, augment=Augment(jitter_p=1, gray_p=0.5, blur_p=1))
    assert [digest.hex() for digest in batch.item_digests(table)] == [
        "36b805b58a5243dc9e79ad416a199f0b",
        "71b23a19f530e3c0ab833b21a9cb07fe",
    ]
    assert batch.records["start"].tolist() == [8, 26, 44, 53, 71, 89]
    assert VIEW_DTYPE.itemsize == 44


# --- the label is drawn first, the remote shuffle second


@pytest.fixture(scope="module")
def mixed_remote():
    """Tuples of videos of 66 frames: some starts leave room for a remote clip and some do not."""
    batch = draw(make_table(40_000, num_frames=66), shuffle=REMOTE)
    start = batch.records["start"].reshape(-1, 3)[:, 0].astype(int)
    has_room = (start - 20 >= 0) | (start + 46 + 10 + 10 <= 66)  # written out: a clip of 10 at a distance of 10
    return batch, has_room


def test_tuples_with_room_for_a_remote_clip_have_all_five_labels_evenly(mixed_remote):
    batch, has_room = mixed_remote
    assert 0.05 < has_room.mean() < 0.95
    for label in range(5):
        assert abs((batch.pretext_labels[has_room] == label).mean() - 0.2) < 0.03


def test_tuples_without_room_never_have_label_4_and_the_other_four_evenly(mixed_remote):
    batch, has_room = mixed_remote
    for label, share in enumerate([0.25, 0.25, 0.25, 0.25, 0.0]):
        assert abs((batch.pretext_labels[~has_room] == label).mean() - share) < 0.01
    assert not (batch.pretext_labels[~has_room] == 4).any()


def test_the_label_is_drawn_first_so_that_no_variant_changes_it(mixed_remote):
    batch, has_room = mixed_remote
    for other in ({}, {"any_swap": True}):
        labels = draw(make_table(40_000, num_frames=66), **other).pretext_labels
        assert np.array_equal(labels[has_room], batch.pretext_labels[has_room])


def test_evaluation_with_remote_clips_leaves_out_places_without_room_and_changes_nothing_else():
    table = make_table(3, num_frames=[46, 90, 66])
    plain = eval_tuples(table, rows_of(table), view_seed=0, spec=SPEC, tuples_per_video=3)
    remote = eval_tuples(table, rows_of(table), view_seed=0, spec=SPEC, tuples_per_video=3, shuffle=REMOTE)
    starts = plain.records["start"].reshape(-1, 3)[:, 0].astype(int)
    frames = table.num_frames[plain.records["video"][::3]]
    has_room = (starts >= 20) | (starts + 66 <= frames)
    kept = has_room | (plain.pretext_labels != 4)
    assert 0 < (~kept).sum() < 9
    expected, records = plain.records.reshape(-1, 3)[kept], remote.records.reshape(-1, 3)
    is_remote = expected["pretext"][:, 1] == 4
    assert np.array_equal(expected[~is_remote], records[~is_remote])
    assert np.array_equal(expected[is_remote][:, [0, 2]], records[is_remote][:, [0, 2]])
    first, moved = records[is_remote]["start"][:, 0].astype(int), records[is_remote]["start"][:, 1].astype(int)
    assert np.all((moved + 10 <= first - 10) | (moved >= first + 46 + 10))
    assert np.all(moved + 10 <= frames[kept][is_remote])
    assert np.all(records[is_remote]["variant"][:, 1] == REMOTE)
