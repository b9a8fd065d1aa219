"""State metrics of a home that is written out here; damaged things are counted and end no scrape."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from data.manifest import SEGMENTS_FOLDER
from data.store import ClipStore, StoreWriter
from services.exporter import Folders, StateCollector, check_public, main
from services.state import StateReader
from teacher_server.library import CARD, WEIGHTS, TeacherLibrary
from teacher_server.protocol import TeacherId, TeacherRef
from teacher_server.roster.roster import Roster
from trainer.config import ConfigError

REPOSITORY = Path(__file__).parents[3]
PATIENCE_S = 60.0
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def folders(tmp_path: Path, library: TeacherLibrary) -> Folders:
    return Folders(library.root, tmp_path / "runs", tmp_path / "stores")


def scrape(folders: Folders) -> Samples:
    registry = CollectorRegistry()
    registry.register(StateCollector(folders))
    text = generate_latest(registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


def damaged(samples: Samples) -> dict[str, float]:
    return {labels[0][1]: number for (name, labels), number in samples.items() if name == "preceptor_damaged"}


def names(samples: Samples, metric: str, label: str) -> set[str]:
    return {dict(labels)[label] for name, labels in samples if name == metric}


def write_run(folders: Folders, run: str, lines: list[str], result: dict[str, object] | None = None) -> Path:
    path = folders.runs / run
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"student": "r3d", "teacher": "alpha"}))
    (path / "metrics.jsonl").write_text("\n".join(lines))
    if result is not None:
        (path / "result.json").write_text(json.dumps(result))
    return path


def write_store(folders: Folders, name: str, num_videos: int) -> ClipStore:
    folders.stores.mkdir(exist_ok=True)
    with StoreWriter(folders.stores / name, frame_size=(4, 5), classes=("a",)) as writer:
        for i in range(num_videos):
            writer.add(f"v{i}", 0, "g", np.full((3, 4, 5, 3), i, dtype=np.uint8))
        writer.commit({})
    return ClipStore.open(folders.stores / name)


def test_an_empty_home_has_no_series_but_the_counts(tmp_path: Path) -> None:
    samples = scrape(Folders(tmp_path / "a", tmp_path / "b", tmp_path / "c"))
    assert {name for name, _ in samples} == {"preceptor_damaged", "preceptor_leases", "preceptor_read_seconds"}
    assert damaged(samples) == {"roster": 0, "teacher": 0, "run": 0, "store": 0}


def test_aliases_versions_and_leases_are_those_of_library_and_roster(folders: Folders, library: TeacherLibrary) -> None:
    roster = Roster(library)
    roster.resolve(TeacherRef("beta"))
    roster.promote("alpha", 2, "test")
    roster.acquire("run", "app", TeacherId("alpha", 2), deploying=True)
    Roster(library, clock=lambda: time.time() - 3600).acquire("old", "app", TeacherId("alpha", 1), deploying=False)
    samples = scrape(folders)
    assert value(samples, "preceptor_alias_version", alias="alpha") == 2
    assert value(samples, "preceptor_alias_version", alias="beta") == 1
    assert value(samples, "preceptor_teacher_versions", teacher="alpha") == 2
    assert value(samples, "preceptor_teacher_versions", teacher="beta") == 1
    assert value(samples, "preceptor_leases") == 1  # the other one ran out


def test_runs_show_steps_and_once_they_are_finished_their_accuracy(folders: Folders) -> None:
    write_run(folders, "started", [])
    write_run(folders, "going", ['{"kind": "step", "step": 41}', '{"kind": "step", "step": 42}', '{"kind": "st'])
    write_run(folders, "done", ['{"kind": "epoch", "step": 9}', ""], {"steps": 9, "pretext_acc": 0.75})
    write_run(folders, "unevaluated", [], {"steps": 3, "pretext_acc": None})
    (folders.runs / "no run").mkdir()
    samples = scrape(folders)
    steps = {run: value(samples, "preceptor_run_steps", run=run, student="r3d", teacher="alpha")
             for run in names(samples, "preceptor_run_steps", "run")}  # fmt: skip
    assert steps == {"started": 0, "going": 42, "done": 9, "unevaluated": 3}
    finished = {run: value(samples, "preceptor_run_finished", run=run) for run in steps}
    assert finished == {"started": 0, "going": 0, "done": 1, "unevaluated": 1}
    assert names(samples, "preceptor_run_pretext_acc", "run") == {"done"}
    assert value(samples, "preceptor_run_pretext_acc", run="done") == 0.75


def test_the_last_step_is_found_at_the_end_of_a_long_log(folders: Folders) -> None:
    write_run(
        folders, "long", [json.dumps({"kind": "step", "step": i, "pad": "x" * 500}) for i in range(1, 400)] + [""]
    )
    assert dict(StateReader(folders.teachers, folders.runs, folders.stores).runs())["long"].steps == 399


def test_stores_show_videos_and_bytes_and_follow_a_new_one_of_the_same_name(folders: Folders) -> None:
    small = write_store(folders, "clips", 2)
    reader = StateReader(folders.teachers, folders.runs, folders.stores)
    assert [(name, s.num_videos, s.num_bytes) for name, s in reader.stores()] == [("clips", 2, small.num_bytes)]
    (folders.stores / "clips").rename(folders.stores / ".gone")
    large = write_store(folders, "clips", 5)
    assert [(name, s.num_videos, s.num_bytes) for name, s in reader.stores()] == [("clips", 5, large.num_bytes)]


def test_everything_damaged_at_once_is_counted_and_the_rest_is_shown(folders: Folders, library: TeacherLibrary) -> None:
    (library.root / "roster.json").write_text("{")
    (library.root / "alpha" / "1" / CARD).write_bytes(b"\xff")
    (library.root / "beta" / "1" / WEIGHTS).unlink()
    write_run(folders, "good", ['{"kind": "step", "step": 1}', ""])
    for name, lines in (("a", ["[]", ""]), ("b", ["no json", ""]), ("c", ['{"kind": "step"}', ""])):
        write_run(folders, name, lines)
    (write_run(folders, "d", []) / "config.json").write_bytes(b"[1]")
    (write_run(folders, "e", []) / "result.json").write_text("[1]")
    write_store(folders, "whole", 1)
    write_store(folders, "no segment", 1)
    for segment in (folders.stores / "no segment" / SEGMENTS_FOLDER).glob("*.arrow"):
        segment.unlink()
    write_store(folders, "no manifest", 1)
    (folders.stores / "no manifest" / "manifest-000001.json").write_bytes(b"{}")
    samples = scrape(folders)
    assert damaged(samples) == {"roster": 1, "teacher": 2, "run": 5, "store": 2}
    assert value(samples, "preceptor_teacher_versions", teacher="alpha") == 1
    assert value(samples, "preceptor_teacher_versions", teacher="beta") == 0
    assert names(samples, "preceptor_run_steps", "run") == {"good"}
    assert names(samples, "preceptor_store_videos", "store") == {"whole"}
    assert all(math.isfinite(number) for number in samples.values())


def test_the_process_listens_on_loopback_serves_metrics_and_ends_on_sigterm(folders: Folders) -> None:
    write_run(folders, "going", ['{"kind": "step", "step": 7}', ""])
    process = subprocess.Popen(
        [sys.executable, "-m", "services.exporter", "--port", "0"],
        cwd=REPOSITORY,
        env={"PRECEPTOR_HOME": str(folders.runs.parent), "PATH": ""},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/metrics", line)
        assert found is not None, line
        text = httpx.get(found[0], timeout=PATIENCE_S).text
        assert 'preceptor_run_steps{run="going",student="r3d",teacher="alpha"} 7.0' in text
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE_S) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "some.host"])
def test_an_address_that_others_reach_must_be_asked_for(host: str) -> None:
    with pytest.raises(ConfigError, match=f"--host {re.escape(host)} can be reached .* repeat with --public"):
        main(host, 0)
    check_public(host, public=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_need_not(host: str) -> None:
    check_public(host, public=False)
