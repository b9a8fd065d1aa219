"""One training step against autograd of the formulas written out, and the teacher's side of it left untouched."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch

from data.draw import draw_tuples
from data.render import render_batch
from teacher_server.engine.teacher import FrozenTeacher
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId
from teacher_server.zoo.network import VideoNetwork
from trainer.batch import StudentBatch
from trainer.checkpoint import TrainingState
from trainer.collective import Collective
from trainer.loader import Loader
from trainer.losses import contrast_in_batch
from trainer.objective import Objective
from trainer.plan import student_input
from trainer.sampler import Sampler, split_rows
from trainer.step import train_step
from trainer.teacher_facts import TeacherFacts


@pytest.fixture
def kd(config):
    return dataclasses.replace(config, teacher="alpha", temperature=3.0)


@pytest.fixture
def network(kd):
    torch.manual_seed(0)
    return VideoNetwork(kd.student, kd.width).train()


@pytest.fixture
def views(store, kd):
    rows = np.array([0, 5, 9, 14])
    return draw_tuples(store.videos, rows, view_seed=1, epoch=0, spec=kd.clip_spec, augment=kd.augmentation)


@pytest.fixture
def frozen(home):
    return FrozenTeacher.load(TeacherLibrary(home / "teachers").entry(TeacherId("alpha", 1)))


def loaded(store, kd, teacher, steps=1):
    """The first batches that a worker of this run trains on."""
    sampler = Sampler(store.videos, split_rows(store, kd)[0], kd)
    with Loader(sampler, store, student_input(kd), teacher, first=0, stop=steps) as loader:
        return list(loader)


def random_batch(seed=0, teacher=True):
    generator = torch.Generator().manual_seed(seed)
    first, middle, last = torch.randn(3, 4, 3, 8, 32, 32, generator=generator)
    softened = torch.randn(4, 5, generator=generator) if teacher else None
    return StudentBatch((first, middle, last), torch.tensor([0, 3, 1, 4]), softened)


def objective(kd, network):
    return Objective(kd, student_features=network.feature_size, teacher=TeacherFacts(), num_train=12)


def losses_of(network, batch, kd):
    return objective(kd, network).losses(network.forward_tuple(batch.clips), batch, Collective(), kd.kd_weight)


def one_step(network, optimizer, batch, kd):
    """A step of this network by this optimiser; neither a schedule nor anything to resume is needed."""
    state = TrainingState(network, objective(kd, network), optimizer, None, None, [])
    return train_step(state, batch, kd, Collective(), kd.kd_weight)


def gradients(loss, network):
    network.zero_grad(set_to_none=True)
    loss.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in network.named_parameters()}


def test_the_gradient_of_the_distillation_term_alone_is_that_of_the_formula(network, kd, store, views, frozen):
    """tau^2 / B * sum_b sum_k p_bk (log p_bk - log q_bk), p and q softmax of the raw logits over tau."""
    raw = torch.from_numpy(frozen.answer(render_batch(store.gather(views), views)).logits)
    tau = kd.temperature
    batch = dataclasses.replace(random_batch(), teacher_logits=raw / tau)
    terms = losses_of(network, batch, kd)
    got = gradients(terms.value("distill"), network)

    student = network.forward_tuple(batch.clips).pretext_logits
    written_out = torch.zeros(())
    for b in range(4):
        p = torch.exp(raw[b] / tau) / torch.exp(raw[b] / tau).sum()
        q = torch.exp(student[b] / tau) / torch.exp(student[b] / tau).sum()
        for k in range(5):
            written_out = written_out + tau**2 * p[k] * (torch.log(p[k]) - torch.log(q[k])) / 4
    expected = gradients(written_out, network)
    for name, gradient in got.items():
        if name.startswith("projector."):
            assert gradient is None  # the term does not reach it
            continue
        assert gradient.norm() > 0, name
        torch.testing.assert_close(gradient, expected[name], rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["views", "pixels"])
def test_the_gradient_is_the_same_for_an_asked_and_a_directly_called_teacher(network, kd, bench, store, frozen, kind):
    teacher = bench.teacher(kd, bench.folder("run"), kind=kind)
    try:
        (step,) = loaded(store, kd, teacher)
    finally:
        teacher.close()
    assert (step.binding.teacher, step.binding.digest) == (TeacherId("alpha", 1), frozen.digest)
    pixels = render_batch(store.gather(step.views), step.views)
    direct = torch.from_numpy(frozen.answer(pixels).logits / np.float32(kd.temperature))
    assert torch.equal(step.batch.teacher_logits, direct)
    seen = []
    for batch in (step.batch, dataclasses.replace(step.batch, teacher_logits=direct)):
        terms = losses_of(network, batch, kd)
        seen.append(gradients(terms.value("distill"), network))
    asked, called = seen
    assert sum(float(g.norm()) for g in asked.values() if g is not None) > 0
    for name, gradient in asked.items():
        assert gradient is called[name] is None or torch.equal(gradient, called[name])


def test_training_steps_leave_the_teacher_as_it_was(network, kd, store, frozen):
    def fingerprint():
        tensors = frozen._network.state_dict()
        return hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))).hexdigest()

    before = fingerprint()
    weights = network.pretext_head.linear.weight.detach().clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for step in loaded(store, kd, None, steps=2):
        logits = frozen.answer(render_batch(store.gather(step.views), step.views)).logits
        teacher_logits = torch.from_numpy(logits / np.float32(kd.temperature))
        batch = dataclasses.replace(step.batch, teacher_logits=teacher_logits)
        assert not teacher_logits.requires_grad
        one_step(network, optimizer, batch, kd)
    assert all(p.grad is None and not p.requires_grad for p in frozen._network.parameters())
    assert fingerprint() == before
    assert not torch.equal(network.pretext_head.linear.weight, weights)


def test_a_step_is_plain_sgd_on_the_weighted_sum_of_the_terms(network, kd):
    """One parameter tensor followed by hand: w - lr * (gradient + weight_decay * w), momentum being empty."""
    batch = random_batch()
    terms = losses_of(network, batch, kd)
    total = terms.value("pretext") + kd.alpha * terms.value("contrast") + kd.kd_weight * terms.value("distill")
    gradient = gradients(total, network)["pretext_head.linear.weight"]
    weight = network.pretext_head.linear.weight.detach().clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    numbers = one_step(network, optimizer, batch, kd)
    expected = weight - 0.1 * (gradient + 0.01 * weight)
    torch.testing.assert_close(network.pretext_head.linear.weight.detach(), expected, rtol=1e-4, atol=1e-6)
    assert numbers.loss == pytest.approx(float(total.detach()), rel=1e-5)
    assert numbers.distill == pytest.approx(float(terms.value("distill").detach()), rel=1e-5)


def gradients_of_the_naive_loop(network, batch, kd):
    """The terms one tuple at a time, distillation over those that were answered; gradients and the KD term."""
    output = network.forward_tuple(batch.clips)
    tau, answered = kd.temperature, batch.teacher_mask.nonzero().flatten().tolist()
    kd_term = torch.zeros(())
    for b in answered:
        log_p = torch.log_softmax(batch.teacher_logits[b], dim=0)
        log_q = torch.log_softmax(output.pretext_logits[b] / tau, dim=0)
        for k in range(5):
            kd_term = kd_term + tau**2 * log_p[k].exp() * (log_p[k] - log_q[k]) / len(answered)
    pretext = -sum(torch.log_softmax(output.pretext_logits[b], dim=0)[batch.pretext_labels[b]] for b in range(4)) / 4
    contrast = contrast_in_batch(output.z1, output.z2, kd.contrast_temperature)
    total = pretext + kd.alpha * contrast + kd.kd_weight * kd_term
    return gradients(total, network), float(kd_term.detach()), float(total.detach())


@pytest.mark.parametrize("mask", [(True, False, True, True), (False, False, False, True), (False,) * 4, (True,) * 4])
def test_tuples_without_an_answer_take_no_part_in_the_distillation(network, kd, mask):
    kd = dataclasses.replace(kd, kd_weight=2.0)
    batch = random_batch()
    batch.teacher_logits[~torch.tensor(mask)] = float("nan")  # what was not answered means nothing
    batch = dataclasses.replace(batch, teacher_mask=torch.tensor(mask))
    expected, kd_term, total = gradients_of_the_naive_loop(network, batch, kd)
    numbers = one_step(network, torch.optim.SGD(network.parameters(), lr=0.0), batch, kd)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=2e-4, atol=1e-6)
    assert numbers.distill == (pytest.approx(kd_term, rel=1e-5) if any(mask) else None)
    assert numbers.loss == pytest.approx(total, rel=1e-5)
    assert numbers.kd_skipped == mask.count(False)


def test_the_agreement_is_over_the_answered_tuples(network, kd):
    batch = random_batch()
    with torch.no_grad():
        wishes = network.forward_tuple(batch.clips).pretext_logits.clone()
    wishes[1] = -wishes[1]  # the answered one of these two differs
    wishes[2] = -wishes[2]
    mask = torch.tensor([True, True, False, True])
    batch = dataclasses.replace(batch, teacher_logits=wishes, teacher_mask=mask)
    numbers = one_step(network, torch.optim.SGD(network.parameters(), lr=0.1), batch, kd)
    assert numbers.agreement == pytest.approx(2 / 3)


def test_a_mask_that_hides_nobody_changes_no_bit(kd):
    ends = []
    for mask in (None, torch.ones(4, dtype=torch.bool)):
        torch.manual_seed(0)
        network = VideoNetwork(kd.student, kd.width).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        batch = dataclasses.replace(random_batch(), teacher_mask=mask)
        numbers = one_step(network, optimizer, batch, kd)
        ends.append((numbers, [p.detach().numpy().tobytes() for p in network.parameters()]))
    assert ends[0] == ends[1]


def test_the_figures_count_answers(network, kd):
    batch = random_batch()
    with torch.no_grad():
        answers = network.forward_tuple(batch.clips).pretext_logits.argmax(dim=1).tolist()
    labels, wishes = batch.pretext_labels.tolist(), batch.teacher_logits.argmax(dim=1).tolist()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    numbers = one_step(network, optimizer, batch, kd)
    assert numbers.pretext_acc == sum(a == b for a, b in zip(answers, labels, strict=True)) / 4
    assert numbers.agreement == sum(a == b for a, b in zip(answers, wishes, strict=True)) / 4


def test_terms_that_are_off_are_none_and_weigh_nothing(kd):
    plain = dataclasses.replace(kd, contrast=False, teacher="none")
    torch.manual_seed(0)
    network = VideoNetwork(plain.student, plain.width, projector=False).train()
    numbers = one_step(network, torch.optim.SGD(network.parameters(), lr=0.1), random_batch(teacher=False), plain)
    assert (numbers.contrast, numbers.distill, numbers.agreement) == (None, None, None)
    assert numbers.loss == numbers.pretext
    assert numbers.kd_skipped == 0
