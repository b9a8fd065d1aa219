"""From pixels to a network's input, against hand arithmetic."""

import warnings

import numpy as np
import pytest
import torch

from data.errors import ViewError
from data.input_spec import InputSpec
from data.prepare import prepare

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def random_pixels(num_clips=3, num_frames=4, height=7, width=7):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (num_clips, num_frames, height, width, 3), dtype=np.uint8)


def by_hand(pixels, spec):
    """The definition in float64, axis by axis."""
    x = pixels.transpose(0, 4, 1, 2, 3) / 255.0
    x = (x - np.reshape(spec.mean, (3, 1, 1, 1))) / np.reshape(spec.std, (3, 1, 1, 1))
    if spec.modality == "res":
        difference = x[:, :, 1:] - x[:, :, :-1]
        x = np.concatenate([difference[:, :, :1], difference], axis=2)
    return x


@pytest.mark.parametrize("modality", ["rgb", "res"])
def test_values_are_scaled_normalised_and_put_channels_first(modality):
    pixels = random_pixels()
    spec = InputSpec(modality=modality, crop=7)
    out = prepare(pixels, spec)
    assert out.dtype == torch.float32
    assert out.is_contiguous()
    assert out.shape == (3, 3, 4, 7, 7)
    np.testing.assert_allclose(out.numpy(), by_hand(pixels, spec), rtol=0, atol=1e-6)


def test_one_pixel_written_out():
    pixels = np.zeros((1, 2, 1, 1, 3), dtype=np.uint8)
    pixels[0, 0] = (255, 0, 51)
    pixels[0, 1] = (0, 255, 102)
    spec = InputSpec(mean=(0.5, 0.5, 0.2), std=(0.5, 0.25, 0.1), crop=1)
    assert prepare(pixels, spec)[0, :, 0, 0, 0].tolist() == pytest.approx([1.0, -2.0, 0.0], abs=1e-6)
    assert prepare(pixels, spec)[0, :, 1, 0, 0].tolist() == pytest.approx([-1.0, 2.0, 2.0], abs=1e-6)
    residual = InputSpec(mean=spec.mean, std=spec.std, modality="res", crop=1)
    for frame in (0, 1):  # frame 0 repeats the difference of frame 1
        assert prepare(pixels, residual)[0, :, frame, 0, 0].tolist() == pytest.approx([-2.0, 4.0, 2.0], abs=1e-6)


def test_residual_frames_of_a_counting_clip():
    pixels = np.zeros((1, 4, 1, 1, 3), dtype=np.uint8)
    pixels[0, :, 0, 0, :] = np.array([10, 13, 11, 51])[:, None]
    out = prepare(pixels, InputSpec(**PLAIN, modality="res", crop=1))
    assert (out[0, 0, :, 0, 0] * 255).tolist() == pytest.approx([3, 3, -2, 40], abs=1e-4)


def test_resize_is_bilinear_between_pixel_centres():
    pixels = np.zeros((1, 2, 2, 2, 3), dtype=np.uint8)
    pixels[0, :, 0, 1] = 200  # upper right
    out = prepare(pixels, InputSpec(**PLAIN, crop=4))[0, 0, 0] * 255
    across = np.array([0.0, 0.25, 0.75, 1.0])  # weight of the right column, and mirrored of the upper row
    np.testing.assert_allclose(out.numpy(), 200 * np.outer(across[::-1], across), atol=1e-3)


def test_resized_residual_is_the_difference_of_resized_frames():
    pixels = random_pixels(height=9, width=6)
    spec = InputSpec(modality="rgb", crop=5)
    frames = prepare(pixels, spec)
    residual = prepare(pixels, InputSpec(modality="res", crop=5))
    np.testing.assert_allclose(residual[:, :, 1:], frames[:, :, 1:] - frames[:, :, :-1], atol=2e-6)
    assert torch.equal(residual[:, :, 0], residual[:, :, 1])


@pytest.mark.parametrize("modality", ["rgb", "res"])
@pytest.mark.parametrize("crop", [7, 5, 16])
def test_a_clip_has_the_same_bytes_alone_in_a_batch_and_on_any_thread_count(modality, crop):
    pixels = random_pixels(num_clips=5)
    spec = InputSpec(modality=modality, crop=crop)
    together = prepare(pixels, spec)
    for i in range(5):
        assert torch.equal(prepare(pixels[i : i + 1], spec)[0], together[i])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(prepare(pixels, spec), together)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("modality", ["rgb", "res"])
def test_arrays_and_tensors_give_the_same_bytes_and_stay_as_they_are(modality):
    pixels = random_pixels()
    kept = pixels.copy()
    spec = InputSpec(modality=modality, crop=7)
    from_array = prepare(pixels, spec)
    assert torch.equal(prepare(torch.from_numpy(pixels), spec), from_array)
    assert np.array_equal(pixels, kept)


def test_read_only_and_strided_arrays_are_taken_without_a_warning():
    pixels = random_pixels()
    pixels.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = prepare(pixels, InputSpec(crop=7))
        mirrored = prepare(pixels[:, :, :, ::-1], InputSpec(crop=7))
    assert torch.equal(mirrored, out.flip(-1))


def test_no_clips_give_no_rows():
    assert prepare(random_pixels()[:0], InputSpec(crop=4)).shape == (0, 3, 4, 4, 4)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((1, 4, 7, 7, 3), np.float32), "must be uint8"),
        (torch.zeros((1, 4, 7, 7, 3)), "must be uint8"),
        (np.zeros((4, 7, 7, 3), np.uint8), "must be uint8"),
        (np.zeros((1, 4, 7, 7, 1), np.uint8), "must be uint8"),
        (np.zeros((1, 0, 7, 7, 3), np.uint8), "at least one frame"),
        (np.zeros((1, 1, 7, 7, 3), np.uint8), "at least 2 frames, got 1"),
    ],
)
def test_pixels_that_are_no_clips_are_refused(pixels, message):
    with pytest.raises(ViewError, match=message):
        prepare(pixels, InputSpec(modality="res", crop=7))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"std": (1.0, 0.0, 1.0)}, "std above 0"),
        ({"mean": (0.5, 0.5)}, "3 numbers each"),
        ({"modality": "flow"}, "rgb or res, got 'flow'"),
        ({"crop": 0}, "at least 1 pixel"),
    ],
)
def test_an_impossible_input_spec_is_refused(fields, message):
    with pytest.raises(ViewError, match=message):
        InputSpec(**fields)
