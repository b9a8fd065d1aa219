"""The clip store against the frames that went in, and against every kind of damage."""

from __future__ import annotations

import collections
import errno
import itertools
import os
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg
import xxhash
from numpy.typing import NDArray

from data.atomic import publish_new, write_atomic
from data.draw import draw_tuples
from data.errors import StoreDamaged, StoreError, StoreMismatch, StoreMissing, StoreUnreadable, ViewError
from data.segments import encode
from data.store import ClipStore, Skipped, StoreWriter
from data.views import VIEW_DTYPE, Augment, ClipSpec, ViewBatch, key_hash

SIZE = (8, 10)
LENGTHS = (48, 50, 53, 60, 64)
SUBSETS = {"train01": ["a/v3", "a/v0", "a/never-added"], "test01": ["a/v1"]}


def make_frames(seed: int = 0) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (n, *SIZE, 3), dtype=np.uint8) for n in LENGTHS]


def write_store(path: Path, frames: list[NDArray[np.uint8]], codec: str = "raw", segment_bytes: int = 25_000) -> str:
    """Two videos to a segment, or one."""
    with StoreWriter(path, SIZE, codec, ("Bow", "Wave"), segment_bytes=segment_bytes) as writer:
        for i, video in enumerate(frames):
            writer.add(f"a/v{i}", i % 2, f"g{i:02d}", video)
        return writer.commit(SUBSETS, [Skipped("a/bad.avi", "it is empty")])


def whole_videos(store: ClipStore, rows: list[int]) -> ViewBatch:
    records = np.zeros(len(rows), VIEW_DTYPE)
    records["video"] = rows
    records["clip_len"] = store.videos.num_frames[rows]
    return ViewBatch(records, 1, store.fingerprint)


@pytest.fixture(params=["raw", "jpeg"])
def codec(request: pytest.FixtureRequest) -> str:
    return request.param


def as_stored(video: NDArray[np.uint8], codec: str) -> NDArray[np.uint8]:
    """The reference: what a reader has to get."""
    if codec == "raw":
        return video
    images = (simplejpeg.encode_jpeg(frame, 95, "RGB", "444") for frame in video)
    return np.stack([simplejpeg.decode_jpeg(image, "RGB") for image in images])


def test_gather_gives_exactly_the_frames_of_each_view(tmp_path: Path, codec: str) -> None:
    frames = make_frames()
    write_store(tmp_path / "s", frames, codec)
    expected = [as_stored(video, codec) for video in frames]
    store = ClipStore.open(tmp_path / "s")
    rows = np.arange(len(frames))
    batch = draw_tuples(
        store.videos, rows, view_seed=1, epoch=2, spec=ClipSpec(clip_len=8, interval=4, crop=8), augment=Augment()
    )
    clips = store.gather(batch)
    assert len(clips) == 15
    for clip, record in zip(clips, batch.records, strict=True):
        start = int(record["start"])
        np.testing.assert_array_equal(clip, expected[record["video"]][start : start + 8])


def test_raw_clips_are_read_only_and_share_the_mapped_file(tmp_path: Path) -> None:
    write_store(tmp_path / "s", make_frames())
    store = ClipStore.open(tmp_path / "s")
    whole = store.gather(whole_videos(store, [3]))[0]
    again = store.gather(whole_videos(store, [3]))[0]
    assert np.shares_memory(whole, again)
    assert not whole.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        whole[0, 0, 0, 0] = 1
    address = whole.__array_interface__["data"][0]
    maps = (line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "/s/segments/" in line)
    spans = [[int(x, 16) for x in fields[0].split("-")] for fields in maps]
    assert any(low <= address < high for low, high in spans)


def test_the_store_tells_what_it_holds(tmp_path: Path, codec: str) -> None:
    frames = make_frames()
    fingerprint = write_store(tmp_path / "s", frames, codec)
    store = ClipStore.open(tmp_path / "s")
    assert len(store) == 5
    assert store.fingerprint == store.videos.fingerprint == fingerprint
    assert len(bytes.fromhex(fingerprint)) == 16
    assert store.classes == ("Bow", "Wave")
    assert store.labels.tolist() == [0, 1, 0, 1, 0]
    assert store.groups == ("g00", "g01", "g02", "g03", "g04")
    assert store.frame_size == store.videos.frame_size == SIZE
    assert store.skipped == (("a/bad.avi", "it is empty"),)
    assert store.path == tmp_path / "s"
    assert store.codec == codec
    assert store.num_bytes == sum(path.stat().st_size for path in (tmp_path / "s/segments").iterdir())
    assert store.videos.num_frames.tolist() == list(LENGTHS)
    assert store.videos.key_hashes.tolist() == [key_hash(key) for key in store.videos.keys]
    assert store.verify() == []


def test_raw_content_hashes_are_those_of_the_pixels(tmp_path: Path) -> None:
    frames = make_frames()
    write_store(tmp_path / "s", frames)
    expected = [xxhash.xxh3_64_intdigest(video.tobytes()) for video in frames]
    assert ClipStore.open(tmp_path / "s").videos.content_hashes.tolist() == expected


def test_subsets_keep_the_order_of_their_list_and_drop_absent_videos(tmp_path: Path) -> None:
    write_store(tmp_path / "s", make_frames())
    store = ClipStore.open(tmp_path / "s")
    assert store.subsets == ("test01", "train01")
    assert store.subset("train01").tolist() == [3, 0]
    assert store.subset("test01").dtype == np.int64
    with pytest.raises(StoreError, match=r"no subset 'val'; known are: test01, train01"):
        store.subset("val")


def test_a_pickled_store_opens_the_same_store_or_refuses(tmp_path: Path) -> None:
    write_store(tmp_path / "s", make_frames())
    blob = pickle.dumps(ClipStore.open(tmp_path / "s"))
    assert len(blob) < 500
    copy = pickle.loads(blob)
    np.testing.assert_array_equal(copy.gather(whole_videos(copy, [1]))[0], make_frames()[1])
    shutil.rmtree(tmp_path / "s")
    write_store(tmp_path / "s", make_frames(seed=1))
    with pytest.raises(StoreMismatch):
        pickle.loads(blob)


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    key = b"a/\xff\xfe".decode("utf-8", "surrogateescape")
    with StoreWriter(tmp_path / "s", SIZE, "raw", ("a",)) as writer:
        writer.add(key, 0, "g01", make_frames()[0])
        writer.commit({"train01": [key]})
    assert ClipStore.open(tmp_path / "s").videos.keys == (key,)


def test_views_of_another_store_and_frames_that_are_not_there_are_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "s", make_frames())
    store = ClipStore.open(tmp_path / "s")
    batch = whole_videos(store, [0, 1])
    with pytest.raises(StoreMismatch, match="drawn from store 0000"):
        store.gather(ViewBatch(batch.records, 1, "00" * 16))
    for field, value, message in (
        ("video", 5, "names video 5, the store has 5"),
        ("start", 1, "frames 1 to 48 of video a/v0, which has 48"),
        ("start", 2**32 - 1, "which has 48"),
    ):
        records = batch.records.copy()
        records[field][0] = value
        with pytest.raises(ViewError, match=message):
            store.gather(ViewBatch(records, 1, store.fingerprint))


def test_the_fingerprint_depends_on_content_alone(tmp_path: Path) -> None:
    first = write_store(tmp_path / "one", make_frames())
    assert write_store(tmp_path / "two", make_frames()) == first
    changed = make_frames()
    changed[2][7, 3, 3, 1] ^= 1
    assert write_store(tmp_path / "three", changed) != first
    with StoreWriter(tmp_path / "four", SIZE, "raw", ("Bow", "Wave"), segment_bytes=25_000) as writer:
        for i, video in enumerate(make_frames()):
            writer.add(f"a/v{i}", i % 2, f"g{i:02d}", video)
        assert writer.commit(SUBSETS, []) == first


def test_a_missing_store_says_how_to_make_one(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(StoreMissing, match=r"python -m data.ingest --help.*preceptor demo-data"):
            ClipStore.open(path)


def test_a_missing_store_is_told_with_those_beside_it(tmp_path: Path) -> None:
    write_store(tmp_path / "there", make_frames())
    (tmp_path / "no-store").mkdir()
    with pytest.raises(StoreMissing, match="none here, beside it are there; "):
        ClipStore.open(tmp_path / "mistyped")


def delete(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def garble(path: Path) -> None:
    path.write_bytes(bytes(np.random.default_rng(0).integers(0, 256, path.stat().st_size, dtype=np.uint8)))


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [delete, empty, shorten, garble, make_folder])
def test_a_harmed_segment_is_found_at_open_or_first_touch(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    write_store(tmp_path / "s", make_frames())
    harm(sorted((tmp_path / "s/segments").iterdir())[0])
    with pytest.raises(StoreDamaged, match=r"segment [0-9a-f]{32}\.arrow .* ingest the videos again"):
        open_and_read(tmp_path / "s")


@pytest.mark.parametrize("harm", [delete, empty, shorten])
def test_a_segment_of_another_size_is_refused_before_it_is_mapped(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    write_store(tmp_path / "s", make_frames())
    harm(sorted((tmp_path / "s/segments").iterdir())[-1])
    with pytest.raises(StoreDamaged, match=r"bytes, \d+ are recorded|No such file"):
        ClipStore.open(tmp_path / "s")


@pytest.mark.parametrize("harm", [empty, shorten, garble, make_folder])
def test_a_harmed_manifest_is_found_at_open(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    write_store(tmp_path / "s", make_frames())
    harm(tmp_path / "s/manifest-000001.json")
    with pytest.raises(StoreDamaged, match=r"manifest-000001.json"):
        ClipStore.open(tmp_path / "s")


def test_swapped_segments_are_found(tmp_path: Path) -> None:
    frames = [make_frames()[0], make_frames(seed=1)[0]]
    write_store(tmp_path / "s", frames, segment_bytes=1)
    one, two = (tmp_path / "s/segments").iterdir()
    one.rename(tmp_path / "spare")
    two.rename(one)
    (tmp_path / "spare").rename(two)
    with pytest.raises(StoreDamaged, match="does not match its checksum"):
        open_and_read(tmp_path / "s")


def test_the_highest_generation_is_read_and_never_replaced_by_an_older_one(tmp_path: Path) -> None:
    write_store(tmp_path / "s", make_frames())
    first = tmp_path / "s/manifest-000001.json"
    shutil.copy(first, tmp_path / "s/manifest-000002.json")
    empty(first)
    assert len(ClipStore.open(tmp_path / "s")) == 5
    empty(tmp_path / "s/manifest-000002.json")
    with pytest.raises(StoreDamaged, match=r"manifest-000002.json"):
        ClipStore.open(tmp_path / "s")


def test_verify_lists_each_damaged_video_by_name(tmp_path: Path) -> None:
    frames = make_frames()
    write_store(tmp_path / "s", frames)
    store = ClipStore.open(tmp_path / "s")
    for row in (0, 4):
        for path in (tmp_path / "s/segments").iterdir():
            blob = path.read_bytes()
            where = blob.find(frames[row].tobytes())
            if where >= 0:
                path.write_bytes(blob[:where] + bytes([blob[where] ^ 1]) + blob[where + 1 :])
    assert [problem.split(":")[0] for problem in store.verify()] == ["a/v0", "a/v4"]


def open_and_read(path: Path) -> list[NDArray[np.uint8]]:
    store = ClipStore.open(path)
    return store.gather(whole_videos(store, list(range(len(store)))))


def damaged_copy(blob: bytes, rng: np.random.Generator) -> bytes:
    """1, 3 or 40 flipped bits, or a cut."""
    kind = int(rng.integers(4))
    if kind == 3:
        return blob[: int(rng.integers(len(blob)))]
    harmed = np.frombuffer(blob, dtype=np.uint8).copy()
    for bit in rng.integers(len(blob) * 8, size=(1, 3, 40)[kind]):
        harmed[bit // 8] ^= 1 << (bit % 8)
    return harmed.tobytes()


def test_random_damage_is_found_or_the_bytes_are_right(tmp_path: Path, codec: str) -> None:
    seed = 20
    rng = np.random.default_rng(seed)
    path = tmp_path / "s"
    # Short videos: half of the bytes are then Arrow's own, which are the ones that could bring its reader down.
    frames = [video[:3] for video in make_frames()]
    write_store(path, frames, codec, segment_bytes=2000)
    sound = [as_stored(video, codec) for video in frames]  # never the mapped frames: those change with the file
    files = [*sorted((path / "segments").iterdir()), path / "manifest-000001.json"]
    outcomes: collections.Counter[str] = collections.Counter()
    for _ in range(400):
        file = files[rng.integers(len(files))]
        blob = file.read_bytes()
        file.write_bytes(damaged_copy(blob, rng))
        try:
            assert all(np.array_equal(a, b) for a, b in zip(open_and_read(path), sound, strict=True))
            outcomes["bytes are right"] += 1
        except StoreDamaged:
            outcomes["found"] += 1
        file.write_bytes(blob)
    print(f"seed {seed}, {codec}: {dict(outcomes)}")
    assert outcomes["found"] > 200


def test_control_arrow_alone_does_not_notice_changed_pixels(tmp_path: Path) -> None:
    frames = make_frames()
    write_store(tmp_path / "s", frames, segment_bytes=10**9)
    (path,) = (tmp_path / "s/segments").iterdir()
    blob = path.read_bytes()
    where = blob.find(frames[0].tobytes()) + 100
    path.write_bytes(blob[:where] + bytes([blob[where] ^ 1]) + blob[where + 1 :])
    batch = pa.ipc.open_file(path).get_batch(0)
    batch.validate(full=True)
    assert np.frombuffer(batch.column(0).buffers()[1], np.uint8).tobytes() != frames[0].tobytes()


def test_abandoned_writing_leaves_nothing_that_opens(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", SIZE, "raw", ("a",), segment_bytes=1) as writer:
        for i, video in enumerate(make_frames()):
            writer.add(f"a/v{i}", 0, "g01", video)
        assert len(list((tmp_path / "s/segments").iterdir())) == 5
    assert list((tmp_path / "s/segments").iterdir()) == []
    with pytest.raises(StoreMissing, match="not finished"):
        ClipStore.open(tmp_path / "s")


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (os, "link"), (Path, "rename")])
def test_a_full_disk_at_any_step_leaves_a_whole_store_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    expected = write_store(tmp_path / "clean", make_frames())
    working = getattr(owner, name)
    failed_at = 0
    while True:
        path = tmp_path / f"{name}{failed_at}"
        calls = itertools.count()

        def fail_once(*args: Any, calls: itertools.count[int] = calls, last: int = failed_at) -> Any:
            if next(calls) == last:
                raise OSError(errno.ENOSPC, "No space left on device")
            return working(*args)

        monkeypatch.setattr(owner, name, fail_once)
        try:
            write_store(path, make_frames())
            break
        except OSError:
            failed_at += 1
        try:
            assert ClipStore.open(path).fingerprint == expected
            assert len(open_and_read(path)) == 5
        except StoreMissing:
            assert list((path / "segments").iterdir()) == []
            assert write_store(path, make_frames()) == expected
        assert not list(path.rglob("*.tmp"))
    print(f"{name}: failed at each of {failed_at} calls")
    assert failed_at >= 1


def test_what_an_interrupted_writer_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    expected = write_store(tmp_path / "clean", make_frames())
    segments = tmp_path / "s/segments"
    segments.mkdir(parents=True)
    for name in ("0" * 32 + ".arrow", ".segment.arrow.0011.tmp"):
        (segments / name).write_bytes(b"rest")
    assert write_store(tmp_path / "s", make_frames()) == expected
    assert {p.name for p in segments.iterdir()} == {p.name for p in (tmp_path / "clean/segments").iterdir()}


def test_a_committed_store_is_not_written_again(tmp_path: Path) -> None:
    write_store(tmp_path / "s", make_frames())
    with pytest.raises(StoreError, match="lies here already"):
        StoreWriter(tmp_path / "s", SIZE)
    assert len(open_and_read(tmp_path / "s")) == 5


def test_a_second_writer_is_refused_while_the_first_writes(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", SIZE, "raw", ("a",)) as first:
        with pytest.raises(StoreError, match="another process is writing"):
            StoreWriter(tmp_path / "s", SIZE)
        first.add("a/v0", 0, "g01", make_frames()[0])
        first.commit({})
    assert len(ClipStore.open(tmp_path / "s")) == 1


def test_a_writer_that_was_overtaken_changes_nothing(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", SIZE, "raw", ("a",)) as writer:
        writer.add("a/v0", 0, "g01", make_frames()[0])
        (tmp_path / "s/manifest-000001.json").write_bytes(b"another's")
        with pytest.raises(StoreError, match="another writer has published"):
            writer.commit({})
    assert (tmp_path / "s/manifest-000001.json").read_bytes() == b"another's"


def test_wrong_videos_are_refused_by_the_writer(tmp_path: Path) -> None:
    video = make_frames()[0]
    with StoreWriter(tmp_path / "s", SIZE, "raw", ("a",)) as writer:
        writer.add("a/v0", 0, "g01", video)
        for key, label, frames, message in (
            ("a/v0", 0, video, "added twice"),
            ("a/v1", 1, video, "has label 1, there are 1 classes"),
            ("a/v1", 0, video[:, :4], "has frames"),
            ("a/v1", 0, video[:0], "T > 0"),
            ("a/v1", 0, video.astype(np.int16), "uint8"),
        ):
            with pytest.raises(StoreError, match=message):
                writer.add(key, label, "g01", frames)
        with pytest.raises(StoreError, match="does not hold raw frames"):
            writer.add_payload("a/v1", 0, "g01", encode(video, "jpeg"))
    with pytest.raises(StoreError, match="codec must be one of raw, jpeg"):
        StoreWriter(tmp_path / "t", SIZE, "png")
    with StoreWriter(tmp_path / "t", SIZE) as writer, pytest.raises(StoreError, match="no video was added"):
        writer.commit({})


def test_of_several_publishers_exactly_one_wins_and_its_bytes_stay(tmp_path: Path) -> None:
    for race in range(50):
        path = tmp_path / f"manifest-{race}"
        barrier = threading.Barrier(4)
        won: list[int] = []

        def publish(number: int, path: Path = path, barrier: threading.Barrier = barrier, won: list[int] = won) -> None:
            barrier.wait(timeout=30)
            if publish_new(path, b"%d" % number * 1000):
                won.append(number)

        threads = [threading.Thread(target=publish, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        assert len(won) == 1
        assert path.read_bytes() == b"%d" % won[0] * 1000
    assert len(list(tmp_path.iterdir())) == 50


def test_write_atomic_replaces_whole_files_and_leaves_no_temporary_ones(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old" * 1000)
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomic(path, b"no")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, StoreUnreadable), (errno.EACCES, StoreDamaged)])
def test_a_disk_that_fails_is_told_from_files_that_nobody_may_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StoreDamaged]
) -> None:
    def fail(path: Path) -> bytes:
        raise OSError(number, os.strerror(number), str(path))

    (tmp_path / "manifest-000001.json").touch()
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(StoreDamaged, match=os.strerror(number)) as caught:
        ClipStore.open(tmp_path)
    assert type(caught.value) is kind
