"""The comparison of runs as it is printed."""

import json
import re

import numpy as np
import pytest

from trainer.answers import Answers, paired_gain, read_answers, write_answers
from trainer.compare import NothingToCompare, compare, main, what_differs
from trainer.report_data import RunFolderError

SCRATCH = {
    "teacher": "none",
    "student": "r3d",
    "epochs": 6,
    "steps": 222,
    "seconds": 90.0,
    "clips_per_second": 118.4,
    "teacher_wait_share": 0.0,
    "pretext_acc": 0.5,
    "pretext_balanced_acc": 0.5,
    "retrieval_top1": 0.25,
    "retrieval_top5": 0.6,
    "probe_acc": 0.4,
    "store_fingerprint": "a" * 32,
    "seed": 0,
    "view_seed": 0,
}
KD = {
    **SCRATCH,
    "teacher": "r2plus1d",
    "seconds": 100.0,
    "clips_per_second": 106.6,
    "teacher_wait_share": 0.052,
    "pretext_acc": 0.5432,
    "retrieval_top1": 0.24,
}


SETTINGS = {"run_id": "one", "seed": 0, "crop": 56, "teacher": "none", "kd_weight": 1.0, "identity": "0123456789ab"}
TAUGHT = {"run_id": "two", "teacher": "r2plus1d", "kd_weight": 0.5, "prefetch": 4, "identity": "ba9876543210"}


def _write_run(folder, result, **settings):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**SETTINGS, **settings}))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def runs(tmp_path):
    return [_write_run(tmp_path / "one", SCRATCH), _write_run(tmp_path / "two", KD, **TAUGHT)]


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


def _cells(output, label):
    line = next(line for line in output.splitlines() if re.search(rf"│ {label}\s+│", line))
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


def test_columns_stand_side_by_side_with_the_second_minus_the_first(runs, capsys):
    assert main([str(run) for run in runs]) == 0
    output = capsys.readouterr().out
    assert re.search(r"scratch\s+┃\s+KD\s+┃\s+difference", output)
    assert _cells(output, "teacher") == ["none", "r2plus1d", ""]
    assert _cells(output, "epochs") == ["6", "6", ""]
    assert _cells(output, "steps") == ["222", "222", "+0"]
    assert _cells(output, "training time") == ["90.0 s", "1 min 40 s", "+10.0 s"]
    assert _cells(output, "clips per second") == ["118.4", "106.6", "-11.8"]
    assert _cells(output, "teacher wait") == ["0.0 %", "5.2 %", "+5.2 points"]
    assert _cells(output, "pretext accuracy") == ["50.0 %", "54.3 %", "+4.3 points"]
    assert _cells(output, "retrieval top-1") == ["25.0 %", "24.0 %", "-1.0 points"]
    assert _cells(output, "linear probe") == ["40.0 %", "40.0 %", "+0.0 points"]


GROUPS = ("g1", "g1", "g2", "g2", "g3", "g3")
KEYS = ("a", "b", "c", "d", "e", "f")


def _answers(*right):
    return {"pretext_acc": Answers.of(np.array(right, dtype=bool), KEYS, GROUPS)}


def test_accuracies_on_the_same_views_are_compared_answer_by_answer(runs, capsys):
    """Right once more in every group: whichever groups are drawn, the difference is +50 points."""
    write_answers(runs[0] / "answers.npz", _answers(1, 0, 1, 0, 0, 0))
    write_answers(runs[1] / "answers.npz", _answers(1, 1, 1, 1, 0, 1))
    gain = paired_gain(*(read_answers(run / "answers.npz")["pretext_acc"] for run in runs))
    assert (gain.mean, gain.interval) == (0.5, (0.5, 0.5))
    assert main([str(run) for run in runs]) == 0
    output = capsys.readouterr().out
    assert _cells(output, "pretext accuracy")[2] == "+4.3 points [+50.0, +50.0]"  # the made-up result.json says 4.3
    assert _cells(output, "linear probe")[2] == "+0.0 points"


@pytest.mark.parametrize("damage", ["other videos", "other views", "no file", "not a file of ours"])
def test_without_the_same_items_there_is_no_interval(runs, capsys, damage):
    write_answers(runs[0] / "answers.npz", _answers(1, 0, 1, 0, 0, 0))
    write_answers(runs[1] / "answers.npz", _answers(1, 1, 1, 1, 0, 1))
    if damage == "other videos":
        write_answers(runs[1] / "answers.npz", {"pretext_acc": Answers.of(np.ones(1, dtype=bool), ("a",), ("g1",))})
    elif damage == "other views":
        (runs[1] / "result.json").write_text(json.dumps({**KD, "view_seed": 1}))
    elif damage == "no file":
        (runs[1] / "answers.npz").unlink()
    else:
        (runs[1] / "answers.npz").write_bytes(b"PK\x03\x04 and so on")
    assert main([str(run) for run in runs]) == 0
    assert _cells(capsys.readouterr().out, "pretext accuracy")[2] == "+4.3 points"


def test_title_and_the_path_of_each_report_are_shown_whole(runs, capsys, monkeypatch):
    (runs[0] / "report.html").write_text("")
    monkeypatch.setenv("COLUMNS", "40")
    assert main([*map(str, runs), "--title", "A title"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "A title"
    assert f"report: {runs[0].resolve()}/report.html" in lines
    assert f"report: there is none in {runs[1].resolve()}" in lines


def test_a_third_run_gets_a_column_and_one_run_alone_no_difference(runs, tmp_path):
    third = _write_run(tmp_path / "three", {**KD, "probe_acc": None})
    assert [column.header.__str__() for column in compare([*runs, third]).columns] == [
        "",
        "scratch",
        "KD",
        "KD",
        "difference",
    ]
    assert len(compare(runs[:1]).columns) == 2


def test_a_figure_that_is_missing_has_a_dash_and_no_difference(runs, tmp_path, capsys):
    third = _write_run(tmp_path / "three", {**SCRATCH, "probe_acc": None, "clips_per_second": None})
    main([str(runs[0]), str(third)])
    output = capsys.readouterr().out
    assert _cells(output, "linear probe") == ["40.0 %", "–", ""]
    assert _cells(output, "clips per second") == ["118.4", "–", ""]


def test_conditions_that_make_runs_incomparable_are_named(runs, tmp_path):
    third = _write_run(tmp_path / "three", {**KD, "steps": 37}, seed=1, crop=48)
    assert what_differs(runs) == []
    assert what_differs([runs[0], third]) == [
        "The runs differ in crop: 56 and 48.",
        "The runs differ in seed: 0 and 1.",
        "The runs differ in steps: 222 and 37.",
    ]


def test_names_are_not_read_as_markup(tmp_path, capsys):
    run = _write_run(tmp_path / "one", {**SCRATCH, "teacher": "[red]x[/red]"})
    assert main([str(run), "--title", "plain"]) == 0
    assert _cells(capsys.readouterr().out, "teacher") == ["[red]x[/red]"]


@pytest.mark.parametrize("result", [None, "missing"])
def test_a_missing_or_unfinished_run_is_one_sentence_and_a_failure(runs, tmp_path, capsys, result):
    other = tmp_path / "other" if result else _write_run(tmp_path / "other", None)
    assert main([str(runs[0]), str(other)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert f"run folder {other}: " in captured.err
    with pytest.raises(RunFolderError):
        compare([other])


def test_runs_may_be_named_by_their_ids(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PRECEPTOR_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "runs").symlink_to(runs[0].parent)
    assert main([run.name for run in runs]) == 0
    by_id = capsys.readouterr().out
    assert main([str(run) for run in runs]) == 0
    assert capsys.readouterr().out.splitlines()[:5] == by_id.splitlines()[:5]
    assert main(["nobody"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: run folder nobody: it is neither a folder nor the id of a run under ")


def test_no_run_at_all_is_a_sentence(capsys):
    assert main([]) == 1
    assert "name at least one finished run" in capsys.readouterr().err
    with pytest.raises(NothingToCompare):
        compare([])
