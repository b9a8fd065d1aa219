"""The paper's pictures: curves of every row, paired gains, milestones, controls, cost.

Each function draws one figure in one theme and returns its PNG. Partial grids give pictures with empty places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from trainer.curves import DARK, LIGHT, Theme
from trainer.paper.claims import EARLY_GAIN
from trainer.paper.document import Picture
from trainer.paper.drawing import Axes, draw_interval, dress, legend, name_rows, new_figure, png, title
from trainer.paper.findings import ArmNumbers, Findings, paper_arms
from trainer.paper.load import Grid, LoadedCell
from trainer.paper.published import PAIRS, ROWS, STUDENTS, display, paper_accuracy
from trainer.paper.records import STAGES, CurvePoint
from trainer.paper.words import arm_title


@dataclass(frozen=True)
class _Curve:
    """The same figure of several seeds at the epochs that all of them have."""

    epochs: tuple[int, ...]
    values: np.ndarray  # [seeds, epochs], percent


def both_themes(name: str, caption: str, about: str, draw: Callable[[Theme], bytes]) -> Picture:
    """A picture in light and dark."""
    return Picture(name, caption, about, draw(LIGHT), draw(DARK))


def curves(grid: Grid, fraction: float) -> Picture:
    """Train, validation and test accuracy over the epochs: a column per student, a line per teacher."""
    return both_themes(
        f"curves-{fraction:g}".replace(".", "-"),
        f"Pretext accuracy over the epochs, {fraction:g} % of the data",
        "A column per student, a row each for training, validation and test. Lines are means over the seeds, bands go "
        "from the lowest seed to the highest; dashed in grey scratch, in colour the teachers, trained on all data. "
        "Dotted uprights: ends of the early and mid stages. The dotted level is guessing.",
        lambda theme: _draw_curves(grid, fraction, theme),
    )


def gains(findings: Findings) -> Picture:
    """The paired early gain of every pair on every share of the data, with its interval."""
    return both_themes(
        "gains",
        "Paired early gain of distillation over scratch",
        "A panel per share of the data, a row per pair; the line is the 95 % interval over groups and seeds. Filled "
        "circles: teachers trained on all data; open squares: on the student's own share; small crosses: the paper. "
        "Blue lies wholly above 0, orange wholly below, grey includes 0. The dotted upright stands at 2 points.",
        lambda theme: _draw_gains(findings, theme),
    )


def milestone_picture(findings: Findings) -> Picture:
    """How soon each row reaches shares of its scratch run's final accuracy."""
    return both_themes(
        "milestones",
        "Epochs until a student has come as far as its scratch run came in the end",
        "A panel per share of the data; dots from light to dark are .5, .75, .9 and 1.0 of the scratch run's final "
        "test accuracy, mean over the seeds that came there; further left is sooner. A missing dot was never reached.",
        lambda theme: _draw_milestones(findings, theme),
    )


def cost_picture(findings: Findings) -> Picture:
    """The three accounts as stacked bars."""
    return both_themes(
        "cost",
        "What a student costs, in three accounts",
        "A panel per share of the data; a bar is the student's own compute, then its teacher's answers, then its share "
        "of the teacher's training. Teachers trained on all data; each panel has its own scale.",
        lambda theme: _draw_cost(findings, theme),
    )


def _teacher_colour(teacher: str | None, theme: Theme) -> str:
    colours = {None: theme.muted, "c3d": theme.blue, "r3d": theme.orange, "r2plus1d": theme.green}
    return colours.get(teacher, theme.pink)


def _line_style(teacher: str | None) -> str:
    return "--" if teacher is None else "-"


def _draw_curves(grid: Grid, fraction: float, theme: Theme) -> bytes:
    figure = new_figure(12.5, 9, theme)
    panels = figure.subplots(3, len(STUDENTS), sharex=True, sharey="row", squeeze=False)
    kinds: tuple[tuple[str, Callable[[CurvePoint], float | None]], ...] = (
        ("training", lambda point: point.train_acc),
        ("validation", lambda point: point.val_acc),
        ("test", lambda point: point.test_acc),
    )
    for row, (name, of) in zip(panels, kinds, strict=True):
        row[0].set_ylabel(f"{name} accuracy (%)")
        for axes, student in zip(row, STUDENTS, strict=True):
            dress(axes, theme)
            for teacher in (teacher for pupil, teacher in ROWS if pupil == student):
                arm = paper_arms(student, teacher)[0]
                _draw_curve(axes, _curve(grid.of(arm, fraction), of), teacher, theme)
            _draw_stages(axes, grid, fraction, theme)
    for axes, student in zip(panels[0], STUDENTS, strict=True):
        title(axes, f"student {display(student)}", theme)
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    handles = [
        Line2D([], [], color=_teacher_colour(t, theme), linestyle=_line_style(t), linewidth=2.2, label=label)
        for t, label in ((None, "scratch"), *((t, f"teacher {display(t)}") for t in STUDENTS))
    ]
    legend(figure, handles, theme)
    return png(figure)


def _curve(cells: Sequence[LoadedCell], of: Callable[[CurvePoint], float | None]) -> _Curve | None:
    by_seed = [
        {point.epoch: 100 * value for point in cell.result.curve if (value := of(point)) is not None} for cell in cells
    ]
    common = sorted(set.intersection(*(set(found) for found in by_seed))) if by_seed else []
    if not common:
        return None
    return _Curve(tuple(common), np.array([[found[epoch] for epoch in common] for found in by_seed]))


def _draw_curve(axes: Axes, curve: _Curve | None, teacher: str | None, theme: Theme) -> None:
    if curve is None:
        return
    colour = _teacher_colour(teacher, theme)
    if len(curve.values) > 1:
        axes.fill_between(
            curve.epochs, curve.values.min(axis=0), curve.values.max(axis=0), color=colour, alpha=0.16, linewidth=0
        )
    axes.plot(
        curve.epochs,
        curve.values.mean(axis=0),
        color=colour,
        linewidth=1.9,
        linestyle=_line_style(teacher),
        marker="o" if len(curve.epochs) == 1 else None,
        zorder=3 if teacher is None else 4,
    )


def _draw_stages(axes: Axes, grid: Grid, fraction: float, theme: Theme) -> None:
    axes.axhline(20, color=theme.muted, linewidth=1, linestyle=(0, (1, 3)))
    stages = next((cell.result.stages for key, cell in grid.cells.items() if key.fraction == fraction), ())
    for stage in stages:
        if stage.name != STAGES[-1][0]:
            axes.axvline(stage.until_epoch, color=theme.muted, linewidth=1, linestyle=(0, (1, 3)))


def _share_panels(
    findings: Findings, height: float, theme: Theme, *, one_scale: bool = True
) -> tuple[object, list[Axes]]:
    """A figure with a panel per share of the data, side by side, with rows in common, and the x axis if one_scale."""
    figure = new_figure(12.5, height, theme)
    columns = max(1, len(findings.fractions))
    panels = list(figure.subplots(1, columns, sharex=one_scale, sharey=True, squeeze=False)[0])
    for axes, fraction in zip(panels, findings.fractions, strict=False):
        dress(axes, theme, grid="x")
        title(axes, f"{fraction:g} % of the data", theme)
    return figure, panels


def _draw_gains(findings: Findings, theme: Theme) -> bytes:
    figure, panels = _share_panels(findings, 4.8, theme)
    for axes, fraction in zip(panels, findings.fractions, strict=False):
        axes.axvline(0, color=theme.text, linewidth=1)
        axes.axvline(100 * EARLY_GAIN, color=theme.muted, linewidth=1.2, linestyle=(0, (2, 3)))
        for place, (student, teacher) in enumerate(PAIRS):
            for shift, arm in zip((-0.14, 0.14), paper_arms(student, teacher), strict=True):
                numbers = findings.of(arm, fraction)
                found = numbers.stages["early"].gain if numbers else None
                draw_interval(axes, found, place + shift, theme, hollow=arm.teacher_data != "full")
            ours, base = paper_accuracy(student, teacher, fraction), paper_accuracy(student, None, fraction)
            if ours and base:
                axes.plot(100 * (ours[0] - base[0]), place - 0.36, "x", color=theme.pink, markersize=6, mew=1.6)
        axes.set_xlabel("points")
    name_rows(panels[0], [arm_title(paper_arms(*pair)[0]) for pair in PAIRS], theme)
    legend(
        figure,
        [
            Line2D([], [], color=theme.muted, marker="o", label="teacher trained on all data"),
            Line2D([], [], color=theme.muted, marker="s", mfc=theme.ground, label="teacher trained on the same share"),
            Line2D([], [], color=theme.pink, marker="x", mew=1.6, linestyle="none", label="the paper"),
            Line2D([], [], color=theme.blue, linewidth=2.4, label="interval above 0"),
            Line2D([], [], color=theme.orange, linewidth=2.4, label="interval below 0"),
        ],
        theme,
    )
    return png(figure)


def _rows_of(findings: Findings, fraction: float) -> list[ArmNumbers | None]:
    return [findings.of(paper_arms(*row)[0], fraction) for row in ROWS]


def _row_titles() -> list[str]:
    return [arm_title(paper_arms(*row)[0]) for row in ROWS]


def _draw_milestones(findings: Findings, theme: Theme) -> bytes:
    figure, panels = _share_panels(findings, 5, theme)
    strengths = (0.3, 0.5, 0.72, 1.0)
    for axes, fraction in zip(panels, findings.fractions, strict=False):
        for place, numbers in enumerate(_rows_of(findings, fraction)):
            if numbers is None:
                continue
            colour = _teacher_colour(numbers.arm.teacher, theme)
            found = zip(numbers.milestones, strengths, strict=True)
            known = [(milestone.epochs.mean, strength) for milestone, strength in found if milestone.epochs]
            axes.plot([epoch for epoch, _ in known], [place] * len(known), color=colour, linewidth=1.4, alpha=0.5)
            for epoch, strength in known:
                axes.plot(epoch, place, "o", color=colour, alpha=strength, markersize=4 + 5 * strength, mew=0)
        axes.set_xlabel("epoch")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    name_rows(panels[0], _row_titles(), theme)
    names = ("0.5", "0.75", "0.9", "1.0")
    handles = [
        Line2D([], [], color=theme.text, marker="o", alpha=s, markersize=4 + 5 * s, mew=0, linestyle="none", label=name)
        for name, s in zip(names, strengths, strict=True)
    ]
    legend(figure, handles, theme)
    return png(figure)


def _draw_cost(findings: Findings, theme: Theme) -> bytes:
    figure, panels = _share_panels(findings, 5, theme, one_scale=False)
    parts = (("student", theme.blue), ("teacher's answers", theme.orange), ("teacher's training, spread", theme.green))
    most = max((numbers.cost.whole.with_training_s for numbers in findings.numbers), default=0.0)
    unit_s, unit = (3600.0, "hours") if most > 7200 else (60.0, "minutes") if most > 120 else (1.0, "seconds")
    for axes, fraction in zip(panels, findings.fractions, strict=False):
        for place, numbers in enumerate(_rows_of(findings, fraction)):
            if numbers is None:
                continue
            whole = numbers.cost.whole
            ends = (0.0, whole.student_s, whole.with_answers_s, whole.with_training_s)
            for (_, colour), left, right in zip(parts, ends[:-1], ends[1:], strict=True):
                axes.barh(place, (right - left) / unit_s, left=left / unit_s, color=colour, height=0.66)
        axes.set_xlabel(unit)
    name_rows(panels[0], _row_titles(), theme)
    legend(figure, [Patch(color=colour, label=name) for name, colour in parts], theme)
    return png(figure)
