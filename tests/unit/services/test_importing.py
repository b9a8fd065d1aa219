"""`preceptor teacher import`, from a file as it is downloaded to answers; and what it refuses."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.prepare import prepare
from services import cli
from teacher_server.card import PRETEXT_CLASSES, Provenance, TeacherCard
from teacher_server.engine import verify
from teacher_server.engine.teacher import FrozenTeacher
from teacher_server.errors import LibraryError
from teacher_server.importers import install
from teacher_server.library import TeacherEntry, TeacherLibrary
from teacher_server.protocol import TeacherId
from teacher_server.zoo.names import ARCH_VERSION
from teacher_server.zoo.network import VideoNetwork
from trainer.config import ConfigError, RunConfig
from trainer.plan import student_input
from trainer.runs import RunFolder
from trainer.student_files import load_student, save_student


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRECEPTOR_HOME", str(tmp_path / "home"))
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["preceptor", "teacher", "import", *args])
    return cli.main()


def native() -> VideoNetwork:
    torch.manual_seed(0)
    return VideoNetwork("c3d", 0.125, pretext_classes=0, action_classes=3).eval()


def save_as_vcop(network: VideoNetwork, path: Path) -> Path:
    """C3D's own names are ours but for the prefix; saved from DataParallel, with an optimiser beside it."""
    content = {
        "module." + name.replace("backbone.", "base_network.").replace("action_head.linear", "linear"): tensor
        for name, tensor in network.state_dict().items()
    }
    torch.save({"epoch": 3, "state_dict": content, "optimizer": {"lr": 0.1}}, path)
    return path


SMALL = ("--crop", "32", "--clip-len", "8", "--precision", "float32")


def test_a_downloaded_checkpoint_becomes_a_teacher_that_answers_as_it_did(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = native()
    path = save_as_vcop(network, home / "best.pth")
    (home / "classes.txt").write_text("bow\nkick\nwave\n")
    assert run(monkeypatch, str(path), "--name", "mine", "--classes", str(home / "classes.txt"), *SMALL) == 0
    entry = TeacherLibrary(home / "home" / "teachers").entry(TeacherId("mine", 1))
    assert (entry.card.arch, entry.card.head, entry.card.classes) == ("c3d", "action", ("bow", "kick", "wave"))
    made = entry.card.provenance
    assert (made.command, made.mapping) == ("preceptor teacher import best.pth", "vcop/c3d")
    assert made.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    out = capsys.readouterr().out
    assert "action, 3 classes: bow, kick, wave" in out
    assert out.endswith(f"mine@1 added to {home / 'home' / 'teachers'}\n")

    frozen = FrozenTeacher.load(entry)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 32, 32, 3), dtype=np.uint8)
    with torch.inference_mode():
        features = network.features(prepare(pixels, frozen.input_spec))
        assert network.action_head is not None
        expected = network.action_head(features).numpy()
    np.testing.assert_allclose(frozen.answer(pixels).logits, expected, rtol=1e-4, atol=1e-5)


def test_the_same_weights_from_both_layouts_answer_with_the_same_bytes(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = native()
    (home / "classes.txt").write_text("bow\nkick\nwave\n")
    save_file(network.state_dict(), home / "best.safetensors")
    flags = ("--name", "twin", "--classes", str(home / "classes.txt"), *SMALL)
    unnormalised = ("--modality", "rgb", "--mean", "0", "0", "0", "--std", "1", "1", "1")
    assert run(monkeypatch, str(save_as_vcop(network, home / "best.pth")), *flags) == 0
    assert run(monkeypatch, str(home / "best.safetensors"), *flags, *unnormalised) == 0
    library = TeacherLibrary(home / "home" / "teachers")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 32, 32, 3), dtype=np.uint8)
    answers = [FrozenTeacher.load(library.entry(TeacherId("twin", v))).answer(pixels).logits for v in (1, 2)]
    assert answers[0].tobytes() == answers[1].tobytes()


@pytest.mark.parametrize(("bfloat16_ms", "chosen"), [(1.0, "bfloat16"), (4.0, "float32")])
def test_the_precision_that_was_measured_is_the_card_s(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bfloat16_ms: float,
    chosen: Literal["float32", "bfloat16"],
) -> None:
    report = verify.PrecisionReport(2.0, bfloat16_ms, max_difference=0.001, agreement=1.0, items=8)
    monkeypatch.setattr(install, "choose_precision", lambda *_: verify.PrecisionChoice(chosen, report))
    (home / "classes.txt").write_text("bow\nkick\nwave\n")
    flags = ("--name", "mine", "--classes", str(home / "classes.txt"), *SMALL[:4])
    assert run(monkeypatch, str(save_as_vcop(native(), home / "best.pth")), *flags) == 0
    card = TeacherLibrary(home / "home" / "teachers").entry(TeacherId("mine", 1)).card
    assert card.precision == chosen  # type: ignore[union-attr]
    assert f"note: computed in {chosen}: " in capsys.readouterr().out


def test_a_dry_run_shows_everything_and_adds_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_as_vcop(native(), home / "best.pth")
    (home / "classes.txt").write_text("bow\n\nkick\nwave")
    flags = ("--classes", str(home / "classes.txt"), "--dry-run", *SMALL)
    assert run(monkeypatch, str(path), "--name", "mine", *flags) == 0
    assert capsys.readouterr().out.endswith("nothing was added: this was a dry run\n")
    assert not (home / "home").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing.pth",), "nothing.pth cannot be imported: there is no such file"),
        (("run:nobody",), "run:nobody cannot be imported: there is no such run under "),
        (("run:nobody:best",), "run:nobody:best cannot be imported: there is no such run under "),
        (("run:nobody", "--trust-pickle"), "run:nobody holds no pickle, students are kept as safetensors: "),
        (("run:nobody", "--crop", "32", "--allow-unused"), "the card of run:nobody comes from its run: leave out "),
        (("nothing.pth", "--classes", "/nowhere/at/all"), "--classes /nowhere/at/all cannot be read: "),
    ],
)
def test_wrong_input_is_one_sentence_and_code_2(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert run(monkeypatch, *arguments, "--name", "mine") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not (home / "home" / "teachers" / "mine").exists()


@pytest.fixture
def finished_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """`run:mine`, whose export is a tiny random network; trainer.export has tests of its own."""
    torch.manual_seed(1)
    network = VideoNetwork("c3d", 0.125, pretext_classes=5, action_classes=0)
    tensors = {key: value for key, value in network.state_dict().items() if not key.startswith("projector.")}
    folder = home / "home" / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    values = {
        "arch": "c3d", "arch_version": ARCH_VERSION, "width": 0.125, "head": "pretext", "classes": PRETEXT_CLASSES,
        "clip_len": 8, "crop": 32, "modality": "res", "feature_size": 64,
    }  # fmt: skip

    def export(_run: RunFolder, name: str, library: TeacherLibrary, command: str, **choice: object) -> TeacherId:
        assert choice == {"head": "auto", "classes": None, "best": False}
        made = Provenance(command=command, store_fingerprint="abc", steps=7, metrics={"pretext_acc": 0.5})
        save_file(tensors, home / "student.safetensors")
        card = TeacherCard.model_validate({**values, "provenance": made})
        return library.add(name, card, home / "student.safetensors")

    monkeypatch.setattr("trainer.export.export_teacher", export)
    return tensors


@pytest.mark.usefixtures("finished_run")
def test_a_dry_run_of_a_run_shows_its_card_and_adds_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "run:mine", "--name", "student", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "7 steps on store abc" in out
    assert "pretext_acc 0.500" in out
    assert out.endswith("nothing was added: this was a dry run\n")
    assert not (home / "home" / "teachers").exists()


def test_a_run_is_shown_and_added_with_its_own_weights(
    home: Path,
    finished_run: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, "run:mine", "--name", "student", "--precision", "float32") == 0
    entry = TeacherLibrary(home / "home" / "teachers").entry(TeacherId("student", 1))
    added = load_file(entry.weights)
    assert added.keys() == finished_run.keys()
    assert all(torch.equal(added[name], tensor) for name, tensor in finished_run.items())
    assert entry.card.provenance.command == "preceptor teacher import run:mine"
    assert "7 steps on store abc" in capsys.readouterr().out


@pytest.mark.usefixtures("finished_run")
@pytest.mark.parametrize("chosen", ["bfloat16", "float32"])
def test_the_precision_of_a_run_is_measured_too_and_compiling_can_be_asked_for(
    home: Path, monkeypatch: pytest.MonkeyPatch, chosen: Literal["float32", "bfloat16"]
) -> None:
    report = verify.PrecisionReport(2.0, 1.0, max_difference=0.001, agreement=1.0, items=8)
    monkeypatch.setattr(install, "choose_precision", lambda *_: verify.PrecisionChoice(chosen, report))
    loaded = []
    monkeypatch.setattr(FrozenTeacher, "load", lambda entry, _device: loaded.append(entry.card))
    assert run(monkeypatch, "run:mine", "--name", "student", "--compile") == 0
    card = TeacherLibrary(home / "home" / "teachers").entry(TeacherId("student", 1)).card
    assert isinstance(card, TeacherCard)
    assert (card.precision, card.compile) == (chosen, True)
    assert loaded == [card]  # what was tested is what was added


@pytest.mark.usefixtures("finished_run")
def test_how_a_run_is_served_can_be_chosen(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--name", "student", "--precision", "float32", "--resize", "--chunk-items")
    assert run(monkeypatch, "run:mine", *flags, "0") == 2
    assert "run:mine cannot be imported: chunk_items: Input should be greater than" in capsys.readouterr().err
    assert run(monkeypatch, "run:mine", *flags, "2") == 0
    assert "other sizes are resized" in capsys.readouterr().out
    entry = TeacherLibrary(home / "home" / "teachers").entry(TeacherId("student", 1))
    assert (entry.card.resize, entry.card.chunk_items) == (True, 2)
    larger = np.zeros((3 * entry.card.views_per_item, entry.card.clip_len, 48, 40, 3), dtype=np.uint8)
    assert len(FrozenTeacher.load(entry).answer(larger).logits) == 3


@pytest.mark.usefixtures("finished_run")
def test_head_and_class_names_of_a_run_can_be_chosen(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def export(*_: object, **choice: object) -> TeacherId:
        raise ConfigError(f"asked for {choice}")

    monkeypatch.setattr("trainer.export.export_teacher", export)
    (home / "classes.txt").write_text("bow\nkick\n")
    flags = ("--head", "action", "--classes", str(home / "classes.txt"))
    assert run(monkeypatch, "run:mine:best", "--name", "student", *flags) == 2
    assert "asked for {'head': 'action', 'classes': ('bow', 'kick'), 'best': True}" in capsys.readouterr().err


@pytest.mark.usefixtures("finished_run")
def test_a_run_is_tested_on_the_device_that_was_named_and_not_added_when_it_fails(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    devices = []

    def load(entry: TeacherEntry, device: str) -> None:
        devices.append(device)
        raise LibraryError(str(entry.weights), "its answers are not finite")

    monkeypatch.setattr(FrozenTeacher, "load", load)
    assert run(monkeypatch, "run:mine", "--name", "student", "--device", "cuda", "--precision", "float32") == 2
    assert devices == ["cuda"]
    assert "its answers are not finite" in capsys.readouterr().err
    assert not (home / "home" / "teachers").exists()


@pytest.fixture
def tuned(home: Path) -> Path:
    """The folder of a fine-tuned student that sees frames, at a size that no layout assumes."""
    config = RunConfig(teacher="none", student="r3d_18", width=0.05, clip_len=9, crop=40, modality="rgb")
    torch.manual_seed(2)
    network = VideoNetwork("r3d_18", 0.05, pretext_classes=0, action_classes=2, projector=False)
    save_student(home / "tuned", network, config, ("bow", "wave"), (48, 64), ())
    return home / "tuned"


def test_a_fine_tuned_student_becomes_an_action_teacher_of_its_own_input(
    home: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, str(tuned), "--name", "actions", "--precision", "float32") == 0
    frozen = FrozenTeacher.load(TeacherLibrary(home / "home" / "teachers").entry(TeacherId("actions", 1)))
    card = frozen.card
    assert (card.head, card.classes) == ("action", ("bow", "wave"))
    assert (card.modality, card.crop, card.clip_len) == ("rgb", 40, 9)
    student = load_student(tuned)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 40, 40, 3), dtype=np.uint8)
    with torch.inference_mode():
        features = student.network.features(prepare(pixels, student_input(student.config)))
        assert student.network.action_head is not None
        expected = student.network.action_head(features).numpy()
    np.testing.assert_allclose(frozen.answer(pixels).logits, expected, rtol=1e-4, atol=1e-5)


def test_names_that_no_card_can_have_are_refused_in_a_sentence(
    home: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "classes.txt").write_text("bow\nbow\n")
    assert run(monkeypatch, str(tuned), "--name", "mine", "--classes", str(home / "classes.txt")) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tuned} cannot be imported: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("tuned/model.safetensors",),
            "tuned/model.safetensors cannot be imported: student.json beside it ",
        ),
        ((".",), ". cannot be imported: it is a folder without student.json; expected a file, the folder of a fine-"),
        (("tuned", "--head", "pretext"), "tuned was fine-tuned and has an action head only: leave out --head pretext"),
        (("tuned", "--modality", "res"), "the card of tuned comes from its run: leave out --modality"),
    ],
)
def test_what_a_fine_tuned_student_s_folder_cannot_be_is_one_sentence(
    home: Path,
    tuned: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tuned.parent)
    assert run(monkeypatch, *arguments, "--name", "mine") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not (home / "home" / "teachers" / "mine").exists()
