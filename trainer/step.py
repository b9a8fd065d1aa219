"""One optimisation step: student forward, losses, backward, update.

    StudentBatch --forward_tuple--> TupleOutput --objective--> LossTerms --backward--> gradients summed over workers

Axis letters: B tuples of this worker, K classes, E features of the student, D of the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from teacher_server.zoo.network import TupleOutput
from trainer.batch import StudentBatch
from trainer.checkpoint import TrainingState
from trainer.collective import Collective
from trainer.config import RunConfig
from trainer.losses import LossTerms, kl_per_row, linear_cka
from trainer.objective import Objective
from trainer.precision import forward_tuple


@dataclass(frozen=True)
class StepNumbers:
    """A step's figures over the global batch; a term that is off, or to which no tuple contributed, is None.

    The terms are unweighted. lambda_kd: the weight that the distillation term had. agreement: share of the answered
    tuples on which student and teacher choose the same class. kl: their mean KL(teacher || student) at temperature tau
    in nats, of the teacher's own answers whatever the student follows. cka: linear CKA of their features, where they
    were asked for. kd_skipped: tuples that no teacher answered. label_counts, label_hits: for each pretext label the
    tuples that had it, and those of them that were recognised.
    """

    loss: float
    pretext: float
    contrast: float | None
    distill: float | None
    pretext_acc: float
    agreement: float | None
    kd_skipped: int
    label_counts: tuple[int, ...]
    label_hits: tuple[int, ...]
    lambda_kd: float | None = None
    kl: float | None = None
    cka: float | None = None
    hint: float | None = None
    ce: float | None = None
    extra: float | None = None


def train_step(
    state: TrainingState, batch: StudentBatch, config: RunConfig, collective: Collective, lambda_kd: float
) -> StepNumbers:
    """Forward, backward, update of weights and memory bank. Returns the figures of the global batch.

    lambda_kd: the weight of the distillation term at this step; see objective.lambda_at.
    """
    state.optimizer.zero_grad(set_to_none=True)
    output = forward_tuple(state.network, batch.clips, config.student_precision)
    terms = state.objective.losses(output, batch, collective, lambda_kd)
    _for_backward(terms, batch, collective).backward()
    collective.sum_gradients(state.network)
    collective.sum_gradients(state.objective)
    if config.grad_clip > 0:  # of the summed gradient, so that all workers shorten by the same factor
        weights = [weight for group in state.optimizer.param_groups for weight in group["params"]]
        nn.utils.clip_grad_norm_(weights, config.grad_clip)
    state.optimizer.step()
    state.objective.after_step(output, batch, collective)
    return _numbers(state.objective, output, terms, batch, config, collective)


def _for_backward(terms: LossTerms, batch: StudentBatch, collective: Collective) -> Tensor:
    """This worker's part of the global loss: gradients are summed over the workers."""
    if collective.world == 1:
        return terms.total
    local_2 = torch.tensor([float(len(batch.pretext_labels)), float(batch.num_answered)])
    whole_2 = collective.sum(local_2.clone())  # on all workers, whoever was answered
    share, answered_share = local_2 / whole_2.clamp(min=1)
    return terms.of_worker(share, answered_share, all_answered=torch.equal(whole_2[0], whole_2[1]))


@torch.no_grad()
def _numbers(
    objective: Objective,
    output: TupleOutput,
    terms: LossTerms,
    batch: StudentBatch,
    config: RunConfig,
    collective: Collective,
) -> StepNumbers:
    labels = _label_counts(output, batch)
    agreeing, kl = _against_teacher(objective.student_logits(output), batch, config.temperature)
    local = [len(batch.pretext_labels), batch.num_answered, agreeing, kl, *_local_sums(terms, batch), *labels]
    whole = collective.sum(torch.tensor(local, dtype=torch.float64)).tolist()
    count, answered, agree_sum, kl_sum = whole[:4]
    values = _means(terms, whole[4 : -len(labels)], count, answered)
    of_labels = tuple(int(number) for number in whole[-len(labels) :])
    label_counts, label_hits = of_labels[: len(of_labels) // 2], of_labels[len(of_labels) // 2 :]
    off = {term.name for term in terms.terms if term.over == "answered" and not answered}
    shown = {name: value for name, value in values.items() if name not in off}
    return StepNumbers(
        loss=sum(term.weight * values[term.name] for term in terms.terms),
        pretext=values["pretext"],
        contrast=shown.get("contrast"),
        distill=shown.get("distill"),
        pretext_acc=sum(label_hits) / count,
        agreement=agree_sum / answered if answered else None,
        kd_skipped=0 if batch.teacher_logits is None else int(count - answered),
        label_counts=label_counts,
        label_hits=label_hits,
        lambda_kd=next((term.weight for term in terms.terms if term.name == "distill"), None),
        kl=kl_sum / answered if answered else None,
        cka=_cka(objective, output, batch, collective),
        hint=shown.get("hint"),
        ce=shown.get("ce"),
        extra=shown.get("extra"),
    )


def _local_sums(terms: LossTerms, batch: StudentBatch) -> list[float]:
    """Of each term over this worker's tuples, so that means over the global batch can be made of them."""
    num = {"tuples": len(batch.pretext_labels), "answered": batch.num_answered, "global": 1}
    return [num[term.over] * float(term.value) for term in terms.terms]


def _means(terms: LossTerms, sums: list[float], count: float, answered: float) -> dict[str, float]:
    """The terms over the global batch by name; 0 for one to which no tuple contributed."""
    num = {"tuples": count, "answered": max(1.0, answered)}
    return {
        term.name: float(term.value) if term.over == "global" else total / num[term.over]
        for term, total in zip(terms.terms, sums, strict=True)
    }


def _label_counts(output: TupleOutput, batch: StudentBatch) -> list[int]:
    """This worker's tuples by label, then those of them that were recognised."""
    num_classes = output.pretext_logits.shape[1]
    recognised = batch.pretext_labels[output.pretext_logits.argmax(dim=1) == batch.pretext_labels]
    counts, hits = (torch.bincount(labels, minlength=num_classes) for labels in (batch.pretext_labels, recognised))
    return [*counts.tolist(), *hits.tolist()]


def _against_teacher(student_BK: Tensor, batch: StudentBatch, temperature: float) -> tuple[int, float]:
    """Over this worker's answered tuples: how many choices agree, and the sum of the divergences."""
    if batch.teacher_logits is None:
        return 0, 0.0
    agree_B = (student_BK.argmax(dim=1) == batch.teacher_logits.argmax(dim=1)) & batch.answered()
    kl_B = kl_per_row(student_BK, batch.teacher_logits, temperature, batch.teacher_mask)
    return int(agree_B.sum()), float(kl_B.double().sum())


def _cka(objective: Objective, output: TupleOutput, batch: StudentBatch, collective: Collective) -> float | None:
    """Over the answered tuples of the global batch; None where features were not asked for."""
    if batch.teacher_features is None:
        return None
    student_GE = collective.gather_rows(objective.student_features(output))
    teacher_GD = collective.gather_rows(batch.teacher_features)
    answered_G = collective.gather_rows(batch.answered().long().unsqueeze(1)).squeeze(1) > 0
    return linear_cka(student_GE[answered_G], teacher_GD[answered_G])
