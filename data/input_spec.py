"""What a network wants to see of rendered pixels: part of a student's settings and of a teacher's card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from data.errors import ViewError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InputSpec:
    """What a network wants to see.

    mean, std: of R, G and B, for values in [0, 1]. modality: `rgb`, or `res` for the differences of neighbouring
    frames. crop: side of the square input in pixels; pixels of another size are resized.

    >>> InputSpec(modality="res", crop=112).std
    (0.229, 0.224, 0.225)
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    modality: Literal["rgb", "res"] = "rgb"
    crop: int = 56

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or not all(value > 0 for value in self.std):
            raise ViewError(f"mean and std must be 3 numbers each, std above 0, got {self.mean} and {self.std}")
        if self.modality not in ("rgb", "res"):
            raise ViewError(f"modality must be rgb or res, got {self.modality!r}")
        if self.crop < 1:
            raise ViewError(f"crop must be at least 1 pixel, got {self.crop}")
