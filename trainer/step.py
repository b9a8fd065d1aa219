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
    for scratch.
    """

    clips: tuple[Tensor, Tensor, Tensor]
    pretext_labels: Tensor
    teacher_logits: Tensor | None


@dataclass(frozen=True)
class StepNumbers:
    """A step's figures over the global batch; a term that is off is None. agreement: share of tuples on which
    student and teacher choose the same class."""

    loss: float
    pretext: float
    contrast: float | None
    distill: float | None
    pretext_acc: float
    agreement: float | None


def compute_losses(output: TupleOutput, batch: StudentBatch, config: RunConfig, collective: Collective) -> LossTerms:
    """The unweighted terms of this worker's tuples, the contrast over the global batch."""
    contrast = None
    if config.contrast and output.z1 is not None and output.z2 is not None:
        contrast = contrast_in_batch(
            collective.gather_rows(output.z1), collective.gather_rows(output.z2), config.contrast_temperature
        )
    distill = None
    if batch.teacher_logits is not None:
        distill = distill_loss(output.pretext_logits, batch.teacher_logits, config.temperature)
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
    tuples count by its share. The contrast is global already: each worker's own rows carry their part of it."""
    if collective.world == 1:
        return terms.total
    num_local = torch.tensor(float(len(batch.pretext_labels)))
    share = num_local / collective.sum(num_local.clone())
    local = terms.pretext if terms.distill is None else terms.pretext + config.kd_weight * terms.distill
    total = share * local
    return total if terms.contrast is None else total + config.alpha * terms.contrast


@torch.no_grad()
def _numbers(
    output: TupleOutput, terms: LossTerms, batch: StudentBatch, config: RunConfig, collective: Collective
) -> StepNumbers:
    choice_B = output.pretext_logits.argmax(dim=1)
    num_local = len(batch.pretext_labels)
    teacher = batch.teacher_logits
    agree = 0 if teacher is None else int((choice_B == teacher.argmax(dim=1)).sum())
    distill = 0.0 if terms.distill is None else float(terms.distill)
    correct = int((choice_B == batch.pretext_labels).sum())
    local = [num_local, num_local * float(terms.pretext), num_local * distill, correct, agree]
    count, pretext_sum, distill_sum, correct_sum, agree_sum = collective.sum(
        torch.tensor(local, dtype=torch.float64)
    ).tolist()
    pretext = pretext_sum / count
    contrast = None if terms.contrast is None else float(terms.contrast)
    loss = pretext + config.alpha * (contrast or 0.0) + config.kd_weight * distill_sum / count
    return StepNumbers(
        loss=loss,
        pretext=pretext,
        contrast=contrast,
        distill=None if teacher is None else distill_sum / count,
        pretext_acc=correct_sum / count,
        agreement=None if teacher is None else agree_sum / count,
    )
