"""The training command: wrong input ends in one sentence before anything starts; a whole run leaves its files."""

import contextlib
import fnmatch
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.store import StoreWriter
from teacher_server.clients.inprocess import InProcessTeacherClient
from teacher_server.contract import FailedReply
from teacher_server.errors import TeacherUnavailable
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId
from teacher_server.roster.roster import Roster
from trainer.command import main

ROOT = Path(__file__).parents[3]
TINY = ["--width", "0.125", "--clip-len", "8", "--interval", "2", "--crop", "32", "--batch-size", "4"]
QUICK = [*TINY, "--val-fraction", "0.25", "--epochs", "1", "--num-workers", "0", "--device", "cpu", "--eval-clips", "1"]
KEYS = {
    "teacher",
    "student",
    "pretext_acc",
    "retrieval_top1",
    "probe_acc",
    "steps",
    "seconds",
    "teacher_wait_share",
    "teacher_timeline",
    "store_fingerprint",
    "seed",
}

# name -> (arguments, the one sentence on stderr)
BAD_INPUT = {
    "unknown teacher": (["--teacher", "nobody"], "error: no teacher 'nobody': known are *alpha, *gamma*"),
    "unknown version": (["--teacher", "alpha@7"], "error: no teacher 'alpha@7': known are alpha@1, alpha@2"),
    "no teacher's name": (["--teacher", "../x"], "error: '../x' is no teacher name: expected letters a-z, *"),
    "unknown student": (["--student", "resnet"], "error: student must be one of c3d, r3d, *, or your own *"),
    "missing store": (["--store", "nowhere"], "error: clip store */stores/nowhere: *"),
    "damaged store": (["--store", "{damaged}"], "error: clip store {damaged}: *; restore it from a copy, or ingest *"),
    "damaged manifest": (["--store", "{mangled}"], "error: clip store {mangled}: *"),
    "no such subset": (
        ["--train-subset", "train09"],
        "error: clip store *: there is no subset 'train09'; known are: *",
    ),
    "videos too short": (
        ["--clip-len", "20"],
        "error: no video of train01 or of test01 has the 64 frames that a tuple *",
    ),
    "clips too short": (["--clip-len", "7"], "error: clip_len >= 8, *"),
    "crop too large": (["--crop", "42"], "error: --crop 42 does not fit into the store's frames of 40x54: *"),
    "odd crop": (["--crop", "33"], "error: crop must be even and at least 32, got 33"),
    "teacher of another crop": (["--teacher", "gamma"], "error: teacher gamma does not fit this run: it takes 24x24 *"),
    "teacher of longer clips": (
        ["--teacher", "long"],
        "error: teacher long *: it takes clips of at least 16 frames, *",
    ),
    "teacher of other classes": (["--teacher", "other"], "error: teacher other *: its classes are a, b, c, d, e, *"),
    "shuffled answers of actions": (
        ["--teacher", "beta", "--kd-target", "shuffled"],
        "error: --kd-target shuffled goes by the pretext label, teacher beta has an action head",
    ),
    "actions of other classes": (
        ["--teacher", "beta", "--ce-weight", "1"],
        "error: --ce-weight and teacher beta share one action head, but the teacher's 3 classes are not the store's 2*",
    ),
    "hints of nobody": (["--hint-weight", "1"], "error: --hint-weight needs a teacher whose features to follow: *"),
    "missing loss": (["--extra-loss", "nowhere:loss"], "error: plug-in 'nowhere:loss' (losses): *No module named*"),
    "loss that is none": (["--extra-loss", "math:pi"], "error: plug-in 'math:pi' (losses): is float, expected a *"),
    "nothing to validate on": (["--val-fraction", "0.99"], "error: 16 training videos in 4 groups cannot be split *"),
    "no GPU": (["--device", "cuda"], "error: --device cuda, but torch finds no usable GPU on this machine: *"),
    "missing timeline": (
        ["--teacher", "alpha", "--teacher-timeline", "nowhere.json"],
        "error: teacher timeline nowhere.json cannot be read: No such file *",
    ),
    "timeline of other versions": (
        ["--teacher", "alpha", "--teacher-timeline", "{timeline}"],
        "error: teacher timeline {timeline}: no teacher 'alpha@7': known are alpha@1, alpha@2",
    ),
    "transport without its gateway": (
        ["--teacher", "alpha", "--teacher-transport", "http"],
        "error: --teacher-transport http and --gateway URL belong together",
    ),
    "replay of nothing": (
        ["--teacher", "alpha", "--ledger", "replay"],
        "error: --ledger replay: no answers of teacher alpha are recorded in *",
    ),
    "bad run id": (["--run-id", "../x"], "error: run id '../x': expected letters, digits, dots, - and _"),
    "missing recipe": (["--recipe", "nowhere.toml"], "error: recipe nowhere.toml cannot be read: No such file *"),
}


def attempts(arguments):
    """Runs in a process of its own: the exit code and what was printed, for each list of arguments."""
    answers = {}
    for name, argv in arguments.items():
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(argv)
            except SystemExit as error:
                code = error.code
        answers[name] = {"code": code, "out": out.getvalue(), "err": err.getvalue(), "ray": "ray" in sys.modules}
    return answers


@pytest.fixture(scope="module")
def refusals(store, tiny, tmp_path_factory):
    """What the command says to each wrong input; all of them in one fresh process, for the time of its imports."""
    folder = tmp_path_factory.mktemp("refusals")
    home = folder / "home"
    (home / "runs").mkdir(parents=True)
    library = tiny.build_library(home / "teachers", folder)
    for name, changes in (("long", {"min_clip_len": 16}), ("other", {"classes": ("a", "b", "c", "d", "e")})):
        card = tiny.make_card(**changes)
        library.add(name, card, tiny.save_random_weights(card, folder / f"{name}.safetensors", 0))
    for name, damage in (("damaged", "segments/*.arrow"), ("mangled", "manifest-*.json")):
        with StoreWriter(folder / name, frame_size=store.frame_size, classes=store.classes) as writer:
            for i in range(3):
                writer.add(f"left/{i}", 0, f"g{i}", np.zeros((40, *store.frame_size, 3), dtype=np.uint8))
            writer.commit({"train01": ["left/0", "left/1"], "test01": ["left/2"]})
        (file,) = (folder / name).glob(damage)
        file.write_bytes(file.read_bytes()[:-100])
    places = {name: folder / name for name in ("damaged", "mangled", "timeline")}
    places["timeline"].write_text(json.dumps([{"first_step": 0, "teacher": "alpha@7", "digest": "0" * 64}]))
    arguments = {
        name: [*QUICK, "--store", str(store.path), "--teacher", "none", *(text.format(**places) for text in argv)]
        for name, (argv, _) in BAD_INPUT.items()
    }
    script = f"import json, runpy, sys; attempts = runpy.run_path({__file__!r})['attempts'];" + (
        "print(json.dumps(attempts(json.load(sys.stdin))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(arguments),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PRECEPTOR_HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list((home / "runs").iterdir()) == []
    return json.loads(done.stdout), places


@pytest.mark.parametrize("name", BAD_INPUT)
def test_wrong_input_ends_in_one_sentence_before_anything_starts(refusals, name):
    answers, places = refusals
    answer = answers[name]
    assert answer["code"] == 2, answer
    assert "Traceback" not in answer["err"]
    message = answer["err"].strip()
    assert len(message.splitlines()) == 1
    assert fnmatch.fnmatchcase(message, BAD_INPUT[name][1].format(**places).replace("[", "[[]")), message
    assert not answer["ray"]


def run_main(capsys, *argv):
    code = main([*QUICK, *argv])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_run_without_teacher_leaves_result_report_and_curves(home, store, capsys):
    argv = ("--teacher", "none", "--store", str(store.path))
    code, out, err = run_main(capsys, *argv)
    assert (code, err) == (0, "")
    (run,) = (home / "runs").iterdir()
    result = json.loads((run / "result.json").read_bytes())
    assert result.keys() >= KEYS
    assert (result["teacher"], result["student"], result["steps"], result["seed"]) == ("none", "r3d", 3, 0)
    assert (result["teacher_timeline"], result["teacher_wait_share"]) == ([], 0.0)
    assert result["store_fingerprint"] == store.fingerprint
    for name in ("pretext_acc", "retrieval_top1", "probe_acc"):
        assert 0.0 <= result[name] <= 1.0
    assert result["num_videos"] == {"train": 12, "validation": 4, "test": 8, "left_out": 1}
    assert len(set((run / "train_list.txt").read_text().splitlines())) == 12
    assert (run / "report.html").read_bytes().startswith(b"<!doctype html>")
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((run / "tensorboard").iterdir())
    assert json.loads((run / "config.json").read_bytes())["run_id"] == run.name
    assert f"run {run.name}" in out
    assert f"pretext_acc {result['pretext_acc']:.3f}" in out

    code, _, _ = run_main(capsys, *argv)
    assert code == 0
    runs = sorted((home / "runs").iterdir())
    assert len(runs) == 2  # what is finished is not gone on with
    results = [json.loads((path / "result.json").read_bytes()) for path in runs]
    assert results[0]["pretext_acc"] == results[1]["pretext_acc"]


def test_test_videos_too_short_for_a_tuple_take_part_in_retrieval_and_probe(home, store, capsys):
    argv = ("--teacher", "none", "--store", str(store.path), "--max-steps", "1")
    argv += ("--train-subset", "train02", "--test-subset", "test02")
    assert run_main(capsys, *argv)[0] == 0
    (run,) = (home / "runs").iterdir()
    found = json.loads((run / "result.json").read_bytes())["evaluation"]
    assert (found["pretext_videos"], found["pretext_left_out"]) == (8, 1)
    assert (found["test_videos"], found["test_left_out"]) == (9, 0)


def test_a_run_under_an_in_process_teacher_names_it_with_its_digest(home, store, capsys):
    code, out, err = run_main(
        capsys, "--teacher", "alpha", "--teacher-transport", "in_process", "--store", str(store.path), "--no-evaluate"
    )
    assert (code, err) == (0, "")
    (run,) = (home / "runs").iterdir()
    result = json.loads((run / "result.json").read_bytes())
    digest = TeacherLibrary(home / "teachers").entry(TeacherId("alpha", 1)).digest
    assert result["teacher_timeline"] == [{"first_step": 0, "teacher": "alpha@1", "digest": digest}]
    assert (result["pretext_acc"], result["probe_acc"]) == (None, None)
    assert 0.0 < result["teacher_wait_share"] < 1.0
    assert "teacher alpha" in out


def test_a_run_is_repeated_from_its_ledger_and_its_timeline_and_the_command_starts_no_cluster(home, store, capsys):
    """The alias points elsewhere meanwhile: the timeline of the first run is followed all the same."""
    common = ("--teacher", "alpha", "--store", str(store.path), "--no-evaluate")
    code, out, _ = run_main(capsys, *common, "--ledger", "record", "--teacher-transport", "in_process")
    assert code == 0
    assert "teacher alpha with the ledger (record)" in out
    (first,) = (home / "runs").iterdir()
    roster = Roster(TeacherLibrary(home / "teachers"))
    roster.promote("alpha", 2, "test")
    timeline = ("--teacher-timeline", str(first / "result.json"))
    code, out, err = run_main(capsys, *common, "--ledger", "replay", *timeline)
    assert (code, err) == (0, "")
    (second,) = set((home / "runs").iterdir()) - {first}
    assert second.name in out
    results = [json.loads((run / "result.json").read_bytes()) for run in (first, second)]
    assert results[0]["teacher_timeline"] == results[1]["teacher_timeline"]
    assert [result["replayed_items"] for result in results] == [0, 12]
    ends = [next(iter(run.glob("checkpoints/*/state.safetensors"))).read_bytes() for run in (first, second)]
    assert ends[0] == ends[1]
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


@pytest.mark.usefixtures("home")
def test_a_run_that_had_to_skip_says_so_at_its_end(store, capsys, monkeypatch):
    def nobody(_client, query):
        return FailedReply(TeacherUnavailable(str(query.teacher), 0.0, "no replica lives"))

    monkeypatch.setattr(InProcessTeacherClient, "submit", nobody)
    argv = ("--teacher", "alpha", "--teacher-transport", "in_process", "--store", str(store.path), "--no-evaluate")
    code, out, _ = run_main(capsys, *argv, "--on-teacher-loss", "skip", "--teacher-budget-s", "0.01")
    assert code == 0
    assert "12 tuples were trained on without distillation: no teacher answered them" in out


@pytest.mark.usefixtures("home")
def test_teachers_that_cannot_be_had_before_the_first_step_end_with_the_code_for_it(store, capsys, monkeypatch):
    def launch(*_args):
        raise TeacherUnavailable("alpha", 150.0, "the teacher service did not start")

    monkeypatch.setattr("trainer.launch.launch", launch)
    code, _, err = run_main(capsys, "--teacher", "alpha", "--store", str(store.path))
    assert code == 3
    assert err == "error: teacher alpha did not answer within 150.0 s: the teacher service did not start\n"


def test_a_run_does_not_go_on_without_its_timeline_or_with_another(home, store, capsys):
    """Stopped before its end, and the alias points elsewhere meanwhile."""
    library = TeacherLibrary(home / "teachers")
    entry = {"first_step": 0, "teacher": "alpha@1", "digest": library.entry(TeacherId("alpha", 1)).digest}
    file, copy, other = (home / f"{name}.json" for name in ("file", "copy", "other"))
    for path in (file, copy):
        path.write_text(json.dumps([entry]))
    other.write_text(json.dumps([entry, entry | {"first_step": 8}]))
    common = ("--teacher", "alpha", "--teacher-transport", "in_process", "--store", str(store.path), "--no-evaluate")
    assert run_main(capsys, *common, "--run-id", "mine", "--teacher-timeline", str(file))[0] == 0
    (home / "runs" / "mine" / "result.json").unlink()
    Roster(library).promote("alpha", 2, "test")
    for argv in ((), ("--teacher-timeline", str(other))):
        code, _, err = run_main(capsys, *common, "--run-id", "mine", *argv)
        assert code == 2
        assert "run mine was started with other settings or another --teacher-timeline" in err
    code, out, _ = run_main(capsys, *common, "--teacher-timeline", str(copy))
    assert code == 0
    assert "run mine, going on after step 3" in out
    assert run_main(capsys, *common)[0] == 0  # a new run, which follows the alias
    assert len(list((home / "runs").iterdir())) == 2


def test_a_dry_run_prints_the_plan_and_makes_nothing(home, store, capsys):
    code, out, _ = run_main(capsys, "--teacher", "alpha", "--store", str(store.path), "--dry-run")
    assert code == 0
    assert "12 training, 4 validation and 8 test videos (1 too short for a tuple, left out)" in out
    assert "1 epochs of 3 steps, 3 steps of 4 tuples on cpu" in out
    assert list((home / "runs").iterdir()) == []
