"""The `preceptor paper` command: what it takes; what it does is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_BAD_LIST = "expected numbers with commas between them"


def paper(
    scale: Literal["demo", "full"] = "demo",
    fractions: str = "100,50,25,2",
    seeds: str = "0,1,2",
    controls: str = "all",
    student_width: float = 0.0,
    student_epochs: int = 0,
    equal_steps: bool = False,
    teachers: Literal["serve", "in_process"] = "serve",
    jobs: int = 0,
    out: Path | None = None,
    dry_run: bool = False,
    measure: bool = True,
    report_only: bool = False,
) -> int:
    """Run the paper's experiments: three students, each from scratch and under two teachers, and the controls.

    Ends with tables, curves and the answers to the paper's claims as Markdown, HTML, LaTeX and PNG. Stopped with Ctrl-C
    or killed, the same command goes on with what is not done yet. The exit code is 1 when cells failed.

    Example: preceptor paper --scale demo --dry-run

    Args:
        scale: demo is the built-in sets and small networks, some hours on two cores; full is the paper's setting, for
            those who have UCF101, HMDB51 and GPUs.
        fractions: of the training videos, in percent.
        seeds: one training of every arm for each.
        controls: on one fraction: all, none, or names with commas: untrained (a teacher of random weights), smoothed
            (label smoothing as soft as each answer), smoothed_mean (as soft as the batch; the only one that is not
            among all), shuffled, same (architecture), no_contrast.
        student_width: another width of the students than the scale's; give it a folder of its own with --out.
        student_epochs: another number of epochs of the students, likewise.
        equal_steps: a fraction takes as many steps as the whole, in more epochs.
        teachers: serve has one service for all jobs; in_process gives each job its own copy.
        jobs: trainings at a time; 0 is one for each core, or GPU.
        out: folder of the results; $PRECEPTOR_HOME/paper/<scale> by default.
        dry_run: say what would be run and what it would take, and stop.
        measure: measure the time of a step now, for that; otherwise it is the stated one of another machine.
        report_only: write the tables again from what is there.
    """
    from rich.console import Console

    from data.home import home
    from trainer.config import ConfigError
    from trainer.paper.load import PaperFolderError
    from trainer.paper.plan import GridRequest
    from trainer.paper.run import EXIT_STOPPED, PaperRequest, preview, report, run_paper
    from trainer.paper.scale import SCALES, Choices, with_students

    console = Console(markup=False, highlight=False, soft_wrap=True)
    folder = home() / "paper" / scale if out is None else out.absolute()
    if report_only:
        try:
            report(folder, console)
        except PaperFolderError as error:
            raise ConfigError(str(error)) from None
        return 0
    if jobs < 0:
        raise ConfigError(f"--jobs must be at least 1, or 0 for one for each core or GPU, got {jobs}")
    grid = GridRequest(tuple(_numbers("fractions", fractions)), tuple(_whole("seeds", seeds)), _names(controls))
    chosen = with_students(SCALES[scale], student_width, student_epochs)
    if chosen.student.width != SCALES[scale].student.width and not measure:
        raise ConfigError(f"the stated step times are of width {SCALES[scale].student.width:g}: leave --no-measure out")
    request = PaperRequest(chosen, grid, Choices(teachers, equal_steps), folder, jobs, measure)
    try:
        return preview(request, console) if dry_run else run_paper(request, console)
    except KeyboardInterrupt:
        console.print("ended at once; what was saved is kept, and the same command goes on from there")
        return EXIT_STOPPED


def _names(controls: str) -> tuple[str, ...]:
    from trainer.paper.plan import DEFAULT_CONTROLS

    return {"all": DEFAULT_CONTROLS, "none": ()}.get(controls, tuple(controls.split(",")))


def _numbers(name: str, text: str) -> list[float]:
    from trainer.config import ConfigError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--{name} {text!r}: {_BAD_LIST}") from None


def _whole(name: str, text: str) -> list[int]:
    from trainer.config import ConfigError

    numbers = _numbers(name, text)
    if not all(number.is_integer() for number in numbers):
        raise ConfigError(f"--{name} {text!r}: expected whole numbers")
    return [int(number) for number in numbers]
