"""Videos that a student was trained on are not asked of it by default, and never under the labels that it learned."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from data.input_spec import InputSpec
from data.store import ClipStore, StoreWriter
from data.views import ClipSpec
from teacher_server.zoo.network import VideoNetwork
from trainer.config import RunConfig
from trainer.errors import EvaluationError
from trainer.evaluate.cached import ask
from trainer.evaluate.exposure import splits_to_ask
from trainer.evaluate.finetune_recipe import FinetuneRecipe
from trainer.evaluate.records import Evaluation
from trainer.evaluate.request import EvalRequest
from trainer.lessons import Lesson, lesson_on
from trainer.student_files import LoadedStudent, load_student, tensors_digest

SPEC = ClipSpec(clip_len=8, interval=2, crop=32)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """12 videos; test02 lies in train01, test01 in train02, and train03 is everything."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("exposure") / "two"
    names = []
    with StoreWriter(path, frame_size=(36, 40), classes=("left", "right")) as writer:
        for group, label in itertools.product(range(6), range(2)):
            names.append(f"v{group}{label}")
            writer.add(names[-1], label, f"g{group}", rng.integers(0, 256, (30, 36, 40, 3), dtype=np.uint8))
        subsets = {"train01": names[:8], "test01": names[8:], "train02": names[3:], "test02": names[:3]}
        writer.commit(subsets | {"train03": names})
    return ClipStore.open(path)


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("PRECEPTOR_HOME", str(tmp_path / "home"))


@pytest.fixture
def config(store):
    return RunConfig(student="c3d", width=0.05, clip_len=8, interval=2, crop=32, store=str(store.path))


def _learned(store, *lists, labels=False):
    return tuple(lesson_on(store, store.subset(name), name, used_labels=labels) for name in lists)


def test_by_default_the_splits_are_those_whose_test_videos_are_new(store):
    assert splits_to_ask(_learned(store, "train01"), store, (), "probe") == ("01",)
    assert splits_to_ask(_learned(store, "train02"), store, (), "pretext") == ("02",)
    assert splits_to_ask((), store, (), "pretext") == ("01", "02")
    for lists, said in (
        (("train03",), "train03 of two"),
        (("train01", "train02"), "train01 of two and train02 of two"),
    ):
        with pytest.raises(EvaluationError, match=rf"trained on {said}, with test .*--splits; they are 01, 02"):
            splits_to_ask(_learned(store, *lists), store, (), "probe")


def test_only_splits_that_may_be_asked_are_offered(store):
    without, labelled = _learned(store, "train01"), _learned(store, "train02", labels=True)
    with pytest.raises(EvaluationError, match=r"with --splits; they are 02$"):  # train02 has the answers to test01
        splits_to_ask(without + labelled, store, (), "probe")
    assert splits_to_ask(without + labelled, store, ("02",), "probe") == ("02",)
    with pytest.raises(EvaluationError, match="learned the answers; no split of this store is new to it"):
        splits_to_ask(without + labelled, store, ("01",), "probe")
    with pytest.raises(EvaluationError, match="there is nothing here to ask it"):
        splits_to_ask(without + labelled, store, (), "pretext")


@pytest.mark.parametrize(
    ("protocol", "labels"), [("pretext", False), ("probe", True), ("finetune", True), ("retrieval", True)]
)
def test_videos_are_not_asked_under_the_labels_that_the_student_learned(store, protocol, labels):
    lessons = _learned(store, "train01", labels=labels)
    assert splits_to_ask(lessons, store, ("01",), protocol) == ("01",)
    with pytest.raises(EvaluationError, match=r"3 of the test .* split 02 are in train01 of two, .*; new to it are 01"):
        splits_to_ask(lessons, store, ("01", "02"), protocol)


def _student(config, store, lessons):
    torch.manual_seed(0)
    network = VideoNetwork("c3d", 0.05).eval()
    digest = tensors_digest(network.state_dict())
    return LoadedStudent(network, config, digest, store.path / "step-1", lessons=lessons)


def test_videos_seen_without_labels_may_be_asked_and_are_counted(store, config):
    student = _student(config, store, _learned(store, "train01"))
    request = EvalRequest("retrieval", SPEC, InputSpec(modality="res", crop=32), clips_per_video=2)
    assert [(score.split, score.test_seen) for score in ask(student, store, request).evaluation.splits] == [("01", 0)]
    answer = ask(student, store, dataclasses.replace(request, splits=("01", "02")))
    assert [(score.split, score.test_seen) for score in answer.evaluation.splits] == [("01", 0), ("02", 3)]
    assert "of these seen in training" in answer.files.page.read_text()


def test_what_nobody_knows_is_said_and_not_counted_as_new(store, config):
    student = _student(config, store, (Lesson(name="train01 of two", used_labels=False, videos=None),))
    request = EvalRequest("retrieval", SPEC, InputSpec(modality="res", crop=32), clips_per_video=2)
    answer = ask(student, store, request)
    assert [(score.split, score.test_seen) for score in answer.evaluation.splits] == [("01", None), ("02", None)]
    assert "<td>not known</td>" in answer.files.page.read_text()
    known = dataclasses.replace(student, lessons=_learned(store, "train01"))  # its run's store came back
    again = ask(known, store, dataclasses.replace(request, splits=("01", "02")))
    assert again.was_there
    assert [score.test_seen for score in again.evaluation.splits] == [0, 3]
    assert "not known" not in answer.files.page.read_text()
    assert Evaluation.model_validate_json(answer.files.record.read_bytes()) == again.evaluation


def test_a_fine_tuned_student_is_not_asked_about_what_it_was_fine_tuned_on(store, config):
    """Its run knew nothing of this store; split 02 tests videos that train01 taught it with their labels."""
    recipe = FinetuneRecipe(mode="full", epochs=1, clips_per_video=2, augment=False)
    request = EvalRequest("finetune", SPEC, InputSpec(modality="res", crop=32), splits=("01",), recipe=recipe)
    tuned = load_student(ask(_student(config, store, ()), store, request).files.model("01"))
    assert splits_to_ask(tuned.lessons, store, (), "probe") == ("01",)
    with pytest.raises(EvaluationError, match="3 of the test videos of split 02 are in train01"):
        splits_to_ask(tuned.lessons, store, ("02",), "retrieval")
