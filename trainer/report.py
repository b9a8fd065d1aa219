"""The report of a run: curves.png and one self-contained page, report.html, for people.

It needs no torch and works on an unfinished run too: what is missing is said, not invented.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.atomic import write_atomic
from data.store import ClipStore
from trainer.curves import DARK, LIGHT, curves_png, panel_png, panels
from trainer.report_data import RunData, duration, number, percent, read_run
from trainer.report_html import Html, join, page, paragraph, picture, section, text, tiles
from trainer.report_sections import environment, evaluation, labels, settings, timeline, tuples

CURVES_NAME = "curves.png"
REPORT_NAME = "report.html"


def write_report(run_folder: Path, store: ClipStore | None = None) -> Path:
    """Writes curves.png and report.html into the run's folder, each whole or not at all; returns the page's path.

    store: the run's clips, for pictures of tuples and of the evaluation; without it the page has none of them. Raises
    RunFolderError when the folder is not a run's, OSError when it cannot be written to.
    """
    run = read_run(run_folder)
    write_atomic(run.folder / CURVES_NAME, curves_png(run))
    target = run.folder / REPORT_NAME
    write_atomic(target, report_html(run, store))
    return target


def report_html(run: RunData, store: ClipStore | None = None) -> bytes:
    """The page."""
    sections = (
        section("result", "Result", tiles(_headline(run))),
        section("curves", "Curves", _plots(run)),
        section("evaluation", "Evaluation on the test list", *evaluation(run, store)),
        section("labels", "Pretext operations", *labels(run)),
        section("timeline", "Teacher timeline", timeline(run)),
        section("tuples", "What the student is shown", *tuples(run, store)),
        section("settings", "Settings", settings(run)),
        section("environment", "Environment", environment(run)),
    )
    return page(
        run.run_id, _lead(run), sections, "Written by Preceptor from config.json, metrics.jsonl and result.json."
    )


def _lead(run: RunData) -> Html:
    config = run.config
    teacher = str(config.get("teacher", "none"))
    under = "trained from scratch" if teacher == "none" else f"trained under teacher {teacher}"
    parts = [paragraph(text(f"Student {config.get('student', '?')} {under} on store {config.get('store', '?')}."))]
    if run.result is None:
        done = f"{len(run.metrics.steps)} steps are on record"
        parts.append(paragraph(text(f"This run is not finished: {done}, and there is no final evaluation."), "notice"))
    if run.metrics.torn_lines:
        note = f"Lines of metrics.jsonl that a crash cut off, and that are left out: {run.metrics.torn_lines}."
        parts.append(paragraph(text(note), "muted"))
    return join(parts)


def _headline(run: RunData) -> list[tuple[str, str, str]]:
    """(what, figure, remark) of each tile."""
    result, final = run.result or {}, run.evaluation
    figures = [
        ("Pretext accuracy", "pretext_acc", _beside(final, "pretext_interval", "pretext_chance")),
        ("Pretext, balanced", "pretext_balanced_acc", "mean over the operations"),
        ("Retrieval top-1", "retrieval_top1", _beside(final, "retrieval_interval", "retrieval_top1_chance")),
        ("Retrieval top-5", "retrieval_top5", _beside(final, "", "retrieval_top5_chance")),
        ("Linear probe", "probe_acc", _beside(final, "probe_interval", "probe_chance")),
    ]
    shown = [(what, percent(result.get(name)), remark) for what, name, remark in figures]
    if run.result is None:
        shown = []
    return shown + _effort(run)


def _effort(run: RunData) -> list[tuple[str, str, str]]:
    """Steps, time and speed; of an unfinished run, as far as the metrics tell."""
    steps = run.metrics.steps
    last: Mapping[str, Any] = steps[-1] if steps else {}
    result = run.result or {}
    epochs = result.get("epochs", len(run.metrics.epochs))
    seconds = result.get("seconds", last.get("elapsed_s"))
    figures = [
        ("Steps", str(result.get("steps", last.get("step", 0))), _epochs_in_words(epochs, result)),
        ("Training time", duration(seconds), "evaluation not counted" if run.result else "so far"),
    ]
    speed = number(result, "clips_per_second")
    if not math.isnan(speed):
        figures.append(("Speed", f"{speed:.1f}", "clips a second"))
    if "teacher_wait_share" in result and run.config.get("teacher") != "none":
        figures.append(("Teacher wait", percent(result["teacher_wait_share"]), "share of the training time"))
    if result.get("best_step"):
        best = f"balanced accuracy {percent(result.get('best_val_balanced_acc'))}"
        figures.append(("Best on validation", f"step {result['best_step']}", best))
    if result.get("kd_skipped"):
        figures.append(("Without distillation", str(result["kd_skipped"]), "tuples that no teacher answered"))
    return figures


def _epochs_in_words(epochs: int, result: Mapping[str, Any]) -> str:
    return f"{epochs} epochs, stopped early" if result.get("stopped_early") else f"{epochs} epochs"


def _beside(final: Mapping[str, Any], interval: str, chance: str) -> str:
    """The remark under an accuracy: its interval and what guessing gives."""
    parts = []
    bounds = final.get(interval)
    if isinstance(bounds, Sequence) and len(bounds) == 2:
        parts.append(f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f} %")
    if chance in final:
        parts.append(f"chance {percent(final[chance])}")
    return ", ".join(parts)


def _plots(run: RunData) -> Html:
    figures = []
    for panel in panels(run):
        light, dark = panel_png(panel, run, LIGHT), panel_png(panel, run, DARK)
        caption = f"<figcaption>{text(panel.title)}<small>{text(panel.about)}</small></figcaption>"
        alt = f"Plot: {panel.title}. {panel.about} {_in_words(run)}"
        figures.append(Html(f"<figure>{caption}{picture(light, 'png', alt, dark=dark)}</figure>"))
    return Html(f'<div class="plots">{join(figures)}</div>')


def _in_words(run: RunData) -> str:
    """First and last values, for people who do not see the plots."""
    steps = run.metrics.steps
    if not steps:
        return "There are no steps yet."
    first, last = steps[0], steps[-1]
    return (
        f"Loss went from {number(first, 'loss'):.2f} to {number(last, 'loss'):.2f} "
        f"over {len(steps)} steps; training accuracy ended at {percent(last.get('pretext_acc'))}."
    )
