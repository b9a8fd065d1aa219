"""Ledgers on disk: killed and full at every step, damaged in every way, and against a dict as the reference."""

from __future__ import annotations

import collections
import dataclasses
import errno
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data import atomic
from data.views import VIEW_DTYPE
from teacher_server.errors import LedgerError
from teacher_server.ledger import store as ledger_store
from teacher_server.ledger.digest_table import DIGEST_DTYPE, DigestTable
from teacher_server.ledger.segments import Origin
from teacher_server.ledger.store import (
    HEADER,
    Answer,
    Ledger,
    LedgerHeader,
    disk_errors,
    leave_out,
    ledger_folder,
    ledger_folders,
    read_header,
    refuse,
)
from teacher_server.protocol import TeacherId

ROOT = Path(__file__).parents[3]
HEADER_OF_ALPHA = LedgerHeader("alpha@1", "ab" * 32, "cpu", views_per_item=3, num_classes=5)
ORIGIN = Origin("/stores/tiny", "cd" * 16, (40, 48))


def digest_of(i: int) -> bytes:
    """Every third one ends in zero bytes, which numpy's strings drop from single elements."""
    return i.to_bytes(4, "big") * 3 + (b"\0\0\0\0" if i % 3 == 0 else b"abc\0")


def answer_of(i: int, *, features: bool = False) -> Answer:
    rng = np.random.default_rng(i)
    logits = rng.normal(size=5).astype(np.float32)
    return Answer(logits, rng.normal(size=4).astype(np.float32) if features else None)


def views_of(i: int) -> np.ndarray:
    views = np.zeros(3, dtype=VIEW_DTYPE)
    views["video"], views["start"] = i, (1, 2, 3)
    return views


def record(ledger: Ledger, numbers: range, *, features: bool = False, origin: Origin = ORIGIN) -> list[bool]:
    return [ledger.record(origin, digest_of(i), views_of(i), answer_of(i, features=features)) for i in numbers]


def write_ledger(folder: Path, parts: list[range]) -> None:
    """A segment for each part."""
    ledger = Ledger.create(folder, HEADER_OF_ALPHA, refuse)
    for part in parts:
        record(ledger, part)
        ledger.flush()


def content(folder: Path) -> dict[bytes, tuple[bytes, bytes]]:
    """digest -> views and logits, as bytes; read from the segments themselves. Refuses damaged ones."""
    ledger = Ledger.open(folder, refuse)
    found: dict[bytes, tuple[bytes, bytes]] = {}
    for segment in ledger.segments:
        for i in range(len(segment)):
            digest = segment.rows.digests[i : i + 1].tobytes()
            found[digest] = (segment.rows.views[i].tobytes(), segment.rows.logits[i].tobytes())
    return found


def expected_content(numbers: range) -> dict[bytes, tuple[bytes, bytes]]:
    return {digest_of(i): (views_of(i).tobytes(), answer_of(i).logits.tobytes()) for i in numbers}


def test_answers_come_back_as_they_were_recorded_before_and_after_the_flush(tmp_path):
    ledger = Ledger.create(tmp_path / "l", HEADER_OF_ALPHA, refuse)
    assert record(ledger, range(10)) == [True] * 10
    assert record(ledger, range(8, 12)) == [False, False, True, True]
    asked = [digest_of(i) for i in (11, 99, 0, 3)]
    for _ in range(2):
        found = ledger.find(asked, (40, 48), features=False)
        assert [answer is None for answer in found] == [False, True, False, False]
        for i, answer in zip((11, 0, 3), (found[0], found[2], found[3]), strict=True):
            assert answer.logits.tobytes() == answer_of(i).logits.tobytes()
        ledger.flush()
        assert ledger.num_pending == 0
    assert content(tmp_path / "l") == expected_content(range(12))


def test_features_and_frame_sizes_keep_answers_apart(tmp_path):
    ledger = Ledger.create(tmp_path / "l", HEADER_OF_ALPHA, refuse)
    turned = Origin("/stores/turned", "ef" * 16, (48, 40))
    record(ledger, range(2), features=True)
    record(ledger, range(2, 4))
    record(ledger, range(4, 6), origin=turned)
    asked = [digest_of(i) for i in range(6)]
    for _ in range(2):
        has = {
            (size, features): [answer is not None for answer in ledger.find(asked, size, features=features)]
            for size, features in itertools.product(((40, 48), (48, 40)), (True, False))
        }
        assert has[(40, 48), True] == [True, True, False, False, False, False]
        assert has[(40, 48), False] == [True, True, True, True, False, False]
        assert has[(48, 40), False] == [False, False, False, False, True, True]
        assert not any(has[(48, 40), True])
        (first,) = ledger.find(asked[:1], (40, 48), features=True)
        assert first.features.tobytes() == answer_of(0, features=True).features.tobytes()
        ledger.flush()
    assert {segment.origin for segment in ledger.segments} == {ORIGIN, turned}


@pytest.mark.parametrize("seed", range(5))
def test_the_digest_table_finds_what_a_dict_finds(seed):
    rng = np.random.default_rng(seed)
    reference: dict[bytes, int] = {}
    table = DigestTable()
    for size in rng.integers(1, 40, 30).tolist():
        new = [bytes(rng.integers(0, 3, 16, dtype=np.uint8)) for _ in range(size)]  # few values: many zeros, neighbours
        new = [digest for digest in dict.fromkeys(new) if digest not in reference]
        if not new:
            continue
        places = np.arange(len(reference), len(reference) + len(new), dtype=np.int64)
        reference |= dict(zip(new, places.tolist(), strict=True))
        table.add(np.frombuffer(b"".join(new), DIGEST_DTYPE), places)
        asked = [*rng.choice(np.array(list(reference), dtype="V16"), 20).tolist(), bytes(16), b"\3" * 16, b"\xff" * 16]
        found = table.find(np.frombuffer(b"".join(asked), DIGEST_DTYPE))
        assert found.tolist() == [reference.get(digest, -1) for digest in asked]


def test_a_segment_appears_to_others_at_most_a_second_late(tmp_path):
    now = [100.0]
    write_ledger(tmp_path / "l", [range(2)])
    reader = Ledger(tmp_path / "l", HEADER_OF_ALPHA, refuse, clock=lambda: now[0])
    write_ledger(tmp_path / "l", [range(2, 4)])
    now[0] += 0.9
    reader.refresh()
    assert len(reader) == 2
    now[0] += 0.2
    reader.refresh()
    assert len(reader) == 4


def test_several_writers_at_once_lose_nothing(tmp_path):
    barrier = threading.Barrier(4)

    def write(part: int) -> None:
        barrier.wait(30)
        write_ledger(tmp_path / "l", [range(part * 30 + 3 * i, part * 30 + 3 * i + 3) for i in range(10)])

    threads = [threading.Thread(target=write, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert content(tmp_path / "l") == expected_content(range(120))
    assert len(list((tmp_path / "l").iterdir())) == 41


def test_an_answer_that_is_not_finite_or_not_whole_is_never_recorded(tmp_path):
    ledger = Ledger.create(tmp_path / "l", HEADER_OF_ALPHA, refuse)
    bad = np.zeros(5, np.float32)
    bad[3] = np.nan
    for answer in (Answer(bad), Answer(np.zeros(4, np.float32)), Answer(np.zeros(5, np.float32), bad)):
        with pytest.raises(ValueError, match="whole, finite answers"):
            ledger.record(ORIGIN, digest_of(0), views_of(0), answer)
    with pytest.raises(ValueError, match="items of 3 views"):
        ledger.record(ORIGIN, digest_of(0), views_of(0)[:2], answer_of(0))
    assert ledger.num_pending == 0


@pytest.mark.parametrize(
    ("name", "value"), [("engine", "cuda"), ("digest", "ee" * 32), ("views_per_item", 1), ("num_classes", 6)]
)
def test_a_ledger_of_something_else_is_refused_with_the_difference(tmp_path, name, value):
    write_ledger(tmp_path / "l", [range(1)])
    other = dataclasses.replace(HEADER_OF_ALPHA, **{name: value})
    with pytest.raises(LedgerError, match=rf"{name} \S+ \(now {value}\)"):
        Ledger.create(tmp_path / "l", other, refuse)


@pytest.mark.parametrize(("name", "ours"), [("RENDERER", "cpu-99"), ("SCHEMA", 99), ("FORMAT", 99)])
def test_a_ledger_of_another_program_version_is_refused(tmp_path, monkeypatch, name, ours):
    write_ledger(tmp_path / "l", [range(1)])
    monkeypatch.setattr(ledger_store, name, ours)
    with pytest.raises(LedgerError, match=f"this program has {ours}: move it away"):
        Ledger.open(tmp_path / "l", refuse)


def test_names_that_leave_the_folder_are_no_ledgers(tmp_path):
    for teacher, digest in ((TeacherId("../x", 1), "ab" * 32), (TeacherId("x", 1), "../" * 32)):
        with pytest.raises(LedgerError, match="is no teacher"):
            ledger_folder(tmp_path, teacher, digest)


def test_a_segment_of_another_ledger_is_named_and_refused_or_left_out(tmp_path):
    write_ledger(tmp_path / "l", [range(2)])
    other = Ledger.create(tmp_path / "gpu", dataclasses.replace(HEADER_OF_ALPHA, engine="cuda"), refuse)
    record(other, range(2, 4))
    other.flush()
    foreign = other.segments[0].path.rename(tmp_path / "l" / other.segments[0].path.name)
    with pytest.raises(LedgerError, match=f"{foreign.name} cannot be used: it belongs to another ledger"):
        Ledger.open(tmp_path / "l", refuse)
    with pytest.warns(UserWarning, match=foreign.name):
        ledger = Ledger.open(tmp_path / "l", leave_out)
    assert ledger.find([digest_of(2)], (40, 48), features=False) == [None]
    assert len(ledger) == 2


def test_files_of_other_kinds_are_left_alone(tmp_path):
    write_ledger(tmp_path / "l", [range(2)])
    for name in ("notes.txt", ".hidden.arrow", ".nfs0001"):
        (tmp_path / "l" / name).write_text("mine")
    assert content(tmp_path / "l") == expected_content(range(2))


def test_only_old_temporary_files_are_removed_by_a_writer(tmp_path):
    write_ledger(tmp_path / "l", [range(2)])
    old, young = tmp_path / "l/.a.arrow.0.tmp", tmp_path / "l/.b.arrow.0.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    Ledger.open(tmp_path / "l", refuse)
    assert old.exists()
    Ledger.create(tmp_path / "l", HEADER_OF_ALPHA, refuse)
    assert not old.exists()
    assert young.exists()


def damaged_copy(blob: bytes, rng: np.random.Generator) -> bytes:
    """1, 3 or 40 flipped bits, or a cut."""
    kind = int(rng.integers(4))
    if kind == 3:
        return blob[: int(rng.integers(len(blob)))]
    harmed = np.frombuffer(blob, dtype=np.uint8).copy()
    for bit in rng.integers(len(blob) * 8, size=(1, 3, 40)[kind]):
        harmed[bit // 8] ^= 1 << (bit % 8)
    return harmed.tobytes()


def outcome_of(file: Path, expected: dict[bytes, tuple[bytes, bytes]]) -> str:
    try:
        found = content(file.parent)
    except LedgerError as error:
        return "found" if file.name in str(error) else "found, and not named"
    return "content is the same" if found == expected else "another content"


def test_random_damage_is_found_or_the_content_is_the_same(tmp_path):
    seed = 35
    rng = np.random.default_rng(seed)
    write_ledger(tmp_path / "l", [range(4), range(4, 5), range(5, 12)])
    files = sorted((tmp_path / "l").iterdir())
    expected = expected_content(range(12))
    outcomes: collections.Counter[str] = collections.Counter()
    for _ in range(2000):
        file = files[rng.integers(len(files))]
        blob = file.read_bytes()
        file.write_bytes(damaged_copy(blob, rng))
        outcomes[outcome_of(file, expected)] += 1
        file.write_bytes(blob)
    print(f"seed {seed}: {dict(outcomes)}")
    assert set(outcomes) == {"found", "content is the same"}
    assert outcomes["found"] > 1000
    assert read_header(tmp_path / "l") == HEADER_OF_ALPHA


def test_control_arrow_alone_does_not_notice_another_logit(tmp_path):
    write_ledger(tmp_path / "l", [range(4)])
    (path,) = (tmp_path / "l").glob("*.arrow")
    blob = bytearray(path.read_bytes())
    blob[blob.find(answer_of(2).logits.tobytes())] ^= 1
    path.write_bytes(blob)
    batch = pa.ipc.open_file(path).get_batch(0)
    batch.validate(full=True)
    assert batch.column(2).to_pylist()[2] != answer_of(2).logits.tolist()


KILLED = """
import json, os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import data.atomic
import test_ledger_files as t

def die_at(last):
    calls = iter(range(last))
    def guard(real):
        def call(*args, **kwargs):
            if next(calls, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call
    for name in ("mkdir", "fsync", "link", "unlink"):
        setattr(os, name, guard(getattr(os, name)))

    class Torn:
        def __init__(self, file): self._file = file
        def __enter__(self): return self
        def __exit__(self, *_): self._file.close()
        def __getattr__(self, name): return getattr(self._file, name)
        def write(self, blob):
            if next(calls, None) is None:
                self._file.write(blob[: len(blob) // 2])
                self._file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return self._file.write(blob)

    data.atomic.open = lambda *args: Torn(open(*args))

outcomes = []
for last in range(1000):
    child = os.fork()
    if child == 0:
        die_at(last)
        t.write_ledger(Path(sys.argv[3]) / str(last), t.PARTS)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    outcomes.append(status)
    if status == 0:
        break
print(json.dumps(outcomes))
"""
PARTS = [range(4), range(4, 9)]


def check_whole_parts(folder: Path) -> int:
    """How many of PARTS the ledger holds; a rerun then completes it to the same content."""
    held = content(folder) if (folder / HEADER).exists() else {}
    assert held in [expected_content(range(end)) for end in (0, 4, 9)]
    write_ledger(folder, PARTS)
    assert content(folder) == expected_content(range(9))
    return len(held)


def test_a_writer_that_is_killed_anywhere_leaves_whole_segments_and_a_rerun_completes_them(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    ended = subprocess.run(
        [sys.executable, script, ROOT, Path(__file__).parent, tmp_path / "ledgers"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    outcomes = json.loads(ended.stdout)
    assert outcomes[-1] == 0
    assert set(outcomes[:-1]) == {-9}
    held = [check_whole_parts(tmp_path / "ledgers" / str(i)) for i in range(len(outcomes))]
    print(f"killed at each of {len(held) - 1} steps; answers found afterwards: {held}")
    assert set(held) == {0, 4, 9}


@pytest.mark.parametrize("name", ["mkdir", "fsync", "link", "write"])
def test_a_full_disk_at_any_step_leaves_whole_segments_and_says_so(tmp_path, monkeypatch, name):
    failed_at = 0
    while True:
        folder = tmp_path / f"{name}{failed_at}" / "l"
        with monkeypatch.context() as patch:
            fail_once(patch, name, failed_at)
            message = message_of_writing(folder)
        if not message:
            break
        assert "No space left on device" in message
        assert "what was recorded before is whole" in message
        assert not list(folder.parent.rglob("*.tmp"))
        check_whole_parts(folder)
        failed_at += 1
    print(f"{name}: failed at each of {failed_at} calls")
    assert failed_at >= 2


def message_of_writing(folder: Path) -> str:
    try:
        with disk_errors(folder):
            write_ledger(folder, PARTS)
    except LedgerError as error:
        return str(error)
    return ""


def fail_once(patch: pytest.MonkeyPatch, name: str, at: int) -> None:
    calls = itertools.count()

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **kwargs)

        return call

    owner, attribute = (atomic, "_write_synced") if name == "write" else (os, name)
    patch.setattr(owner, attribute, failing(getattr(owner, attribute)))


def test_rows_that_a_full_disk_refused_are_written_by_the_next_flush(tmp_path, monkeypatch):
    ledger = Ledger.create(tmp_path / "l", HEADER_OF_ALPHA, refuse)
    record(ledger, range(3))
    with monkeypatch.context() as patch:
        fail_once(patch, "fsync", 0)
        with pytest.raises(OSError, match="No space"):
            ledger.flush()
    assert ledger.num_pending == 3
    assert ledger_folders(tmp_path) == [tmp_path / "l"]
    ledger.flush()
    assert content(tmp_path / "l") == expected_content(range(3))
