"""What the paper's pictures share: figures without global state or display, one look, colours that people who see
colours differently can tell apart (after Okabe and Ito), on light and on dark ground."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trainer.curves import Theme
from trainer.paper.stats import Difference

Axes = Any  # matplotlib is taken without types here


def new_figure(width: float, height: float, theme: Theme) -> Any:
    """Width and height in inches."""
    return Figure(figsize=(width, height), dpi=100, layout="constrained", facecolor=theme.ground)


def dress(axes: Axes, theme: Theme, *, grid: str = "y") -> None:
    """Quiet axes: a grid along `grid`, no box, muted labels. Called before anything is drawn on top."""
    axes.set_facecolor(theme.ground)
    axes.tick_params(colors=theme.muted, length=0, labelsize=9)
    axes.grid(axis=grid, color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.grid)
    axes.xaxis.label.set_color(theme.muted)
    axes.yaxis.label.set_color(theme.muted)


def name_rows(axes: Axes, titles: list[str], theme: Theme, places: list[float] | None = None) -> None:
    """Names on the y axis, the first on top; at 0, 1, 2 or at `places`."""
    axes.set_yticks(list(range(len(titles))) if places is None else places, titles, color=theme.text, fontsize=9.5)
    axes.invert_yaxis()


def title(axes: Axes, words: str, theme: Theme) -> None:
    """A panel's title."""
    axes.set_title(words, color=theme.text, fontsize=11, loc="left")


def legend(figure: Any, handles: list[Any], theme: Theme) -> None:
    """One legend below all panels."""
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 5),
        frameon=False,
        labelcolor=theme.text,
        fontsize=9.5,
    )


def draw_interval(axes: Axes, found: Difference | None, place: float, theme: Theme, *, hollow: bool = False) -> None:
    """A difference as a point with its interval, in points: blue above 0, orange below, grey where it includes 0.

    Nothing where it was not measured. hollow: an open square in place of a filled circle.
    """
    if found is None:
        return
    colour = theme.blue if found.above_zero else theme.orange if found.below_zero else theme.muted
    if found.interval is not None:
        axes.plot([100 * bound for bound in found.interval], [place, place], color=colour, linewidth=2.4)
    marker, fill = ("s", theme.ground) if hollow else ("o", colour)
    axes.plot(100 * found.mean, place, marker, color=colour, markersize=6.5, markerfacecolor=fill, mew=1.6)


def png(figure: Any) -> bytes:
    """The figure as PNG, the same bytes for the same content."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor(), metadata={"Software": None})
    return buffer.getvalue()
