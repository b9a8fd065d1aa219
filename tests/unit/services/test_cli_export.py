"""`preceptor export`: what it writes, and what it does not write over."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import pytest
import torch

from services import cli
from teacher_server.zoo.network import VideoNetwork
from trainer.config import RunConfig
from trainer.student_files import save_student


@pytest.fixture
def student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a fine-tuned student, and an empty folder to work in."""
    monkeypatch.setenv("PRECEPTOR_HOME", str(tmp_path / "home"))
    config = RunConfig(teacher="none", student="mc3_18", width=0.01, clip_len=8, crop=32)
    torch.manual_seed(0)
    network = VideoNetwork("mc3_18", 0.01, pretext_classes=0, action_classes=2, projector=False)
    save_student(tmp_path / "tuned", network, config, ("bow", "wave"), (40, 54), ())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "tuned"


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["preceptor", "export", *args])
    return cli.main()


def test_a_student_is_written_under_its_own_name(
    student: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, str(student)) == 0
    tensors = torch.load("tuned.pth", weights_only=True)
    assert tensors["fc.weight"].shape == (2, 8)
    size = Path("tuned.pth").stat().st_size
    assert capsys.readouterr().out == f"{student} written to tuned.pth ({size:,} bytes)\n"


def test_a_file_that_is_there_stays_unless_force_is_given(
    student: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path("mine.pth")
    out.write_bytes(b"mine")
    assert run(monkeypatch, str(student), "--out", "mine.pth") == 2
    assert capsys.readouterr().err == (
        "error: mine.pth is there already: name another --out, or replace it with --force\n"
    )
    assert out.read_bytes() == b"mine"
    assert run(monkeypatch, str(student), "--out", "mine.pth", "--force") == 0
    assert len(torch.load(out, weights_only=True)) > 2


def test_an_onnx_file_is_written(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, str(student), "--format", "onnx", "--out", "mine.onnx") == 0
    graph = onnx.load("mine.onnx").graph
    assert [value.name for value in graph.input] == ["clip"]
    assert [value.name for value in graph.output] == ["features", "action_logits"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nobody",), "no student 'nobody': "),
        (("nobody", "--takes", "tuple"), "--takes is for --format onnx: a state dict has all heads"),
    ],
)
@pytest.mark.usefixtures("student")
def test_wrong_input_is_one_sentence_and_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert run(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not list(Path().iterdir())
