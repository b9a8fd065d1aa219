"""The `preceptor export` command: what it takes; what it does is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from services.arguments import Student


def export(
    student: Student,
    format: Literal["pth", "onnx"] = "pth",
    out: Path | None = None,
    takes: Literal["clip", "tuple"] = "clip",
    force: bool = False,
) -> None:
    """Write a trained student as a file for other programs.

    Networks of torchvision get its names in a .pth, all others this project's. An ONNX model takes normalised clips;
    its metadata says which normalisation. To serve a student as a teacher, use preceptor teacher import with
    run:ID, or with the folder of a fine-tuned one.

    Example: preceptor export my-run --format onnx --out my-run.onnx

    Args:
        student: id of a run (its newest checkpoint), RUN:best, or the folder of a run, of a checkpoint or of a
            fine-tuned student.
        format: pth is a state dict for torch.load, onnx a model for other runtimes.
        out: file to write; by default named after the student, in the current folder.
        takes: of onnx: a clip, for features and action logits, or a tuple of three clips, for pretext logits.
        force: replace a file that is there.
    """
    from trainer.config import ConfigError
    from trainer.export_files import write_onnx, write_pth
    from trainer.student_files import load_student

    if format == "pth" and takes != "clip":
        raise ConfigError("--takes is for --format onnx: a state dict has all heads")
    path = Path(f"{Path(student).name.replace(':', '-')}.{format}") if out is None else out
    if path.exists() and not force:
        raise ConfigError(f"{path} is there already: name another --out, or replace it with --force")
    loaded = load_student(student)
    if format == "pth":
        write_pth(loaded, path)
    else:
        write_onnx(loaded, path, takes)
    print(f"{loaded.source} written to {path} ({path.stat().st_size:,} bytes)")
