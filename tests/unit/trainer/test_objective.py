"""The loss of a run against its terms written out: what each setting adds, and what the state of it does in a run."""

import dataclasses
import math
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from data.plugins import PluginError, PluginNotAllowed
from teacher_server.library import TeacherLibrary
from teacher_server.zoo.network import VideoNetwork
from trainer.bank import draw_others
from trainer.batch import StudentBatch
from trainer.checkpoint import TrainingState
from trainer.collective import Collective
from trainer.losses import (
    contrast_in_batch,
    contrast_with_bank,
    distill_loss,
    hint_loss,
    shuffled_rows,
    smoothed_logits,
)
from trainer.objective import Objective, lambda_at, load_extra_loss
from trainer.report_data import read_metrics
from trainer.step import train_step
from trainer.teacher_facts import TeacherFacts

PRETEXT, ACTION = TeacherFacts(feature_size=6), TeacherFacts("action", 3, 6)
NUM_TRAIN = 9
DOCUMENT = Path(__file__).parents[3] / "docs" / "plugins.md"


@pytest.fixture
def kd(config):
    return dataclasses.replace(config, teacher="alpha", temperature=3.0)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return VideoNetwork("r3d", 0.125, action_classes=3).train()


def make(kd, network, facts=PRETEXT, trusted=True):
    torch.manual_seed(1)
    return Objective(kd, student_features=network.feature_size, teacher=facts, num_train=NUM_TRAIN, trusted=trusted)


def batch_of_four(facts=PRETEXT, **changes):
    generator = torch.Generator().manual_seed(0)
    first, middle, last = torch.randn(3, 4, 3, 8, 32, 32, generator=generator)
    batch = StudentBatch(
        (first, middle, last),
        torch.tensor([0, 3, 3, 4]),
        torch.randn(4, facts.num_classes, generator=generator),
        teacher_features=torch.randn(4, 6, generator=generator),
        step=5,
        positions=torch.tensor([4, 0, 8, 2]),
        action_labels=torch.tensor([2, 0, 1, 1]),
    )
    return dataclasses.replace(batch, **changes)


def step(kd, network, batch, facts=PRETEXT, lambda_kd=1.0):
    objective = make(kd, network, facts)
    parameters = [*network.parameters(), *objective.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    state = TrainingState(network, objective, optimizer, None, None, [])
    return objective, train_step(state, batch, kd, Collective(), lambda_kd)


def terms_of(kd, network, batch, facts=PRETEXT, lambda_kd=1.0):
    output = network.forward_tuple(batch.clips)
    return output, make(kd, network, facts).losses(output, batch, Collective(), lambda_kd)


def test_with_the_settings_of_old_there_are_the_terms_of_old_and_no_state(kd, network):
    _, terms = terms_of(kd, network, batch_of_four())
    assert [(term.name, term.weight, term.over) for term in terms.terms] == [
        ("pretext", 1.0, "tuples"),
        ("contrast", kd.alpha, "global"),
        ("distill", 1.0, "answered"),
    ]
    assert not make(kd, network).state_dict()


def test_the_contrast_of_the_bank_takes_the_rows_of_the_videos_and_their_negatives(kd, network):
    kd = dataclasses.replace(kd, contrast_mode="memory_bank", bank_negatives=4)
    batch = batch_of_four()
    output, terms = terms_of(kd, network, batch)
    bank = make(kd, network).bank
    positions = batch.positions.numpy()
    others = draw_others(positions, NUM_TRAIN, count=4, view_seed=kd.view_seed, step=5)
    rows = torch.from_numpy(np.concatenate([positions[:, None], others], axis=1))
    expected = contrast_with_bank(output.z1, output.z2, bank.first_ND[rows], bank.third_ND[rows], 0.07)
    assert terms.value("contrast").item() == pytest.approx(expected.item(), rel=1e-6)
    assert terms.terms[1].over == "tuples"


def test_a_step_remembers_the_features_from_before_its_update(kd, network):
    kd = dataclasses.replace(kd, contrast_mode="memory_bank", bank_momentum=0.0)
    with torch.no_grad():
        output = network.forward_tuple(batch_of_four().clips)
    objective, _ = step(kd, network, batch_of_four())
    torch.testing.assert_close(objective.bank.first_ND[[4, 0, 8, 2]], output.z1, rtol=0, atol=1e-6)
    torch.testing.assert_close(objective.bank.third_ND[[4, 0, 8, 2]], output.z2, rtol=0, atol=1e-6)
    untouched = make(kd, network).bank.first_ND[[1, 3, 5, 6, 7]]
    assert torch.equal(objective.bank.first_ND[[1, 3, 5, 6, 7]], untouched)


@pytest.mark.parametrize("facts", [PRETEXT, ACTION])
def test_hints_compare_the_mean_of_the_clips_or_the_first_one(kd, network, facts):
    kd = dataclasses.replace(kd, hint_weight=0.5)
    batch = batch_of_four(facts, teacher_mask=torch.tensor([True, False, True, True]))
    output, terms = terms_of(kd, network, batch, facts)
    first, middle, last = output.features
    item = (first + middle + last) / 3 if facts is PRETEXT else first
    projection = make(kd, network, facts).hint
    expected = hint_loss(F.linear(item, projection.weight, projection.bias), batch.teacher_features, batch.teacher_mask)
    assert terms.value("hint").item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms.terms[-1].weight == 0.5


def test_the_projection_of_the_hints_is_trained(kd, network):
    kd = dataclasses.replace(kd, hint_weight=0.5)
    before = make(kd, network).hint.weight
    objective, numbers = step(kd, network, batch_of_four())
    assert (objective.hint.weight - before).abs().max() > 0
    assert numbers.hint > 0
    assert 0 <= numbers.cka <= 1


def test_an_action_teacher_is_followed_by_the_action_head(kd, network):
    batch = batch_of_four(ACTION)
    output, terms = terms_of(kd, network, batch, ACTION)
    expected = distill_loss(output.action_logits, batch.teacher_logits, kd.temperature)
    assert terms.value("distill").item() == pytest.approx(expected.item(), rel=1e-6)
    _, numbers = step(kd, network, batch, ACTION)
    assert numbers.agreement * 4 == (output.action_logits.argmax(1) == batch.teacher_logits.argmax(1)).sum()


def test_the_supervised_term_is_the_cross_entropy_of_the_action_head(kd, network):
    kd = dataclasses.replace(kd, ce_weight=0.3)
    batch = batch_of_four()
    output, terms = terms_of(kd, network, batch)
    log_p = torch.log_softmax(output.action_logits, dim=1)
    expected = -sum(log_p[i, label] for i, label in enumerate((2, 0, 1, 1))) / 4
    assert terms.value("ce").item() == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(ValueError, match="needs an action head and the videos' labels"):
        terms_of(kd, network, dataclasses.replace(batch, action_labels=None))


@pytest.mark.parametrize("target", ["shuffled", "smoothed", "smoothed_mean"])
def test_a_control_changes_what_is_followed_and_not_what_is_compared(kd, network, target):
    batch = batch_of_four()
    control = dataclasses.replace(kd, kd_target=target)
    output, terms = terms_of(control, network, batch)
    if target == "shuffled":
        answered = np.ones(4, dtype=bool)
        rows = shuffled_rows(batch.pretext_labels.numpy(), answered, view_seed=kd.view_seed, step=5)
        followed = batch.teacher_logits[torch.from_numpy(rows)]
    elif target == "smoothed":
        followed = smoothed_logits(batch.teacher_logits, batch.pretext_labels)
    else:
        rows = torch.softmax(batch.teacher_logits.double(), dim=1).tolist()
        mean = sum(-sum(p * math.log(p) for p in row) for row in rows) / len(rows)
        followed = smoothed_logits(batch.teacher_logits, batch.pretext_labels, torch.full((4,), mean))
        of_label = torch.softmax(followed, dim=1)[torch.arange(4), batch.pretext_labels]
        assert of_label.tolist() == pytest.approx([of_label[0].item()] * 4)  # nothing of a tuple's own answer
    expected = distill_loss(output.pretext_logits, followed, kd.temperature)
    assert terms.value("distill").item() == pytest.approx(expected.item(), rel=1e-6)
    plain = distill_loss(output.pretext_logits, batch.teacher_logits, kd.temperature).item() / kd.temperature**2
    assert step(control, network, batch)[1].kl == pytest.approx(plain, rel=1e-5)


def test_the_figures_of_the_labels_count_tuples_and_hits(kd, network):
    batch = batch_of_four()
    with torch.no_grad():
        choices = network.forward_tuple(batch.clips).pretext_logits.argmax(dim=1).tolist()
    _, numbers = step(kd, network, batch)
    assert numbers.label_counts == (1, 0, 0, 2, 1)
    labels = batch.pretext_labels.tolist()
    hits = [sum(c == label == k for c, label in zip(choices, labels, strict=True)) for k in range(5)]
    assert numbers.label_hits == tuple(hits)
    assert numbers.pretext_acc == sum(hits) / 4


def test_the_weight_of_the_distillation_is_that_of_the_step(kd, network):
    _, numbers = step(kd, network, batch_of_four(), lambda_kd=0.25)
    expected = numbers.pretext + kd.alpha * numbers.contrast + 0.25 * numbers.distill
    assert numbers.loss == pytest.approx(expected, rel=1e-6)
    assert numbers.lambda_kd == 0.25
    _, scratch = step(kd, network, batch_of_four(teacher_logits=None, teacher_features=None))
    assert (scratch.lambda_kd, scratch.kl, scratch.cka) == (None, None, None)


def test_lambda_is_constant_or_falls_evenly_to_0(kd):
    kd = dataclasses.replace(kd, kd_weight=2.0)
    assert [lambda_at(kd, step, 4) for step in range(4)] == [2.0] * 4
    linear = dataclasses.replace(kd, kd_schedule="linear")
    assert [lambda_at(linear, step, 4) for step in range(5)] == [2.0, 1.5, 1.0, 0.5, 0.0]


@pytest.fixture
def user_module(monkeypatch):
    """A module of the user's, on the path of imports."""

    def squares(output, batch):
        return output.pretext_logits.square().mean() * len(batch.pretext_labels)

    module = SimpleNamespace(
        squares=squares, number=3, rows=lambda output, _batch: output.pretext_logits, layer=torch.nn.Linear(5, 1)
    )
    monkeypatch.setitem(sys.modules, "my_losses", module)


def test_a_loss_of_the_users_own_is_added_with_its_weight(kd, network, user_module):  # noqa: ARG001 for its effect
    kd = dataclasses.replace(kd, extra_loss="my_losses:squares", extra_loss_weight=0.1)
    output, terms = terms_of(kd, network, batch_of_four())
    assert terms.value("extra").item() == pytest.approx(4 * output.pretext_logits.square().mean().item(), rel=1e-6)
    without = sum(term.weighted for term in terms.terms[:-1]).item()
    assert terms.total.item() == pytest.approx(without + 0.1 * terms.value("extra").item(), rel=1e-6)
    assert step(kd, network, batch_of_four())[1].extra == pytest.approx(terms.value("extra").item(), rel=1e-5)


def test_a_loss_that_is_none_is_refused(kd, network, user_module):  # noqa: ARG001 for its effect
    with pytest.raises(PluginError, match="is int, expected a function"):
        load_extra_loss("my_losses:number", trusted=True)
    with pytest.raises(PluginError, match="has tensors of its own, which no seed fixes"):
        load_extra_loss("my_losses:layer", trusted=True)
    kd = dataclasses.replace(kd, extra_loss="my_losses:rows")
    with pytest.raises(PluginError, match=r"returned a tensor \[4, 5\], expected a tensor with one number"):
        terms_of(kd, network, batch_of_four())


def test_a_loss_whose_name_nobody_typed_is_not_loaded_unless_it_is_listed(kd, network, user_module, monkeypatch):  # noqa: ARG001
    kd = dataclasses.replace(kd, extra_loss="my_losses:squares")
    monkeypatch.delenv("PRECEPTOR_PLUGINS", raising=False)
    with pytest.raises(PluginNotAllowed, match="PRECEPTOR_PLUGINS=my_losses:squares"):
        make(kd, network, trusted=False)
    monkeypatch.setenv("PRECEPTOR_PLUGINS", "my_losses:squares")
    make(kd, network, trusted=False)


def test_the_loss_that_the_documentation_shows_is_the_negative_entropy(kd, network, monkeypatch):
    section = DOCUMENT.read_text(encoding="utf-8").partition("## Losses")[2]
    module = ModuleType("mylosses")
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], module.__dict__)
    monkeypatch.setitem(sys.modules, "mylosses", module)
    output, terms = terms_of(dataclasses.replace(kd, extra_loss="mylosses:confidence"), network, batch_of_four())
    p = torch.softmax(output.pretext_logits.detach(), dim=1)
    expected = sum(float(value * value.log()) for row in p for value in row) / 4
    assert terms.value("extra").item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mode", ["in_batch", "memory_bank"])
def test_without_a_projector_the_features_are_compared(kd, mode):
    kd = dataclasses.replace(kd, contrast_mode=mode, projector=False, bank_negatives=3, bank_momentum=0.25)
    torch.manual_seed(0)
    network = VideoNetwork("r3d", 0.125, projector=False).train()
    batch = batch_of_four()
    output, terms = terms_of(kd, network, batch)
    z1, z2 = (F.normalize(output.features[i], dim=1) for i in (0, 2))
    objective = make(kd, network)
    if mode == "in_batch":
        expected = contrast_in_batch(z1, z2, kd.contrast_temperature)
    else:
        assert objective.bank.first_ND.shape == (NUM_TRAIN, network.feature_size)
        rows = objective.bank.rows(batch.step, batch.positions)
        old = objective.bank.first_ND.clone()
        expected = contrast_with_bank(z1, z2, old[rows], objective.bank.third_ND[rows], kd.contrast_temperature)
        objective.after_step(output, batch, Collective())
        moved = F.normalize(0.25 * old[batch.positions] + 0.75 * z1.detach(), dim=1)
        torch.testing.assert_close(objective.bank.first_ND[batch.positions], moved)
    assert terms.value("contrast").item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("mode", ["in_batch", "memory_bank"])
def test_a_run_without_a_projector_has_none(bench, config, mode):
    config = dataclasses.replace(config, projector=False, contrast_mode=mode, max_steps=2)
    run = bench.folder("run")
    outcome, trainer = bench.attempt(config, run)
    assert outcome.status == "finished"
    assert trainer.state.network.projector is None
    assert all(line["contrast"] > 0 for line in read_metrics(run.metrics).steps)


EVERYTHING = {
    "contrast_mode": "memory_bank",
    "hint_weight": 0.5,
    "ce_weight": 0.5,
    "kd_schedule": "linear",
}


@pytest.mark.parametrize("without", [{}, {"kd_target": "shuffled", "hint_weight": 0.0}], ids=["all", "control"])
def test_a_run_with_everything_on_resumes_to_the_same_bytes(bench, kd, without):
    """The bank, the projection and its momentum go on, and the draws are those of the steps."""
    kd = dataclasses.replace(kd, batch_size=5, **EVERYTHING | without)
    undisturbed, stopped = bench.folder("undisturbed"), bench.folder("stopped")
    assert bench.attempt(kd, undisturbed)[0].status == "finished"
    assert bench.attempt(kd, stopped, steps=4)[0].status == "stopped"
    assert bench.attempt(kd, stopped)[0].status == "finished"
    ends = [run.checkpoints / "step-000000006" / "state.safetensors" for run in (undisturbed, stopped)]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    tensors = load_file(ends[0])
    assert {"objective.hint.weight", "momentum.objective.hint.weight"} <= tensors.keys() or without
    assert tensors["objective.bank.first_ND"].shape == (12, 128)
    for line in read_metrics(undisturbed.metrics).steps:
        assert line["lambda_kd"] == pytest.approx(1 - (line["step"] - 1) / 6, abs=1e-6)
        names = ("contrast", "distill", "ce", "kl", *(() if without else ("hint", "cka")))
        assert all(math.isfinite(line[name]) for name in names)


@pytest.mark.parametrize(("teacher", "modality"), [("alpha", "res"), ("alpha", "rgb"), ("beta", "res")])
def test_a_run_learns_from_a_teacher_of_the_other_modality_or_head(bench, kd, teacher, modality):
    """alpha and beta see frames; the student its own modality of the same views."""
    kd = dataclasses.replace(kd, teacher=teacher, modality=modality, max_steps=2)
    run = bench.folder("run")
    outcome, trainer = bench.attempt(kd, run)
    assert outcome.status == "finished"
    assert (trainer.state.network.action_head is not None) == (teacher == "beta")
    for line in read_metrics(run.metrics).steps:
        assert line["distill"] > 0
        assert line["kl"] == pytest.approx(line["distill"] / kd.temperature**2, abs=1e-6)


@pytest.mark.parametrize("modality", ["rgb", "res"])
def test_a_run_learns_from_a_teacher_of_frame_differences(bench, tiny, kd, tmp_path, modality):
    """The other way round: the teacher's answers are those to its own modality of the student's views."""
    library = TeacherLibrary(bench.home / "teachers")
    for name, seen in (("differences", "res"), ("frames", "rgb")):  # the same weights
        card = tiny.make_card(modality=seen)
        library.add(name, card, tiny.save_random_weights(card, tmp_path / f"{name}.safetensors", 5))
    distill = {}
    for teacher in ("differences", "frames"):
        run = bench.folder(teacher)
        outcome, _ = bench.attempt(dataclasses.replace(kd, teacher=teacher, modality=modality, max_steps=2), run)
        assert outcome.status == "finished"
        distill[teacher] = [line["distill"] for line in read_metrics(run.metrics).steps]
    assert all(value > 0 for value in distill["differences"])
    assert distill["differences"][0] != distill["frames"][0]


def test_cka_is_logged_where_it_is_wanted_and_changes_no_number_of_the_training(bench, kd):
    kd = dataclasses.replace(kd, max_steps=2)
    with_cka = dataclasses.replace(kd, log_cka=True)
    assert with_cka.identity() == kd.identity()
    lines = []
    for name, settings in (("plain", kd), ("logged", with_cka)):
        run = bench.folder(name)
        assert bench.attempt(settings, run)[0].status == "finished"
        lines.append(read_metrics(run.metrics).steps)
    assert [line["weights"] for line in lines[0]] == [line["weights"] for line in lines[1]]
    assert all(line.get("cka") is None for line in lines[0])
    assert all(0 < line["cka"] <= 1 for line in lines[1])
