"""A trained student as a teacher: its answers are the student's own."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from data.draw import eval_tuples, uniform_clips
from data.prepare import prepare
from data.render import render_batch
from data.views import REMOTE
from services.importing import ImportMode, import_teacher
from teacher_server.card import PRETEXT_CLASSES, pretext_classes
from teacher_server.engine.teacher import FrozenTeacher
from teacher_server.errors import LibraryError, TeacherMismatch
from teacher_server.importers.wishes import Wishes
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId
from trainer.checkpoint import CheckpointError, point_to_best
from trainer.config import ConfigError
from trainer.export import export_teacher, main
from trainer.plan import student_input
from trainer.report_data import read_metrics
from trainer.student_files import load_student
from trainer.teacher_facts import teacher_facts
from trainer.totals import Selection


def train(bench, config, name="run"):
    """A run of two steps with its config.json, and its network as it ended."""
    run = bench.folder(name)
    run.write_json(run.config, {**config.to_json(), "run_id": name, "identity": config.identity()})
    _, trainer = bench.attempt(dataclasses.replace(config, max_steps=2), run)
    return run, trainer.state.network


@pytest.mark.parametrize("modality", ["rgb", "res"])
def test_the_exported_teacher_answers_as_the_student_does(bench, config, store, tmp_path, modality):
    config = dataclasses.replace(config, modality=modality)
    run, network = train(bench, config)
    library = TeacherLibrary(tmp_path / "library")
    teacher = export_teacher(run, "mine", library, command="make it")
    frozen = FrozenTeacher.load(library.entry(teacher))
    rows = torch.arange(0, 24, 5).numpy()
    views = eval_tuples(store.videos, rows, view_seed=0, spec=config.clip_spec, tuples_per_video=1)
    pixels = render_batch(store.gather(views), views)[: 3 * frozen.card.chunk_items]
    network.eval()
    clips = prepare(pixels, student_input(config)).unflatten(0, (-1, 3))
    with torch.no_grad():
        one_pass = network.backbone(clips.flatten(0, 1)).unflatten(0, (-1, 3))
        expected = network.pretext_head(one_pass.unbind(dim=1))
        by_position = network.forward_tuple(tuple(clips.unbind(dim=1))).pretext_logits
    logits = torch.from_numpy(frozen.answer(pixels).logits)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)  # the teacher's batch-norm is folded
    torch.testing.assert_close(logits, by_position, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", ["", ":best"])
def test_a_finished_run_is_imported_as_it_ended_or_as_validation_liked_it_most(bench, config, monkeypatch, which):
    """From a run that was trained to a teacher that answers, with nothing between them replaced."""
    monkeypatch.setenv("PRECEPTOR_HOME", str(bench.home))
    run = bench.folder("mine")
    config = dataclasses.replace(config, epochs=3, evaluate=True)
    run.write_json(run.config, {**config.to_json(), "run_id": "mine", "identity": config.identity()})
    bench.attempt(config, run)
    point_to_best(run.checkpoints, Selection(best_step=6))
    student = load_student(f"mine{which}")
    assert student.source.name == ("step-000000006" if which else "step-000000009")
    library = TeacherLibrary(bench.home / "imported")
    teacher = import_teacher(f"run:mine{which}", "kept", Wishes(precision="float32"), library, ImportMode())
    entry = library.entry(teacher)
    assert entry.card.provenance.steps == (6 if which else 9)
    assert ("pretext_acc" in entry.card.provenance.metrics) == (not which)  # the test list saw the last weights only
    (epoch,) = [line for line in read_metrics(run.metrics).epochs if line["step"] == entry.card.provenance.steps]
    assert entry.card.provenance.metrics["validation_pretext_acc"] == epoch["val_pretext_acc"]
    kept, own = load_file(entry.weights), student.network.state_dict()
    assert kept.keys() < own.keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in kept.items())


def actions_of(bench, config, library, **choice):
    """A run's action head as a teacher, and the run's network."""
    run, network = train(bench, config)
    return FrozenTeacher.load(library.entry(export_teacher(run, "mine", library, head="action", **choice))), network


def test_the_action_head_of_an_action_teacher_s_student_teaches_under_the_teacher_s_class_names(
    bench, config, store, tmp_path
):
    config = dataclasses.replace(config, teacher="beta", student="r3d_18")
    frozen, network = actions_of(bench, config, TeacherLibrary(tmp_path / "library"))
    assert (frozen.card.arch, frozen.card.head) == ("r3d_18", "action")
    assert frozen.card.classes == ("bow", "kick", "wave")
    views = uniform_clips(store.videos, torch.arange(8).numpy(), spec=config.clip_spec, clips_per_video=1)
    pixels = render_batch(store.gather(views), views)
    network.eval()
    with torch.no_grad():
        expected = network.action_head(network.features(prepare(pixels, student_input(config))))
    torch.testing.assert_close(torch.from_numpy(frozen.answer(pixels).logits), expected, rtol=1e-4, atol=1e-5)


def test_a_supervised_action_head_has_the_store_s_class_names(bench, config, store, tmp_path):
    frozen, _ = actions_of(bench, dataclasses.replace(config, ce_weight=1.0), TeacherLibrary(tmp_path / "library"))
    assert frozen.card.classes == store.classes


def test_class_names_that_are_not_to_be_had_any_more_become_numbers(bench, config, tmp_path):
    run, _ = train(bench, dataclasses.replace(config, teacher="beta"))
    shutil.rmtree(bench.home / "teachers" / "beta")
    library = TeacherLibrary(tmp_path / "library")
    teacher = export_teacher(run, "mine", library, head="action")
    assert library.entry(teacher).card.classes == ("class_000", "class_001", "class_002")
    named = export_teacher(run, "mine", library, head="action", classes=("a", "b", "c"))
    assert library.entry(named).card.classes == ("a", "b", "c")
    with pytest.raises(ConfigError, match="the action head has 3 classes, --classes names 2"):
        export_teacher(run, "mine", library, head="action", classes=("a", "b"))


def test_a_run_with_its_own_operation_teaches_under_that_operation_s_name(bench, config, tmp_path, monkeypatch):
    (tmp_path / "export_operation.py").write_text("def mirror(clip):\n    return clip[:, :, ::-1]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    run, _ = train(bench, dataclasses.replace(config, pretext_operation="export_operation:mirror"))
    library = TeacherLibrary(tmp_path / "library")
    card = library.entry(export_teacher(run, "mine", library)).card
    assert card.classes == (*PRETEXT_CLASSES[:4], "export_operation:mirror")
    with pytest.raises(ConfigError, match="--classes names an action head's classes"):
        export_teacher(run, "mine", library, classes=tuple("abcde"))


def test_a_run_with_remote_clips_teaches_under_their_name_and_no_student_of_the_other_shuffle(bench, config):
    run, _ = train(bench, dataclasses.replace(config, shuffle="remote"))
    teacher = export_teacher(run, "far", TeacherLibrary(bench.home / "teachers"))
    assert TeacherLibrary(bench.home / "teachers").entry(teacher).card.classes == pretext_classes(shuffle=REMOTE)
    assert teacher_facts(dataclasses.replace(config, teacher="far@1", shuffle="remote")).num_classes == 5
    with pytest.raises(TeacherMismatch, match=r"remote_clip, expected .*temporal_shuffle \(--shuffle"):
        teacher_facts(dataclasses.replace(config, teacher="far@1"))


def test_a_head_that_a_student_does_not_have_is_refused(bench, config, tmp_path):
    run, _ = train(bench, config)
    with pytest.raises(ConfigError, match="run run has no action head, it has pretext"):
        export_teacher(run, "mine", TeacherLibrary(tmp_path / "library"), head="action")


PLUGIN = """
from torch import nn
class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.feature_size = round(64 * width)
        self.conv = nn.Conv3d(3, self.feature_size, 3, stride=2)
    def forward(self, clip):
        return self.conv(clip).relu().mean(dim=(2, 3, 4))
"""


def test_a_network_of_the_user_s_own_trains_and_teaches(bench, config, tmp_path, monkeypatch):
    (tmp_path / "preceptor_student_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("PRECEPTOR_PLUGINS", raising=False)
    name = "preceptor_student_plugin:Net"
    run, _ = train(bench, dataclasses.replace(config, student=name))  # typed, so nobody else has to allow it
    library = TeacherLibrary(tmp_path / "library")
    entry = library.entry(export_teacher(run, "mine", library))
    assert (entry.card.arch, entry.card.feature_size) == (name, 8)
    with pytest.raises(LibraryError, match="PRECEPTOR_PLUGINS"):
        FrozenTeacher.load(entry)
    monkeypatch.setenv("PRECEPTOR_PLUGINS", name)
    FrozenTeacher.load(entry)


def test_the_card_says_what_the_run_was(bench, config, store, tmp_path):
    run, _ = train(bench, config)
    library = TeacherLibrary(tmp_path / "library")
    assert export_teacher(run, "mine", library, command="make it") == TeacherId("mine", 1)
    assert export_teacher(run, "mine", library) == TeacherId("mine", 2)
    card = library.entry(TeacherId("mine", 1)).card
    assert (card.arch, card.width, card.head, card.classes) == ("r3d", 0.125, "pretext", PRETEXT_CLASSES)
    assert (card.clip_len, card.crop, card.modality, card.feature_size) == (8, 32, "res", 64)
    epochs = [line for line in map(json.loads, run.metrics.read_text().splitlines()) if line["kind"] == "epoch"]
    assert card.provenance.model_dump() == {
        "command": "make it",
        "store_fingerprint": store.fingerprint,
        "steps": 2,
        "metrics": {"validation_pretext_acc": epochs[-1]["val_pretext_acc"]},
        **dict.fromkeys(("source_file", "source_sha256", "mapping"), ""),
    }


def test_an_exported_teacher_can_teach(bench, config):
    run, _ = train(bench, config)
    export_teacher(run, "mine", TeacherLibrary(bench.home / "teachers"))
    pupil = bench.folder("pupil")
    assert bench.attempt(dataclasses.replace(config, teacher="mine", max_steps=1), pupil)[0].status == "finished"
    assert pupil.read_result()["teacher_timeline"][0]["teacher"] == "mine@1"


def test_metrics_with_a_torn_line_are_no_obstacle(bench, config, tmp_path):
    run, _ = train(bench, config)
    lines = run.metrics.read_text().splitlines()
    run.metrics.write_text("\n".join([lines[0], '{"kind": "st', *lines[1:]]) + "\n")
    export_teacher(run, "mine", TeacherLibrary(tmp_path / "library"))


def test_a_run_that_is_not_finished_is_refused(bench, config, tmp_path):
    run = bench.folder("run")
    bench.attempt(config, run, steps=1)
    with pytest.raises(ConfigError, match="run run is not finished: train it to the end first"):
        export_teacher(run, "mine", TeacherLibrary(tmp_path / "library"))


def test_a_damaged_checkpoint_is_refused(bench, config, tmp_path):
    run, _ = train(bench, config)
    (run.checkpoints / "step-000000002" / "state.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="step-000000002 is missing or damaged"):
        export_teacher(run, "mine", TeacherLibrary(tmp_path / "library"))
    assert not (tmp_path / "library" / "mine").exists()


def test_the_command_adds_the_teacher_to_the_library_of_the_home(bench, config, capsys):
    train(bench, config)
    main("run", "mine")
    assert capsys.readouterr().out == f"mine@1 added to {bench.home / 'teachers'}\n"
    assert TeacherLibrary(bench.home / "teachers").versions("mine") == (1,)


@pytest.mark.parametrize(
    ("run", "name", "message"),
    [("nobody", "mine", "error: no run 'nobody' under "), ("run", "Mine!", "error: 'Mine!' is no teacher name")],
)
def test_the_command_refuses_in_one_sentence(bench, config, run, name, message):
    train(bench, config)
    with pytest.raises(SystemExit) as caught:
        main(run, name)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
