"""The loss of a run, with everything of it that has state: the memory bank and the hint projection.

    TupleOutput, StudentBatch ──losses──► LossTerms           pretext + alpha * contrast + lambda * distill
                                                              + hint + supervised + the user's own, where turned on
    after the update of the weights: after_step ──► memory bank

What must cross the workers is gathered here; the formulas are in trainer.losses.

Axis letters: B tuples of this worker, G tuples of the global batch, K classes, E features of the student.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.plugins import PluginError, resolve
from teacher_server.zoo.heads import PROJECTION_SIZE
from teacher_server.zoo.network import TupleOutput
from trainer.bank import MemoryBank
from trainer.batch import StudentBatch
from trainer.collective import Collective
from trainer.config import RunConfig
from trainer.losses import (
    LossTerms,
    Term,
    contrast_in_batch,
    contrast_with_bank,
    distill_loss,
    entropies,
    hint_loss,
    pretext_loss,
    shuffled_rows,
    smoothed_logits,
)
from trainer.teacher_facts import TeacherFacts

ExtraLoss = Callable[[TupleOutput, StudentBatch], Tensor]


def lambda_at(config: RunConfig, step: int, total_steps: int) -> float:
    """The weight of the distillation term at a step (from 0): constant, or falling linearly to 0 at total_steps."""
    if config.kd_schedule == "constant":
        return config.kd_weight
    return config.kd_weight * (1 - step / total_steps)


def load_extra_loss(name: str, *, trusted: bool) -> ExtraLoss:
    """The user's loss, module:function. trusted: whether the user typed the name.

    Raises PluginError when it is not there, not allowed or cannot be called.
    """
    found = resolve("losses", name, trusted=trusted)
    if not callable(found):
        raise PluginError("losses", name, f"is {type(found).__name__}, expected a function (output, batch) -> Tensor")
    if isinstance(found, nn.Module) and found.state_dict():
        raise PluginError("losses", name, "has tensors of its own, which no seed fixes: write it as a function")
    return found


class Objective(nn.Module):
    """See the top of this module. Its parameters are trained with the network's, its buffers are saved with them.

    student_features: E, length of a clip's features. teacher: None for scratch. num_train: videos to train on.
    trusted: whether the user typed the name of a loss of their own. The first values are drawn from torch's global
    generator, which the caller has seeded.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        student_features: int,
        teacher: TeacherFacts | None,
        num_train: int,
        trusted: bool = False,
    ) -> None:
        super().__init__()
        self._config = config
        self._teacher = teacher
        self._extra = load_extra_loss(config.extra_loss, trusted=trusted) if config.extra_loss else None
        self.hint = None
        if config.hint_weight > 0 and teacher is not None:
            self.hint = nn.Linear(student_features, teacher.feature_size)
        self.bank = None
        if config.contrast and config.contrast_mode == "memory_bank":
            self.bank = MemoryBank(
                num_train,
                PROJECTION_SIZE if config.projector else student_features,
                num_negatives=config.bank_negatives,
                momentum=config.bank_momentum,
                seed=config.view_seed,
            )

    @property
    def distills_action(self) -> bool:
        """Whether the teacher classifies the action of the first clip."""
        return self._teacher is not None and self._teacher.head == "action"

    def student_logits(self, output: TupleOutput) -> Tensor:
        """[B,K] what the student says about what its teacher is asked."""
        if not self.distills_action:
            return output.pretext_logits
        if output.action_logits is None:
            raise ValueError("an action teacher needs a student with an action head: see trainer.start.new_state")
        return output.action_logits

    def student_features(self, output: TupleOutput) -> Tensor:
        """[B,E] the student's counterpart of a teacher's features: of the first clip, or the mean of the three."""
        return output.features[0] if self.distills_action else torch.stack(output.features).mean(dim=0)

    def losses(self, output: TupleOutput, batch: StudentBatch, collective: Collective, lambda_kd: float) -> LossTerms:
        """The terms of this worker's tuples. All workers must call it at the same step.

        lambda_kd: the weight of the distillation term at this step.
        """
        config = self._config
        terms = [Term("pretext", pretext_loss(output.pretext_logits, batch.pretext_labels))]
        if config.contrast:
            terms.append(self._contrast(*_compared(output), batch, collective))
        if batch.teacher_logits is not None:
            target = self._target(batch.teacher_logits, batch, collective)
            distill = distill_loss(self.student_logits(output), target, config.temperature, batch.teacher_mask)
            terms.append(Term("distill", distill, lambda_kd, "answered"))
        if self.hint is not None and batch.teacher_features is not None:
            projected = self.hint(self.student_features(output))
            hint = hint_loss(projected, batch.teacher_features, batch.teacher_mask)
            terms.append(Term("hint", hint, config.hint_weight, "answered"))
        if config.ce_weight > 0:
            terms.append(Term("ce", _supervised(output, batch), config.ce_weight))
        if self._extra is not None:
            terms.append(Term("extra", self._of_user(self._extra, output, batch), config.extra_loss_weight))
        return LossTerms(tuple(terms))

    @torch.no_grad()
    def after_step(self, output: TupleOutput, batch: StudentBatch, collective: Collective) -> None:
        """Updates the memory bank with the features of the step, of all workers. All of them must call it."""
        if self.bank is None:
            return
        z1, z2 = _compared(output)
        positions_B1 = _positions(batch).unsqueeze(1)
        self.bank.update(
            collective.gather_rows(positions_B1).squeeze(1),
            collective.gather_rows(z1),
            collective.gather_rows(z2),
        )

    def _contrast(self, z1: Tensor, z2: Tensor, batch: StudentBatch, collective: Collective) -> Term:
        config = self._config
        if self.bank is None:
            z1_GD, z2_GD = collective.gather_rows(z1), collective.gather_rows(z2)
            value = contrast_in_batch(z1_GD, z2_GD, config.contrast_temperature)
            return Term("contrast", value, config.alpha, "global")
        rows = self.bank.rows(batch.step, _positions(batch))
        value = contrast_with_bank(
            z1, z2, self.bank.first_ND[rows], self.bank.third_ND[rows], config.contrast_temperature
        )
        return Term("contrast", value, config.alpha)

    def _target(self, softened_BK: Tensor, batch: StudentBatch, collective: Collective) -> Tensor:
        """[B,K] what the student follows: the teacher's softened logits, or a control made of them."""
        if self._config.kd_target == "smoothed":
            return smoothed_logits(softened_BK, batch.pretext_labels)
        if self._config.kd_target == "smoothed_mean":
            entropy_B = _mean_entropy(softened_BK, batch, collective).expand(len(softened_BK))
            return smoothed_logits(softened_BK, batch.pretext_labels, entropy_B)
        if self._config.kd_target == "shuffled":
            return self._shuffled(softened_BK, batch, collective)
        return softened_BK

    def _shuffled(self, softened_BK: Tensor, batch: StudentBatch, collective: Collective) -> Tensor:
        """Over the global batch, so that the number of workers does not change who gets whose answer."""
        softened_GK = collective.gather_rows(softened_BK)
        flags_B2 = torch.stack([batch.pretext_labels, batch.answered().long()], dim=1)
        labels_G, answered_G = collective.gather_rows(flags_B2).cpu().numpy().T
        rows_G = shuffled_rows(labels_G, answered_G.astype(bool), view_seed=self._config.view_seed, step=batch.step)
        first = sum(collective.gather_number(len(softened_BK))[: collective.rank])
        own = torch.from_numpy(rows_G[first : first + len(softened_BK)]).to(softened_BK.device)
        return softened_GK[own]

    def _of_user(self, extra: ExtraLoss, output: TupleOutput, batch: StudentBatch) -> Tensor:
        value: Any = extra(output, batch)
        if not isinstance(value, Tensor) or value.ndim != 0:
            got = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise PluginError("losses", self._config.extra_loss, f"returned {got}, expected a tensor with one number")
        return value


def _compared(output: TupleOutput) -> tuple[Tensor, Tensor]:
    """[B,D] twice, rows of length 1: what the contrast compares, of the first and the third clip. Without a projector
    the features themselves."""
    if output.z1 is None or output.z2 is None:
        return F.normalize(output.features[0], dim=1), F.normalize(output.features[2], dim=1)
    return output.z1, output.z2


def _mean_entropy(softened_BK: Tensor, batch: StudentBatch, collective: Collective) -> Tensor:
    """[] float64, of the answered tuples of the global batch; without any, 0."""
    entropy_G2 = collective.gather_rows(torch.stack([entropies(softened_BK), batch.answered().double()], dim=1))
    entropy_G, answered_G = entropy_G2.unbind(dim=1)
    answered = answered_G > 0
    return entropy_G[answered].mean() if answered.any() else entropy_G.new_zeros(())


def _supervised(output: TupleOutput, batch: StudentBatch) -> Tensor:
    """Cross entropy of the action head with the videos' classes, mean over the batch."""
    if output.action_logits is None or batch.action_labels is None:
        raise ValueError("the supervised term needs an action head and the videos' labels, got none")
    return F.cross_entropy(output.action_logits, batch.action_labels)


def _positions(batch: StudentBatch) -> Tensor:
    if batch.positions is None:
        raise ValueError("the memory bank needs the videos' positions in the training list, the batch has none")
    return batch.positions
