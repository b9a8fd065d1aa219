"""One optimisation step: student forward, losses, backward, update.

    StudentBatch --forward_tuple--> logits, z1, z2 --losses--> LossTerms --backward--> gradients summed over workers

Axis letters: B tuples of this worker, C channels, T frames, H, W, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from teacher_server.zoo.network import TupleOutput, VideoNetwork
from trainer.collective import Collective
from trainer.config import RunConfig
from trainer.losses import LossTerms, contrast_in_batch, distill_loss, pretext_loss, total_loss


@dataclass(frozen=True)
class StudentBatch:
    """What one step needs, on the student's device.

    clips: three float32 [B, C, T, H, W]. pretext_labels: int64 [B]. teacher_logits: softened float32 [B, K], or None
    for scratch. teacher_mask: bool [B], False where no teacher answered: these tuples take no part in the distillation
    term and their logits mean nothing. None when all were answered.
    """

    clips: tuple[Tensor, Tensor, Tensor]
    pretext_labels: Tensor
    teacher_logits: Tensor | None
    teacher_mask: Tensor | None = None

    @property
    def num_answered(self) -> int:
        """Tuples with an answer of the teacher."""
        if self.teacher_logits is None:
            return 0
        return len(self.teacher_logits) if self.teacher_mask is None else int(self.teacher_mask.sum())


@dataclass(frozen=True)
class StepNumbers:
    """A step's figures over the global batch; a term that is off, or to which no tuple contributed, is None.

    agreement: share of the answered tuples on which student and teacher choose the same class. kd_skipped: tuples that
    no teacher answered.
    """

    loss: float
    pretext: float
    contrast: float | None
    distill: float | None
    pretext_acc: float
    agreement: float | None
    kd_skipped: int


def compute_losses(output: TupleOutput, batch: StudentBatch, config: RunConfig, collective: Collective) -> LossTerms:
    """The unweighted terms of this worker's tuples, distillation of the answered ones; the contrast is over the global
    batch."""
    contrast = None
    if config.contrast and output.z1 is not None and output.z2 is not None:
        contrast = contrast_in_batch(
            collective.gather_rows(output.z1), collective.gather_rows(output.z2), config.contrast_temperature
        )
    distill = None
    if batch.teacher_logits is not None:
        distill = distill_loss(output.pretext_logits, batch.teacher_logits, config.temperature, batch.teacher_mask)
    pretext = pretext_loss(output.pretext_logits, batch.pretext_labels)
    return total_loss(pretext, contrast, distill, alpha=config.alpha, lambda_kd=config.kd_weight)


def train_step(
    network: VideoNetwork, optimizer: Optimizer, batch: StudentBatch, config: RunConfig, collective: Collective
) -> StepNumbers:
    """Forward, backward, update. Leaves the network changed; returns the figures of the global batch."""
    optimizer.zero_grad(set_to_none=True)
    output = network.forward_tuple(batch.clips)
    terms = compute_losses(output, batch, config, collective)
    _for_backward(terms, batch, config, collective).backward()
    collective.sum_gradients(network)
    optimizer.step()
    return _numbers(output, terms, batch, config, collective)


def _for_backward(terms: LossTerms, batch: StudentBatch, config: RunConfig, collective: Collective) -> Tensor:
    """This worker's part of the global loss: gradients are summed over the workers, so means over this worker's
    tuples count by its share, and the one over its answered tuples by its share of those. The contrast is global
    already: each worker's own rows carry their part of it."""
    if collective.world == 1:
        return terms.total
    local_2 = torch.tensor([float(len(batch.pretext_labels)), float(batch.num_answered)])
    whole_2 = collective.sum(local_2.clone())  # on all workers, whoever was answered
    share, answered_share = local_2 / whole_2.clamp(min=1)
    if terms.distill is None:
        total = share * terms.pretext
    elif torch.equal(whole_2[0], whole_2[1]):  # one share: the sum is weighted once, which rounds once
        total = share * (terms.pretext + config.kd_weight * terms.distill)
    else:
        total = share * terms.pretext + answered_share * config.kd_weight * terms.distill
    return total if terms.contrast is None else total + config.alpha * terms.contrast


@torch.no_grad()
def _numbers(
    output: TupleOutput, terms: LossTerms, batch: StudentBatch, config: RunConfig, collective: Collective
) -> StepNumbers:
    choice_B = output.pretext_logits.argmax(dim=1)
    num_local, num_answered = len(batch.pretext_labels), batch.num_answered
    distill = 0.0 if terms.distill is None else float(terms.distill)
    correct = int((choice_B == batch.pretext_labels).sum())
    local = [num_local, num_local * float(terms.pretext), num_answered * distill, correct]
    local += [_num_agreeing(choice_B, batch), num_answered]
    count, pretext_sum, distill_sum, correct_sum, agree_sum, answered = collective.sum(
        torch.tensor(local, dtype=torch.float64)
    ).tolist()
    pretext = pretext_sum / count
    contrast = None if terms.contrast is None else float(terms.contrast)
    loss = pretext + config.alpha * (contrast or 0.0) + config.kd_weight * distill_sum / max(1.0, answered)
    return StepNumbers(
        loss=loss,
        pretext=pretext,
        contrast=contrast,
        distill=distill_sum / answered if answered else None,
        pretext_acc=correct_sum / count,
        agreement=agree_sum / answered if answered else None,
        kd_skipped=0 if batch.teacher_logits is None else int(count - answered),
    )


def _num_agreeing(choice_B: Tensor, batch: StudentBatch) -> int:
    if batch.teacher_logits is None:
        return 0
    agree_B = choice_B == batch.teacher_logits.argmax(dim=1)
    return int((agree_B if batch.teacher_mask is None else agree_B & batch.teacher_mask).sum())
