"""The training losses: pure functions of tensors. What must cross ranks is gathered by the caller."""

from trainer.losses.contrast import contrast_in_batch, contrast_with_bank
from trainer.losses.distill import distill_loss, kl_per_row
from trainer.losses.distill_targets import entropies, shuffled_rows, smoothed_logits
from trainer.losses.hint import hint_loss, linear_cka
from trainer.losses.pretext import pretext_loss
from trainer.losses.total import LossTerms, Term

__all__ = [
    "LossTerms",
    "Term",
    "contrast_in_batch",
    "contrast_with_bank",
    "distill_loss",
    "entropies",
    "hint_loss",
    "kl_per_row",
    "linear_cka",
    "pretext_loss",
    "shuffled_rows",
    "smoothed_logits",
]
