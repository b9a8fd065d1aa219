"""Asking the teacher again: a real teacher, a real store, and planted faults that must be found."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from data.store import ClipStore
from teacher_server.clients.inprocess import InProcessTeacherClient
from teacher_server.errors import LedgerError
from teacher_server.ledger.client import LedgerClient
from teacher_server.ledger.segments import Rows, read_segment, write_segment
from teacher_server.ledger.store import ledger_folder, read_header
from teacher_server.ledger.verify import verify_ledger
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId

ALPHA = TeacherId("alpha", 1)
PATIENCE_S = 60.0


@pytest.fixture
def own_store(tiny: ModuleType, tmp_path: Path) -> ClipStore:
    """A store that a test may replace."""
    return tiny.build_store(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path, library: TeacherLibrary, tiny: ModuleType, own_store: ClipStore) -> Path:
    """Of alpha@1's ledger: four items with features in one segment, two without in another."""
    digest = library.entry(ALPHA).digest
    root = tmp_path / "ledgers"
    batch = tiny.draw(own_store, 6)
    for part, features in ((batch.items(0, 4), True), (batch.items(4, 6), False)):
        client = LedgerClient(
            root,
            "record",
            inner=InProcessTeacherClient(library),
            digest_of=lambda _: digest,
            want_features=features,
        )
        client.submit(tiny.views_query(own_store, part)).result(PATIENCE_S)
        client.close()
    return ledger_folder(root, ALPHA, digest)


def plant(folder: Path, change: dict[str, np.ndarray]) -> None:
    """Writes the larger segment again with other columns, and with a checksum that fits."""
    ledger = read_header(folder).fingerprint
    segment = max((read_segment(path, ledger) for path in folder.glob("*.arrow")), key=len)
    rows = Rows(
        **{**{name: getattr(segment.rows, name) for name in ("digests", "views", "logits", "features")}, **change}
    )
    write_segment(folder, ledger, segment.origin, rows)
    segment.path.unlink()


def columns(folder: Path) -> Rows:
    ledger = read_header(folder).fingerprint
    return max((read_segment(path, ledger) for path in folder.glob("*.arrow")), key=len).rows


def test_a_sound_ledger_is_equal_bit_by_bit(folder, library):
    check = verify_ledger(folder, library, sample=100, seed=1)
    assert check.equal
    assert (check.num_items, len(check.checks), check.seed) == (6, 6, 1)
    assert [(item.max_difference, item.bit_equal, item.reason) for item in check.checks] == [(0.0, True, "")] * 6


@pytest.mark.parametrize("column", ["logits", "features"])
def test_a_planted_wrong_value_with_a_sound_checksum_is_found(folder, library, column):
    wrong = getattr(columns(folder), column).copy()
    wrong[2, 1] += 0.5
    plant(folder, {column: wrong})
    check = verify_ledger(folder, library, sample=6, seed=0)
    assert not check.equal
    (found,) = [item for item in check.checks if not item.bit_equal]
    assert found.digest == columns(folder).digests[2:3].tobytes().hex()
    assert found.row == 2
    assert found.max_difference == pytest.approx(0.5, rel=1e-5)


def test_a_single_changed_last_bit_is_a_difference(folder, library):
    wrong = columns(folder).logits.copy()
    wrong.view(np.uint32)[0, 0] ^= 1
    plant(folder, {"logits": wrong})
    check = verify_ledger(folder, library, sample=6, seed=0)
    (found,) = [item for item in check.checks if not item.bit_equal]
    assert 0 < found.max_difference < 1e-5


def test_views_that_are_not_those_of_the_digest_are_found(folder, library):
    views = columns(folder).views.copy()
    views[1]["start"] += 1
    plant(folder, {"views": views})
    check = verify_ledger(folder, library, sample=6, seed=0)
    (found,) = [item for item in check.checks if item.reason]
    assert found.row == 1
    assert "digest does not match" in found.reason
    assert math.isnan(found.max_difference)
    assert sum(item.bit_equal for item in check.checks) == 5


def test_items_of_a_store_with_another_content_are_reported(folder, library, tiny, own_store, tmp_path):
    own_store.path.rename(tmp_path / "former")
    tiny.build_store(own_store.path, seed=1)
    check = verify_ledger(folder, library, sample=6, seed=0)
    assert not check.equal
    assert all("holds another video, or none, at its row" in item.reason for item in check.checks)


def test_items_of_a_store_that_is_gone_are_reported(folder, library, own_store, tmp_path):
    own_store.path.rename(tmp_path / "former")
    check = verify_ledger(folder, library, sample=2, seed=0)
    assert not check.equal
    assert all("there is none here" in item.reason for item in check.checks)


def test_a_damaged_segment_is_reported_and_the_others_are_compared(folder, library):
    damaged = min(folder.glob("*.arrow"), key=lambda path: path.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:-20])
    check = verify_ledger(folder, library, sample=6, seed=0)
    assert not check.equal
    assert len(check.problems) == 1
    assert damaged.name in check.problems[0]
    assert [item.bit_equal for item in check.checks] == [True] * 4


def test_the_seed_decides_the_sample(folder, library):
    samples = [[item.digest for item in verify_ledger(folder, library, sample=3, seed=s).checks] for s in (0, 0, 1, 2)]
    assert samples[0] == samples[1]
    assert len({tuple(sample) for sample in samples}) > 1
    assert all(len(set(sample)) == 3 for sample in samples)


def test_other_weights_in_the_library_are_refused(folder, tiny, tmp_path):
    library = TeacherLibrary(tmp_path / "other")
    card = tiny.make_card()
    library.add("alpha", card, tiny.save_random_weights(card, tmp_path / "w.safetensors", 99))
    with pytest.raises(LedgerError, match=r"the library.s alpha@1 has digest .* recorded was"):
        verify_ledger(folder, library, sample=1, seed=0)


@pytest.mark.parametrize("available", [False, True])
def test_an_engine_that_this_machine_lacks_is_named(folder, library, monkeypatch, available):
    monkeypatch.setattr("torch.cuda.is_available", lambda: available)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA L4")
    header = dataclasses.replace(read_header(folder), engine="cuda:nvidia-h200")
    for path in folder.iterdir():
        path.unlink()
    (folder / "ledger.json").write_bytes(header.to_bytes())
    with pytest.raises(LedgerError, match="recorded on cuda:nvidia-h200, which this machine lacks"):
        verify_ledger(folder, library, sample=1, seed=0)
