"""The report against written-out expectations; pictures against the renderer; the page as a browser would parse it."""

import base64
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import simplejpeg
from matplotlib.figure import Figure

from data.draw import draw_tuples
from data.errors import DataError
from data.render import render_batch
from data.store import ClipStore, StoreWriter
from data.views import Augment, ClipSpec, Pretext
from trainer.config import RunConfig
from trainer.curves import LIGHT, panels, running_mean
from trainer.report import report_html, write_report
from trainer.report_data import RunFolderError, column, duration, percent, read_metrics, read_run
from trainer.report_sections import timeline, tuples
from trainer.tuple_pictures import operation_in_words, tuple_pictures

HOSTILE = '<script>alert("1")</script> & "quoted"'
VOID = {"meta", "img", "source", "br", "link"}
EVALUATION = {
    "pretext_interval": [0.4, 0.6],
    "pretext_chance": 0.2,
    "pretext_confusion": [[3, 1, 0, 0, 0], [0, 4, 0, 0, 0], [0, 0, 2, 2, 0], [0, 0, 0, 4, 0], [4, 0, 0, 0, 0]],
    "retrieval": {"1": 0.25, "5": 0.5},
    "retrieval_top1_chance": 0.1,
    "pretext_videos": 7,
    "pretext_left_out": 2,
    "seconds": 61.0,
}
RESULT = {
    "teacher": "r2plus1d",
    "student": "r3d",
    "pretext_acc": 0.512,
    "pretext_balanced_acc": 0.512,
    "retrieval_top1": 0.25,
    "retrieval_top5": 0.5,
    "probe_acc": 0.333,
    "steps": 4,
    "epochs": 2,
    "seconds": 1.6,
    "clips_per_second": 30.0,
    "teacher_wait_share": 0.05,
    "teacher_timeline": [
        {"first_step": 0, "teacher": "r2plus1d@1", "digest": "a" * 64},
        {"first_step": 2, "teacher": "r2plus1d@2", "digest": "b" * 64},
    ],
    "store_fingerprint": "c" * 32,
    "seed": 0,
    "num_videos": {"train": 5},
    "evaluation": EVALUATION,
}


class _Page(HTMLParser):
    """Collects tags with their attributes and the visible text; every tag must be closed in order."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(page.decode("utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def _step(step, **more):
    fields = {"kind": "step", "step": step, "loss": 3.0 - step / 10, "pretext": 1.6, "contrast": 2.0, "distill": 0.2}
    return {**fields, "pretext_acc": 0.2, "agreement": 0.5, "lr": 0.01, "elapsed_s": 0.4 * step, **more}


def _epoch(step, **more):
    return {"kind": "epoch", "step": step, "epoch": step // 2, "val_loss": 1.5, "val_pretext_acc": 0.3, **more}


def _write_run(folder, lines, result=None, torn="", **config):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**RunConfig().to_json(), **config}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "small"
    rng = np.random.default_rng(0)
    # Smooth frames: JPEG keeps them nearly as they are.
    ramp = np.linspace(0, 200, 40)[None, None, :, None]
    keys = [f"Bow/v_Bow_g{i:02d}_c01" for i in range(30)]
    with StoreWriter(path, frame_size=(36, 40), codec="raw", classes=("Bow", "<b>Wave</b>")) as writer:
        for i, key in enumerate(keys):
            frames = np.broadcast_to(ramp + rng.integers(0, 50, (1, 1, 1, 3)), (45, 36, 40, 3)).astype(np.uint8)
            writer.add(key, label=i % 2, group=f"g{i:02d}", frames=frames.copy())
        writer.commit({"train01": keys})
    return ClipStore.open(path)


CONFIG = {"clip_len": 8, "interval": 2, "crop": 32}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, store):
    folder = tmp_path_factory.mktemp("runs") / "a <b>run & more"
    lines = [_step(1), _step(2), _epoch(2), _step(3), _step(4), _epoch(4)]
    _write_run(folder, lines, RESULT, '{"kind":"st', store=HOSTILE, **CONFIG)
    return write_report(folder, store)


def test_later_line_of_a_step_wins_torn_lines_are_counted_and_order_is_by_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [_step(1), _step(2, loss=9.0), _step(3, loss=9.0), _epoch(2), _step(2, loss=5.0)]
    path.write_text("\n".join(json.dumps(line) for line in lines) + '\n{"kind":"step","st\n[1]\n')
    metrics = read_metrics(path)
    assert [(line["step"], line["loss"]) for line in metrics.steps] == [(1, 2.9), (2, 5.0), (3, 9.0)]
    assert [line["step"] for line in metrics.epochs] == [2]
    assert metrics.torn_lines == 2


def test_clocks_of_the_attempts_are_laid_end_to_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    clocks = [(1, 1.0), (2, 2.0), (3, 3.0), (3, 0.5), (4, 1.5), (5, 0.25)]  # resumed before step 3 and before step 5
    path.write_text("".join(json.dumps(_step(step, elapsed_s=s)) + "\n" for step, s in clocks))
    assert column(read_metrics(path).steps, "elapsed_s").tolist() == [1.0, 2.0, 3.5, 4.5, 4.75]


def test_a_folder_without_settings_or_with_a_damaged_result_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(RunFolderError, match=r"nothing: there is no config\.json"):
        read_run(tmp_path / "nothing")
    folder = _write_run(tmp_path / "run", [])
    (folder / "result.json").write_text('{"teacher": ')
    with pytest.raises(RunFolderError, match=r"result\.json cannot be read"):
        read_run(folder)


def test_running_mean_equals_a_naive_loop_and_skips_what_is_missing():
    values = np.array([1.0, np.nan, 3.0, 5.0, np.nan, np.nan, np.nan, 2.0])
    for window in (1, 2, 3, 20):
        naive = []
        for i in range(len(values)):
            known = [v for v in values[max(0, i + 1 - window) : i + 1] if not np.isnan(v)]
            naive.append(np.mean(known) if known else np.nan)
        np.testing.assert_allclose(running_mean(values, window), naive)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0.0 s"), (99.94, "99.9 s"), (185, "3 min 05 s"), (5999, "99 min 59 s"), (7620, "2 h 07 min"), (None, "–")],
)
def test_durations_read_as_people_say_them(seconds, words):
    assert duration(seconds) == words


def test_shares_read_as_percent_and_missing_ones_as_a_dash():
    assert [percent(value) for value in (0.4321, 1, 0, None, "x")] == ["43.2 %", "100.0 %", "0.0 %", "–", "–"]


def test_files_appear_whole_and_a_second_report_replaces_the_first(tmp_path):
    folder = _write_run(tmp_path / "run", [_step(1)])
    (folder / "report.html").write_text("old")
    assert write_report(folder) == folder / "report.html"
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "curves.png",
        "metrics.jsonl",
        "report.html",
    ]
    page = (folder / "report.html").read_bytes()
    assert page == report_html(read_run(folder))


def test_the_page_loads_nothing_and_every_picture_and_table_head_is_described(finished):
    page = _Page(finished.read_bytes())
    assert all(attrs["src"].startswith("data:image/") and attrs["alt"] for tag, attrs in page.tags if tag == "img")
    assert all(attrs["srcset"].startswith("data:image/") for tag, attrs in page.tags if tag == "source")
    assert all(attrs.get("scope") in ("row", "col") for tag, attrs in page.tags if tag == "th")
    assert not {"script", "link", "iframe", "object", "a"} & {tag for tag, _ in page.tags}
    assert "url(" not in finished.read_text()
    assert "@import" not in finished.read_text()
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert sum(tag == "img" for tag, _ in page.tags) == 6 + 5 * 3  # plots, and three clips for each operation


def test_texts_of_settings_run_and_store_are_shown_as_text(finished):
    page = _Page(finished.read_bytes())
    assert page.words.count("a <b>run & more") == 2  # title and heading
    assert HOSTILE in page.text
    assert "<b>Wave</b>, Bow/v_Bow" in page.text
    assert not any(tag in ("b", "script") for tag, _ in page.tags)


def test_headline_numbers_are_those_of_the_result(finished):
    text = _Page(finished.read_bytes()).text.replace("\xa0", " ")
    for words in (
        "Pretext accuracy 51.2 % 40.0 to 60.0 %, chance 20.0 %",
        "Retrieval top-1 25.0 % chance 10.0 %",
        "Linear probe 33.3 %",
        "Steps 4 2 epochs",
        "Training time 1.6 s",
        "Teacher wait 5.0 %",
        "7 videos (2 too short and left out)",
        "cut off, and that are left out: 1.",
        "unchanged 3 75 % 1 25 % 0 0 % 0 0 % 0 0 % 4",  # a row of the confusion matrix
    ):
        assert words in text


def test_tuples_without_distillation_are_shown_where_there_are_any(tmp_path, finished):
    assert "Without distillation" not in _Page(finished.read_bytes()).text
    skipping = _write_run(tmp_path / "run", [_step(1), _step(2, distill=None)], RESULT | {"kd_skipped": 24})
    text = _Page(report_html(read_run(skipping))).text.replace("\xa0", " ")
    assert "Without distillation 24 tuples that no teacher answered" in text


def test_timeline_lists_which_teacher_answered_which_steps(finished):
    text = _Page(finished.read_bytes()).text
    assert f"1 to 2 r2plus1d@1 {'a' * 64}" in text
    assert f"3 to 4 r2plus1d@2 {'b' * 64}" in text


def test_confusion_of_the_probe_and_retrieval_examples_are_pictures_of_the_runs_own_store(tmp_path, store):
    found = {
        "probe_acc": 0.8,
        "probe_confusion": [[9, 6], [0, 15]],
        "retrieval_examples": [{"query": 1, "neighbours": [3, 2], "cosines": [0.9, 0.5]}],
    }
    result = RESULT | {"store_fingerprint": store.fingerprint, "evaluation": EVALUATION | found}
    run = read_run(_write_run(tmp_path / "run", [_step(1)], result, **CONFIG))
    page = _Page(report_html(run, store))
    described = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    for words in (
        "Confusion matrix of the linear probe: 80.0 % lie on the diagonal.",
        "<b>Wave</b>, video Bow/v_Bow_g01_c01: query",
        "<b>Wave</b>, video Bow/v_Bow_g03_c01: ✓ right 0.90",
        "Bow, video Bow/v_Bow_g02_c01: ✗ wrong 0.50",
    ):
        assert words in described
    frame = next(attrs for tag, attrs in page.tags if attrs.get("alt", "").endswith("query"))
    shown = simplejpeg.decode_jpeg(base64.b64decode(frame["src"].split(",")[1]))
    draws = np.random.default_rng(0).integers(0, 50, (2, 3))  # the fixture's colours of videos 0 and 1
    expected = np.broadcast_to(np.linspace(0, 200, 40)[None, :, None] + draws[1], (36, 40, 3))
    np.testing.assert_allclose(shown.astype(float), expected, atol=8)  # JPEG
    other = read_run(_write_run(tmp_path / "other", [_step(1)], result | {"store_fingerprint": "c" * 32}, **CONFIG))
    assert "probe" not in " ".join(attrs.get("alt", "") for _, attrs in _Page(report_html(other, store)).tags)


def test_an_unfinished_run_shows_what_there_is_and_says_so(tmp_path):
    lines = [_step(1, teacher="c3d@1"), _step(2, teacher="c3d@1"), _step(3, teacher="c3d@2")]
    page = _Page(report_html(read_run(_write_run(tmp_path / "run", lines))))
    assert "This run is not finished: 3 steps are on record, and there is no final evaluation." in page.text
    assert "Steps 3 0 epochs" in page.text
    assert "Training time 1.2 s so far" in page.text
    assert "Linear probe" not in page.text
    assert "Evaluation on the test list" not in page.text
    assert "1 to 2 c3d@1 not on record" in page.text
    assert "3 to 3 c3d@2" in page.text


def test_a_run_without_a_single_step_and_without_evaluation_still_has_a_page(tmp_path):
    result = {**RESULT, "teacher": "none", "teacher_timeline": [], "pretext_acc": None, "steps": 0}
    del result["evaluation"]
    run = read_run(_write_run(tmp_path / "run", [], result, teacher="none"))
    text = _Page(report_html(run)).text
    assert "trained from scratch" in text
    assert "Pretext accuracy –" in text
    assert "No teacher" in timeline(run)


def test_pictures_are_the_training_views_of_epoch_0_one_per_operation(store):
    pictures = tuple_pictures(store, {**CONFIG, "view_seed": 3})
    assert [picture.label for picture in pictures] == [0, 1, 2, 3, 4]
    rows = store.subset("train01")
    views = draw_tuples(store.videos, rows, view_seed=3, epoch=0, spec=ClipSpec(**CONFIG), augment=Augment())
    for picture in pictures:
        item = store.videos.keys.index(picture.video)
        wanted = render_batch(store.gather(views.items(item, item + 1)), views.items(item, item + 1))
        for strip, clip in zip(picture.strips, wanted, strict=True):
            decoded = simplejpeg.decode_jpeg(strip)
            assert decoded.shape == (32, 8 * 34 - 2, 3)
            assert (decoded.shape[1], decoded.shape[0]) == picture.size
            for place, frame in enumerate(clip):
                shown = decoded[:, place * 34 : place * 34 + 32].astype(int)
                assert abs(shown - frame.astype(int)).mean() < 8


def test_an_operation_of_the_user_s_own_is_shown_as_what_it_is_where_it_is_allowed(store, tmp_path, monkeypatch):
    (tmp_path / "preceptor_report_plugin.py").write_text("def black(clip):\n    return clip * 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "preceptor_report_plugin:black"
    config = {**CONFIG, "view_seed": 3, "pretext_operation": name}
    monkeypatch.delenv("PRECEPTOR_PLUGINS", raising=False)
    with pytest.raises(DataError, match=f"PRECEPTOR_PLUGINS={name}"):
        tuple_pictures(store, config)
    monkeypatch.setenv("PRECEPTOR_PLUGINS", name)
    shown = tuple_pictures(store, config)[Pretext.TEMPORAL_SHUFFLE]
    assert shown.operation == f"your own operation {name}"
    strip = simplejpeg.decode_jpeg(shown.strips[1])
    assert strip[:, :32].max() < 8 < simplejpeg.decode_jpeg(shown.strips[0]).max()


@pytest.mark.parametrize(
    ("pretext", "variant", "words"),
    [
        (Pretext.UNCHANGED, 0, "unchanged"),
        (Pretext.ROTATION, 3, "rotation by 270° to the left"),
        (Pretext.SPATIAL_PERMUTATION, 1, "spatial permutation: quarters 1 2 4 3"),
        (Pretext.TEMPORAL_SWAP, 1, "temporal swap: segments 2 and 3 of 4"),
        (Pretext.TEMPORAL_SHUFFLE, 0, "temporal shuffle: segment 2 of 4 shows segment 4"),
        (Pretext.TEMPORAL_SHUFFLE, 1, "temporal shuffle: a clip from elsewhere in the video"),
    ],
)
def test_operations_are_named_with_their_variant(pretext, variant, words):
    assert operation_in_words(pretext, variant) == words


def test_a_store_that_does_not_fit_costs_the_pictures_and_not_the_report(tmp_path, store):
    run = read_run(_write_run(tmp_path / "run", [], **{**CONFIG, "crop": 64}))
    assert "No pictures: crop 64 does not fit" in "".join(tuples(run, store))
    run = read_run(_write_run(tmp_path / "other", [], train_subset="train09"))
    assert "there is no subset &#x27;train09&#x27;" in "".join(tuples(run, store))
    assert tuples(run, None) == []


def test_a_name_that_is_no_text_is_written_as_escapes(tmp_path):
    run = read_run(_write_run(tmp_path / "run", [], store="a\udcffb"))
    assert rb"a\udcffb" in report_html(run)


def test_report_and_comparison_need_neither_torch_nor_ray():
    code = "import sys, trainer.report, trainer.compare; print({'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"


LABELS = {
    "train_label_histogram": [3, 2, 2, 2, 1],
    "train_pretext_acc": 0.4,
    "train_balanced_acc": 0.35,
    "val_label_histogram": [2, 2, 2, 2, 2],
    "val_balanced_acc": 0.3,
}


def test_operations_are_counted_with_plain_and_balanced_accuracy_of_each_list(tmp_path):
    evaluation = {**EVALUATION, "pretext_label_histogram": [7] * 5, "pretext_acc": 0.512, "pretext_balanced_acc": 0.5}
    result = {**RESULT, "evaluation": evaluation}
    tested = {"test_label_histogram": [6] * 5, "test_pretext_acc": 0.25, "test_balanced_acc": 0.125}
    folder = _write_run(tmp_path / "run", [_step(1), _epoch(1, **LABELS), _epoch(2, **LABELS, **tested)], result)
    words = _Page(report_html(read_run(folder))).text
    for row in (
        "training, last epoch 3 2 2 2 1 40.0 % 35.0 %",
        "validation, last epoch 2 2 2 2 2 30.0 % 30.0 %",
        "test, last epoch 6 6 6 6 6 25.0 % 12.5 %",
        "test, final 7 7 7 7 7 51.2 % 50.0 %",
    ):
        assert row in words.replace("\xa0", " ")


def test_what_validation_chose_and_an_early_end_are_told(tmp_path):
    chosen = {"best_step": 3, "best_val_balanced_acc": 0.625, "stopped_early": True}
    words = _Page(report_html(read_run(_write_run(tmp_path / "run", [_step(1)], RESULT | chosen)))).text
    assert "Steps 4 2 epochs, stopped early" in words
    assert "Best on validation step 3 balanced accuracy 62.5" in words


def drawn(panel_name, run):
    """The lines that a panel draws, by their names in its legend."""
    axes = Figure().subplots()
    next(panel for panel in panels(run) if panel.name == panel_name).draw(axes, run, LIGHT)
    lines, names = axes.get_legend_handles_labels()
    return dict(zip(names, lines, strict=True))


def test_curves_show_all_three_lists_and_the_terms_that_were_on(tmp_path):
    tested = {"test_pretext_acc": 0.25, "test_loss": 1.5}
    lines = [
        _step(1, hint=0.5, ce=None, cka=0.5),
        _epoch(1, **tested),
        _step(2, hint=0.4, ce=None),
        _epoch(2, **tested),
    ]
    run = read_run(_write_run(tmp_path / "run", lines))
    assert list(drawn("accuracy-steps", run)) == ["training", "validation", "test", "guessing"]
    assert list(drawn("loss-steps", run)) == [
        "total", "pretext", "contrast", "distillation", "hint", "pretext, validation", "pretext, test",
    ]  # fmt: skip
    assert list(drawn("agreement", run)) == ["student and teacher agree", "likeness of their features (CKA)"]


def test_epochs_without_a_test_figure_leave_no_gap_in_its_curve(tmp_path):
    epochs = [_epoch(1), _epoch(2, test_pretext_acc=0.25), _epoch(3), _epoch(4, test_pretext_acc=0.5)]
    run = read_run(_write_run(tmp_path / "run", [_step(1), *epochs]))
    line = drawn("accuracy-steps", run)["test"]
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([2.0, 4.0], [25.0, 50.0])
