"""Students are found by every name that a user may type, and a damaged one is refused."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

from data.plugins import PluginNotAllowed
from teacher_server.zoo.network import VideoNetwork
from trainer.checkpoint import newest_checkpoint, point_to_best
from trainer.config import ConfigError
from trainer.errors import CheckpointError
from trainer.lessons import Lesson
from trainer.student_files import CARD, MODEL, load_student, network_from, save_student, tensors_digest
from trainer.totals import Selection


@pytest.fixture
def trained(bench, config):
    """A run of two steps with its config.json, and its network as it ended."""
    run = bench.folder("mine")
    run.write_json(run.config, {**config.to_json(), "run_id": "mine", "identity": config.identity()})
    _, trainer = bench.attempt(dataclasses.replace(config, max_steps=2), run)
    return run, trainer.state.network


def _same(network, other):
    tensors = other.state_dict()
    return all(torch.equal(tensor, tensors[name]) for name, tensor in network.state_dict().items())


def test_a_run_id_a_run_folder_and_a_checkpoint_folder_name_the_same_student(trained, config):
    run, network = trained
    students = [load_student(name) for name in ("mine", run.path, newest_checkpoint(run.checkpoints))]
    for student in students:
        assert _same(student.network, network)
        assert student.config == dataclasses.replace(config, run_id="mine")
        assert student.source == newest_checkpoint(run.checkpoints).resolve()
        assert student.digest == tensors_digest(network.state_dict())
        assert not any(module.training for module in student.network.modules())


def test_a_run_with_labels_names_its_actions_as_its_store_does(bench, config, store):
    run = bench.folder("labelled")
    labelled = dataclasses.replace(config, ce_weight=1.0, max_steps=2)
    run.write_json(run.config, {**labelled.to_json(), "run_id": "labelled", "identity": labelled.identity()})
    bench.attempt(labelled, run)
    student = load_student("labelled")
    assert (student.classes, student.frame_size) == (store.classes, store.frame_size)
    run.write_json(run.config, {**json.loads(run.config.read_bytes()), "store": "gone"})
    student = load_student("labelled")
    assert student.classes == tuple(f"class_{i:03d}" for i in range(len(store.classes)))
    assert student.frame_size is None


def test_best_names_the_checkpoint_that_validation_chose(trained):
    run, network = trained
    (run.checkpoints / "best").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="run mine has kept no best checkpoint: use mine for its newest one"):
        load_student("mine:best")
    point_to_best(run.checkpoints, Selection(best_step=2))
    best = load_student("mine:best")
    assert _same(best.network, network)
    assert best.source.name == "step-000000002"


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("name", ["nobody", "mine:worst", "/no/such/folder"])
def test_a_name_that_means_nothing_is_refused_with_what_is_expected(name):
    with pytest.raises(ConfigError, match=f"no student '{name}': expected the id of a run under "):
        load_student(name)


def test_a_checkpoint_away_from_its_run_is_refused(trained, tmp_path):
    run, _ = trained
    newest_checkpoint(run.checkpoints).rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match="its settings are not known"):
        load_student(tmp_path / "moved")


@pytest.mark.parametrize("projector", [True, False])
@pytest.mark.parametrize(("pretext", "action"), [(5, 0), (5, 3), (0, 4)])
def test_heads_are_read_from_the_tensors(pretext, action, projector):
    network = VideoNetwork("r3d", 0.05, pretext_classes=pretext, action_classes=action, projector=projector)
    again = network_from(network.state_dict(), "r3d", 0.05)
    assert again.state_dict().keys() == network.state_dict().keys()
    assert _same(again, network)


def test_tensors_of_another_network_are_refused():
    tensors = VideoNetwork("r3d", 0.05).state_dict()
    with pytest.raises(CheckpointError, match=r"the weights are not those of a c3d of width 0\.05"):
        network_from(tensors, "c3d", 0.05)


def test_the_digest_follows_names_shapes_and_values():
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    digests = {
        tensors_digest(tensors),
        tensors_digest({"a": torch.zeros(3, 2), "b": torch.ones(1)}),
        tensors_digest({"a": torch.zeros(2, 3), "c": torch.ones(1)}),
        tensors_digest({"a": torch.zeros(2, 3), "b": torch.full((1,), 2.0)}),
    }
    assert len(digests) == 4
    assert tensors_digest({"b": torch.ones(1), "a": torch.zeros(2, 3)}) in digests


def test_a_tensor_that_is_no_layer_s_weight_is_refused():
    tensors = {**VideoNetwork("r3d", 0.05).state_dict(), "action_head.linear.weight": torch.tensor(3.0)}
    with pytest.raises(CheckpointError, match=r"the weights are not those of a r3d of width 0\.05"):
        network_from(tensors, "r3d", 0.05)


@pytest.mark.parametrize("content", ['{"student": ', "[]"])
def test_settings_that_are_damaged_are_refused_in_a_sentence(trained, content):
    trained[0].config.write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json is damaged: "):
        load_student("mine")


def test_a_network_that_a_run_s_settings_name_brings_no_code_along_that_nobody_allowed(trained, tmp_path, monkeypatch):
    run, _ = trained
    name = "preceptor_named_in_a_file:Net"
    (tmp_path / "preceptor_named_in_a_file.py").write_text("raise SystemExit('this code ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("PRECEPTOR_PLUGINS", raising=False)
    run.write_json(run.config, {**json.loads(run.config.read_bytes()), "student": name})
    with pytest.raises(PluginNotAllowed, match=f"start every process with PRECEPTOR_PLUGINS={name}"):
        load_student("mine")
    assert "preceptor_named_in_a_file" not in sys.modules


def test_the_key_follows_the_weights_and_the_architecture(trained):
    student = load_student(trained[0].path)
    other_weights = dataclasses.replace(student, digest="0" * 64)
    other_network = dataclasses.replace(student, config=dataclasses.replace(student.config, student="c3d"))
    assert len({student.key, other_weights.key, other_network.key}) == 3
    elsewhere = dataclasses.replace(student, config=dataclasses.replace(student.config, seed=7), source=Path("/else"))
    assert elsewhere.key == student.key


def test_a_fine_tuned_student_reads_back_whole(config, tmp_path):
    network = VideoNetwork("r3d", 0.05, pretext_classes=0, action_classes=2, projector=False)
    config = dataclasses.replace(config, width=0.05)
    lessons = (Lesson(name="train01 of two", used_labels=True, videos={"00ff": 30}),)
    save_student(tmp_path / "model", network, config, ("left", "right"), (40, 54), lessons)
    student = load_student(tmp_path / "model")
    assert _same(student.network, network)
    assert (student.config, student.classes, student.frame_size) == (config, ("left", "right"), (40, 54))
    assert student.lessons == lessons


def test_a_student_of_an_earlier_version_is_refused_with_what_to_do(config, tmp_path):
    network = VideoNetwork("r3d", 0.05, pretext_classes=0, action_classes=2, projector=False)
    save_student(tmp_path, network, dataclasses.replace(config, width=0.05), ("left", "right"), (40, 54), ())
    card = json.loads((tmp_path / CARD).read_bytes())
    del card["lessons"]
    (tmp_path / CARD).write_text(json.dumps(card | {"format": 1}))
    with pytest.raises(CheckpointError, match=r"kept by an earlier version, .*: fine-tune it again"):
        load_student(tmp_path)


@pytest.mark.parametrize("damage", ["weights of another", "weights cut off", "card cut off", "a class too few"])
def test_a_damaged_fine_tuned_student_is_refused(config, tmp_path, damage):
    config = dataclasses.replace(config, width=0.05)
    for name in ("model", "other"):
        network = VideoNetwork("r3d", 0.05, pretext_classes=0, action_classes=2, projector=False)
        save_student(tmp_path / name, network, config, ("left", "right"), (40, 54), ())
    folder = tmp_path / "model"
    if damage == "a class too few":
        save_student(folder, network, config, ("left",), (40, 54), ())
    elif damage == "weights of another":
        (tmp_path / "other" / MODEL).rename(folder / MODEL)
    else:
        file = folder / (MODEL if damage == "weights cut off" else CARD)
        file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_student(folder)
