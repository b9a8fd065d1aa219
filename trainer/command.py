"""The training command: flags and recipe to a plan, a run folder, a launch, a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from data.errors import DataError
from data.home import runs_folder, store_path
from teacher_server.errors import RetryableTeacherError, TeacherError
from trainer.config import NO_TEACHER, ConfigError, RunConfig, load_recipe
from trainer.errors import CheckpointError, TrainingFailed

if TYPE_CHECKING:
    from trainer.loop import Outcome
    from trainer.plan import Plan
    from trainer.runs import RunFolder

EXIT_CODES = {"finished": 0, "diverged": 1, "teacher_unavailable": 3, "stopped": 130}
_BAD_INPUT = 2
_FAILED = 1


@dataclass(frozen=True)
class Command:
    """Trains a student by a pretext task, a contrastive loss and, with a teacher, distillation."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    recipe: Path | None = None
    """TOML file with settings, for example deploy/recipes/paper.toml; flags override it."""
    dry_run: bool = False
    """Check everything, print the plan and stop."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; the exit code: 0 finished, 1 failed, 2 wrong input, 3 no teacher, 130 stopped on request."""
    errors = _plain_console(stderr=True)
    try:
        return _run(parse(argv), _plain_console())
    except RetryableTeacherError as error:  # the service or its gateway is away, or did not start in time
        errors.print(f"error: {error}")
        return EXIT_CODES["teacher_unavailable"]
    except (ConfigError, DataError, TeacherError, CheckpointError) as error:
        errors.print(f"error: {error}")
        return _BAD_INPUT
    except TrainingFailed as error:
        errors.print(f"error: training failed: {error}")
        return _FAILED
    except OSError as error:  # no space, no permission: the file says enough
        errors.print(f"error: {error.filename or 'file system'}: {error.strerror or error}")
        return _FAILED
    except KeyboardInterrupt:
        errors.print("ended at once; the newest checkpoint is kept")
        return EXIT_CODES["stopped"]


def _plain_console(*, stderr: bool = False) -> Console:
    """Paths may hold brackets, which rich would take for markup."""
    return Console(stderr=stderr, markup=False, highlight=False, soft_wrap=True)


def parse(argv: Sequence[str]) -> Command:
    """Flags over recipe over defaults. Raises ConfigError; exits by itself for --help and for unknown flags."""
    recipe = _recipe_in(argv)
    default = Command(load_recipe(recipe) if recipe else RunConfig(), recipe)
    return tyro.cli(Command, args=list(argv), default=default, prog="python trainer/run.py")


def _recipe_in(argv: Sequence[str]) -> Path | None:
    """The recipe must be read before the flags, because it changes their defaults."""
    for i, arg in enumerate(argv):
        if arg == "--recipe" and i + 1 < len(argv):
            return Path(argv[i + 1])
        if arg.startswith("--recipe="):
            return Path(arg.removeprefix("--recipe="))
    return None


def _run(command: Command, console: Console) -> int:
    from trainer.plan import check_teacher, make_plan

    config = command.config
    check_teacher(config)  # first: a wrong name is the commonest slip, and the data set takes a minute to draw
    if config.store == "demo" and not command.dry_run:
        _make_demo_store(console)
    plan = make_plan(config, trusted=True)  # typed, or in a recipe that was
    _print_plan(plan, console)
    if command.dry_run:
        return 0
    from trainer.runs import choose_run

    run = choose_run(runs_folder(), config, plan.identity)
    with run.locked():
        return _train(plan, run, console)


def _make_demo_store(console: Console) -> None:
    """The built-in data set needs no command of its own: it is made when it is first asked for."""
    from data.demo_store import is_store, make_demo_store

    if not is_store(store_path("demo")):
        console.print("the built-in data set is not there yet: making it (about a minute)")
        make_demo_store()


def _train(plan: Plan, run: RunFolder, console: Console) -> int:
    from trainer.checkpoint import newest_step
    from trainer.launch import launch
    from trainer.progress import Progress

    done = newest_step(run.checkpoints)
    console.print(f"run {run.run_id}" + (f", going on after step {done}" if done else ""))
    with Progress(run.metrics, plan.total_steps, console) as progress:
        outcome = launch(plan, run, progress)
    _conclude(outcome, plan, run, console)
    return EXIT_CODES[outcome.status]


def _conclude(outcome: Outcome, plan: Plan, run: RunFolder, console: Console) -> None:
    if outcome.status == "diverged":
        console.print(f"diverged: {outcome.reason}")
        return
    if outcome.status != "finished":
        console.print(
            f"{outcome.status.replace('_', ' ')} after step {outcome.step}: {outcome.reason}; "
            f"{'saved, ' if outcome.step else ''}the same command goes on from here"
        )
        return
    from data.store import ClipStore
    from trainer.report import write_report

    result = run.read_result()
    if plan.config.evaluate:
        console.print(
            f"pretext_acc {result['pretext_acc']:.3f} (balanced {result['pretext_balanced_acc']:.3f})  "
            f"retrieval top-1 {result['retrieval_top1']:.3f} top-5 {result['retrieval_top5']:.3f}  "
            f"probe_acc {result['probe_acc']:.3f}  {result['seconds']:.0f} s of steps",
        )
    if result["kd_skipped"]:
        console.print(f"{result['kd_skipped']} tuples were trained on without distillation: no teacher answered them")
    report = write_report(run.path, ClipStore.open(plan.store_path))
    console.print(f"report {report}")


def _print_plan(plan: Plan, console: Console) -> None:
    config = plan.config
    teacher = "no teacher (scratch)" if config.teacher == NO_TEACHER else f"teacher {config.teacher}"
    if config.teacher != NO_TEACHER and config.ledger != "off":
        teacher += f" with the ledger ({config.ledger})"
    console.print(
        f"student {config.student} x{config.width:g}, {teacher}, store {plan.store_path}\n"
        f"{plan.num_train} training, {plan.num_validation} validation and {plan.num_test} test videos"
        + (f" ({plan.num_left_out} too short for a tuple, left out)" if plan.num_left_out else "")
        + f"; {config.epochs} epochs of {plan.steps_per_epoch} steps, {plan.total_steps} steps of "
        f"{config.batch_size} tuples on {plan.device}",
    )
