"""Videos that a student was trained on are not asked of it by default, and never under the labels that it learned."""

import dataclasses
import itertools
import shutil

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
from trainer.evaluate.exposure import splits_to_ask, training_rows
from trainer.evaluate.request import EvalRequest
from trainer.student_files import LoadedStudent, tensors_digest

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


def test_by_default_the_splits_are_those_whose_test_videos_are_new(store, config):
    assert splits_to_ask(config, store, (), "probe") == ("01",)
    assert splits_to_ask(dataclasses.replace(config, train_subset="train02"), store, (), "pretext") == ("02",)
    with pytest.raises(EvaluationError, match=r"trained on train03 of this store, .*--splits; they are 01, 02"):
        splits_to_ask(dataclasses.replace(config, train_subset="train03"), store, (), "probe")


def test_another_store_is_new_to_the_student_and_a_copy_of_its_own_is_not(store, config, tmp_path):
    assert splits_to_ask(dataclasses.replace(config, store=str(tmp_path / "other")), store, (), "pretext") == (
        "01",
        "02",
    )
    copy = ClipStore.open(shutil.copytree(store.path, tmp_path / "copy"))
    assert splits_to_ask(config, copy, (), "pretext") == ("01",)
    np.testing.assert_array_equal(training_rows(config, copy), store.subset("train01"))


@pytest.mark.parametrize(
    ("protocol", "change"), [("pretext", {}), ("probe", {"ce_weight": 0.5}), ("finetune", {"extra_loss": "a:b"})]
)
def test_videos_are_not_asked_under_the_labels_that_the_student_learned(store, config, protocol, change):
    config = dataclasses.replace(config, **change)
    assert splits_to_ask(config, store, ("01",), protocol) == ("01",)
    with pytest.raises(EvaluationError, match="3 of the test videos of split 02 are in train01"):
        splits_to_ask(config, store, ("01", "02"), protocol)


def test_videos_seen_without_labels_may_be_asked_and_are_counted(store, config):
    torch.manual_seed(0)
    network = VideoNetwork("c3d", 0.05).eval()
    student = LoadedStudent(network, config, tensors_digest(network.state_dict()), store.path / "step-1")
    request = EvalRequest("retrieval", SPEC, InputSpec(modality="res", crop=32), clips_per_video=2)
    assert [(score.split, score.test_seen) for score in ask(student, store, request).evaluation.splits] == [("01", 0)]
    answer = ask(student, store, dataclasses.replace(request, splits=("01", "02")))
    assert [(score.split, score.test_seen) for score in answer.evaluation.splits] == [("01", 0), ("02", 3)]
    assert "of these seen in training" in answer.files.page.read_text()
