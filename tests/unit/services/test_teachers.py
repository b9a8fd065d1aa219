"""What the teacher commands do and print, with a control that only remembers, and no Ray."""

from __future__ import annotations

import contextlib
import getpass
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from services import cli, teachers
from services.bench_teacher import Speed, bench_query, measure
from services.finding import Place
from services.listing import log_table
from teacher_server.card import PRETEXT_CLASSES, Provenance, TeacherCard
from teacher_server.engine.weights import build_teacher_network
from teacher_server.errors import BadQuery, GateRefused, TeacherNotResident, TeacherOverloaded
from teacher_server.library import WEIGHTS, TeacherLibrary
from teacher_server.promotion import GateFloors, GateReport, Promotion
from teacher_server.protocol import TeacherId
from teacher_server.roster.roster import Roster
from teacher_server.zoo.names import ARCH_VERSION

ONE, TWO = TeacherId("alpha", 1), TeacherId("alpha", 2)


@dataclass
class FakeControl:
    """Remembers what it was asked for."""

    calls: list[tuple[object, ...]] = field(default_factory=list)
    refusal: Exception | None = None

    def promote(self, name, version, who, *, floors=None, expected=None) -> Promotion:
        self.calls.append(("promote", name, version, who, floors, expected))
        if self.refusal is not None:
            raise self.refusal
        return Promotion(TWO, ONE, GateReport(32, 0.9375, 0.0123, 4.0, 5.0), {"prepare": 1.5, "gate": 0.25})

    def rollback(self, name, who, *, expected=None) -> Promotion:
        self.calls.append(("rollback", name, who, expected))
        return Promotion(ONE, TWO)

    def evict(self, teacher, who) -> int:
        self.calls.append(("evict", teacher, who))
        return 3


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRECEPTOR_HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


@pytest.fixture
def control(home: Path, monkeypatch: pytest.MonkeyPatch) -> FakeControl:  # noqa: ARG001 home is set for it
    fake = FakeControl()

    @contextlib.contextmanager
    def at(place: Place, library: TeacherLibrary) -> Iterator[FakeControl]:
        fake.calls.append((place.gateway, place.address, library.root.name))
        yield fake

    monkeypatch.setattr(teachers, "operator_control", at)
    return fake


@pytest.fixture
def trained(home: Path) -> TeacherLibrary:
    """alpha@1, a tiny random network."""
    library = TeacherLibrary(home / "teachers")
    card = TeacherCard(
        arch="r3d", arch_version=ARCH_VERSION, width=0.125, head="pretext", classes=PRETEXT_CLASSES, clip_len=8,
        crop=32, modality="rgb", feature_size=64, chunk_items=1, provenance=Provenance(command="random"),
    )  # fmt: skip
    for seed in range(2):
        torch.manual_seed(seed)
        save_file(build_teacher_network(card).state_dict(), home / "weights")
        library.add("alpha", card, home / "weights")
    return library


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["preceptor", "teacher", *args])
    return cli.main()


def test_promote_passes_everything_on_and_prints_the_report(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--min-agreement", "0.9", "--max-kl", "0.5", "--max-latency-ratio", "2", "--expected", "1", "--who", "ann"]
    assert run(monkeypatch, "promote", "alpha", "2", *flags, "--gateway", "http://127.0.0.1:8000") == 0
    floors = GateFloors(min_agreement=0.9, max_kl=0.5, max_latency_ratio=2.0)
    assert control.calls == [("http://127.0.0.1:8000", "", "teachers"), ("promote", "alpha", 2, "ann", floors, 1)]
    assert capsys.readouterr().out.splitlines() == [
        "through    the gateway http://127.0.0.1:8000",
        "gate       agreement 93.8% on 32 items, KL 0.0123 nats, 4.00 -> 5.00 ms per clip",
        "seconds    prepare 1.500, gate 0.250",
        "alpha: alpha@1 -> alpha@2",
    ]


def test_who_is_the_user_by_default(control: FakeControl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "carol")
    run(monkeypatch, "rollback", "alpha")
    assert control.calls[-1] == ("rollback", "alpha", "carol", None)


def test_a_refusal_is_one_sentence_and_code_2(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    control.refusal = GateRefused("alpha@2", ("it agrees on 12.5% of 32 items, 90.0% asked",))
    assert run(monkeypatch, "promote", "alpha", "2") == 2
    assert capsys.readouterr().err == ("error: alpha@2 was not promoted: it agrees on 12.5% of 32 items, 90.0% asked\n")


def test_evict_names_a_version_and_says_how_many_replicas_held_it(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "evict", "alpha@1", "--who", "ann") == 0
    assert control.calls[-1] == ("evict", ONE, "ann")
    assert capsys.readouterr().out.endswith("alpha@1 was unloaded from 3 replicas\n")
    assert run(monkeypatch, "evict", "alpha") == 2
    assert "names no version: expected name@version" in capsys.readouterr().err


def test_promotion_without_a_service_changes_the_roster_and_shows_in_the_log(
    trained: TeacherLibrary, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "promote", "alpha", "2", "--who", "ann") == 0
    assert capsys.readouterr().out.splitlines()[0] == "through    no service runs: this process and the roster's file"
    log = Roster(trained).state().log
    assert [(entry.who, entry.new) for entry in log] == [("ann", 2)]
    assert list(log_table(log).columns[4].cells) == ["alpha@2"]
    assert run(monkeypatch, "list", "--log") == 0
    assert "ann" in capsys.readouterr().out


def test_a_sound_teacher_is_verified(
    trained: TeacherLibrary, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "verify", "alpha@1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"digest     {trained.entry(ONE).digest}"
    assert f"classes    {', '.join(PRETEXT_CLASSES)}" in lines
    assert lines[-3] == "self-test  passed: finite, repeatable, the same alone and among others"
    assert lines[-1].startswith("precision  float32 ")


def test_a_damaged_teacher_is_wrong_with_code_1(
    trained: TeacherLibrary, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = trained.root / "alpha" / "1" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-8])
    assert run(monkeypatch, "verify", "alpha@1") == 1
    assert "wrong      teacher library, " in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.usefixtures("home")
def test_an_unknown_teacher_is_wrong_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "verify", "nobody") == 2
    assert capsys.readouterr().err.startswith("error: no teacher 'nobody': known are ")


def test_an_ensemble_enters_the_library(
    trained: TeacherLibrary, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "ensemble", "both", "alpha@1=1", "alpha@2=3") == 0
    members = trained.entry(TeacherId("both", 1)).card.members  # type: ignore[union-attr]
    assert [(member.teacher, member.weight) for member in members] == [("alpha@1", 0.25), ("alpha@2", 0.75)]
    assert "both@1 added to" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["alpha=0.5", "alpha@1", "alpha@1=", "alpha@1=much"])
def test_a_member_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadQuery, match="expected name@version"):
        teachers.parse_members([text])


@pytest.mark.usefixtures("trained")
def test_bench_asks_this_process_when_nobody_serves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "bench", "alpha@1", "--views", "3", "--seconds", "0.05") == 0
    out = capsys.readouterr().out
    assert "alpha@1: " in out
    assert "questions of 3 clips in" in out


def test_bench_counts_every_answered_clip_and_retries_refusals(library: TeacherLibrary, client) -> None:
    """A clock that moves a second per look: what is asked within 10 of them is counted, the first question is not."""
    client.refusals = [TeacherNotResident("alpha@1"), TeacherOverloaded(1, 1, 1)]
    ticks = iter(range(10_000))
    seen: list[float] = []
    speed = measure(
        client, library.entry(ONE), views=7, seconds=10.0, in_flight=2, clock=lambda: next(ticks), tick=seen.append
    )
    assert bench_query(ONE, library.entry(ONE).card, 7).num_clips == 6  # whole items of 3
    assert len(client.asked) == 1 + 2 + len(speed.latencies_ms)
    assert speed.clips == 6 * len(speed.latencies_ms)
    assert seen == sorted(seen)
    assert max(seen) == 10.0
    # A look when it is asked and one when it is answered; others, two to four, in between.
    assert all(1000.0 <= latency <= 8000.0 and latency % 1000 == 0 for latency in speed.latencies_ms)


def test_the_speed_is_that_of_its_numbers() -> None:
    speed = Speed(clips=200, seconds=4.0, latencies_ms=tuple(float(i) for i in range(101)))
    assert teachers.speed_lines(ONE, speed, 4) == [
        "alpha@1: 50.0 clips/s",
        "latency    p50 50.0 ms, p99 99.0 ms",
        "measured   101 questions of 1 clips in 4.0 s, 4 in flight",
    ]
