"""The longer sections of a run's report; each is HTML, empty where the run has nothing to show."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from data.errors import DataError
from data.store import ClipStore
from data.views import REMOTE, SEGMENT_COPY
from teacher_server.card import pretext_classes
from trainer.evaluation_pictures import RETRIEVAL_INTRO, confusion_figure, retrieval_row
from trainer.report_data import RunData, duration, percent
from trainer.report_html import Html, confusion_table, join, paragraph, picture, table, text
from trainer.tuple_pictures import TuplePicture, tuple_pictures

_PACKAGES = ("preceptor", "torch", "ray", "numpy", "pyarrow", "opencv-python-headless", "matplotlib")


def evaluation(run: RunData, store: ClipStore | None) -> list[Html]:
    """Counts, confusions, retrieval with examples; nothing without a final evaluation.

    store: names the classes and gives the examples' frames; one that is not the run's own is not used.
    """
    final = run.evaluation
    if not final:
        return []
    confusion = final.get("pretext_confusion")
    parts = [paragraph(text(_counts(final)))]
    if confusion:
        parts.append(confusion_table("Pretext task: operation done and operation named", _operations(run), confusion))
    top_k = final.get("retrieval") or {}
    if top_k:
        row = (text("accuracy"), *(text(percent(value)) for value in top_k.values()))
        header = ("", *(f"top-{k}" for k in top_k))
        parts.append(table("Retrieval: a video of the same action among the nearest", header, [row]))
    if store is not None and store.fingerprint == (run.result or {}).get("store_fingerprint"):
        parts += _evaluation_pictures(final, store)
    return parts


def _evaluation_pictures(final: Mapping[str, Any], store: ClipStore) -> list[Html]:
    parts = []
    examples = final.get("retrieval_examples") or []
    if examples:
        rows = (retrieval_row(store, shown["query"], shown["neighbours"], shown["cosines"]) for shown in examples)
        parts.append(Html(f"{paragraph(text(RETRIEVAL_INTRO))}{join(rows)}"))
    confusion = final.get("probe_confusion")
    if confusion:
        alt = f"Confusion matrix of the linear probe: {percent(final.get('probe_acc'))} lie on the diagonal."
        parts.append(paragraph(text("Linear probe: the action shown and the action named.")))
        parts.append(confusion_figure(confusion, store.classes, alt))
    return parts


def _counts(final: Mapping[str, Any]) -> str:
    def videos(name: str) -> str:
        used, left_out = final.get(f"{name}_videos", "?"), final.get(f"{name}_left_out", 0)
        return f"{used} videos" + (f" ({left_out} too short and left out)" if left_out else "")

    return (
        f"Pretext: {videos('pretext')}, each under all five operations at {final.get('tuples_per_video', '?')} "
        f"places. Retrieval and probe: {videos('test')} against {videos('train')} of the training list, "
        f"{final.get('clips_per_video', '?')} clips each, centre crop. Intervals are 95 %, resampled by group. "
        f"It took {duration(final.get('seconds'))}."
    )


def labels(run: RunData) -> list[Html]:
    """How often each operation occurred on each list, and plain beside balanced accuracy; nothing before an epoch."""
    last: Mapping[str, Any] = run.metrics.epochs[-1] if run.metrics.epochs else {}
    in_epoch = ("label_histogram", "pretext_acc", "balanced_acc")
    at_end = ("pretext_label_histogram", "pretext_acc", "pretext_balanced_acc")
    figures = {
        "training, last epoch": [last.get(f"train_{name}") for name in in_epoch],
        "validation, last epoch": [last.get(f"val_{name}") for name in in_epoch],
        "test, last epoch": [last.get(f"test_{name}") for name in in_epoch],
        "test, final": [run.evaluation.get(name) for name in at_end],
    }
    rows = [
        (text(what), *(text(count) for count in histogram), text(percent(plain)), text(percent(balanced)))
        for what, (histogram, plain, balanced) in figures.items()
        if histogram
    ]
    if not rows:
        return []
    note = (
        "Tuples by what was done to their middle clip. Balanced accuracy is the mean of the operations' accuracies; it "
        "counts where some operations are rarer than others. Training tuples are augmented and seen before each update."
    )
    header = ("list", *_operations(run), "accuracy", "balanced")
    return [paragraph(text(note)), table("Tuples and accuracy by pretext operation", header, rows)]


def _operations(run: RunData) -> tuple[str, ...]:
    """What the five labels are called in this run."""
    shuffle = REMOTE if run.config.get("shuffle") == "remote" else SEGMENT_COPY
    names = pretext_classes(str(run.config.get("pretext_operation", "")), shuffle)
    return tuple(name.replace("_", " ") for name in names)


def timeline(run: RunData) -> Html:
    """Which teacher answered which steps."""
    entries = (run.result or {}).get("teacher_timeline") or _timeline_of_metrics(run)
    if not entries:
        return paragraph(text("No teacher: this student was trained from scratch."), "muted")
    rows = [
        (
            text(_step_range(entries, i, run)),
            text(entry.get("teacher", "?")),
            Html(f"<code>{text(entry.get('digest', 'not on record'))}</code>"),
        )
        for i, entry in enumerate(entries)
    ]
    return table("Which teacher answered which steps", ("steps", "teacher", "teacher digest"), rows, "wide")


def _timeline_of_metrics(run: RunData) -> list[dict[str, Any]]:
    """The timeline without digests, from the steps: for a run that is not finished."""
    entries: list[dict[str, Any]] = []
    for line in run.metrics.steps:
        teacher = line.get("teacher")
        if teacher and (not entries or entries[-1]["teacher"] != teacher):
            entries.append({"first_step": int(line["step"]) - 1, "teacher": teacher})
    return entries


def _step_range(entries: Sequence[Mapping[str, Any]], i: int, run: RunData) -> str:
    """Steps count from 1 for people; `first_step` counts the steps done before."""
    first = int(entries[i].get("first_step", 0)) + 1
    if i + 1 < len(entries):
        return f"{first} to {int(entries[i + 1].get('first_step', 0))}"
    steps = run.metrics.steps
    return f"{first} to {(run.result or {}).get('steps', steps[-1]['step'] if steps else '?')}"


def tuples(run: RunData, store: ClipStore | None) -> list[Html]:
    """A few training tuples as pictures, if the store is at hand."""
    if store is None:
        return []
    try:
        pictures = tuple_pictures(store, run.config)
    except DataError as error:  # a report without pictures is better than none; the page says why
        return [paragraph(text(f"No pictures: {error}."), "muted")]
    intro = (
        "Training tuples as epoch 0 draws them: three clips of one video, each with its own crop, colours and flip. "
        "The student must name what was done to the middle clip."
    )
    return [
        paragraph(text(intro)),
        Html(f'<div class="tuples">{join(_tuple_figure(tuple_) for tuple_ in pictures)}</div>'),
    ]


def _tuple_figure(shown: TuplePicture) -> Html:
    names = ("clip 1", "clip 2", "clip 3")
    strips = []
    for i, (name, strip) in enumerate(zip(names, shown.strips, strict=True)):
        done = shown.operation if i == 1 else "as it is"
        alt = f"Frames of {name} of video {shown.video}, {shown.action}: {done}."
        css = "strip changed" if i == 1 else "strip"
        strips.append(Html(f'<div class="{css}"><span>{name}</span>{picture(strip, "jpeg", alt, shown.size)}</div>'))
    caption = f"{shown.label}: {shown.operation}"
    about = f"{shown.action}, {shown.video}"
    return Html(f"<figure><figcaption>{text(caption)}<small>{text(about)}</small></figcaption>{join(strips)}</figure>")


def settings(run: RunData) -> Html:
    """The resolved configuration, folded."""
    rows = [
        (text(name), Html(f"<code>{text(json.dumps(value, ensure_ascii=False))}</code>"))
        for name, value in sorted(run.config.items())
    ]
    return Html(
        f"<details><summary>{len(rows)} settings, as resolved when the run began</summary>"
        f"{table('config.json', ('setting', 'value'), rows)}</details>"
    )


def environment(run: RunData) -> Html:
    """Data, seeds and versions."""
    result = run.result or {}
    rows = [
        ("store fingerprint", result.get("store_fingerprint", "–")),
        ("seed, view seed", f"{run.config.get('seed', '–')}, {run.config.get('view_seed', '–')}"),
        *((f"{name} videos", count) for name, count in (result.get("num_videos") or {}).items()),
        ("Python", platform.python_version()),
        ("system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"),
        *((name, version) for name in _PACKAGES if (version := _version(name))),
    ]
    cells = [(text(str(name).replace("_", " ")), Html(f"<code>{text(value)}</code>")) for name, value in rows]
    return table("Data, seeds, and the machine that wrote this page", ("what", "value"), cells)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
