"""An evaluation as one self-contained page: figures of each split, confusion matrix, retrieval examples as pictures."""

from __future__ import annotations

import json

from data.store import ClipStore
from trainer.evaluate.records import Evaluation, SplitScore
from trainer.evaluation_pictures import RETRIEVAL_INTRO, confusion_figure, retrieval_row
from trainer.report_data import duration, percent
from trainer.report_html import Html, join, page, paragraph, section, table, text, tiles


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
    if evaluation.mean_balanced_accuracy is not None:
        figures.append(("Balanced", percent(evaluation.mean_balanced_accuracy), "mean over the operations"))
    return [*figures, ("Time", duration(evaluation.seconds), f"splits: {len(evaluation.splits)}")]


def _splits(evaluation: Evaluation) -> Html:
    header: tuple[str, ...] = (
        "split",
        "accuracy",
        "95 % by group",
        "chance",
        "training",
        "test videos",
        "of these seen in training",
        "left out",
    )
    is_pretext = evaluation.protocol == "pretext"
    if is_pretext:
        header += ("balanced accuracy", *(f"asked: {name}" for name in evaluation.classes))
    rows = [
        (
            text(score.split),
            text(percent(score.accuracy)),
            text("–" if score.interval is None else " to ".join(percent(bound) for bound in score.interval)),
            text(percent(score.chance)),
            text(percent(score.train_accuracy)),
            text(score.test_videos),
            text("not known" if score.test_seen is None else score.test_seen),
            text(score.test_left_out + score.train_left_out),
            *((text(percent(score.balanced_accuracy)), *map(text, score.label_histogram or ())) if is_pretext else ()),
        )
        for score in evaluation.splits
    ]
    return table("Each official split; videos left out have too few frames", header, rows)


def _confusion(score: SplitScore, evaluation: Evaluation) -> Html:
    alt = f"Confusion matrix of split {score.split}: {percent(score.accuracy)} lie on the diagonal."
    return confusion_figure(score.confusion, evaluation.classes, alt)


def _examples(score: SplitScore, store: ClipStore) -> Html:
    if not score.examples:
        return Html("")
    rows = join(retrieval_row(store, shown.query, shown.neighbours, shown.cosines) for shown in score.examples)
    return Html(f"{paragraph(text(RETRIEVAL_INTRO))}{rows}")


def _settings(evaluation: Evaluation) -> Html:
    rows = [
        (text(name.replace("_", " ")), Html(f"<code>{text(json.dumps(value, ensure_ascii=False))}</code>"))
        for name, value in sorted(evaluation.settings.items())
    ]
    return table("All that the figures depend on besides weights and videos", ("setting", "value"), rows)
