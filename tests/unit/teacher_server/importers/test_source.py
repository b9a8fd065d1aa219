"""Checkpoints on disk: sound ones arrive bit for bit; hostile, hanging and greedy ones are refused and do nothing."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import signal
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from teacher_server.importers.errors import ImportRefused
from teacher_server.importers.pickle_process import Limits
from teacher_server.importers.read_pickle import NoCheckpoint, refusal, tensors_of
from teacher_server.importers.source import read_source

PATIENCE_S = 30.0
TENSOR = torch.arange(6.0).reshape(2, 3)


class Calls:
    """Unpickled, it calls a function; in the process that tests it is only pickled."""

    def __init__(self, function, *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self):
        return self._call


def test_a_checkpoint_arrives_bit_for_bit_with_its_hash(foreign: ModuleType, checkpoint: Path) -> None:
    network = foreign.random_network("r3d")
    content = {"module." + name: tensor for name, tensor in network.state_dict().items()}
    torch.save({"epoch": 7, "state_dict": content, "optimizer": {"lr": 0.1}}, checkpoint)
    source = read_source(checkpoint)
    assert source.file == "best.pth"
    assert source.sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert source.left_out == ("epoch", "optimizer")
    assert source.tensors.keys() == network.state_dict().keys()
    assert all(torch.equal(source.tensors[name], tensor) for name, tensor in network.state_dict().items())


def test_safetensors_are_read_here(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": TENSOR}, path)
    source = read_source(path)
    assert torch.equal(source.tensors["a"], TENSOR)
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_hostile_pickle_is_refused_in_one_sentence_and_creates_nothing(checkpoint: Path, tmp_path: Path) -> None:
    torch.save({"a": TENSOR, "b": Calls(open, str(tmp_path / "owned"), "w")}, checkpoint)
    with pytest.raises(ImportRefused) as caught:
        read_source(checkpoint)
    message = str(caught.value)
    assert message.startswith(f"{checkpoint} cannot be imported: it names Python code (")
    assert message.endswith("which was not run; if you trust whoever made the file, repeat with --trust-pickle")
    assert "\n" not in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pth"]


def test_the_same_pickle_acts_once_it_is_trusted(checkpoint: Path, tmp_path: Path) -> None:
    """The control of the test above: it is the restricted reader that keeps the file from being made."""
    torch.save({"a": TENSOR, "b": Calls(open, str(tmp_path / "owned"), "w")}, checkpoint)
    read_source(checkpoint, trust_pickle=True)
    assert (tmp_path / "owned").exists()


def test_a_trusted_file_with_python_objects_gives_its_tensors(checkpoint: Path) -> None:
    torch.save({"args": argparse.Namespace(lr=0.1), "net": {"a": TENSOR}}, checkpoint)
    source = read_source(checkpoint, trust_pickle=True)
    assert torch.equal(source.tensors["a"], TENSOR)
    assert source.left_out == ("args",)


def test_a_child_that_hangs_is_ended(checkpoint: Path) -> None:
    torch.save({"a": Calls(time.sleep, 3600)}, checkpoint)
    with pytest.raises(ImportRefused, match="reading it took longer than 8 s"):
        read_source(checkpoint, trust_pickle=True, limits=Limits(seconds=8.0))


def test_a_child_that_dies_is_reported(checkpoint: Path) -> None:
    torch.save({"a": Calls(os.kill, 0, signal.SIGKILL)}, checkpoint)  # 0: its own process group
    with pytest.raises(ImportRefused, match="the process that read it was killed by SIGKILL"):
        read_source(checkpoint, trust_pickle=True)


def test_what_a_trusted_file_started_ends_with_the_child_that_read_it(checkpoint: Path, tmp_path: Path) -> None:
    torch.save({"a": Calls(os.system, f"sleep 3600 & echo $! > {tmp_path / 'pid'}"), "b": TENSOR}, checkpoint)
    assert read_source(checkpoint, trust_pickle=True).left_out == ("a",)  # the child ended normally
    stat = Path("/proc") / (tmp_path / "pid").read_text().strip() / "stat"
    deadline = time.monotonic() + PATIENCE_S
    while is_alive(stat):
        assert time.monotonic() < deadline, f"{stat.parent} lives on"
        time.sleep(0.01)


def is_alive(stat: Path) -> bool:
    """Of a process; a zombie that nobody reaped is none."""
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_child_that_takes_too_much_memory_is_refused(checkpoint: Path) -> None:
    torch.save({"a": torch.zeros(64, 2**20, dtype=torch.uint8)}, checkpoint)
    with pytest.raises(ImportRefused, match=r"it takes more( memory)? than"):
        read_source(checkpoint, limits=Limits(memory_bytes=48 * 2**20))


def test_the_child_sees_nothing_of_the_environment(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRECEPTOR_TOKEN", "secret")
    torch.save({"a": Calls(os.system, f"env > {tmp_path / 'seen'}"), "b": TENSOR}, checkpoint)
    read_source(checkpoint, trust_pickle=True)
    seen = (tmp_path / "seen").read_text()
    assert "OMP_NUM_THREADS=1" in seen
    assert "secret" not in seen


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"not a checkpoint at all", "it is damaged, or no file that torch.save wrote"),
        ("a.pkl", pickle.dumps({"epoch": 3}), "it is damaged, or no file that torch.save wrote"),
        ("a.safetensors", b"\xff" * 64, "it cannot be read as safetensors"),
        (
            "a.onnx",
            b"",
            "a name with .pth, .pt, .bin, .pkl, .safetensors at its end, run:ID or a ",
        ),
    ],
)
def test_files_that_are_something_else_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImportRefused, match=message):
        read_source(tmp_path / name)


def test_a_file_that_is_not_there_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ImportRefused, match="there is no such file"):
        read_source(checkpoint)


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "net", "network"])
def test_wrappers_are_opened_to_any_depth(wrapper: str) -> None:
    tensors, left_out = tensors_of({wrapper: {"net": {"module.a": TENSOR, "n": 3}}, "epoch": 1})
    assert list(tensors) == ["a"]
    assert left_out == ["epoch", "n"]


def test_tensors_come_out_contiguous_and_on_their_own() -> None:
    shared = torch.zeros(4, 4)
    tensors, _ = tensors_of({"a": shared, "b": shared, "c": shared.t()[1:]})
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors.values()}) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([TENSOR], "it holds a list where a dict of tensors was expected"),
        ({}, "it holds no tensors, only an empty dict"),
        ({"epoch": 1}, "it holds no tensors, only epoch"),
        ({"a": TENSOR, "module.a": TENSOR}, "a is there twice, with and without `module.`"),
    ],
)
def test_contents_without_usable_tensors_are_refused(content: object, message: str) -> None:
    with pytest.raises(NoCheckpoint, match=message):
        tensors_of(content)


def test_a_refusal_is_one_line_of_bounded_length() -> None:
    assert refusal(ValueError("x\n" * 1000)).count("\n") == 0
    assert len(refusal(ValueError("x" * 1000))) < 250


def test_the_last_words_of_a_child_without_outcome_are_told(checkpoint: Path) -> None:
    torch.save({"a": Calls(sys.exit, "good\x07bye")}, checkpoint)
    with pytest.raises(ImportRefused, match=r"the process that read it ended with code 1 \(goodbye\)"):
        read_source(checkpoint, trust_pickle=True)
