"""Files in a teacher library that somebody made to do harm: each is a clear refusal, and nothing of it ever runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from data.store import ClipStore
from teacher_server.clients.inprocess import InProcessTeacherClient
from teacher_server.engine.ensemble import load_teacher
from teacher_server.engine.weights import load_network
from teacher_server.errors import BadQuery, LibraryError, UnknownTeacher
from teacher_server.library import CARD, MAX_CARD_BYTES, MAX_WEIGHTS_BYTES, WEIGHTS, TeacherLibrary
from teacher_server.protocol import TeacherId

EVIL = TeacherId("evil", 1)
DEEP = 100_000


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.target),)


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """What a payload would make."""
    return tmp_path / "planted"


@pytest.fixture
def evil(library: TeacherLibrary, tmp_path: Path) -> TeacherLibrary:
    """A library with one sound teacher, evil@1, whose files a test replaces, and alpha@1."""
    own = TeacherLibrary(tmp_path / "library")
    for name in ("alpha", "evil"):
        entry = library.entry(TeacherId("alpha", 1))
        own.add(name, entry.card, entry.weights)
    return own


def folder_of(library: TeacherLibrary) -> Path:
    return library.root / "evil" / "1"


def refusal(library: TeacherLibrary) -> str:
    """What loading evil@1 says against it."""
    with pytest.raises(LibraryError) as caught:
        load_teacher(library.entry(EVIL))
    assert str(folder_of(library)) in str(caught.value)
    assert len(str(caught.value)) < 1500
    return str(caught.value)


def pickled(planted: Path) -> bytes:
    return pickle.dumps({"backbone.stem.weight": Payload(planted)})


def torch_saved(planted: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": Payload(planted)}, buffer)
    return buffer.getvalue()


def zipped(planted: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(planted))
    return buffer.getvalue()


def test_the_control_unpickling_the_payload_runs_it(planted: Path) -> None:
    pickle.loads(pickled(planted))
    assert planted.is_dir()
    planted.rmdir()
    torch.load(io.BytesIO(torch_saved(planted)), weights_only=False)
    assert planted.is_dir()


@pytest.mark.parametrize("make", [pickled, torch_saved, zipped])
@pytest.mark.parametrize("name", [WEIGHTS, CARD])
def test_a_renamed_pickle_is_refused_and_never_runs(
    evil: TeacherLibrary, tiny: ModuleType, planted: Path, make: Callable[[Path], bytes], name: str
) -> None:
    if name == WEIGHTS:
        tiny.replace_weights(folder_of(evil), make(planted))
        assert "cannot be read as safetensors" in refusal(evil)
    (folder_of(evil) / name).write_bytes(make(planted))
    refusal(evil)
    assert not planted.exists()


def test_a_pickle_beside_the_weights_is_not_looked_at(evil: TeacherLibrary, planted: Path) -> None:
    for name in ("model.pt", "pytorch_model.bin", "card.pkl", "__init__.py"):
        (folder_of(evil) / name).write_bytes(pickled(planted))
    load_teacher(evil.entry(EVIL))
    assert not planted.exists()


def test_the_payload_appended_to_sound_weights_is_refused(
    evil: TeacherLibrary, tiny: ModuleType, planted: Path
) -> None:
    tiny.replace_weights(folder_of(evil), (folder_of(evil) / WEIGHTS).read_bytes() + pickled(planted))
    assert "cannot be read as safetensors" in refusal(evil)
    assert not planted.exists()


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with any header, which claims to be `length` bytes long."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin: int, end: int, shape: list[object], dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BROKEN = {
    "nothing at all": b"",
    "seven bytes": b"\x01\0\0\0\0\0\0",
    "a length of the whole address space": safetensors({}, length=2**64 - 1),
    "a length of half of it": safetensors({}, length=2**63),
    "a length beyond the end": safetensors({}, length=1000),
    "a header of 100 MB that is not there": safetensors({}, length=100_000_000),
    "no JSON": safetensors(b"\xff\xfe{}"),
    "a list": safetensors([]),
    "no tensors": safetensors({}),
    "deep nesting": safetensors(b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}"),
    "offsets beyond the end": safetensors({"a": tensor(0, 400, [100])}, b"\0" * 4),
    "offsets that overlap": safetensors({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, b"\0" * 12),
    "offsets with a gap": safetensors({"a": tensor(0, 4, [1]), "b": tensor(8, 12, [1])}, b"\0" * 12),
    "offsets the wrong way round": safetensors({"a": tensor(4, 0, [1])}, b"\0" * 4),
    "offsets below zero": safetensors({"a": tensor(-4, 0, [1])}, b"\0" * 4),
    "offsets that are text": safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": "0"}}, b"\0" * 4),
    "a shape larger than its bytes": safetensors({"a": tensor(0, 4, [2])}, b"\0" * 4),
    "a shape that overflows": safetensors({"a": tensor(0, 4, [2**40, 2**40])}, b"\0" * 4),
    "a shape below zero": safetensors({"a": tensor(0, 4, [-1])}, b"\0" * 4),
    "a type that does not exist": safetensors({"a": tensor(0, 4, [1], "PICKLE")}, b"\0" * 4),
    "a type that torch has not": safetensors({"a": tensor(0, 4, [8], "F4")}, b"\0" * 4),
    "a type that is a number": safetensors({"a": tensor(0, 4, [1], 7)}, b"\0" * 4),
    "names that are no names": safetensors({"../../a\0b" + "x" * 300: tensor(0, 4, [1])}, b"\0" * 4),
    "an archive's first bytes": b"PK\x03\x04" + b"\0" * 100,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_safetensors_file_is_refused(evil: TeacherLibrary, tiny: ModuleType, content: bytes) -> None:
    tiny.replace_weights(folder_of(evil), content)
    refusal(evil)


def test_no_damage_to_the_header_is_anything_but_a_refusal(
    evil: TeacherLibrary, tiny: ModuleType, full: bool, seed: int, figure: Callable[[int, str, str], None]
) -> None:
    count, longest_s = 5000 if full else 300, 0.0
    sound = (folder_of(evil) / WEIGHTS).read_bytes()
    header = 8 + struct.unpack("<Q", sound[:8])[0]
    rng, refused = np.random.default_rng(seed), 0
    for _ in range(count):
        content = bytearray(sound)
        for place in rng.integers(0, header, rng.integers(1, 4)):
            content[place] = rng.integers(0, 256)
        tiny.replace_weights(folder_of(evil), content)
        began = time.monotonic()
        entry = evil.entry(EVIL)
        try:
            load_network(entry, entry.card)  # a damaged name in the notes of the file, say, does no harm
        except LibraryError:
            refused += 1
        longest_s = max(longest_s, time.monotonic() - began)
    figure(
        8,
        f"{refused} of {count} weights with a damaged header refused, the others read as sound ones; the longest took "
        f"{1000 * longest_s:.0f} ms",
        "a clear error within 1 s",
    )
    assert refused > 0.8 * count
    if full:  # a figure of time, for an idle machine
        assert longest_s < 1


def test_a_bit_that_flipped_on_the_disk_is_found(evil: TeacherLibrary) -> None:
    content = bytearray((folder_of(evil) / WEIGHTS).read_bytes())
    content[-1] ^= 1  # of a weight: the file is as sound as before
    (folder_of(evil) / WEIGHTS).write_bytes(content)
    assert "it was changed" in refusal(evil)


def test_files_that_are_too_large_are_refused_unread(evil: TeacherLibrary, tiny: ModuleType) -> None:
    card, weights = folder_of(evil) / CARD, folder_of(evil) / WEIGHTS
    sound = weights.stat().st_size
    os.truncate(weights, 40 * MAX_WEIGHTS_BYTES)  # takes no room on the disk
    assert f"at most {MAX_WEIGHTS_BYTES} are allowed" in refusal(evil)
    tiny.replace_weights(folder_of(evil), bytes(sound + 2**21))  # more than this network can have
    assert f"has {sound + 2**21} bytes" in refusal(evil)
    os.truncate(card, 100_000_000)
    assert f"has 100000000 bytes, at most {MAX_CARD_BYTES} are allowed" in refusal(evil)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"width": 4.0, "feature_size": 2048}, "tensors are missing|is torch.float32"),
        ({"crop": 100_000}, "at most 536870912 are allowed"),
        ({"clip_len": 10**12}, "at most 536870912 are allowed"),
        ({"chunk_items": 10**9}, "chunk_items: .*less than or equal to 1024"),
        ({"feature_size": 10**15}, "feature_size is 1000000000000000, r3d has 64"),
        ({"width": 1e300}, "width: .*less than or equal to 4"),
        ({"classes": [str(i) for i in range(50_000)]}, "pretext_head.linear"),
    ],
)
def test_a_card_that_claims_a_huge_network_costs_nothing(
    evil: TeacherLibrary, changes: dict[str, object], match: str
) -> None:
    path = folder_of(evil) / CARD
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(LibraryError, match=match):
        load_teacher(evil.entry(EVIL))


CARDS = {
    "deep nesting": b"[" * DEEP,
    "deep nesting in a field": b'{"kind":' * DEEP,
    "a number of 10,000 digits": b'{"crop": ' + b"9" * 10_000 + b"}",
    "text": b'"card"',
    "NUL": b"\0" * 1000,
    "another kind": b'{"kind": "pickle"}',
    "a kind that is a list": b'{"kind": ["teacher"]}',
}


@pytest.mark.parametrize("content", CARDS.values(), ids=CARDS.keys())
def test_a_card_that_is_no_card_is_refused(evil: TeacherLibrary, content: bytes) -> None:
    (folder_of(evil) / CARD).write_bytes(content)
    refusal(evil)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop", "32"),
        ("crop", True),
        ("crop", 1e400),
        ("width", float("nan")),
        ("mean", [float("inf"), 0, 0]),
        ("std", [1, 1]),
        ("classes", "abc"),
        ("classes", [1, 2]),
        ("classes", [None, {}]),
        ("arch", "../../os"),
        ("arch", ["r3d"]),
        ("arch_version", "2"),
        ("precision", "float64"),
        ("compile", "yes"),
        ("modality", "mixed"),
        ("provenance", None),
        ("provenance", {"command": {"$ref": "os.system"}}),
        ("members", []),
        ("__class__", "os.system"),
    ],
)
def test_a_field_of_another_type_is_named(evil: TeacherLibrary, field: str, value: object) -> None:
    path = folder_of(evil) / CARD
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    message = refusal(evil)
    # A card with a value that JSON has not (NaN, Infinity) cannot be parsed at all.
    assert field in message or "JSON" in message


@pytest.mark.parametrize("name", [WEIGHTS, CARD])
@pytest.mark.parametrize("kind", ["file", "device", "pipe", "folder", "dangling"])
def test_what_is_no_plain_file_of_the_library_is_not_read(
    evil: TeacherLibrary, tmp_path: Path, name: str, kind: str
) -> None:
    path, outside = folder_of(evil) / name, tmp_path / "outside"
    shutil.copyfile(path, outside)
    path.unlink()
    if kind == "file":
        path.symlink_to(outside)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nothing")
    with pytest.raises((LibraryError, UnknownTeacher)):  # without a card it is no teacher
        load_teacher(evil.entry(EVIL))


@pytest.mark.parametrize("depth", ["version", "name"])
def test_a_folder_that_leads_out_of_the_library_is_refused(evil: TeacherLibrary, tmp_path: Path, depth: str) -> None:
    folder = folder_of(evil) if depth == "version" else folder_of(evil).parent
    shutil.move(folder, tmp_path / "outside")
    folder.symlink_to(tmp_path / "outside")
    assert "leads out of the library" in refusal(evil)


def test_a_library_that_is_itself_a_link_is_read(evil: TeacherLibrary, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(evil.root)
    load_teacher(TeacherLibrary(tmp_path / "link").entry(EVIL))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../evil", "a/b", "/etc", "a\0b", "x" * 300, "EVIL", "evil\n", "café", "evil@1/..", "-rf"]
)
def test_a_name_never_leaves_the_library(evil: TeacherLibrary, name: str) -> None:
    for ask in (evil.versions, lambda name: evil.entry(TeacherId(name, 1))):
        with pytest.raises(UnknownTeacher):
            ask(name)
    for ask in (TeacherId.parse, lambda name: evil.add(name, evil.entry(EVIL).card, folder_of(evil) / WEIGHTS)):
        with pytest.raises(BadQuery):
            ask(name)
    assert sorted(path.name for path in evil.root.iterdir()) == ["alpha", "evil"]


@pytest.mark.parametrize("version", [0, -1, 2, 10**12])
def test_a_version_that_is_not_there_is_unknown(evil: TeacherLibrary, version: int) -> None:
    with pytest.raises(UnknownTeacher, match="known are evil@1"):
        evil.entry(TeacherId("evil", version))


@pytest.mark.parametrize("name", ["01", "٣", "+1", "1.0", "1e3", "9" * 200, ".new-x"])
def test_a_folder_that_is_no_version_is_passed_over(evil: TeacherLibrary, name: str) -> None:
    shutil.copytree(folder_of(evil), folder_of(evil).with_name(name))
    assert evil.versions("evil") == (1,)


def test_the_serving_teacher_is_untouched(
    evil: TeacherLibrary, tiny: ModuleType, store: ClipStore, planted: Path
) -> None:
    tiny.replace_weights(folder_of(evil), torch_saved(planted))
    client = InProcessTeacherClient(evil)
    try:
        query = tiny.views_query(store, tiny.draw(store, 3))
        before = client.submit(query).result(60)
        with pytest.raises(LibraryError, match="cannot be read as safetensors"):
            client.submit(tiny.views_query(store, tiny.draw(store, 3), teacher=EVIL)).result(60)
        np.testing.assert_array_equal(client.submit(query).result(60).logits, before.logits)
    finally:
        client.close()
    assert not planted.exists()
