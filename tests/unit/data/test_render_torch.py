"""The torch renderer, on the CPU, against the CPU renderer: one numeric contract."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import ViewError
from data.render import render_batch
from data.render_torch import render_on_device
from data.views import JITTER_ORDERS, QUADRANT_ORDERS, SEGMENT_SWAPS, VIEW_DTYPE, Pretext, ViewBatch

CPU = torch.device("cpu")
SIDE = 24
STRONG = {"jitter": 1, "brightness": 1.9, "contrast": 1.8, "saturation": 2.0, "hue": -0.4}
MILD = {"jitter": 1, "brightness": 0.7, "contrast": 0.8, "saturation": 0.6, "hue": 0.1}


def make_batch(rows: list[dict[str, float]]) -> ViewBatch:
    records = np.zeros(len(rows), VIEW_DTYPE)
    for record, fields in zip(records, rows, strict=True):
        for name, value in ({"clip_len": 8, "crop_y": 3, "crop_x": 5, "crop_h": SIDE, "crop_w": SIDE} | fields).items():
            record[name] = value
    return ViewBatch(records, 1, "00" * 16)


def make_frames(count: int, seed: int = 0, kind: str = "noise") -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (count, 8, 30, 33, 3)
    if kind == "extreme":
        return list(rng.choice(np.array([0, 1, 127, 128, 254, 255], dtype=np.uint8), shape))
    return list(rng.integers(0, 256, shape, dtype=np.uint8))


def assert_same_contract(rows: list[dict[str, float]], kind: str = "noise") -> None:
    batch, frames = make_batch(rows), make_frames(len(rows), kind=kind)
    ours = render_on_device(frames, batch, CPU).numpy().astype(np.int64)
    reference = render_batch(frames, batch).astype(np.int64)
    difference = np.abs(ours - reference)
    assert ours.shape == reference.shape
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize("kind", ["noise", "extreme"])
@pytest.mark.parametrize("factors", [STRONG, MILD])
def test_a_batch_of_all_jitter_orders_is_within_one_grey_level(kind, factors):
    assert_same_contract([factors | {"jitter_order": order} for order in range(len(JITTER_ORDERS))], kind)


def test_blur_gray_and_flip_with_another_sigma_for_each_clip():
    rows = [
        MILD | {"blur_sigma": sigma, "gray": i % 2, "flip": i // 2 % 2}
        for i, sigma in enumerate([0, 0.1, 0.5, 1, 2, 0])
    ]
    assert_same_contract(rows)


def test_without_photometric_changes_the_bytes_are_equal():
    variants = {
        Pretext.UNCHANGED: [0],
        Pretext.ROTATION: [1, 2, 3],
        Pretext.SPATIAL_PERMUTATION: range(1, len(QUADRANT_ORDERS)),
        Pretext.TEMPORAL_SWAP: range(len(SEGMENT_SWAPS)),
        Pretext.TEMPORAL_SHUFFLE: [0, 1],
    }
    rows = [{"pretext": p, "variant": v, "flip": v % 2} for p, each in variants.items() for v in each]
    batch, frames = make_batch(rows), make_frames(len(rows))
    np.testing.assert_array_equal(render_on_device(frames, batch, CPU).numpy(), render_batch(frames, batch))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 23), st.floats(0.2, 2), st.floats(-0.5, 0.5), st.booleans()), min_size=1, max_size=5
    )
)
def test_clips_do_not_depend_on_their_neighbours(drawn):
    rows = [
        {
            "jitter": 1,
            "jitter_order": o,
            "brightness": f,
            "contrast": f,
            "saturation": f,
            "hue": h,
            "blur_sigma": 0.8 * b,
        }
        for o, f, h, b in drawn
    ]
    frames = make_frames(len(rows))
    together = render_on_device(frames, make_batch(rows), CPU).numpy()
    alone = [
        render_on_device([frame], make_batch([row]), CPU).numpy()[0] for frame, row in zip(frames, rows, strict=True)
    ]
    assert np.abs(together.astype(int) - np.stack(alone).astype(int)).max() <= 1  # kernels of another length


def test_a_view_that_cannot_be_rendered_is_refused():
    with pytest.raises(ViewError, match="does not lie in stored frames"):
        render_on_device(make_frames(1), make_batch([{"crop_y": 20}]), CPU)
