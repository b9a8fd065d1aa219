"""Which test items a run answered right at its end, so that two runs can be compared answer by answer.

    <run>/answers.npz    <figure>.correct bool [I], <figure>.keys and <figure>.groups str [I]

Item i is about the video keys[i] of group groups[i], in the order of the evaluation. Needs neither torch nor Ray.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.atomic import write_atomic
from trainer.paper.stats import Difference, paired_difference

_FIELDS = ("correct", "keys", "groups")


@dataclass(frozen=True, eq=False)
class Answers:
    """correct: bool [I]. keys, groups: of each item's video."""

    correct: NDArray[np.bool_]
    keys: tuple[str, ...]
    groups: tuple[str, ...]

    @classmethod
    def of(cls, correct: NDArray[np.bool_], keys: Sequence[str], groups: Sequence[str]) -> Answers:
        """As the evaluation has them."""
        return cls(correct, tuple(keys), tuple(groups))


def write_answers(path: Path, answers: Mapping[str, Answers]) -> None:
    """By the figure that they are of, such as pretext_acc; whole or not at all."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {
        f"{name}.{field}": np.array(getattr(one, field)) for name, one in answers.items() for field in _FIELDS
    }
    np.savez_compressed(buffer, **arrays)
    write_atomic(path, buffer.getvalue())


def read_answers(path: Path) -> dict[str, Answers]:
    """By figure; empty for a file that is missing or damaged: there is no comparison then, and no harm."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            names = {name.removesuffix(".correct") for name in arrays if name.endswith(".correct")}
            return {
                name: Answers.of(
                    arrays[f"{name}.correct"], arrays[f"{name}.keys"].tolist(), arrays[f"{name}.groups"].tolist()
                )
                for name in names
            }
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return {}


def paired_gain(first: Answers, second: Answers) -> Difference | None:
    """The second's accuracy minus the first's, with its interval over groups; None unless they are about the same
    videos in the same order. Whether they are about the same views of them, the caller knows."""
    if first.keys != second.keys or not first.keys:
        return None
    differences = second.correct.astype(np.float64) - first.correct
    return paired_difference(differences[None], first.groups, seeds=(0,))
