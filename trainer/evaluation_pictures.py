"""Pictures of what an evaluation found: confusion matrices, test videos beside their nearest training videos.

Needs no torch: reports of runs are written without it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import simplejpeg
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from data.draw import uniform_clips
from data.store import ClipStore
from data.views import ClipSpec
from trainer.curves import DARK, LIGHT, Theme
from trainer.report_html import Html, join, picture, text

RETRIEVAL_INTRO = "Test videos (left) and their nearest training videos, nearest first, with the cosine of features."
_JPEG_QUALITY = 82
_RIGHT, _WRONG = "#00805c", "#c95000"  # borders; words say the same
_CAPTION_PX = 110
_MOST_NAMED = 30  # classes whose names fit beside a matrix


def confusion_figure(counts: Sequence[Sequence[int]], names: Sequence[str], alt: str) -> Html:
    """A confusion matrix as a picture with its note. counts: a row per true class, a column per answer."""
    counts_KK = np.array(counts, np.int64)
    light, dark = (_confusion_png(counts_KK, names, theme) for theme in (LIGHT, DARK))
    note = "A row per true class, a column per answer; the stronger the colour, the larger the share of the row."
    return Html(f"<figure><figcaption>{text(note)}</figcaption>{picture(light, 'png', alt, dark=dark)}</figure>")


def _confusion_png(counts_KK: NDArray[np.int64], names: Sequence[str], theme: Theme) -> bytes:
    """The matrix as a picture; each row is shown as shares of its sum."""
    num_classes = len(names)
    side = min(9.0, 2.8 + 0.28 * num_classes)
    figure = Figure(figsize=(side, side), dpi=110, layout="constrained", facecolor=theme.ground)
    axes = figure.subplots()
    shares = counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap=LinearSegmentedColormap.from_list("share", [theme.ground, theme.blue]), vmin=0, vmax=1)
    for spine in axes.spines.values():
        spine.set_color(theme.grid)
    axes.set_xlabel("answer", color=theme.text)
    axes.set_ylabel("true", color=theme.text)
    axes.tick_params(colors=theme.muted, labelsize=7, length=2)
    if num_classes <= _MOST_NAMED:
        axes.set_xticks(range(num_classes), names, rotation=90, parse_math=False)
        axes.set_yticks(range(num_classes), names, parse_math=False)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def retrieval_row(store: ClipStore, query: int, neighbours: Sequence[int], cosines: Sequence[float]) -> Html:
    """A test video and its nearest training videos side by side. query, neighbours: rows of the store."""
    label = store.labels[query]
    figures = [_frame_figure(store, query, "query", "transparent")]
    for row, cosine in zip(neighbours, cosines, strict=True):
        right = store.labels[row] == label
        mark = f"{'✓ right' if right else '✗ wrong'} {cosine:.2f}"
        figures.append(_frame_figure(store, row, mark, _RIGHT if right else _WRONG))
    return Html(f'<div style="display:flex;flex-wrap:wrap;gap:.6rem;margin:.6rem 0">{join(figures)}</div>')


def _frame_figure(store: ClipStore, row: int, mark: str, border: str) -> Html:
    action, key = store.classes[int(store.labels[row])], store.videos.keys[row]
    shown, (height, width) = _middle_frame_jpeg(store, row), store.frame_size
    image = picture(shown, "jpeg", f"{action}, video {key}: {mark}", (width, height))
    return Html(
        f'<figure style="border:3px solid {border};padding:2px;width:{max(width, _CAPTION_PX) + 10}px">{image}'
        f"<figcaption><small>{text(mark)}<br>{text(action)}</small></figcaption></figure>"
    )


def _middle_frame_jpeg(store: ClipStore, row: int) -> bytes:
    """The whole stored frame from the middle of a video."""
    spec = ClipSpec(crop=min(store.frame_size), clip_len=8)  # the fewest frames that anything is evaluated on
    frames_THW3 = store.gather(uniform_clips(store.videos, np.array([row]), spec=spec, clips_per_video=1))[0]
    frame = np.ascontiguousarray(frames_THW3[len(frames_THW3) // 2])
    return simplejpeg.encode_jpeg(frame, quality=_JPEG_QUALITY, colorspace="RGB")
