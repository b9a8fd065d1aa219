"""`preceptor eval` and `preceptor predict` from end to end on a tiny store."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data.store import StoreWriter
from services import cli
from services.evaluating import evaluation_table
from teacher_server.zoo.network import VideoNetwork
from trainer.config import RunConfig
from trainer.evaluate.finetune_recipe import FinetuneRecipe
from trainer.evaluate.records import Evaluation
from trainer.student_files import save_student


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with store `two` (2 classes, 4 groups), and a student's folder."""
    monkeypatch.setenv("PRECEPTOR_HOME", str(tmp_path / "home"))
    rng = np.random.default_rng(0)
    names = []
    (tmp_path / "home" / "stores").mkdir(parents=True)
    with StoreWriter(tmp_path / "home" / "stores" / "two", frame_size=(36, 40), classes=("left", "right")) as writer:
        for group, label in itertools.product(range(4), range(2)):
            names.append(f"v{group}{label}")
            writer.add(names[-1], label, f"g{group}", rng.integers(0, 256, (30, 36, 40, 3), dtype=np.uint8))
        writer.commit({"train01": names[:4], "test01": names[4:]})
    torch.manual_seed(0)
    config = RunConfig(student="c3d", width=0.05, clip_len=8, interval=2, crop=32, store="two")
    save_student(tmp_path / "model", VideoNetwork("c3d", 0.05), config, (), (36, 40), ())
    return tmp_path / "model"


def run(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr(sys, "argv", ["preceptor", *map(str, args)])
    return cli.main()


def test_eval_prints_a_table_and_the_second_call_the_kept_result(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("eval", model, "--protocol", "retrieval", "--clips", "2", "--device", "cpu")
    assert run(monkeypatch, *args) == 0
    first = capsys.readouterr().out
    assert run(monkeypatch, *args) == 0
    again = capsys.readouterr().out
    note, _, rest = again.partition("\n")
    assert note == "this was evaluated before: here is the kept result; --force computes it again"
    assert rest == first
    record = Path(next(line for line in first.splitlines() if line.startswith("result "))[7:])
    assert len(json.loads(record.read_bytes())["splits"]) == 1


def test_eval_as_json_is_the_record_alone(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "eval", model, "--protocol", "pretext", "--tuples", "1", "--json") == 0
    evaluation = Evaluation.model_validate_json(capsys.readouterr().out)
    (score,) = evaluation.splits
    assert (score.label_histogram, score.chance) == ((4, 4, 4, 4, 4), 0.2)
    assert evaluation.mean_balanced_accuracy == score.balanced_accuracy
    table = evaluation_table(evaluation)
    assert [str(column.header) for column in table.columns][4:] == ["balanced", "videos"]
    assert [list(column.cells) for column in table.columns][4] == [f"{100 * evaluation.mean_balanced_accuracy:.1f}"] * 2
    assert run(monkeypatch, "eval", model, "--protocol", "pretext", "--tuples", "1") == 0
    page = capsys.readouterr().out.split("page   ")[1].splitlines()[0]
    assert all(f"asked: {name}" in Path(page).read_text() for name in evaluation.classes)


def test_what_fine_tuning_leaves_is_a_student_that_names_classes(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    args = ("eval", model, "--mode", "full", "--epochs", "1", "--clips", "2", "--device", "cpu")
    assert run(monkeypatch, *args) == 0
    tuned = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("model "))[6:].strip()
    (tmp_path / "text.avi").write_text("no video")
    assert run(monkeypatch, "predict", tuned, tmp_path / "text.avi", "--json") == 1
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer == {"file": str(tmp_path / "text.avi"), "guesses": [], "problem": "it is damaged or not a video"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["eval", "nobody"], "no student 'nobody': expected the id of a run under "),
        (["eval", "MODEL", "--store", "nowhere"], "nowhere"),
        (["eval", "MODEL", "--splits", "02"], "has no lists train02 and test02; its splits are: 01"),
        (["eval", "MODEL", "--epochs", "0"], "must be at least 1"),
        (["eval", "MODEL", "--seed", "-1"], "error: seed must lie between 0 and 2**63, got -1"),
        (["eval", "MODEL", "--lr", "nan"], "lr positive, got 150, 8, 10 and nan"),
        (["predict", "MODEL", "a.avi"], "has not learned to name actions"),
        (["predict", "MODEL", "a.avi", "--store", "two", "--top", "0"], "must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    message: str,
) -> None:
    assert run(monkeypatch, *(str(model) if word == "MODEL" else word for word in args)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_the_commands_defaults_are_those_of_the_recipe(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainer.evaluate.protocols.finetune", _record_recipe)
    with pytest.raises(_Seen) as seen:
        run(monkeypatch, "eval", model)
    assert seen.value.args == (FinetuneRecipe(),)
    capsys.readouterr()


class _Seen(Exception):
    pass


def _record_recipe(*_args: object, recipe: FinetuneRecipe, **_more: object) -> None:
    raise _Seen(recipe)


def test_the_table_has_a_row_for_each_split_and_their_mean(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "eval", model, "--protocol", "retrieval", "--clips", "2", "--json") == 0
    evaluation = Evaluation.model_validate_json(capsys.readouterr().out)
    table = evaluation_table(evaluation)
    columns = [str(column.header) for column in table.columns]
    assert columns == ["split", "top-1", "95 %", "chance", "top-5, 10, 20, 50", "videos"]
    first = [list(column.cells) for column in table.columns]
    assert first[0] == ["01", "mean"]
    assert first[1] == [f"{100 * evaluation.mean_accuracy:.1f}"] * 2
    assert first[5] == ["4", ""]
