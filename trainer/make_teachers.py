"""Makes the bundled demo teachers again: trains one of each of the paper's architectures on the `full` built-in set.

python -m trainer.make_teachers        about 25 minutes on two cores; stopped and started again, it goes on
"""

from __future__ import annotations

import shutil

from data.demo_store import make_demo_store
from data.home import runs_folder
from teacher_server.library import BUNDLED, TeacherLibrary
from teacher_server.zoo.names import PAPER_ARCHITECTURES
from trainer.children import run_all
from trainer.export import export_teacher
from trainer.runs import RunFolder


def training_command(arch: str) -> list[str]:
    """What trains one teacher; its card records it."""
    return [
        "python", "trainer/run.py", "--recipe", "deploy/recipes/teacher.toml", "--student", arch,
        "--run-id", f"teacher-{arch}",
    ]  # fmt: skip


def main() -> None:
    """Trains what is not trained yet, all at once, then replaces the bundled teachers."""
    make_demo_store("full")
    runs = {arch: RunFolder(runs_folder() / f"teacher-{arch}") for arch in PAPER_ARCHITECTURES}
    missing = [arch for arch in PAPER_ARCHITECTURES if not runs[arch].is_finished]
    codes = run_all([training_command(arch) for arch in missing])
    failed = [arch for arch, code in zip(missing, codes, strict=True) if code != 0]
    if failed:
        raise SystemExit(f"error: training of {', '.join(failed)} ended early: run this command again to go on")
    for arch in PAPER_ARCHITECTURES:
        shutil.rmtree(BUNDLED / arch, ignore_errors=True)
        teacher = export_teacher(runs[arch], arch, TeacherLibrary(BUNDLED), " ".join(training_command(arch)))
        print(f"bundled {teacher}")


if __name__ == "__main__":
    main()
