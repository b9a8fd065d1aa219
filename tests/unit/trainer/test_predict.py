"""Answers for video files, against the same frames in a store; files that are no videos get a reason."""

import dataclasses
import itertools

import av
import numpy as np
import pytest
import torch

from data.decode import decode
from data.store import ClipStore, StoreWriter
from teacher_server.zoo.network import VideoNetwork
from trainer.config import RunConfig
from trainer.errors import EvaluationError
from trainer.evaluate import clip_features
from trainer.evaluate.finetune import mean_logits
from trainer.evaluate.predict import PredictOptions, predict
from trainer.evaluate.retrieval import nearest
from trainer.plan import student_input
from trainer.student_files import LoadedStudent, tensors_digest

FRAME_SIZE = (36, 48)
CONFIG = RunConfig(student="c3d", width=0.05, clip_len=8, interval=2, crop=32)
OPTIONS = PredictOptions(clips_per_video=3, top=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three videos of 20 frames, moving squares; one of 5 frames; a text."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for name, num_frames in (("a.avi", 20), ("b.avi", 20), ("c.avi", 20), ("short.avi", 5)):
        ground, x = rng.integers(0, 200, (72, 96, 3), dtype=np.uint8), rng.integers(0, 40)
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
            for t in range(num_frames):
                frame = ground.copy()
                frame[20:40, x + t : x + t + 20] = 255
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    (folder / "text.avi").write_text("this is no video")
    return folder


@pytest.fixture(scope="module")
def store(files, tmp_path_factory):
    """The three long videos as they are decoded."""
    path = tmp_path_factory.mktemp("stores") / "three"
    with StoreWriter(path, frame_size=FRAME_SIZE, classes=("x", "y")) as writer:
        for label, name in zip(itertools.cycle((0, 1)), ("a", "b", "c"), strict=False):
            writer.add(name, label, "g", decode(files / f"{name}.avi", FRAME_SIZE))
        writer.commit({})
    return ClipStore.open(path)


def _student(tmp_path, classes=("x", "y"), **heads):
    torch.manual_seed(0)
    network = VideoNetwork("c3d", 0.05, **heads).eval()
    student = LoadedStudent(network, CONFIG, tensors_digest(network.state_dict()), tmp_path)
    return (
        dataclasses.replace(student, classes=classes, frame_size=FRAME_SIZE) if "action_classes" in heads else student
    )


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("PRECEPTOR_HOME", str(tmp_path / "home"))


def _features(student, store):
    rows = np.arange(len(store))
    return clip_features(student.network, store, rows, CONFIG.clip_spec, student_input(CONFIG), 3)


def test_a_fine_tuned_student_gives_the_softmax_of_the_mean_logits_of_even_clips(files, store, tmp_path):
    student = _student(tmp_path, pretext_classes=0, action_classes=2, projector=False)
    answers = list(predict(student, [files / f"{name}.avi" for name in "abc"], options=OPTIONS))
    logits = torch.from_numpy(mean_logits(student.network, _features(student, store)).astype(np.float64))
    for answer, shares in zip(answers, logits.softmax(dim=1).tolist(), strict=True):
        wanted = sorted(zip(shares, ("x", "y"), strict=True), reverse=True)
        assert [guess.action for guess in answer.guesses] == [action for _, action in wanted]
        assert [guess.score for guess in answer.guesses] == pytest.approx([share for share, _ in wanted], rel=1e-5)
        assert answer.problem is None


def test_any_student_names_the_nearest_videos_of_a_gallery(files, store, tmp_path):
    student = _student(tmp_path)
    (answer,) = predict(student, [files / "b.avi"], gallery=store, options=OPTIONS)
    features = _features(student, store)
    near = nearest(features[1:2], features, 2)
    assert [guess.video for guess in answer.guesses] == ["abc"[place] for place in near.places[0]]
    assert [guess.action for guess in answer.guesses] == ["xyx"[place] for place in near.places[0]]
    assert [guess.score for guess in answer.guesses] == pytest.approx(near.cosines[0].tolist(), abs=1e-5)
    assert answer.guesses[0].video == "b"


def test_files_that_cannot_be_answered_get_a_reason_and_the_others_their_answers(files, store, tmp_path):
    names = ("text.avi", "a.avi", "missing.avi", "short.avi", "c.avi")
    answers = list(predict(_student(tmp_path), [files / n for n in names], gallery=store, options=OPTIONS))
    assert [answer.file for answer in answers] == [str(files / name) for name in names]
    problems = [answer.problem for answer in answers]
    assert problems == [
        "it is damaged or not a video",
        None,
        "it cannot be read (No such file or directory)",
        "it has 5 frames, this student needs 8",
        None,
    ]
    assert [len(answer.guesses) for answer in answers] == [0, 2, 0, 0, 2]


def test_without_any_of_the_files_no_gallery_is_embedded(files, store, tmp_path):
    with pytest.raises(EvaluationError, match=r"there is no such video file: .*missing.avi"):
        predict(_student(tmp_path), [files / "missing.avi"], gallery=store)


def test_a_student_that_names_no_actions_needs_a_gallery(files, tmp_path):
    with pytest.raises(EvaluationError, match="has not learned to name actions: name a --store"):
        predict(_student(tmp_path), [files / "a.avi"])


def test_a_student_whose_store_is_gone_says_so(files, tmp_path):
    student = dataclasses.replace(_student(tmp_path, action_classes=2, classes=("x", "y")), frame_size=None)
    with pytest.raises(EvaluationError, match=f"clip store {CONFIG.store}, .* is not here, so their size"):
        predict(student, [files / "a.avi"])


def test_a_gallery_of_other_frames_is_refused(files, store, tmp_path):
    student = dataclasses.replace(_student(tmp_path), config=dataclasses.replace(CONFIG, crop=64))
    with pytest.raises(EvaluationError, match="has frames of 36x48, this student was trained on crops of 64x64"):
        predict(student, [files / "a.avi"], gallery=store)


@pytest.mark.parametrize("change", [{"clips_per_video": 0}, {"top": 0}, {"timeout_s": 0.0}])
def test_options_that_cannot_be_are_refused(change):
    with pytest.raises(EvaluationError):
        dataclasses.replace(OPTIONS, **change)
