"""Reading the cells of a paper folder, of a part of the grid as well as of the whole.

    <folder>/cells/<cell id>/{result.json, answers.npz}      <folder>/run.json: how they were made, if it is there

A cell that cannot be read, or that was tested on other items than the rest, is left out and listed with its reason:
one bad cell must not hide a hundred good ones, nor may it enter a mean. Needs neither torch nor Ray.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from trainer.paper.records import (
    STAGES,
    Arm,
    Cell,
    CellResult,
    DatasetName,
    StageName,
    Transfer,
    TransferProtocol,
)

RESULT_NAME = "result.json"
ANSWERS_NAME = "answers.npz"
RUN_NAME = "run.json"
PROGRESS_NAME = "progress.json"
_ACCURACY_TOLERANCE = 1e-4  # a mean may have been taken in float32


class PaperFolderError(ValueError):
    """A paper folder that cannot be read. Arguments: folder, what is wrong."""

    def __init__(self, folder: str, reason: str) -> None:
        super().__init__(folder, reason)
        self.folder = folder
        self.reason = reason

    def __str__(self) -> str:
        return f"paper folder {self.folder}: {self.reason}"


@dataclass(frozen=True)
class TransferAnswers:
    """The test videos' action answers. correct: bool [V] by data set and protocol; groups: [V] by data set."""

    correct: Mapping[tuple[DatasetName, TransferProtocol], NDArray[np.bool_]]
    groups: Mapping[DatasetName, tuple[str, ...]]


@dataclass(frozen=True)
class Answers:
    """The test answers of a cell. correct: per stage a bool [I]; groups, keys: [I], of the item's video."""

    correct: Mapping[StageName, NDArray[np.bool_]]
    groups: tuple[str, ...]
    keys: tuple[str, ...]
    transfers: TransferAnswers


@dataclass(frozen=True)
class LoadedCell:
    """A cell that was read and is whole."""

    result: CellResult
    answers: Answers


@dataclass(frozen=True)
class Refusal:
    """A cell's folder that is left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Grid:
    """The cells that count. run: run.json as it stands with the hours that all starts took; empty without it."""

    cells: Mapping[Cell, LoadedCell]
    refused: tuple[Refusal, ...]
    run: Mapping[str, Any]

    def of(self, arm: Arm, fraction: float) -> tuple[LoadedCell, ...]:
        """An arm's cells on a share of the data, in the order of their seeds."""
        found = (cell for key, cell in self.cells.items() if key.arm == arm and key.fraction == fraction)
        return tuple(sorted(found, key=lambda cell: cell.result.cell.seed))

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Every arm with a cell, in the order of their names."""
        return tuple(sorted({cell.arm for cell in self.cells}, key=lambda arm: arm.name))

    @property
    def fractions(self) -> tuple[float, ...]:
        """The shares of the data with a cell, largest first."""
        return tuple(sorted({cell.fraction for cell in self.cells}, reverse=True))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds with a cell."""
        return tuple(sorted({cell.seed for cell in self.cells}))

    @property
    def groups(self) -> tuple[str, ...]:
        """The group of each test item, the same in all cells; empty for a grid without cells."""
        return next((cell.answers.groups for cell in self.cells.values()), ())


def read_grid(folder: Path) -> Grid:
    """The cells of a paper folder.

    Raises PaperFolderError where there is no folder `cells`, or where run.json holds no JSON object.
    """
    cells_folder = folder / "cells"
    if not cells_folder.is_dir():
        raise PaperFolderError(str(folder), "there is no folder `cells`: name the folder of a `preceptor paper`")
    loaded: list[LoadedCell] = []
    refused: list[Refusal] = []
    for path in sorted(path for path in cells_folder.iterdir() if (path / RESULT_NAME).is_file()):
        try:
            loaded.append(read_cell(path))
        except _Unusable as error:
            refused.append(Refusal(path.name, str(error)))
    kept, odd = _same_items(loaded)
    return Grid({cell.result.cell: cell for cell in kept}, (*refused, *odd), _read_run(folder))


class _Unusable(ValueError):
    """Why a cell does not count."""


def read_cell(path: Path) -> LoadedCell:
    """One cell's folder. Raises ValueError with the reason when it does not hold a whole cell."""
    try:
        result = CellResult.model_validate_json((path / RESULT_NAME).read_bytes())
    except (OSError, ValidationError) as error:
        raise _Unusable(f"{RESULT_NAME} cannot be read: {_first_line(error)}") from None
    if result.cell.id != path.name:
        raise _Unusable(f"{RESULT_NAME} is of cell {result.cell.id}, the folder is named {path.name}")
    _check_result(result)
    answers = _read_answers(path / ANSWERS_NAME, result.transfers)
    for stage in result.stages:
        measured = float(answers.correct[stage.name].mean())
        if abs(measured - stage.test_acc) > _ACCURACY_TOLERANCE:
            raise _Unusable(
                f"{ANSWERS_NAME} gives {measured:.4f} for stage {stage.name}, {RESULT_NAME} says {stage.test_acc:.4f}"
            )
    for transfer in result.transfers:
        measured = float(answers.transfers.correct[transfer.dataset, transfer.protocol].mean())
        if abs(measured - transfer.accuracy) > _ACCURACY_TOLERANCE:
            raise _Unusable(
                f"{ANSWERS_NAME} gives {measured:.4f} for {transfer.protocol} on the {transfer.dataset} data set, "
                f"{RESULT_NAME} says {transfer.accuracy:.4f}"
            )
    return LoadedCell(result, answers)


def _check_result(result: CellResult) -> None:
    names = tuple(stage.name for stage in result.stages)
    wanted = tuple(name for name, _ in STAGES)
    if names != wanted:
        raise _Unusable(f"the stages must be {', '.join(wanted)}, got {', '.join(names) or 'none'}")
    epochs = [point.epoch for point in result.curve]
    if not epochs or epochs != sorted(set(epochs)):
        raise _Unusable(f"the curve must have rising epochs, got {epochs[:8]}")
    rates = [stage.test_acc for stage in result.stages] + [stage.best_test_acc for stage in result.stages]
    rates += [point.train_acc for point in result.curve] + [transfer.accuracy for transfer in result.transfers]
    if not all(0 <= rate <= 1 for rate in rates):
        raise _Unusable("accuracies must lie in [0, 1]")


def _read_answers(path: Path, transfers: Sequence[Transfer]) -> Answers:
    try:
        with open(path, "rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays:
            stages = {name: arrays[f"correct_{name}"] for name, _ in STAGES}
            groups, keys = arrays["groups"], arrays["keys"]
            actions = {(t.dataset, t.protocol): arrays[f"correct_{t.dataset}_{t.protocol}"] for t in transfers}
            videos = {t.dataset: arrays[f"groups_{t.dataset}"] for t in transfers}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _Unusable(f"{ANSWERS_NAME} cannot be read: {_first_line(error)}") from None
    _check_answers(stages.items(), (groups, keys))
    for dataset, names in videos.items():
        _check_answers([(kind, values) for kind, values in actions.items() if kind[0] == dataset], (names,))
    return Answers(
        stages,
        tuple(map(str, groups)),
        tuple(map(str, keys)),
        TransferAnswers(actions, {dataset: tuple(map(str, names)) for dataset, names in videos.items()}),
    )


def _check_answers(answers: Iterable[tuple[object, NDArray[np.bool_]]], beside: Sequence[NDArray[np.str_]]) -> None:
    """Each is bool [items], and as long as what stands beside it."""
    for name, values in answers:
        if values.dtype != np.bool_ or values.ndim != 1 or not len(values):
            raise _Unusable(f"the answers of {name} must be bool [items], got {values.dtype} {values.shape}")
        if {one.shape for one in beside} != {values.shape}:
            shapes = ", ".join(str(one.shape) for one in beside)
            raise _Unusable(f"the answers of {name} have shape {values.shape}, what stands beside them {shapes}")


def _same_items(cells: Sequence[LoadedCell]) -> tuple[list[LoadedCell], list[Refusal]]:
    """The cells of the commonest store, tested on its commonest items; the others, refused."""
    kept, odd = _majority(cells, lambda cell: cell.result.store_fingerprint, "it was trained on another store")
    kept, more = _majority(kept, lambda cell: (cell.answers.keys, cell.answers.groups), "it was tested on other items")
    with_transfers = [cell for cell in kept if cell.result.transfers]
    _, other = _majority(
        with_transfers,
        lambda cell: (cell.result.second_store_fingerprint, *sorted(cell.answers.transfers.groups.items())),
        "its transfers were tested on other videos",
    )
    refused = {refusal.name for refusal in other}
    return [cell for cell in kept if cell.result.cell.id not in refused], [*odd, *more, *other]


def _majority(
    cells: Sequence[LoadedCell], of: Callable[[LoadedCell], object], reason: str
) -> tuple[list[LoadedCell], list[Refusal]]:
    counts = Counter(of(cell) for cell in cells)
    if len(counts) < 2:
        return list(cells), []
    commonest = counts.most_common(1)[0][0]
    kept = [cell for cell in cells if of(cell) == commonest]
    odd = [Refusal(cell.result.cell.id, f"{reason} than most") for cell in cells if of(cell) != commonest]
    return kept, odd


def _read_run(folder: Path) -> Mapping[str, Any]:
    path = folder / RUN_NAME
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise PaperFolderError(str(folder), f"{RUN_NAME} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise PaperFolderError(str(folder), f"{RUN_NAME} must hold a JSON object, got {type(content).__name__}")
    spent = spent_s(folder)
    return {**content, "hours": round(spent / 3600, 2)} if spent else content


def spent_s(folder: Path) -> float:
    """Seconds that all starts of a paper folder have taken so far, as progress.json says; 0 before the first."""
    path = folder / PROGRESS_NAME
    return float(json.loads(path.read_bytes())["spent_s"]) if path.is_file() else 0.0


def _first_line(error: Exception) -> str:
    """A validation error runs over many lines; the first two name the field and the fault."""
    return "; ".join(line.strip() for line in str(error).splitlines()[:3])
