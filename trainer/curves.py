"""The curves of a run as pictures, drawn with matplotlib's figure objects (no global state, no display).

Each panel is drawn into an axes of its own, so that curves.png holds all of them on one sheet and the report shows
them one by one, on light and on dark ground.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from trainer.report_data import RunData, column, number

Axes = Any  # matplotlib is taken without types here


@dataclass(frozen=True)
class Theme:
    """Colours as #rrggbb. The series are told apart by people who see colours differently (after Okabe and Ito)."""

    ground: str
    text: str
    muted: str
    grid: str
    blue: str
    orange: str
    green: str
    pink: str


LIGHT = Theme("#ffffff", "#1c2430", "#5c6675", "#e3e7ed", "#0068a8", "#c95000", "#00805c", "#b0508c")
DARK = Theme("#171c24", "#e8ecf2", "#9aa6b6", "#2c3440", "#5ab4f0", "#f2994a", "#3fc9a0", "#e08cc0")


@dataclass(frozen=True)
class Panel:
    """One plot: its title, what it shows in words for people who do not see it, and how it is drawn."""

    name: str
    title: str
    about: str
    draw: Callable[[Axes, RunData, Theme], None]


def curves_png(run: RunData) -> bytes:
    """All panels on one light sheet."""
    figure = Figure(figsize=(12.5, 12), dpi=110, layout="constrained", facecolor=LIGHT.ground)
    figure.suptitle(run.run_id, color=LIGHT.text, fontsize=13, parse_math=False)
    for axes, panel in zip(figure.subplots(3, 2).flat, panels(run), strict=True):
        _draw(axes, panel, run, LIGHT)
        axes.set_title(panel.title, color=LIGHT.text, fontsize=11, loc="left")
    return _png(figure)


def panel_png(panel: Panel, run: RunData, theme: Theme) -> bytes:
    """One panel by itself; its title is left to the page."""
    figure = Figure(figsize=(6.2, 3.5), dpi=130, facecolor=theme.ground)
    figure.subplots_adjust(left=0.11, right=0.985, bottom=0.14, top=0.97)
    _draw(figure.subplots(), panel, run, theme)
    return _png(figure)


def running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean of the last `window` values at each place, of those that there are; NaN values do not count."""
    known = ~np.isnan(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    first = np.maximum(np.arange(len(values)) + 1 - window, 0)
    last = np.arange(len(values)) + 1
    count = counts[last] - counts[first]
    return np.where(count > 0, (sums[last] - sums[first]) / np.maximum(count, 1), np.nan)


def _losses(x_name: str) -> Callable[[Axes, RunData, Theme], None]:
    def draw(axes: Axes, run: RunData, theme: Theme) -> None:
        steps = run.metrics.steps
        x = column(steps, x_name)
        series = (("loss", "total", theme.text), ("pretext", "pretext", theme.blue))
        more = (("contrast", "contrast", theme.pink), ("distill", "distillation", theme.green))
        for name, label, colour in (*series, *more):
            _smooth_line(axes, x, column(steps, name), label, colour)
        optional = (("hint", "hint", theme.green), ("ce", "supervised", theme.blue), ("extra", "extra", theme.pink))
        for name, label, colour in optional:
            _smooth_line(axes, x, column(steps, name), label, colour, dashed=True)
        _epoch_line(axes, run, x_name, "val_loss", "pretext, validation", theme.orange)
        _epoch_line(axes, run, x_name, "test_loss", "pretext, test", theme.green)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("loss (nats)")

    return draw


def _accuracy(x_name: str) -> Callable[[Axes, RunData, Theme], None]:
    def draw(axes: Axes, run: RunData, theme: Theme) -> None:
        steps = run.metrics.steps
        x = column(steps, x_name)
        _smooth_line(axes, x, 100 * column(steps, "pretext_acc"), "training", theme.blue)
        _epoch_line(axes, run, x_name, "val_pretext_acc", "validation", theme.orange, scale=100)
        _epoch_line(axes, run, x_name, "test_pretext_acc", "test", theme.green, scale=100)
        _test_point(axes, run, x, theme)
        axes.axhline(20, color=theme.muted, linewidth=1, linestyle=(0, (2, 3)), label="guessing")
        axes.set_ylim(0, 100)
        axes.set_ylabel("pretext accuracy (%)")

    return draw


def _phases(axes: Axes, run: RunData, theme: Theme) -> None:
    steps = run.metrics.steps
    x = column(steps, "step")
    phases = (
        ("compute_s", "student", theme.blue),
        ("teacher_wait_s", "waiting for the teacher", theme.orange),
        ("data_s", "data", theme.green),
    )
    heights = [1000 * np.nan_to_num(running_mean(column(steps, name), _window(len(x)))) for name, _, _ in phases]
    if len(x):
        colours = [colour for _, _, colour in phases]
        axes.stackplot(x, heights, labels=[label for _, label, _ in phases], colors=colours, alpha=0.8, linewidth=0)
        axes.set_ylim(0, 1.45 * np.sum(heights, axis=0).max() or 1)  # room for the legend above
    axes.set_ylabel("time of a step (ms)")


def _agreement(axes: Axes, run: RunData, theme: Theme) -> None:
    steps = run.metrics.steps
    _smooth_line(
        axes, column(steps, "step"), 100 * column(steps, "agreement"), "student and teacher agree", theme.green
    )
    cka = 100 * column(steps, "cka")
    _smooth_line(axes, column(steps, "step"), cka, "likeness of their features (CKA)", theme.blue, dashed=True)
    axes.set_ylim(0, 100)
    axes.set_ylabel("same answer (%)")


def _learning_rate(axes: Axes, run: RunData, theme: Theme) -> None:
    steps = run.metrics.steps
    axes.plot(column(steps, "step"), column(steps, "lr"), color=theme.blue, linewidth=1.8, label="learning rate")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("learning rate")


_PANELS = (
    Panel(
        "accuracy-steps",
        "Pretext accuracy by step",
        "Share of tuples whose operation is named right, on training, validation and test videos.",
        _accuracy("step"),
    ),
    Panel(
        "accuracy-seconds",
        "Pretext accuracy by time",
        "The same accuracies over the seconds since the start.",
        _accuracy("elapsed_s"),
    ),
    Panel("loss-steps", "Losses by step", "Total loss and its unweighted terms.", _losses("step")),
    Panel("loss-seconds", "Losses by time", "The same losses over the seconds since the start.", _losses("elapsed_s")),
    Panel(
        "phases",
        "Where a step's time goes",
        "Time of a step for the student's computation, for waiting for the teacher and for data.",
        _phases,
    ),
)
_AGREEMENT = Panel(
    "agreement",
    "Agreement with the teacher",
    "Share of training tuples on which student and teacher choose the same operation.",
    _agreement,
)
_LEARNING_RATE = Panel("lr", "Learning rate", "The learning rate of each step.", _learning_rate)


def panels(run: RunData) -> tuple[Panel, ...]:
    """The plots of a run, in the order of reading; the last depends on whether there is a teacher to agree with."""
    alone = np.isnan(column(run.metrics.steps, "agreement")).all()
    return (*_PANELS, _LEARNING_RATE if alone else _AGREEMENT)


def _draw(axes: Axes, panel: Panel, run: RunData, theme: Theme) -> None:
    axes.set_facecolor(theme.ground)
    panel.draw(axes, run, theme)
    axes.set_xlabel("seconds" if panel.name.endswith("seconds") else "step", color=theme.muted)
    axes.yaxis.label.set_color(theme.muted)
    axes.tick_params(colors=theme.muted, length=0)
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.grid)
    axes.margins(x=0.02)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=theme.text, loc="best")
    if not run.metrics.steps:
        axes.text(0.5, 0.5, "no steps yet", transform=axes.transAxes, ha="center", color=theme.muted)


def _window(num_values: int) -> int:
    """Values that a smoothed point stands for: a fortieth of the run, at least 1."""
    return max(1, num_values // 40)


def _smooth_line(
    axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], label: str, colour: str, *, dashed: bool = False
) -> None:
    """The single values, faint, under their running mean. Nothing when there is no value."""
    if np.isnan(y).all():
        return
    window = _window(len(y))
    if window > 1:
        axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.22)
    marker = "o" if len(y) == 1 else None
    style = "--" if dashed else "-"
    axes.plot(x, running_mean(y, window), style, color=colour, linewidth=1.8, label=label, marker=marker)


def _epoch_line(
    axes: Axes, run: RunData, x_name: str, name: str, label: str, colour: str, *, scale: float = 1.0
) -> None:
    """Joins the epochs that have the figure; the test list may be evaluated every few epochs only."""
    epochs = run.metrics.epochs
    x, y = column(epochs, x_name), scale * column(epochs, name)
    known = ~np.isnan(y)
    if known.any():
        axes.plot(x[known], y[known], color=colour, linewidth=1.8, marker="o", markersize=4.5, label=label)


def _test_point(axes: Axes, run: RunData, x: NDArray[np.float64], theme: Theme) -> None:
    """The final test accuracy at the end of training, with its interval."""
    accuracy = 100 * number(run.result or {}, "pretext_acc")
    if np.isnan(accuracy) or not len(x):
        return
    interval = run.evaluation.get("pretext_interval")
    error = [[max(0.0, accuracy - 100 * interval[0])], [max(0.0, 100 * interval[1] - accuracy)]] if interval else None
    axes.errorbar(
        x[-1:],
        [accuracy],
        yerr=error,
        color=theme.green,
        marker="D",
        markersize=7,
        capsize=4,
        linestyle="none",
        label=f"test at the end, {accuracy:.1f} %",
        clip_on=False,
        zorder=5,
    )


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor())
    return buffer.getvalue()
