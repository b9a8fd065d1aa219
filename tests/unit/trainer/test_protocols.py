"""The four protocols on a store, kept results, and the page."""

import dataclasses
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.input_spec import InputSpec
from data.store import ClipStore, StoreWriter
from data.views import ClipSpec
from teacher_server.zoo.network import VideoNetwork
from trainer.config import RunConfig
from trainer.errors import EvaluationError
from trainer.evaluate import clip_features, pretext_accuracy, retrieval
from trainer.evaluate.cached import ask, evaluation_files
from trainer.evaluate.feature_files import kept_features
from trainer.evaluate.finetune import finetune
from trainer.evaluate.finetune_recipe import FinetuneRecipe
from trainer.evaluate.probe import linear_probe
from trainer.evaluate.protocols import evaluate
from trainer.evaluate.records import Evaluation
from trainer.evaluate.request import EvalRequest
from trainer.evaluate.splits import split_names, splits_of
from trainer.student_files import LoadedStudent, load_student, tensors_digest

SPEC = ClipSpec(clip_len=8, interval=2, crop=32)
INPUT = InputSpec(modality="res", crop=32)
RECIPE = FinetuneRecipe(epochs=2, lr=0.05, batch_size=4, clips_per_video=2)


@pytest.fixture(scope="module")
def splits_store(tmp_path_factory):
    """12 videos of 30 frames in 6 groups and one of 6 frames, in two splits and a train list without a test list."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("splits") / "two"
    names = []
    with StoreWriter(path, frame_size=(36, 40), classes=("left", "right")) as writer:
        for group, label in itertools.product(range(6), range(2)):
            names.append(f"v{group}{label}")
            writer.add(names[-1], label, f"g{group}", rng.integers(0, 256, (30, 36, 40, 3), dtype=np.uint8))
        writer.add("short", 0, "g0", rng.integers(0, 256, (6, 36, 40, 3), dtype=np.uint8))
        subsets = {"train01": [*names[:8], "short"], "test01": names[8:]}
        writer.commit(subsets | {"train02": names[4:], "test02": [*names[:4], "short"], "train03": names})
    return ClipStore.open(path)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = VideoNetwork("c3d", 0.05)
    network.train()
    network.forward_tuple(tuple(torch.randn(4, 3, 8, 32, 32) for _ in range(3)))
    return network.eval()


@pytest.fixture
def student(network, tmp_path, monkeypatch):
    monkeypatch.setenv("PRECEPTOR_HOME", str(tmp_path / "home"))
    config = RunConfig(student="c3d", width=0.05, clip_len=8, interval=2, crop=32)
    return LoadedStudent(network, config, tensors_digest(network.state_dict()), tmp_path / "runs" / "mine" / "step-1")


def _request(protocol, **changes):
    request = EvalRequest(protocol, SPEC, INPUT, recipe=RECIPE, clips_per_video=2, tuples_per_video=1)
    return dataclasses.replace(request, **changes)


def _evaluate(network, store, request):
    return evaluate(network, store, request, student="mine", weights_digest="ab")


def _features(network, store, rows):
    return clip_features(network, store, rows, SPEC, INPUT, 2)


def test_a_store_has_the_splits_for_which_both_lists_exist_and_short_videos_are_counted(splits_store):
    first, second = splits_of(splits_store, (), 8)
    assert (first.name, len(first.train_rows), len(first.test_rows)) == ("01", 8, 4)
    assert (second.name, len(second.train_rows), len(second.test_rows)) == ("02", 8, 4)
    assert (first.train_left_out, first.test_left_out) == (1, 0)
    assert (second.train_left_out, second.test_left_out) == (0, 1)
    assert [split.name for split in splits_of(splits_store, ("02",), 8)] == ["02"]


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_no_interval_can_be_drawn_from_is_refused(seed):
    with pytest.raises(EvaluationError, match="the intervals' seed must lie between 0 and"):
        _request("retrieval", seed=seed)


def test_a_split_without_both_lists_is_refused_with_those_that_there_are(splits_store):
    with pytest.raises(EvaluationError, match="has no lists train03 and test03; its splits are: 01, 02"):
        splits_of(splits_store, ("01", "03"), 8)


def test_a_split_with_videos_in_both_of_its_lists_is_refused(tmp_path):
    with StoreWriter(tmp_path / "mixed", frame_size=(36, 40), classes=("left",)) as writer:
        for key in "abc":
            writer.add(key, 0, "g0", np.zeros((8, 36, 40, 3), dtype=np.uint8))
        writer.commit({"train01": ["a", "b"], "test01": ["b", "c"]})
    with pytest.raises(EvaluationError, match="1 of the 2 videos of test01 are in train01, too"):
        splits_of(ClipStore.open(tmp_path / "mixed"), (), 8)


def test_retrieval_of_each_split_is_that_of_its_lists(network, splits_store):
    found = _evaluate(network, splits_store, _request("retrieval"))
    for score, split in zip(found.splits, splits_of(splits_store, (), 8), strict=True):
        test, train = (_features(network, splits_store, rows) for rows in (split.test_rows, split.train_rows))
        labels = splits_store.labels
        assert score.top_k == retrieval(test, train, labels[split.test_rows], labels[split.train_rows])
        assert score.accuracy == score.top_k[1]
        assert np.trace(np.array(score.confusion)) == score.accuracy * score.test_videos
        for example in score.examples:
            assert example.query in split.test_rows
            assert set(example.neighbours) <= set(split.train_rows.tolist())
            assert list(example.cosines) == sorted(example.cosines, reverse=True)
    assert found.mean_accuracy == np.mean([score.accuracy for score in found.splits])
    assert found.mean_top_k[5] == np.mean([score.top_k[5] for score in found.splits])


def test_the_probe_of_a_split_is_that_of_its_lists(network, splits_store):
    (score,) = _evaluate(network, splits_store, _request("probe", splits=("02",))).splits
    (split,) = splits_of(splits_store, ("02",), 8)
    train, test = (_features(network, splits_store, rows) for rows in (split.train_rows, split.test_rows))
    labels = splits_store.labels
    wanted = linear_probe(train, labels[split.train_rows], test, labels[split.test_rows], 2)
    assert (score.accuracy, score.train_accuracy) == (wanted.accuracy, wanted.train_accuracy)
    assert score.confusion == tuple(map(tuple, wanted.confusion.tolist()))
    assert score.chance == 0.5


@pytest.mark.parametrize(("mode", "augment"), [("head", True), ("head", False), ("full", True)])
def test_fine_tuning_of_a_split_is_that_of_its_lists(network, splits_store, mode, augment):
    recipe = dataclasses.replace(RECIPE, mode=mode, augment=augment)
    (score,) = _evaluate(network, splits_store, _request("finetune", recipe=recipe, splits=("01",))).splits
    (split,) = splits_of(splits_store, ("01",), 8)
    lists = {"train_rows": split.train_rows, "test_rows": split.test_rows}
    wanted = finetune(network, splits_store, **lists, spec=SPEC, input_spec=INPUT, recipe=recipe)
    assert (score.accuracy, score.train_accuracy) == (wanted.accuracy, wanted.train_accuracy)
    assert score.confusion == tuple(map(tuple, wanted.confusion.tolist()))


def test_the_pretext_task_is_asked_of_the_test_list_under_all_operations(network, splits_store):
    (score,) = _evaluate(network, splits_store, _request("pretext", splits=("01",))).splits
    (split,) = splits_of(splits_store, ("01",), 28)
    wanted = pretext_accuracy(network, splits_store, split.test_rows, SPEC, INPUT, 0, 1)
    assert (score.accuracy, score.balanced_accuracy, score.loss) == (
        wanted.accuracy,
        wanted.balanced_accuracy,
        wanted.loss,
    )
    assert (score.test_items, score.label_histogram, score.chance) == (20, (4, 4, 4, 4, 4), 0.2)


def test_a_student_without_pretext_head_is_not_asked_for_operations(splits_store):
    network = VideoNetwork("c3d", 0.05, pretext_classes=0, action_classes=2)
    with pytest.raises(EvaluationError, match="has no pretext head"):
        _evaluate(network, splits_store, _request("pretext"))


@pytest.mark.parametrize(("crop", "fits"), [(36, True), (32, True), (18, True), (16, False), (40, False)])
def test_a_store_of_other_frames_than_the_students_is_refused(network, splits_store, crop, fits):
    request = _request("retrieval", spec=ClipSpec(8, 2, crop), splits=("01",))
    if fits:
        assert len(_evaluate(network, splits_store, request).splits) == 1
    else:
        with pytest.raises(EvaluationError, match=rf"frames of 36x40, this student was trained on crops of {crop}x"):
            _evaluate(network, splits_store, request)


def test_an_evaluation_reads_back_as_it_was_written(network, splits_store):
    for protocol in ("finetune", "retrieval", "pretext"):
        found = _evaluate(network, splits_store, _request(protocol))
        assert Evaluation.model_validate_json(found.model_dump_json()) == found


def test_a_second_call_gives_the_kept_result_and_computes_nothing(student, splits_store):
    calls = []
    first = ask(student, splits_store, _request("retrieval"), progress=lambda *figures: calls.append(figures))
    num_calls = len(calls)
    again = ask(student, splits_store, _request("retrieval"), progress=lambda *figures: calls.append(figures))
    assert (first.was_there, again.was_there) == (False, True)
    assert again.evaluation == first.evaluation
    assert len(calls) == num_calls > 0
    forced = ask(student, splits_store, _request("retrieval"), force=True)
    assert not forced.was_there
    assert forced.evaluation.splits == first.evaluation.splits


def test_other_settings_are_another_question_and_those_of_other_protocols_are_not(student, splits_store):
    asked = ask(student, splits_store, _request("retrieval")).files
    assert ask(student, splits_store, _request("retrieval", tuples_per_video=7)).files == asked
    assert ask(student, splits_store, _request("retrieval", splits=("01", "02"))).files == asked
    for change in ({"clips_per_video": 3}, {"splits": ("01",)}, {"input_spec": InputSpec(crop=32)}, {"seed": 1}):
        assert ask(student, splits_store, _request("retrieval", **change)).files.record != asked.record


def test_the_same_tensors_in_another_architecture_are_another_student(student, splits_store):
    other = dataclasses.replace(student, config=dataclasses.replace(student.config, student="r3d"))
    files = [evaluation_files(one, splits_store, _request("retrieval")) for one in (student, other)]
    assert files[0].folder != files[1].folder


def test_lists_whose_names_could_lead_out_of_a_folder_are_no_splits():
    names = ("train01", "test01", "train/../../x", "test/../../x", "train", "test", "train<b>", "test<b>", "train02")
    assert split_names(SimpleNamespace(subsets=names)) == ("01",)


def test_a_kept_result_that_is_damaged_is_made_again(student, splits_store):
    first = ask(student, splits_store, _request("probe"))
    first.files.record.write_text('{"format": 1')
    again = ask(student, splits_store, _request("probe"))
    assert not again.was_there
    assert again.evaluation.splits == first.evaluation.splits
    assert json.loads(first.files.record.read_bytes())["protocol"] == "probe"


class _Enough(Exception):
    pass


def test_an_evaluation_that_was_ended_goes_on_where_it_was(student, splits_store):
    request = _request("finetune", recipe=dataclasses.replace(RECIPE, mode="full"))
    steps = []

    def end_at_the_third_step_of_the_second_split(phase, done, _total):
        if "fine-tuning" in phase:
            steps.append((phase[:8], done))
            if steps.count(("split 02", 3)) == 1 and steps[-1] == ("split 02", 3):
                raise _Enough

    with pytest.raises(_Enough):
        ask(student, splits_store, request, progress=end_at_the_third_step_of_the_second_split)
    done = ask(student, splits_store, request, progress=end_at_the_third_step_of_the_second_split)
    assert steps == [(split, step) for split in ("split 01", "split 02") for step in (1, 2, 3, 4)]
    nothing = np.zeros(0, np.int64)
    alone = evaluate(student.network, splits_store, request, student="mine", weights_digest="ab", trained_on=nothing)
    assert done.evaluation.splits == alone.splits


def test_a_fine_tuned_student_is_kept_for_each_split_with_the_names_of_its_classes(student, splits_store):
    answer = ask(student, splits_store, _request("finetune", splits=("02",)))
    tuned = load_student(answer.files.model("02"))
    assert (tuned.classes, tuned.frame_size, tuned.config) == (("left", "right"), (36, 40), student.config)
    (split,) = splits_of(splits_store, ("02",), 8)
    lists = {"train_rows": split.train_rows, "test_rows": split.test_rows}
    wanted = finetune(student.network, splits_store, **lists, spec=SPEC, input_spec=INPUT, recipe=RECIPE)
    assert tensors_digest(tuned.network.state_dict()) == tensors_digest(wanted.network.state_dict())


def test_the_page_has_a_matrix_for_every_split_and_marks_right_and_wrong_neighbours(student, splits_store):
    page = ask(student, splits_store, _request("retrieval")).files.page.read_text()
    assert page.count("Confusion matrix of split") == 2
    assert page.count("✓ right") + page.count("✗ wrong") == 2 * 2 * 4 * 5  # alt text and caption, splits, queries
    assert "://" not in page  # nothing is loaded


def test_kept_features_are_those_of_one_computation_and_are_not_computed_twice(network, splits_store, tmp_path):
    rows, done = np.arange(12), []
    wanted = _features(network, splits_store, rows)
    args = (network, splits_store, rows, SPEC, INPUT, 2, tmp_path)
    first = kept_features(*args, batch_clips=64, progress=lambda *figures: done.append(figures))
    assert first.tolist() == wanted.tolist()
    (file,) = tmp_path.glob("*.npy")
    np.save(file, first + 1)
    assert (kept_features(*args) == first + 1).all()  # read, not computed
    file.write_bytes(file.read_bytes()[:-3])
    assert kept_features(*args).tolist() == wanted.tolist()
    assert done[-1] == (24, 24)
