"""Ingest of real video files: what comes out, and what becomes of files, processes and power that fail."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import psutil
import pytest

import data.ingest
from data.catalogs.ucf101 import read_catalog
from data.decode import decode
from data.decode_pool import DecodePool, Failure
from data.errors import DataError, StoreError, StoreMissing, VideoError
from data.ingest import IngestReport, Progress, ingest_catalog, main, parse_size
from data.store import ClipStore
from data.views import VIEW_DTYPE, ViewBatch

SIZE = (24, 32)
ROOT = Path(data.ingest.__file__).parents[1]

HOSTILE = """
import os, signal, sys, time
from data.decode import decode

def by_name(file, frame_size):
    if "hang" in file.name:
        time.sleep(600)
    if "crash" in file.name:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "leave" in file.name:
        sys.exit(3)
    if "interrupt" in file.name:
        os.kill(os.getpid(), signal.SIGINT)
    return decode(file, frame_size)

def announce_and_hang(file, frame_size):
    print("decoding", flush=True)
    time.sleep(600)
"""


def whole_video(store: ClipStore, row: int) -> np.ndarray:
    records = np.zeros(1, VIEW_DTYPE)
    records["video"], records["clip_len"] = row, store.videos.num_frames[row]
    return store.gather(ViewBatch(records, 1, store.fingerprint))[0]


def reference_decode(file: Path, frame_size: tuple[int, int]) -> np.ndarray:
    """The plainest way: PyAV's own scaling, frame by frame."""
    height, width = frame_size
    with av.open(str(file)) as container:
        return np.stack(
            [
                frame.reformat(width=width, height=height, format="rgb24", interpolation="BILINEAR").to_ndarray()
                for frame in container.decode(video=0)
            ]
        )


@pytest.fixture
def ingest(ucf_folder: Any, tmp_path: Path) -> Callable[..., IngestReport]:
    def run(name: str = "store", **options: Any) -> IngestReport:
        catalog = read_catalog(ucf_folder.videos, ucf_folder.lists)
        return ingest_catalog(catalog, tmp_path / name, frame_size=SIZE, **{"workers": 2, **options})

    return run


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """Decoders that hang, crash and leave, in a module that child processes can import."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "hostile_decoders.py").write_text(HOSTILE)
    sys.path.insert(0, str(folder))
    try:
        import hostile_decoders  # type: ignore[import-not-found]

        yield hostile_decoders
    finally:
        sys.path.remove(str(folder))


def test_the_store_holds_every_listed_video_as_decoded(ucf_folder: Any, ingest: Callable[..., IngestReport]) -> None:
    report = ingest()
    store = ClipStore.open(report.path)
    assert store.fingerprint == report.fingerprint
    assert store.classes == ucf_folder.CLASSES
    assert sorted(store.videos.keys) == sorted(v.rsplit(".", 1)[0] for v in ucf_folder.train + ucf_folder.test)
    for row, key in enumerate(store.videos.keys):
        (file,) = (ucf_folder.videos / v for v in ucf_folder.train + ucf_folder.test if v.startswith(key + "."))
        np.testing.assert_array_equal(whole_video(store, row), reference_decode(file, SIZE))
        assert store.classes[store.labels[row]] == key.split("/")[0]
        assert store.groups[row] == key.split("_")[-2]
    keys = [store.videos.keys[row] for row in store.subset("train01")]
    assert keys == [v.rsplit(".", 1)[0] for v in ucf_folder.train]
    assert report.num_videos == 6
    assert report.num_frames == sum(12 + seed for seed in range(6)) == store.videos.num_frames.sum()
    assert report.num_short == (6, 6)


@pytest.mark.parametrize("codec", ["raw", "jpeg"])
def test_the_fingerprint_does_not_depend_on_the_number_of_workers(
    ingest: Callable[..., IngestReport], codec: str
) -> None:
    prints = {ingest(f"{codec}{workers}", workers=workers, codec=codec).fingerprint for workers in (1, 3)}
    assert len(prints) == 1


def break_by_cutting(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 6 // 10)


def break_by_emptying(path: Path) -> None:
    path.write_bytes(b"")


def break_by_text(path: Path) -> None:
    path.write_text("this is a text\n" * 500)


def break_by_flips(path: Path) -> None:
    blob = np.frombuffer(path.read_bytes(), dtype=np.uint8).copy()
    rng = np.random.default_rng(3)
    for bit in rng.integers(len(blob) * 2, len(blob) * 6, size=40):
        blob[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(blob.tobytes())


def break_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def break_by_removing(path: Path) -> None:
    path.unlink()


def break_by_link_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def break_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def break_by_play_list(path: Path) -> None:
    path.rename(path.with_suffix(".other"))
    path.write_text(f"ffconcat version 1.0\nfile {path.with_suffix('.other').name}\n")


def break_by_sound_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))


DAMAGED = "damaged or not a video"


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (break_by_cutting, DAMAGED),
        (break_by_emptying, "it is empty"),
        (break_by_text, DAMAGED),
        (break_by_flips, DAMAGED),
        (break_by_folder, "not a regular file"),
        (break_by_removing, "No such file"),
        (break_by_link_loop, "symbolic links"),
        (break_by_pipe, "not a regular file"),
        (break_by_play_list, DAMAGED),
        (break_by_sound_only, "no video stream"),
    ],
)
def test_broken_files_are_refused_with_their_reason(
    encode_video: Callable[..., Path], tmp_path: Path, harm: Callable[[Path], None], reason: str
) -> None:
    path = encode_video(tmp_path / "v.avi", num_frames=30)
    assert decode(path, SIZE).shape == (30, *SIZE, 3)
    harm(path)
    with pytest.raises(VideoError, match=reason) as caught:
        decode(path, SIZE)
    assert caught.value.file == str(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_files_are_refused(encode_video: Callable[..., Path], tmp_path: Path) -> None:
    path = encode_video(tmp_path / "v.avi")
    path.chmod(0)
    with pytest.raises(VideoError, match="Permission denied"):
        decode(path, SIZE)


def test_sound_files_of_each_codec_and_size_decode_whole(encode_video: Callable[..., Path], tmp_path: Path) -> None:
    for name, codec in (("a.avi", "mpeg4"), ("b.mp4", "libx264"), ("c.mkv", "libx264"), ("d.avi", "mjpeg")):
        path = encode_video(tmp_path / name, num_frames=17, codec="mpeg4" if codec == "mjpeg" else codec, size=(40, 56))
        np.testing.assert_array_equal(decode(path, SIZE), reference_decode(path, SIZE))


def test_too_many_frames_are_refused(
    encode_video: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode_video(tmp_path / "v.avi", num_frames=20)
    monkeypatch.setattr("data.decode.MAX_VIDEO_BYTES", 19 * SIZE[0] * SIZE[1] * 3)
    with pytest.raises(VideoError, match="more than 19 frames"):
        decode(path, SIZE)
    monkeypatch.setattr("data.decode.MAX_SOURCE_SIDE", 50)
    with pytest.raises(VideoError, match="frames of 48x64 exceed 50"):
        decode(path, SIZE)


def test_broken_videos_are_listed_and_the_rest_is_ingested(
    ucf_folder: Any, ingest: Callable[..., IngestReport], hostile: ModuleType, encode_video: Callable[..., Path]
) -> None:
    break_by_cutting(ucf_folder.videos / ucf_folder.train[0])
    break_by_removing(ucf_folder.videos / ucf_folder.test[0])
    for name in ("crash", "hang", "leave"):
        listed = f"Bow/v_{name}_g01_c01.avi"
        encode_video(ucf_folder.videos / listed)
        ucf_folder.train.append(listed)
    ucf_folder.write_lists()
    report = ingest(decoder=hostile.by_name, timeout_s=3)
    assert {entry.file: entry.reason for entry in report.skipped} == {
        "Bow/v_Bow_g01_c01.avi": "it is damaged or not a video",
        "Bow/v_Bow_g03_c01.avi": "it cannot be read (No such file or directory)",
        "Bow/v_crash_g01_c01.avi": "the decoder crashed (SIGSEGV)",
        "Bow/v_hang_g01_c01.avi": "it took longer than 3 s to decode",
        "Bow/v_leave_g01_c01.avi": "the decoder ended with code 3",
    }
    store = ClipStore.open(report.path)
    assert len(store) == report.num_videos == 4
    assert store.skipped == report.skipped
    assert len(store.subset("train01")) == 3
    assert len(store.subset("test01")) == 1
    assert multiprocessing.active_children() == []


def test_progress_counts_every_video(ingest: Callable[..., IngestReport]) -> None:
    seen: list[Progress] = []
    ingest(on_progress=seen.append)
    assert seen == [Progress(done, 6, 0) for done in range(1, 7)]


def test_no_usable_video_makes_no_store(ucf_folder: Any, ingest: Callable[..., IngestReport], tmp_path: Path) -> None:
    for name in ucf_folder.train + ucf_folder.test:
        break_by_emptying(ucf_folder.videos / name)
    with pytest.raises(StoreError, match=r"none of the 6 listed videos can be used.* it is empty"):
        ingest()
    with pytest.raises(StoreMissing):
        ClipStore.open(tmp_path / "store")


def test_an_interrupted_ingest_leaves_no_store_and_no_process(
    ingest: Callable[..., IngestReport], tmp_path: Path
) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(on_progress=interrupt)
    assert multiprocessing.active_children() == []
    assert list((tmp_path / "store/segments").iterdir()) == []
    ingest()


KILLED = """
import os, signal, sys
from pathlib import Path
import psutil
from data.catalogs.ucf101 import read_catalog
from data.ingest import ingest_catalog

def die(progress):
    if progress.done == 3:
        print(*(child.pid for child in psutil.Process().children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    videos, lists, out = map(Path, sys.argv[1:])
    ingest_catalog(read_catalog(videos, lists), out, frame_size=(24, 32), workers=2, on_progress=die)
"""


def has_ended(pid: int, timeout_s: float = 20) -> bool:
    """Whether a process ends within the limit; one that waits to be reaped has ended."""
    try:
        process = psutil.Process(pid)
        for _ in range(int(timeout_s * 10)):
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            try:
                process.wait(timeout=0.1)
                return True
            except psutil.TimeoutExpired:
                continue
    except psutil.NoSuchProcess:
        return True
    return False


def test_a_killed_ingest_leaves_no_store_and_a_rerun_makes_the_same(
    ucf_folder: Any, ingest: Callable[..., IngestReport], tmp_path: Path
) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    out = tmp_path / "killed"
    ended = subprocess.run(
        [sys.executable, script, ucf_folder.videos, ucf_folder.lists, out],
        capture_output=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    children = [int(pid) for pid in ended.stdout.split()]
    assert len(children) >= 2
    assert all(has_ended(pid) for pid in children)
    with pytest.raises(StoreMissing, match="not finished"):
        ClipStore.open(out)
    assert ingest("killed").fingerprint == ingest("undisturbed").fingerprint
    names = [{path.name for path in (tmp_path / store / "segments").iterdir()} for store in ("killed", "undisturbed")]
    assert names[0] == names[1]


INTERRUPTED = """
import functools, sys
import data.ingest as ingest
import hostile_decoders

if __name__ == "__main__":
    ingest.ingest_catalog = functools.partial(ingest.ingest_catalog, decoder=hostile_decoders.announce_and_hang)
    sys.exit(ingest.main(sys.argv[1:]))
"""


@pytest.fixture
def hanging_ingest(ucf_folder: Any, hostile: ModuleType, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The command, in a process group of its own, whose only child is in the middle of a video."""
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    paths = ["--videos", ucf_folder.videos, "--lists", ucf_folder.lists, "--out", tmp_path / "store"]
    with subprocess.Popen(
        [sys.executable, script, "ucf101", *paths, "--size", "24x32", "--workers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{Path(hostile.__file__).parent}"},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "decoding\n"
        yield process
        process.kill()


def test_ctrl_c_ends_parent_and_children_with_one_sentence(hanging_ingest: subprocess.Popen[str]) -> None:
    children = psutil.Process(hanging_ingest.pid).children()
    os.killpg(hanging_ingest.pid, signal.SIGINT)  # what a terminal does
    _, errors = hanging_ingest.communicate(timeout=60)
    assert hanging_ingest.returncode == 130
    assert errors == "interrupted: nothing was written\n"
    assert all(has_ended(child.pid) for child in children)


def test_a_child_in_the_middle_of_a_video_ends_with_its_killed_parent(hanging_ingest: subprocess.Popen[str]) -> None:
    children = psutil.Process(hanging_ingest.pid).children()
    hanging_ingest.kill()
    hanging_ingest.wait(timeout=60)
    assert len(children) >= 1
    assert all(has_ended(child.pid) for child in children)


def test_the_command_writes_a_store_and_reports_it(
    ucf_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_by_emptying(ucf_folder.videos / ucf_folder.train[1])
    paths = ["--videos", str(ucf_folder.videos), "--lists", str(ucf_folder.lists), "--out", str(tmp_path / "store")]
    assert main(["ucf101", *paths, "--size", "24x32", "--codec", "jpeg", "--workers", "1"]) == 0
    out = capsys.readouterr().out
    store = ClipStore.open(tmp_path / "store")
    assert (store.codec, store.frame_size, len(store)) == ("jpeg", SIZE, 5)
    for line in (
        "ingest: 6 of 6 videos, 1 skipped",
        f"fingerprint {store.fingerprint}",
        f"5 videos, {store.videos.num_frames.sum()} frames",
        "5 videos have fewer than 46 frames",
        "HandstandPushups/v_HandStandPushups_g01_c01.mp4: it is empty",
    ):
        assert line in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--size": "64y86"}, "--size must be HEIGHTxWIDTH"),
        ({"--size": "64"}, "--size must be HEIGHTxWIDTH"),
        ({"--size": "0x86"}, "must lie in 16 to 4096"),
        ({"--videos": "/nowhere"}, "there is no folder /nowhere"),
        ({"--workers": "0"}, "workers must be at least 1"),
        ({"--timeout-s": "0"}, "time limit positive"),
        ({"--out": "/proc/nowhere/store"}, "nothing was written"),
    ],
)
def test_wrong_options_give_one_sentence_and_no_store(
    ucf_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], message: str
) -> None:
    options = {"--videos": str(ucf_folder.videos), "--lists": str(ucf_folder.lists), "--out": str(tmp_path / "store")}
    assert main(["ucf101", *(word for pair in (options | change).items() for word in pair)]) == 1
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert not list(tmp_path.glob("store/manifest*"))


OWN_CATALOG = """
from data.catalogs import Catalog, CatalogEntry

def all_in_one(videos, lists):
    files = sorted(path for path in videos.rglob("*") if path.is_file())
    entries = tuple(CatalogEntry(path, path.name, 0, "own") for path in files)
    keys = tuple(entry.key for entry in entries)
    return Catalog(("everything",), entries, {"train01": keys[1:], "test01": keys[:1]}, (f"lists is {lists}",))

def nothing(videos, lists):
    return {}

NUMBER = 3
"""


@pytest.fixture
def own_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of an importable module with catalogs of its own."""
    (tmp_path / "own_catalog.py").write_text(OWN_CATALOG)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_catalog"
    sys.modules.pop("own_catalog", None)


def test_a_catalog_of_ones_own_is_named_as_module_and_function(
    ucf_folder: Any, own_catalog: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ["--videos", str(ucf_folder.videos), "--out", str(tmp_path / "store")]
    assert main([f"{own_catalog}:all_in_one", *paths, "--size", "24x32", "--workers", "1"]) == 0
    store = ClipStore.open(tmp_path / "store")
    assert (store.classes, len(store), set(store.groups)) == (("everything",), 6, {"own"})
    assert (len(store.subset("train01")), len(store.subset("test01"))) == (5, 1)
    assert "warning: lists is None" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_catalog:nothing", "must return a data.catalogs.Catalog, it returned dict"),
        ("own_catalog:NUMBER", "must be a function, it is a int"),
        ("own_catalog:absent", "module own_catalog has no absent"),
        ("not_there_at_all:f", "importing not_there_at_all failed"),
    ],
)
@pytest.mark.usefixtures("own_catalog")
def test_a_catalog_of_ones_own_that_cannot_be_used_gives_one_sentence(
    ucf_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    assert main([name, "--videos", str(ucf_folder.videos), "--out", str(tmp_path / "store")]) == 1
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_hmdb51_folder_and_kinetics_are_ingested_by_the_same_command(
    ucf_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = tmp_path / "hmdb"
    lists.mkdir()
    rows = ["label,youtube_id,time_start,time_end,split"]
    for folder in sorted(path for path in ucf_folder.videos.iterdir() if path.is_dir()):
        files = sorted(path.name for path in folder.iterdir())
        text = "".join(f"{name} {2 if i == 0 else 1}\n" for i, name in enumerate(files))
        (lists / f"{folder.name}_test_split1.txt").write_text(text + "absent.avi 1\n")
        for i, name in enumerate(files):
            rows.append(f"{folder.name},{Path(name).stem},0,10,{'test' if i == 0 else 'train'}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    keys = {}
    for layout, extra in (
        ("hmdb51", ["--lists", str(lists)]),
        ("folder", []),
        ("kinetics", ["--lists", str(tmp_path / "list.csv")]),
    ):
        out = tmp_path / layout
        arguments = ["--videos", str(ucf_folder.videos), "--out", str(out), "--size", "24x32", "--workers", "1"]
        assert main([layout, *arguments, *extra]) == 0
        store = ClipStore.open(out)
        assert len(store) == 6
        assert set(store.subsets) == {"train01", "test01"}
        assert len(store.subset("train01")) + len(store.subset("test01")) == 6
        keys[layout] = len(store.skipped)
    assert keys == {"hmdb51": len(list(lists.iterdir())), "folder": 0, "kinetics": 0}
    assert "it cannot be read (No such file or directory)" in capsys.readouterr().out


def test_parse_size_gives_height_and_width() -> None:
    assert parse_size("64x86") == (64, 86)


def test_the_pool_keeps_the_order_while_children_die(
    hostile: ModuleType, encode_video: Callable[..., Path], tmp_path: Path
) -> None:
    names = ["v0.avi", "crash.avi", "v1.avi", "leave.avi", "interrupt.avi", "v2.avi", "crash.avi"]
    lengths = {f"v{i}.avi": 10 + i for i in range(3)}
    for name in set(names):
        encode_video(tmp_path / name, num_frames=lengths.get(name, 9))
    with DecodePool(hostile.by_name, num_workers=2, timeout_s=60) as pool:
        results = list(pool.map([(tmp_path / name, SIZE) for name in names]))
    crashed, left = Failure("the decoder crashed (SIGSEGV)"), Failure("the decoder ended with code 3")
    assert [r if isinstance(r, Failure) else len(r) for r in results] == [10, crashed, 11, left, 9, 12, crashed]


def test_a_pool_whose_children_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def function() -> None: ...

    # It pickles by name, but the name means nothing in a child.
    module = ModuleType("a_module_only_here")
    module.function = function  # type: ignore[attr-defined]
    function.__module__, function.__qualname__ = module.__name__, "function"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with DecodePool(function, 1, 60) as pool, pytest.raises(DataError, match="did not start"):
        list(pool.map([()]))


def test_names_that_are_not_utf_8_are_ingested_and_shown_when_they_are_skipped(
    encode_video: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "videos" / "run"
    folder.mkdir(parents=True)
    sound, empty = (folder / os.fsdecode(name) for name in (b"caf\xe9.avi", b"caf\xe8.avi"))
    encode_video(tmp_path / "sound.avi").rename(sound)
    empty.touch()
    paths = ["--videos", str(tmp_path / "videos"), "--out", str(tmp_path / "store")]
    assert main(["folder", *paths, "--size", "24x32", "--workers", "1"]) == 0
    assert ClipStore.open(tmp_path / "store").videos.keys == (f"run/{sound.name}",)
    assert "run/caf\\udce8.avi: it is empty" in capsys.readouterr().out
