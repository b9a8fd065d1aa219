"""The renderer against an operation-by-operation reference in torch, and against pictures written out by hand."""

import importlib.util
import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import ViewError
from data.render import render, render_batch
from data.views import JITTER_ORDERS, QUADRANT_ORDERS, SEGMENT_SWAPS, VIEW_DTYPE, Pretext, ViewBatch

HEIGHT, WIDTH, CROP_H, CROP_W = 27, 33, 21, 24
JITTER = {"jitter": 1, "jitter_order": 7, "brightness": 1.3, "contrast": 1.4, "saturation": 1.4, "hue": 0.1}


def load_reference():
    """reference_render.py lies beside this file; test folders are no packages, so it is loaded by path."""
    spec = importlib.util.spec_from_file_location("reference_render", Path(__file__).with_name("reference_render.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load_reference()


def make_view(**fields):
    """One record; the crop of the constants above and no change of values unless asked for."""
    record = np.zeros(1, VIEW_DTYPE)
    defaults = {"clip_len": 3, "crop_y": 4, "crop_x": 5, "crop_h": CROP_H, "crop_w": CROP_W}
    for name, value in (defaults | fields).items():
        record[name] = value
    return record[0]


def make_frames(kind="noise", seed=0, num_frames=3):
    """[T, 27, 33, 3] uint8, read-only as a mapped store is."""
    rng = np.random.default_rng(seed)
    shape = (num_frames, HEIGHT, WIDTH, 3)
    if kind == "noise":
        frames = rng.integers(0, 256, shape, dtype=np.uint8)
    elif kind == "extreme":  # black, white, the pure colours and their neighbours
        frames = rng.choice(np.array([0, 1, 127, 128, 254, 255], dtype=np.uint8), shape)
    elif kind == "gray":
        frames = np.repeat(rng.integers(0, 256, (*shape[:3], 1), dtype=np.uint8), 3, axis=3)
    else:
        frames = np.full(shape, {"black": 0, "white": 255}[kind], dtype=np.uint8)
    frames.setflags(write=False)
    return frames


def assert_close(frames, view):
    """Within one grey level everywhere and .1 on average; the reference knows no pretext operation."""
    ours = render(frames, view).astype(np.int64)
    theirs = reference.render_reference(frames.copy(), view).astype(np.int64)
    assert ours.shape == theirs.shape
    difference = np.abs(ours - theirs)
    assert difference.max() <= 1
    assert difference.mean() < 0.1


@pytest.mark.parametrize("order", range(24))
@pytest.mark.parametrize("kind", ["noise", "extreme", "gray"])
def test_jitter_in_every_order_matches_the_reference(order, kind):
    assert_close(make_frames(kind, seed=order), make_view(**{**JITTER, "jitter_order": order}))


@pytest.mark.parametrize("order", range(24))
def test_jitter_that_saturates_is_clamped_after_each_operation(order):
    strong = {"jitter": 1, "jitter_order": order, "brightness": 1.9, "contrast": 1.8, "saturation": 2.0, "hue": -0.4}
    assert_close(make_frames("extreme", seed=order), make_view(**strong))


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(("gray", "jitter", "flip"), list(itertools.product([0, 1], repeat=3)))
def test_gray_blur_and_flip_match_the_reference(sigma, gray, jitter, flip):
    fields = {**JITTER, "jitter": jitter, "gray": gray, "blur_sigma": sigma, "flip": flip}
    assert_close(make_frames("noise", seed=3), make_view(**fields))


@pytest.mark.parametrize("kind", ["black", "white", "gray"])
def test_pictures_without_colour_survive_hue_and_saturation(kind):
    frames = make_frames(kind)
    view = make_view(jitter=1, jitter_order=0, brightness=1, contrast=1, saturation=1.4, hue=0.3)
    expected = frames[:, 4 : 4 + CROP_H, 5 : 5 + CROP_W].astype(np.int64)
    assert np.abs(render(frames, view).astype(np.int64) - expected).max() <= 1


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["noise", "extreme", "gray", "black", "white"]),
    order=st.integers(0, len(JITTER_ORDERS) - 1),
    factors=st.tuples(*[st.floats(0, 2, width=32)] * 3),
    hue=st.floats(-0.5, 0.5, width=32),
    gray=st.integers(0, 1),
    sigma=st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0]),
)
def test_any_drawn_colours_match_the_reference(seed, kind, order, factors, hue, gray, sigma):
    brightness, contrast, saturation = factors
    fields = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue, "gray": gray}
    assert_close(make_frames(kind, seed), make_view(jitter=1, jitter_order=order, blur_sigma=sigma, **fields))


def test_a_third_of_a_turn_of_hue_makes_red_green_and_back():
    red = np.zeros((3, HEIGHT, WIDTH, 3), dtype=np.uint8)
    red[..., 0] = 200
    neutral = {"jitter": 1, "brightness": 1, "contrast": 1, "saturation": 1}
    assert render(red, make_view(hue=1 / 3, **neutral))[0, 0, 0].tolist() == [0, 200, 0]
    assert render(red, make_view(hue=-1 / 3, **neutral))[0, 0, 0].tolist() == [0, 0, 200]


def test_gray_has_the_weights_of_torchvision():
    frames = np.zeros((3, HEIGHT, WIDTH, 3), dtype=np.uint8)
    frames[:] = (100, 200, 50)  # .2989 * 100 + .587 * 200 + .114 * 50 = 152.99
    assert np.all(render(frames, make_view(gray=1)) == 153)


def test_blur_of_one_white_pixel_is_the_gaussian():
    frames = np.zeros((3, HEIGHT, WIDTH, 3), dtype=np.uint8)
    frames[:, 14, 15] = 255
    weights = np.exp(-0.5 * np.arange(-3, 4) ** 2)
    weights /= weights.sum()
    result = render(frames, make_view(blur_sigma=1.0))
    assert np.array_equal(result[0, 7:14, 7:14, 0], np.rint(255 * np.outer(weights, weights)))
    assert result[0].sum() == 3 * result[0, 7:14, 7:14, 0].sum()


def test_blur_reflects_the_border_without_repeating_the_edge():
    row = np.array([0, 100, 0, 0, 0, 0, 0, 0], dtype=np.uint8)
    frames = np.broadcast_to(row[None, None, :, None], (1, 8, 8, 3))
    view = make_view(clip_len=1, crop_y=0, crop_x=0, crop_h=8, crop_w=8, blur_sigma=0.3)
    side = np.exp(-0.5 / 0.3**2)
    side /= 1 + 2 * side
    # The pixel left of the edge is the pixel right of it, so the edge gets both.
    assert render(frames, view)[0, 4, 0, 0] == round(100 * 2 * side)


def test_a_view_that_changes_nothing_is_the_crop():
    frames = make_frames()
    assert np.array_equal(render(frames, make_view()), frames[:, 4 : 4 + CROP_H, 5 : 5 + CROP_W])


def test_flip_mirrors_left_and_right():
    frames = make_frames()
    assert np.array_equal(render(frames, make_view(flip=1)), frames[:, 4 : 4 + CROP_H, 5 : 5 + CROP_W][:, :, ::-1])


def test_colour_fields_count_only_with_the_jitter_flag():
    frames = make_frames()
    assert np.array_equal(render(frames, make_view(**{**JITTER, "jitter": 0})), render(frames, make_view()))


SWAPS_10 = {
    (0, 1): [2, 3, 4, 0, 1, 5, 6, 7, 8, 9],
    (1, 2): [0, 1, 5, 6, 2, 3, 4, 7, 8, 9],
    (2, 3): [0, 1, 2, 3, 4, 7, 8, 9, 5, 6],
    (0, 2): [5, 6, 2, 3, 4, 0, 1, 7, 8, 9],
    (0, 3): [7, 8, 9, 2, 3, 4, 5, 6, 0, 1],
    (1, 3): [0, 1, 7, 8, 9, 5, 6, 2, 3, 4],
}
SWAPS_16 = {
    (0, 1): [4, 5, 6, 7, 0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15],
    (1, 2): [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15],
    (2, 3): [0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11],
    (0, 2): [8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15],
    (0, 3): [12, 13, 14, 15, 4, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2, 3],
    (1, 3): [0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7],
}
SEGMENT_COPY_FRAMES = {
    10: [0, 1, 7, 8, 9, 5, 6, 7, 8, 9],
    16: [0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15],
}


def shown_frames(num_frames, pretext, variant):
    """Which stored frame each rendered frame shows: frame t is filled with the value t."""
    frames = np.zeros((num_frames, 8, 8, 3), dtype=np.uint8)
    frames[:] = np.arange(num_frames)[:, None, None, None]
    fields = {"clip_len": num_frames, "crop_y": 0, "crop_x": 0, "crop_h": 8, "crop_w": 8}
    pixels = render(frames, make_view(pretext=pretext, variant=variant, **fields))
    assert np.all(pixels == pixels[:, :1, :1, :1])
    return pixels[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(("num_frames", "expected"), [(10, SWAPS_10), (16, SWAPS_16)])
def test_temporal_swap_shows_the_written_out_frames(num_frames, expected):
    shown = {pair: shown_frames(num_frames, Pretext.TEMPORAL_SWAP, i) for i, pair in enumerate(SEGMENT_SWAPS)}
    assert shown == expected


@pytest.mark.parametrize("num_frames", [10, 16])
def test_segment_copy_shows_the_written_out_frames(num_frames):
    assert shown_frames(num_frames, Pretext.TEMPORAL_SHUFFLE, 0) == SEGMENT_COPY_FRAMES[num_frames]


@pytest.mark.parametrize("num_frames", [10, 16])
@pytest.mark.parametrize(("pretext", "variant"), [(Pretext.UNCHANGED, 0), (Pretext.TEMPORAL_SHUFFLE, 1)])
def test_unchanged_and_remote_show_every_frame_in_order(num_frames, pretext, variant):
    assert shown_frames(num_frames, pretext, variant) == list(range(num_frames))


def render_picture(rows, num_frames=10, **fields):
    """The rows as every frame of a clip, rendered; all frames must come out alike."""
    picture = np.array(rows, dtype=np.uint8)
    frames = np.broadcast_to(picture[None, :, :, None], (num_frames, *picture.shape, 3))
    crop = {"crop_y": 0, "crop_x": 0, "crop_h": picture.shape[0], "crop_w": picture.shape[1]}
    pixels = render(frames, make_view(clip_len=num_frames, **crop, **fields))
    assert np.all(pixels == pixels[:1, :, :, :1])
    return pixels[0, :, :, 0].tolist()


@pytest.mark.parametrize("num_frames", [10, 16])
@pytest.mark.parametrize(
    ("quarter_turns", "expected"),
    [
        (1, [[3, 6, 9], [2, 5, 8], [1, 4, 7]]),
        (2, [[9, 8, 7], [6, 5, 4], [3, 2, 1]]),
        (3, [[7, 4, 1], [8, 5, 2], [9, 6, 3]]),
    ],
)
def test_rotation_turns_every_frame_counter_clockwise(num_frames, quarter_turns, expected):
    picture = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert render_picture(picture, num_frames, pretext=Pretext.ROTATION, variant=quarter_turns) == expected


QUADRANTS = [[1, 2, 11, 12], [3, 4, 13, 14], [21, 22, 31, 32], [23, 24, 33, 34]]


@pytest.mark.parametrize("num_frames", [10, 16])
@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ((0, 1, 3, 2), [[1, 2, 11, 12], [3, 4, 13, 14], [31, 32, 21, 22], [33, 34, 23, 24]]),
        ((1, 2, 3, 0), [[11, 12, 21, 22], [13, 14, 23, 24], [31, 32, 1, 2], [33, 34, 3, 4]]),
        ((3, 2, 1, 0), [[31, 32, 21, 22], [33, 34, 23, 24], [11, 12, 1, 2], [13, 14, 3, 4]]),
    ],
)
def test_spatial_permutation_moves_the_quadrants(num_frames, order, expected):
    variant = QUADRANT_ORDERS.index(order)
    assert render_picture(QUADRANTS, num_frames, pretext=Pretext.SPATIAL_PERMUTATION, variant=variant) == expected


def test_the_23_spatial_permutations_differ_from_each_other_and_from_the_source():
    results = [
        str(render_picture(QUADRANTS, pretext=Pretext.SPATIAL_PERMUTATION, variant=variant)) for variant in range(1, 24)
    ]
    assert len({*results, str(QUADRANTS)}) == 24


def test_the_flip_comes_before_the_pretext_operation():
    flipped_then_turned = [[1, 3], [2, 4]]  # [[1, 2], [3, 4]] -> [[2, 1], [4, 3]] -> a quarter turn
    assert render_picture([[1, 2], [3, 4]], flip=1, pretext=Pretext.ROTATION, variant=1) == flipped_then_turned


def test_pretext_operations_only_move_the_pixels_of_the_augmented_clip():
    frames = make_frames(num_frames=10)
    fields = {**JITTER, "clip_len": 10, "gray": 0, "blur_sigma": 1.0, "flip": 1, "crop_h": 20, "crop_w": 20}
    plain = render(frames, make_view(**fields))
    turned = render(frames, make_view(**fields, pretext=Pretext.ROTATION, variant=3))
    swapped = render(frames, make_view(**fields, pretext=Pretext.TEMPORAL_SWAP, variant=1))
    assert np.array_equal(turned, np.rot90(plain, 3, axes=(1, 2)))
    assert np.array_equal(swapped, plain[SWAPS_10[1, 2]])


def random_batch(count=12, clip_len=10, seed=5):
    """Views with everything switched on and off, a pretext operation each, and their frames."""
    rng = np.random.default_rng(seed)
    operations = [(0, 0), (1, 1), (1, 3), (2, 5), (2, 23), (3, 0), (3, 4), (4, 0), (4, 1)]
    views = []
    for i in range(count):
        pretext, variant = operations[i % len(operations)]
        fields = {**JITTER, "jitter": i % 4 > 0, "jitter_order": i, "gray": i % 5 == 0, "flip": i % 2}
        size = {"clip_len": clip_len, "crop_h": 20, "crop_w": 20, "crop_x": i}
        views.append(make_view(**fields, **size, pretext=pretext, variant=variant, blur_sigma=(i % 3) * 0.7))
    batch = ViewBatch(np.array(views, dtype=VIEW_DTYPE), views_per_item=3, store_fingerprint="00" * 16)
    return [make_frames(seed=int(rng.integers(1000)), num_frames=clip_len) for _ in range(count)], batch


def test_a_clip_has_the_same_bytes_alone_in_a_batch_and_again():
    frames, batch = random_batch()
    together = render_batch(frames, batch)
    assert together.shape == (12, 10, 20, 20, 3)
    for clip, stored, view in zip(together, frames, batch.records, strict=True):
        assert clip.tobytes() == render(stored, view).tobytes()
    assert render_batch(frames, batch).tobytes() == together.tobytes()
    assert render_batch(frames[6:9], batch.items(2, 3)).tobytes() == together[6:9].tobytes()


def test_the_bytes_do_not_depend_on_the_thread_count_of_opencv():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (8, 256, 344, 3), dtype=np.uint8)  # large enough for OpenCV to use its threads
    fields = {**JITTER, "clip_len": 8, "crop_y": 0, "crop_x": 0, "crop_h": 256, "crop_w": 340, "blur_sigma": 2.0}
    before = cv2.getNumThreads()
    try:
        results = []
        for count in (1, 2, 3, 8):
            cv2.setNumThreads(count)
            results.append(render(frames, make_view(**fields)).tobytes())
    finally:
        cv2.setNumThreads(before)
    assert len(set(results)) == 1


def test_rendering_leaves_the_stored_frames_and_the_thread_count_alone():
    frames, batch = random_batch()
    writable = [clip.copy() for clip in frames]
    threads = cv2.getNumThreads()
    pixels = render_batch(writable, batch)
    pixels[:] = 0
    assert all(np.array_equal(a, b) for a, b in zip(frames, writable, strict=True))
    assert cv2.getNumThreads() == threads


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clip_len": 4}, "clip_len 4"),
        ({"crop_y": 7}, "does not lie in stored frames of 27x33"),
        ({"crop_x": 65535}, "does not lie in stored frames"),
        ({"crop_h": 0}, "does not lie in stored frames"),
        ({**JITTER, "jitter_order": 24}, "jitter_order"),
        ({**JITTER, "contrast": np.nan}, "factors must be"),
        ({**JITTER, "brightness": -0.1}, "factors must be"),
        ({**JITTER, "saturation": np.inf}, "factors must be"),
        ({**JITTER, "hue": 0.6}, "hue in"),
        ({**JITTER, "hue": np.nan}, "hue in"),
        ({"blur_sigma": 7.0}, "blur_sigma"),
        ({"blur_sigma": np.nan}, "blur_sigma"),
        ({"pretext": 5}, "no pretext operation 5"),
        ({"pretext": 1, "variant": 0}, "no pretext operation 1 with variant 0"),
        ({"pretext": 2, "variant": 24}, "variant 24"),
        ({"pretext": 3, "variant": 6}, "variant 6"),
        ({"pretext": 1, "variant": 1}, "square crop, got 21x24"),
        ({"pretext": 2, "variant": 1}, "even crop, got 21x24"),
    ],
)
def test_a_view_that_cannot_be_rendered_is_refused(fields, message):
    with pytest.raises(ViewError, match=message):
        render(make_frames(), make_view(**fields))


@pytest.mark.parametrize("frames", [np.zeros((3, 27, 33), np.uint8), np.zeros((3, 27, 33, 3), np.float32)])
def test_frames_that_are_no_uint8_pictures_are_refused(frames):
    with pytest.raises(ViewError, match="must be uint8"):
        render(frames, make_view())


def test_a_batch_of_unlike_views_or_with_frames_missing_is_refused():
    frames, batch = random_batch(count=3)
    with pytest.raises(ViewError, match="3 views need as many clips of stored frames, got 2"):
        render_batch(frames[:2], batch)
    records = batch.records.copy()
    records["crop_w"][1] = 18
    with pytest.raises(ViewError, match="share"):
        render_batch(frames, ViewBatch(records, 3, batch.store_fingerprint))
