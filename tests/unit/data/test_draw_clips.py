"""Single training clips: drawn by counter, anywhere in a video, without a pretext operation."""

import numpy as np
import pytest

from data.draw import draw_clips
from data.errors import VideoTooShort
from data.views import Augment, ClipSpec, VideoTable, key_hash

SPEC = ClipSpec(clip_len=8, interval=2, crop=32)


def _videos(lengths):
    keys = tuple(f"v{i}" for i in range(len(lengths)))
    hashes = np.array([key_hash(key) for key in keys], dtype=np.uint64)
    return VideoTable("ab" * 16, keys, hashes, hashes, np.array(lengths, dtype=np.int64), (36, 40))


def _draw(rows, epoch=0, view_seed=0, augment=True, lengths=(8, 30, 100)):
    augmentation = Augment(enabled=augment)
    return draw_clips(
        _videos(lengths), np.array(rows), view_seed=view_seed, epoch=epoch, spec=SPEC, augment=augmentation
    )


def test_a_clip_is_the_same_whoever_else_is_drawn_and_in_whatever_order():
    together, alone = _draw([2, 0, 1]).records, [_draw([row]).records[0] for row in (2, 0, 1)]
    assert together.tolist() == [record.item() for record in alone]


def test_another_epoch_or_seed_draws_another_clip():
    drawn = {_draw([2], epoch=e, view_seed=s).records.tobytes() for e in range(3) for s in range(3)}
    assert len(drawn) == 9


def test_starts_reach_every_place_of_a_video_and_crops_every_place_of_a_frame():
    records = np.concatenate([_draw([1], epoch=epoch).records for epoch in range(600)])
    assert set(records["start"]) == set(range(30 - 8 + 1))
    assert set(records["crop_y"]) == set(range(36 - 32 + 1))
    assert set(records["crop_x"]) == set(range(40 - 32 + 1))
    assert not records["pretext"].any()


def test_a_video_of_one_clips_length_starts_at_its_first_frame():
    assert _draw([0]).records["start"].tolist() == [0]


def test_without_augmentation_only_the_place_is_drawn():
    record, augmented = _draw([2], augment=False).records[0], _draw([2]).records[0]
    for name in ("start", "crop_y", "crop_x"):
        assert record[name] == augmented[name]
    for name in ("jitter", "gray", "flip", "blur_sigma"):
        assert record[name] == 0


def test_a_video_that_holds_no_clip_is_refused():
    with pytest.raises(VideoTooShort):
        _draw([0], lengths=(7,))
