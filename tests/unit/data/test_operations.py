"""A pretext operation of the user's own: what it changes, that its name travels with the views, and who may load it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from data import operations
from data.draw import draw_tuples, eval_tuples
from data.errors import ViewError
from data.operations import load_operation
from data.render import render_batch
from data.render_torch import render_on_device
from data.views import OWN, Augment, ClipSpec, VideoTable, ViewBatch, key_hash
from data.views_arrow import from_arrow, to_arrow

NUM_VIDEOS, NUM_FRAMES = 60, 60
SPEC = ClipSpec(crop=32)
REVERSE = "own_operations:reverse"
MODULE = """
import numpy as np

def reverse(clip):
    return clip[::-1]

def scribble(clip):
    clip[:] = 0
    return clip

def too_short(clip):
    return clip[1:]

def as_floats(clip):
    return clip / 255

def fails(clip):
    raise RuntimeError("no luck")

NUMBER = 3
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "own_operations.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(operations, "_loaded", {})
    yield
    sys.modules.pop("own_operations", None)


@pytest.fixture(scope="module")
def videos() -> VideoTable:
    keys = tuple(f"video{i}" for i in range(NUM_VIDEOS))
    return VideoTable(
        fingerprint="ab" * 16,
        keys=keys,
        key_hashes=np.array([key_hash(key) for key in keys], dtype=np.uint64),
        content_hashes=np.arange(NUM_VIDEOS, dtype=np.uint64),
        num_frames=np.full(NUM_VIDEOS, NUM_FRAMES),
        frame_size=(40, 48),
    )


def draw(videos: VideoTable, operation: str = "", **settings: int) -> ViewBatch:
    return draw_tuples(
        videos,
        np.arange(NUM_VIDEOS),
        view_seed=1,
        epoch=0,
        spec=SPEC,
        augment=Augment(),
        operation=operation,
        **settings,
    )


def frames_of(batch: ViewBatch) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (int(v["clip_len"]), 40, 48, 3), dtype=np.uint8) for v in batch.records]


def without_operation(batch: ViewBatch) -> ViewBatch:
    """The same views with the middle clips of label 4 left as they are."""
    records = batch.records.copy()
    records["pretext"] = np.where(records["pretext"] == 4, 0, records["pretext"])
    records["variant"] = np.where(batch.records["pretext"] == 4, 0, records["variant"])
    return ViewBatch(records, 3, batch.store_fingerprint)


def test_it_takes_label_4_and_changes_the_middle_clips_of_that_label_only(videos: VideoTable) -> None:
    batch = draw(videos, REVERSE, shuffle=OWN)
    load_operation(REVERSE, trusted=True)
    frames = frames_of(batch)
    expected = render_batch(frames, without_operation(batch))
    own = np.flatnonzero(batch.records["pretext"] == 4)
    assert len(own) > 3
    assert np.all(own % 3 == 1)
    expected[own] = expected[own, ::-1]
    assert np.array_equal(render_batch(frames, batch), expected)


def test_the_other_labels_and_all_other_numbers_are_drawn_as_without_it(videos: VideoTable) -> None:
    plain, own = draw(videos), draw(videos, REVERSE, shuffle=OWN)
    for name in (name for name in plain.records.dtype.names if name != "variant"):
        assert np.array_equal(plain.records[name], own.records[name])


def test_both_renderers_call_it(videos: VideoTable) -> None:
    load_operation(REVERSE, trusted=True)
    batch = draw(videos, REVERSE, shuffle=OWN)
    frames = frames_of(batch)
    on_device = render_on_device(frames, batch, torch.device("cpu")).numpy()
    difference = np.abs(on_device.astype(int) - render_batch(frames, batch))
    assert difference.max() <= 1


def test_its_name_enters_the_digests_of_its_items_and_of_no_others(videos: VideoTable) -> None:
    one, two = draw(videos, REVERSE, shuffle=OWN), draw(videos, "another:one", shuffle=OWN)
    plain = draw(videos)
    is_own = one.pretext_labels == 4
    digests = [np.array(batch.item_digests(videos)) for batch in (one, two, plain)]
    assert np.array_equal(digests[0] == digests[1], ~is_own)
    assert np.array_equal(digests[0] == digests[2], ~is_own)


def test_its_name_travels_with_the_views(videos: VideoTable) -> None:
    batch = draw(videos, REVERSE, shuffle=OWN)
    for copy in (ViewBatch.from_bytes(batch.to_bytes()), from_arrow(to_arrow(batch))):
        assert copy.operation == REVERSE
        assert np.array_equal(copy.records, batch.records)
    assert batch.items(2, 5).operation == batch.take([3]).operation == REVERSE


def test_views_without_one_have_the_bytes_that_they_had(videos: VideoTable) -> None:
    blob = draw(videos).to_bytes()
    assert len(blob) == 28 + 44 * 3 * NUM_VIDEOS
    assert blob[:6] == b"PCVB\x01\x00"


@pytest.mark.parametrize(("place", "byte"), [(28, 0), (28, 201), (28, 3), (30, 0xE9), (30, 10)])
def test_a_damaged_name_is_refused(videos: VideoTable, place: int, byte: int) -> None:
    blob = bytearray(draw(videos, REVERSE, shuffle=OWN).to_bytes())
    blob[place] = byte
    with pytest.raises(ViewError):
        ViewBatch.from_bytes(bytes(blob))


def test_evaluation_tries_it_on_every_video(videos: VideoTable) -> None:
    batch = eval_tuples(
        videos, np.arange(4), view_seed=0, spec=SPEC, tuples_per_video=2, shuffle=OWN, operation=REVERSE
    )
    assert batch.operation == REVERSE
    assert np.all(batch.records["variant"].reshape(4, 2, 5, 3)[:, :, 4, 1] == OWN)


def test_a_process_whose_user_did_not_type_the_name_refuses_to_load_it_unless_it_is_listed(
    videos: VideoTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = draw(videos, REVERSE, shuffle=OWN)
    frames = frames_of(batch)
    with pytest.raises(ViewError, match=f"PRECEPTOR_PLUGINS={REVERSE}"):
        render_batch(frames, batch)
    assert "own_operations" not in sys.modules
    monkeypatch.setenv("PRECEPTOR_PLUGINS", REVERSE)
    render_batch(frames, batch)


def test_views_that_want_one_and_name_none_are_refused(videos: VideoTable) -> None:
    batch = draw(videos, shuffle=OWN)
    with pytest.raises(ViewError, match="operation of the user's own, which its batch must name"):
        render_batch(frames_of(batch), batch)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_operations:too_short", r"must return uint8 \[10, 32, 32, 3\], it returned uint8 \[9, 32, 32, 3\]"),
        ("own_operations:as_floats", r"must return .*, it returned float64"),
        ("own_operations:fails", "failed with RuntimeError: no luck"),
    ],
)
def test_an_operation_that_breaks_its_contract_is_refused_by_name(videos: VideoTable, name: str, message: str) -> None:
    load_operation(name, trusted=True)
    batch = draw(videos, name, shuffle=OWN)
    with pytest.raises(ViewError, match=f"pretext operation {name} {message}"):
        render_batch(frames_of(batch), batch)


def test_an_operation_that_writes_to_its_argument_harms_no_stored_frame(videos: VideoTable) -> None:
    load_operation("own_operations:scribble", trusted=True)
    batch = draw(videos, "own_operations:scribble", shuffle=OWN)
    frames = frames_of(batch)
    before = [clip.copy() for clip in frames]
    rendered = render_batch(frames, batch)
    assert not rendered[batch.records["pretext"] == 4].any()
    assert all(np.array_equal(a, b) for a, b in zip(frames, before, strict=True))


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(ViewError, match="must be a function, it is a int"):
        load_operation("own_operations:NUMBER", trusted=True)
