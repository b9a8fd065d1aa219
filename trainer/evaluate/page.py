"""An evaluation as one self-contained page: figures of each split, confusion matrix, retrieval examples as pictures."""

from __future__ import annotations

import io
import json

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
from trainer.evaluate.records import Evaluation, RetrievalExample, SplitScore
from trainer.report_data import duration, percent
from trainer.report_html import Html, join, page, paragraph, picture, section, table, text, tiles

_JPEG_QUALITY = 82
_RIGHT, _WRONG = "#00805c", "#c95000"  # borders; words say the same
_CAPTION_PX = 110
_MOST_NAMED = 30  # classes whose names fit beside a matrix


def evaluation_page(evaluation: Evaluation, store: ClipStore) -> bytes:
    """The page in UTF-8. store: the one that was evaluated on, for pictures."""
    sections = [
        section("result", "Result", tiles(_headline(evaluation)), Html(f"<br>{_splits(evaluation)}")),
        *(
            section(
                f"split{score.split}", f"Split {score.split}", _confusion(score, evaluation), _examples(score, store)
            )
            for score in evaluation.splits
        ),
        section("settings", "Settings", _settings(evaluation)),
    ]
    lead = paragraph(text(f"Student {evaluation.student} on clip store {evaluation.store}: {question(evaluation)}."))
    footer = (
        f"Written by Preceptor. Weights {evaluation.weights_digest[:12]}, store {evaluation.store_fingerprint[:12]}."
    )
    return page(f"{name_of(evaluation)}: {evaluation.student}", lead, sections, footer)


def name_of(evaluation: Evaluation) -> str:
    """The protocol with what tells its kinds apart."""
    recipe = evaluation.settings.get("recipe")
    return f"{evaluation.protocol} ({recipe['mode']})" if recipe else evaluation.protocol


def question(evaluation: Evaluation) -> str:
    """What was asked, in a sentence's words."""
    match evaluation.protocol:
        case "finetune" if evaluation.settings["recipe"]["mode"] == "head":
            return "action accuracy with a new linear layer on the frozen backbone"
        case "finetune":
            return "action accuracy with backbone and new linear layer trained"
        case "probe":
            return "action accuracy of a linear probe on frozen features"
        case "retrieval":
            return "whether the nearest training videos show the action of a test video"
        case _:
            return "accuracy of naming the operation done to a tuple"


def _headline(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    what = "Top-1" if evaluation.protocol == "retrieval" else "Accuracy"
    remark = f"chance {percent(evaluation.mean_chance)}"
    if evaluation.mean_interval is not None:
        low, high = evaluation.mean_interval
        remark = f"{percent(low)} to {percent(high)}, {remark}"
    figures = [(f"{what}, mean of splits", percent(evaluation.mean_accuracy), remark)]
    for k, value in (evaluation.mean_top_k or {}).items():
        if k > 1:
            figures.append((f"Top-{k}", percent(value), "one of the nearest"))
    return [*figures, ("Time", duration(evaluation.seconds), f"splits: {len(evaluation.splits)}")]


def _splits(evaluation: Evaluation) -> Html:
    header = (
        "split",
        "accuracy",
        "95 % by group",
        "chance",
        "training",
        "test videos",
        "of these seen in training",
        "left out",
    )
    rows = [
        (
            text(score.split),
            text(percent(score.accuracy)),
            text("–" if score.interval is None else " to ".join(percent(bound) for bound in score.interval)),
            text(percent(score.chance)),
            text(percent(score.train_accuracy)),
            text(score.test_videos),
            text(score.test_seen),
            text(score.test_left_out + score.train_left_out),
        )
        for score in evaluation.splits
    ]
    return table("Each official split; videos left out have too few frames", header, rows)


def _confusion(score: SplitScore, evaluation: Evaluation) -> Html:
    counts = np.array(score.confusion)
    alt = f"Confusion matrix of split {score.split}: {percent(score.accuracy)} lie on the diagonal."
    light, dark = (confusion_png(counts, evaluation.classes, theme) for theme in (LIGHT, DARK))
    note = "A row per true class, a column per answer; the stronger the colour, the larger the share of the row."
    return Html(f"<figure><figcaption>{text(note)}</figcaption>{picture(light, 'png', alt, dark=dark)}</figure>")


def confusion_png(counts_KK: NDArray[np.int64], names: tuple[str, ...], theme: Theme) -> bytes:
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


def _examples(score: SplitScore, store: ClipStore) -> Html:
    if not score.examples:
        return Html("")
    rows = join(_example(example, store) for example in score.examples)
    intro = "Test videos (left) and their nearest training videos, nearest first, with the cosine of their features."
    return Html(f"{paragraph(text(intro))}{rows}")


def _example(example: RetrievalExample, store: ClipStore) -> Html:
    label = store.labels[example.query]
    figures = [_frame_figure(store, example.query, "query", "transparent")]
    for row, cosine in zip(example.neighbours, example.cosines, strict=True):
        right = store.labels[row] == label
        mark = f"{'✓ right' if right else '✗ wrong'} {cosine:.2f}"
        figures.append(_frame_figure(store, row, mark, _RIGHT if right else _WRONG))
    return Html(f'<div style="display:flex;flex-wrap:wrap;gap:.6rem;margin:.6rem 0">{join(figures)}</div>')


def _frame_figure(store: ClipStore, row: int, mark: str, border: str) -> Html:
    action, key = store.classes[int(store.labels[row])], store.videos.keys[row]
    shown, (height, width) = middle_frame_jpeg(store, row), store.frame_size
    image = picture(shown, "jpeg", f"{action}, video {key}: {mark}", (width, height))
    return Html(
        f'<figure style="border:3px solid {border};padding:2px;width:{max(width, _CAPTION_PX) + 10}px">{image}'
        f"<figcaption><small>{text(mark)}<br>{text(action)}</small></figcaption></figure>"
    )


def middle_frame_jpeg(store: ClipStore, row: int) -> bytes:
    """The whole stored frame from the middle of a video."""
    spec = ClipSpec(crop=min(store.frame_size), clip_len=8)  # the fewest frames that anything is evaluated on
    frames_THW3 = store.gather(uniform_clips(store.videos, np.array([row]), spec=spec, clips_per_video=1))[0]
    frame = np.ascontiguousarray(frames_THW3[len(frames_THW3) // 2])
    return simplejpeg.encode_jpeg(frame, quality=_JPEG_QUALITY, colorspace="RGB")


def _settings(evaluation: Evaluation) -> Html:
    rows = [
        (text(name.replace("_", " ")), Html(f"<code>{text(json.dumps(value, ensure_ascii=False))}</code>"))
        for name, value in sorted(evaluation.settings.items())
    ]
    return table("All that the figures depend on besides weights and videos", ("setting", "value"), rows)
