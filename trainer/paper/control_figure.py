"""The picture of the controls: what each gains beside what the real teacher gains."""

from __future__ import annotations

from matplotlib.lines import Line2D

from trainer.curves import Theme
from trainer.paper.document import Picture
from trainer.paper.drawing import draw_interval, dress, legend, name_rows, new_figure, png, title
from trainer.paper.figures import both_themes
from trainer.paper.findings import ArmNumbers, Findings
from trainer.paper.words import arm_title


def controls_picture(findings: Findings) -> Picture | None:
    """Early gains of the controls and what the real teachers give beyond them; None without controls."""
    found = [numbers for numbers in findings.numbers if numbers.control]
    found.sort(key=lambda numbers: (numbers.control or "", -numbers.fraction, numbers.arm.name))
    if not found:
        return None
    return both_themes(
        "controls",
        "Controls: early gain without knowledge, and what the real teacher gives beyond it",
        "A row per control. Left the control's own early gain over scratch, right the real teacher's answers minus the "
        "control's; both with 95 % intervals. A teacher that transfers knowledge lies right of 0 in the right panel.",
        lambda theme: _draw(found, theme),
    )


def _draw(found: list[ArmNumbers], theme: Theme) -> bytes:
    figure = new_figure(12.5, 1.6 + 0.3 * len(found), theme)
    left, right = figure.subplots(1, 2, sharey=True)
    panels = (
        (left, "the control's early gain over scratch", [numbers.stages["early"].gain for numbers in found]),
        (right, "the real teacher beyond the control", [numbers.over_control.get("early") for numbers in found]),
    )
    for axes, words, differences in panels:
        dress(axes, theme, grid="x")
        title(axes, words, theme)
        axes.axvline(0, color=theme.text, linewidth=1)
        axes.set_xlabel("points")
        for place, difference in enumerate(differences):
            draw_interval(axes, difference, place, theme)
        for place in range(1, len(found)):
            if found[place].control != found[place - 1].control:
                axes.axhline(place - 0.5, color=theme.grid, linewidth=1)
    name_rows(left, [_name(numbers) for numbers in found], theme)
    handles = [
        Line2D([], [], color=colour, marker="o", linewidth=2.4, label=label)
        for colour, label in (
            (theme.blue, "interval above 0"),
            (theme.muted, "includes 0"),
            (theme.orange, "interval below 0"),
        )
    ]
    legend(figure, handles, theme)
    return png(figure)


def _name(numbers: ArmNumbers) -> str:
    return f"{numbers.control}: {arm_title(numbers.arm)}, {numbers.fraction:g} %"
