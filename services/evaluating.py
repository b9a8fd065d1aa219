"""What `preceptor eval` and `preceptor predict` do, with what people see of it."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal, get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from data.demo_store import StoreSize, make_demo_store
from data.home import store_path
from data.store import ClipStore
from trainer.errors import EvaluationError
from trainer.evaluate.cached import Answer, ask
from trainer.evaluate.extract import PhaseProgress
from trainer.evaluate.finetune_recipe import FinetuneRecipe
from trainer.evaluate.page import name_of, question
from trainer.evaluate.predict import FileAnswer, PredictOptions, predict
from trainer.evaluate.records import Evaluation, Interval, ProtocolName
from trainer.evaluate.request import EvalRequest
from trainer.plan import student_input
from trainer.report_data import percent
from trainer.student_files import LoadedStudent, load_student

INTERRUPTED = 130
FAILED = 1


@dataclass(frozen=True)
class EvalWish:
    """The arguments of `preceptor eval`."""

    checkpoint: str
    store: str
    protocol: ProtocolName
    mode: Literal["head", "full"]
    splits: tuple[str, ...]
    epochs: int
    lr: float
    batch_size: int
    augment: bool
    clips: int
    tuples: int
    seed: int
    device: Literal["auto", "cpu", "cuda"]
    force: bool
    json: bool


class _Interrupted(Exception):
    """Ctrl-C, seen between two steps."""


def evaluate_and_print(wish: EvalWish) -> int:
    """0, or 130 after Ctrl-C; the next call goes on."""
    student = load_student(wish.checkpoint)
    store = open_store(wish.store or student.config.store)
    console = Console(stderr=wish.json)
    try:
        with _bar(console) as progress:
            answer = ask(
                student, store, _request(wish, student), device=_device(wish), force=wish.force, progress=progress
            )
    except _Interrupted:
        console.print("interrupted: what was done is kept, the same command goes on with it")
        return INTERRUPTED
    if wish.json:
        print(answer.evaluation.model_dump_json(indent=1))
    else:
        _show(answer, wish, console)
    return 0


def predict_and_print(
    checkpoint: str, files: Sequence[Path], *, store: str, clips: int, top: int, timeout_s: float, json_: bool
) -> int:
    """0, 1 when a file could not be answered, 130 after Ctrl-C."""
    if not files:
        raise EvaluationError("name at least one video file")
    student = load_student(checkpoint)
    gallery = open_store(store) if store else None
    console = Console(stderr=json_)
    answers: list[FileAnswer] = []
    try:
        with _bar(console) as progress:
            coming = predict(
                student, files, gallery=gallery, options=PredictOptions(clips, top, timeout_s), progress=progress
            )
            for answer in coming:
                answers.append(answer)
                progress("files", len(answers), len(files))
    except _Interrupted:
        return INTERRUPTED
    if json_:
        print(json.dumps([dataclasses.asdict(answer) for answer in answers], indent=1))
    else:
        for answer in answers:
            _show_file(answer, console)
    return FAILED if any(answer.problem for answer in answers) else 0


def open_store(name: str) -> ClipStore:
    """The store of that name or path; the built-in ones make themselves. Raises DataError."""
    if name in get_args(StoreSize):
        make_demo_store(name)  # type: ignore[arg-type]
    return ClipStore.open(store_path(name))


def evaluation_table(evaluation: Evaluation) -> Table:
    """A row per split and one for their mean; accuracies in percent."""
    top_k = evaluation.mean_top_k or {}
    table = Table(title=f"{name_of(evaluation)}, %: {question(evaluation)}", title_justify="left")
    more = ["top-" + ", ".join(str(k) for k in top_k if k > 1)] if top_k else []
    more += ["balanced"] if evaluation.mean_balanced_accuracy is not None else []
    header = ("split", "top-1" if top_k else "accuracy", "95 %", "chance", *more)
    for name in (*header, "videos"):
        table.add_column(name, no_wrap=True)
    for score in evaluation.splits:
        notes = [f"{score.test_left_out} too short"] if score.test_left_out else []
        notes += [f"{score.test_seen} seen in training, without labels"] if score.test_seen else []
        notes += ["seen in training: not known"] if score.test_seen is None else []
        remark = f" ({', '.join(notes)})" if notes else ""
        figures = _figures(score.accuracy, score.interval, score.chance, score.top_k, score.balanced_accuracy)
        table.add_row(score.split, *figures, f"{score.test_videos}{remark}")
    table.add_section()
    mean = _figures(
        evaluation.mean_accuracy,
        evaluation.mean_interval,
        evaluation.mean_chance,
        evaluation.mean_top_k,
        evaluation.mean_balanced_accuracy,
    )
    table.add_row("mean", *mean, "")
    return table


def _figures(
    accuracy: float, interval: Interval, chance: float, top_k: dict[int, float] | None, balanced: float | None
) -> list[str]:
    bounds = "–" if interval is None else f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}"
    more = [", ".join(f"{100 * value:.1f}" for k, value in top_k.items() if k > 1)] if top_k else []
    more += [] if balanced is None else [f"{100 * balanced:.1f}"]
    return [f"{100 * accuracy:.1f}", bounds, f"{100 * chance:.1f}", *more]


def _request(wish: EvalWish, student: LoadedStudent) -> EvalRequest:
    config = student.config
    recipe = FinetuneRecipe(
        mode=wish.mode,
        epochs=wish.epochs,
        lr=wish.lr,
        batch_size=wish.batch_size,
        augment=wish.augment,
        clips_per_video=wish.clips,
        seed=wish.seed,
        view_seed=wish.seed,
    )
    return EvalRequest(
        protocol=wish.protocol,
        spec=config.clip_spec,
        input_spec=student_input(config),
        splits=wish.splits,
        recipe=recipe,
        clips_per_video=wish.clips,
        tuples_per_video=wish.tuples,
        view_seed=config.view_seed,
        any_swap=config.any_swap,
        shuffle=config.shuffle_variant,
        operation=config.pretext_operation,
        seed=wish.seed,
    )


def _device(wish: EvalWish) -> str:
    import torch  # heavy, and needed for this one question

    here = torch.cuda.is_available()
    if wish.device == "cuda" and not here:
        raise EvaluationError("--device cuda, but torch finds no usable GPU on this machine: use --device cpu or auto")
    torch.backends.cudnn.deterministic = True
    return "cuda" if here and wish.device != "cpu" else "cpu"


def _show(answer: Answer, wish: EvalWish, console: Console) -> None:
    evaluation = answer.evaluation
    if answer.was_there:
        console.print("this was evaluated before: here is the kept result; --force computes it again", markup=False)
    console.print(evaluation_table(evaluation))
    lines = [f"result {answer.files.record}", f"page   {answer.files.page}"]
    if wish.protocol == "finetune":
        lines += [f"model  {answer.files.model(score.split)}" for score in evaluation.splits]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _show_file(answer: FileAnswer, console: Console) -> None:
    console.print(answer.file, markup=False, highlight=False, soft_wrap=True)
    if answer.problem:
        console.print(f"  no answer: {answer.problem}", markup=False, highlight=False, soft_wrap=True)
    for guess in answer.guesses:
        what = f"{guess.score:.3f}  {guess.action}" if guess.video else f"{percent(guess.score):>7}  {guess.action}"
        console.print(
            f"  {what}" + (f"  {guess.video}" if guess.video else ""), markup=False, highlight=False, soft_wrap=True
        )


@contextmanager
def _bar(console: Console) -> Iterator[PhaseProgress]:
    """A bar on a terminal, lines elsewhere; the first Ctrl-C ends the work at its next call, a second one at once."""
    stop = False

    def ask_to_stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stop
        stop = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, ask_to_stop)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
            tasks = {}

            def show(phase: str, done: int, total: int) -> None:
                if phase not in tasks:
                    tasks[phase] = bar.add_task(phase, total=total)
                    if not console.is_terminal:
                        print(f"{phase}: {total} to do", file=sys.stderr, flush=True)
                bar.update(tasks[phase], completed=done)
                if stop:
                    raise _Interrupted

            yield show
    finally:
        signal.signal(signal.SIGINT, before)
