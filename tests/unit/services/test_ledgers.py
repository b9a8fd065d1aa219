"""What `preceptor ledger list` and `preceptor ledger verify` print, and their exit statuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.views import VIEW_DTYPE
from services.ledgers import DIFFERENT, EQUAL, find_ledger, list_ledgers, report_lines, verify_ledger
from teacher_server.errors import LedgerError
from teacher_server.ledger import verify as ledger_verify
from teacher_server.ledger.segments import Origin
from teacher_server.ledger.store import Answer, Ledger, LedgerHeader, ledger_folder, refuse
from teacher_server.ledger.verify import ItemCheck, LedgerCheck
from teacher_server.protocol import TeacherId

HEADER = LedgerHeader("alpha@1", "ab" * 32, "cpu", views_per_item=3, num_classes=5)
SOUND = ItemCheck("00" * 16, "s.arrow", 0, 0.0, True)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRECEPTOR_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def make_ledger(home: Path, version: int, digest: str, items: int) -> Path:
    folder = ledger_folder(home / "ledgers", TeacherId("alpha", version), digest)
    header = LedgerHeader(f"alpha@{version}", digest, "cpu", views_per_item=3, num_classes=5)
    ledger = Ledger.create(folder, header, refuse)
    origin = Origin("/stores/tiny", "cd" * 16, (40, 48))
    for i in range(items):
        answer = Answer(np.zeros(5, np.float32), np.zeros(4, np.float32) if i < 2 else None)
        ledger.record(origin, bytes([i + 1]) * 16, np.zeros(3, VIEW_DTYPE), answer)
    ledger.flush()
    return folder


def test_each_ledger_is_a_row_with_teacher_digest_items_segments_bytes_and_engine(home, capsys):
    folder = make_ledger(home, 1, "ab" * 32, 5)
    make_ledger(home, 2, "cd" * 32, 0)
    list_ledgers()
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines() if "alpha" in line]
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.arrow"))
    assert rows == [
        ["alpha@1", "ab" * 6, "5", "2", str(num_bytes), "cpu", "2"],
        ["alpha@2", "cd" * 6, "0", "0", "0", "cpu", "0"],
    ]


def test_what_is_damaged_is_listed_and_named(home, capsys):
    first, second = make_ledger(home, 1, "ab" * 32, 3), make_ledger(home, 2, "cd" * 32, 1)
    segment = next(first.glob("*.arrow"))
    segment.write_bytes(b"x" * 100)
    (second / "ledger.json").write_text("{}")
    list_ledgers()
    out = capsys.readouterr().out
    assert f"{segment.name} cannot be used" in out
    assert "alpha@2-cdcdcdcdcdcd" in out
    assert "ledger.json is damaged" in out


def test_without_ledgers_the_list_says_where_it_looked(home, capsys):
    list_ledgers()
    assert f"no ledgers in {home}/ledgers" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["alpha", "alpha@2", "alpha@2-cdcdcdcdcdcd"])
def test_a_ledger_is_found_by_teacher_version_or_folder(home, name):
    folder = make_ledger(home, 2, "cd" * 32, 0)
    assert find_ledger(home / "ledgers", name) == folder


def test_a_name_that_begins_another_teachers_name_does_not_mean_its_ledger(home):
    folder = ledger_folder(home / "ledgers", TeacherId("alpha-vcp", 1), "ef" * 32)
    Ledger.create(folder, LedgerHeader("alpha-vcp@1", "ef" * 32, "cpu", views_per_item=3, num_classes=5), refuse)
    with pytest.raises(LedgerError, match="none is called 'alpha'"):
        find_ledger(home / "ledgers", "alpha")
    assert find_ledger(home / "ledgers", "alpha-vcp") == folder


@pytest.mark.parametrize(
    ("name", "message"), [("beta", "none is called 'beta'; there are: alpha@1-abab"), ("alpha", "more than one is")]
)
def test_a_name_that_means_no_ledger_or_several_is_refused_with_the_known_ones(home, name, message):
    make_ledger(home, 1, "ab" * 32, 0)
    make_ledger(home, 2, "cd" * 32, 0)
    with pytest.raises(LedgerError, match=message):
        find_ledger(home / "ledgers", name)


@pytest.mark.parametrize(
    ("check", "status", "total"),
    [
        (SOUND, EQUAL, "1 bit-equal, 0 differ, 0 not asked"),
        (ItemCheck("11" * 16, "s.arrow", 3, 0.5, False), DIFFERENT, "0 bit-equal, 1 differ, 0 not asked"),
        (ItemCheck("22" * 16, "s.arrow", 4, reason="gone"), DIFFERENT, "0 bit-equal, 0 differ, 1 not asked"),
    ],
)
def test_the_exit_status_says_whether_everything_was_equal(home, capsys, monkeypatch, check, status, total):
    folder = make_ledger(home, 1, "ab" * 32, 1)
    asked = []

    def verify(path, library, *, sample, seed):
        asked.append((path, library.root, sample, seed))
        return LedgerCheck(HEADER, seed, 1, (check,), ())

    monkeypatch.setattr(ledger_verify, "verify_ledger", verify)
    assert verify_ledger("alpha", sample=9, seed=7) == status
    assert asked == [(folder, home / "teachers", 9, 7)]
    out = capsys.readouterr().out
    assert "seed 7" in out
    assert total in out


def test_a_sample_of_nothing_is_refused():
    with pytest.raises(LedgerError, match="--sample must be at least 1, got 0"):
        verify_ledger("alpha", sample=0)


def test_the_report_names_the_worst_item_first_and_shortens_long_lists():
    items = [ItemCheck(f"{i:032x}", "s.arrow", i, float(i), False) for i in range(1, 31)]
    nan = ItemCheck("ff" * 16, "s.arrow", 99, float("nan"), False)
    lines = report_lines(LedgerCheck(HEADER, 3, 50, (SOUND, *items, nan), ("segment x is damaged",)))
    assert "row 99" in lines[0]
    assert "row 30 of s.arrow: at most 30" in lines[1]
    assert "and 11 more" in lines[20]
    assert lines[21:] == [
        "damaged   segment x is damaged",
        "50 items, 32 sampled with seed 3: 1 bit-equal, 31 differ, 0 not asked; damaged segments: 1",
    ]


@pytest.mark.parametrize(("worst", "hinted"), [(2e-6, True), (0.01, False), (float("nan"), False)])
def test_small_differences_are_said_to_come_from_another_machine(worst, hinted):
    items = tuple(ItemCheck(f"{i:032x}", "s.arrow", i, difference, False) for i, difference in enumerate((1e-7, worst)))
    lines = report_lines(LedgerCheck(HEADER, 3, 50, items, ()))
    assert any("another CPU model" in line for line in lines) == hinted
