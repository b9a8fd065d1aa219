"""What the driver and the workers of a paper folder tell each other. Needs neither torch nor Ray."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trainer.paper.load import RESULT_NAME
from trainer.paper.plan import Job
from trainer.paper.scale import Choices, Scale

if TYPE_CHECKING:
    from trainer.teaching import InputKind


DEFAULT_MEMORY_MB = 2048


@dataclass(frozen=True)
class Workshop:
    """What the workers of one paper folder share; crosses to them. Paths are absolute.

    name: begins the names under which the roster knows this folder's runs, which must not be those of another folder.
    teacher_gpus, teacher_memory_mb: of the teacher service, which whoever wants a teacher first deploys. It has room
    for all teachers of the grid, because none leaves by itself.
    """

    folder: Path
    name: str
    scale: Scale
    choices: Choices
    input_kind: InputKind
    teacher_gpus: float = 0.0
    teacher_memory_mb: int = DEFAULT_MEMORY_MB

    @property
    def runs(self) -> Path:
        """A run's folder per job."""
        return self.folder / "runs"

    @property
    def stop_request(self) -> Path:
        """While this file exists, workers save and end."""
        return self.folder / "stop"

    def cell_folder(self, cell_id: str) -> Path:
        """Of a cell's results."""
        return self.folder / "cells" / cell_id

    def is_done(self, job: Job) -> bool:
        """Whether nothing is left to do."""
        if job.cell is not None:
            return (self.cell_folder(job.id) / RESULT_NAME).is_file()
        assert job.teacher is not None
        return (self.folder / "teachers" / f"{job.teacher.id}.json").is_file()


@dataclass(frozen=True)
class Report:
    """How a job ended; crosses back. reason: a sentence, where it did not get done."""

    id: str
    status: Literal["done", "stopped", "failed"]
    reason: str = ""
    seconds: float = 0.0
