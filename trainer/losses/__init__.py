"""The training losses: pure functions of tensors. What must cross ranks is gathered by the caller."""

from trainer.losses.contrast import contrast_in_batch
from trainer.losses.distill import TemperatureMismatch, check_temperature, distill_loss
from trainer.losses.pretext import pretext_loss
from trainer.losses.total import LossTerms, total_loss

__all__ = [
    "LossTerms",
    "TemperatureMismatch",
    "check_temperature",
    "contrast_in_batch",
    "distill_loss",
    "pretext_loss",
    "total_loss",
]
