"""Features, pretext accuracy and the whole evaluation against naive one-by-one references."""

import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.draw import eval_tuples, uniform_clips
from data.errors import VideoTooShort
from data.input_spec import InputSpec
from data.prepare import prepare
from data.render import render
from data.views import ClipSpec, VideoTable, key_hash
from teacher_server.zoo.network import VideoNetwork
from trainer.evaluate import EvalOptions, clip_features, evaluate_student, pretext_accuracy, view_features
from trainer.evaluate.pretext import pretext_result

SPEC = ClipSpec(clip_len=8, interval=2, crop=32)  # a tuple spans 28 frames
INPUT = InputSpec(modality="res", crop=32)


def _memory_store(lengths, num_classes=2):
    """What evaluation uses of a store, in memory: random frames of 36x40."""
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (length, 36, 40, 3), dtype=np.uint8) for length in lengths]
    keys = tuple(f"v{i}" for i in range(len(lengths)))
    hashes = np.array([key_hash(key) for key in keys], dtype=np.uint64)
    videos = VideoTable("ab" * 16, keys, hashes, hashes, np.array(lengths, dtype=np.int64), (36, 40))

    def gather(batch):
        store.gathered += len(batch)
        return [frames[r["video"]][r["start"] : r["start"] + r["clip_len"]] for r in batch.records]

    store = SimpleNamespace(
        videos=videos,
        labels=np.arange(len(lengths)) % num_classes,
        classes=tuple(f"class{i}" for i in range(num_classes)),
        groups=tuple(f"g{i // 2}" for i in range(len(lengths))),
        gather=gather,
        gathered=0,
    )
    return store


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Single clips are too small to share: on a busy machine threads cost ten times what they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = VideoNetwork("c3d", 0.05)
    network.train()
    clips = tuple(torch.randn(4, 3, 8, 32, 32) for _ in range(3))
    network.forward_tuple(clips)  # batch-norm statistics that are not the initial ones
    return network


def _pixels(store, batch, i):
    one = batch.records[i : i + 1]
    view = type(batch)(one, 1, batch.store_fingerprint)
    return render(store.gather(view)[0], one[0])[None]


def test_features_equal_those_of_one_view_at_a_time_and_repeated_views_are_computed_once(network):
    store = _memory_store([30, 40])
    batch = eval_tuples(store.videos, np.array([1]), view_seed=3, spec=SPEC, tuples_per_video=2)
    features = view_features(network, store, batch, INPUT, batch_clips=3)
    # 2 places, each with a first, a last and 5 middle clips.
    assert store.gathered == 2 * 7
    network.eval()
    with torch.no_grad():
        for i in range(len(batch)):
            alone = network.features(prepare(_pixels(store, batch, i), INPUT)).numpy()[0]
            np.testing.assert_allclose(features[i], alone, rtol=1e-4, atol=1e-5)
    network.train()


def test_clip_features_are_ordered_by_video_then_clip_and_report_progress(network):
    store = _memory_store([20, 9, 15])
    rows, seen = np.array([2, 0]), []
    features = clip_features(
        network, store, rows, SPEC, INPUT, 3, batch_clips=4, progress=lambda done, total: seen.append((done, total))
    )
    flat = view_features(network, store, uniform_clips(store.videos, rows, spec=SPEC, clips_per_video=3), INPUT)
    assert features.shape == (2, 3, network.feature_size)
    np.testing.assert_allclose(features.reshape(6, -1), flat, rtol=1e-4, atol=1e-5)
    assert seen == [(4, 6), (6, 6)]


def test_every_module_comes_back_in_its_own_mode_and_statistics_do_not_move(network):
    store = _memory_store([30])
    network.train()
    network.projector.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    clip_features(network, store, np.array([0]), SPEC, INPUT, 2)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.train()


def test_a_network_that_diverged_is_named_as_such():
    torch.manual_seed(0)
    broken = VideoNetwork("c3d", 0.05)
    with torch.no_grad():
        next(broken.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match="not finite"):
        clip_features(broken, _memory_store([30]), np.array([0]), SPEC, INPUT, 1)


def _with_answers_that_differ(network, store, batch):
    """A copy whose head has large weights, and logits of mean zero over these tuples."""
    network = copy.deepcopy(network)
    mean = view_features(network, store, batch, INPUT).reshape(batch.num_items, -1).mean(axis=0)
    linear = network.pretext_head.linear
    with torch.no_grad():
        linear.weight.normal_(std=300)
        linear.bias.copy_(-linear.weight @ torch.from_numpy(mean))
    return network


def test_pretext_accuracy_equals_the_networks_own_tuple_forward(network):
    store = _memory_store([30, 28, 45])
    rows = np.array([2, 0, 1])
    batch = eval_tuples(store.videos, rows, view_seed=1, spec=SPEC, tuples_per_video=1)
    network = _with_answers_that_differ(network, store, batch)
    result = pretext_accuracy(network, store, rows, SPEC, INPUT, view_seed=1, tuples_per_video=1)
    confusion, losses = np.zeros((5, 5), dtype=int), []
    network.eval()
    with torch.no_grad():
        for item in range(batch.num_items):
            clips = tuple(prepare(_pixels(store, batch, item * 3 + clip), INPUT) for clip in range(3))
            logits = network.forward_tuple(clips).pretext_logits[0]
            label = int(batch.pretext_labels[item])
            confusion[label, int(logits.argmax())] += 1
            losses.append(-float(logits.log_softmax(0)[label]))
    assert (confusion.sum(axis=0) > 0).sum() >= 2  # else every order of the clips would pass
    assert result.confusion.tolist() == confusion.tolist()
    assert result.label_histogram == (3, 3, 3, 3, 3)
    assert result.accuracy == result.balanced_accuracy == np.trace(confusion) / 15
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert result.rows.tolist() == [2] * 5 + [0] * 5 + [1] * 5


def test_pretext_figures_of_hand_made_logits_are_as_written_out():
    # Labels 0, 0, 0, 1; answers 0, 0, 2, 1: accuracy 3/4, balanced (2/3 + 1) / 2.
    logits = np.log(np.array([[6, 1, 1, 1, 1], [6, 1, 1, 1, 1], [1, 1, 6, 1, 1], [1, 6, 1, 1, 1]], dtype=np.float32))
    result = pretext_result(logits, np.array([0, 0, 0, 1]), np.array([9, 9, 9, 9]))
    assert result.accuracy == 0.75
    assert result.balanced_accuracy == pytest.approx((2 / 3 + 1) / 2)
    assert result.label_histogram == (3, 1, 0, 0, 0)
    assert result.confusion[:2].tolist() == [[2, 0, 1, 0, 0], [0, 1, 0, 0, 0]]
    assert result.correct.tolist() == [True, True, False, True]
    assert result.loss == pytest.approx((3 * -math.log(0.6) - math.log(0.1)) / 4, rel=1e-6)


def test_loss_of_very_large_logits_stays_finite():
    logits = np.array([[3e4, 0, 0, 0, 0]], dtype=np.float32)
    assert pretext_result(logits, np.array([1]), np.array([0])).loss == pytest.approx(3e4)


def test_a_video_too_short_for_a_tuple_is_named(network):
    with pytest.raises(VideoTooShort, match="v1 has 27 frames, 28 are needed"):
        pretext_accuracy(network, _memory_store([30, 27]), np.array([0, 1]), SPEC, INPUT, 0, 1)


def test_the_whole_evaluation_counts_what_is_left_out_and_gives_plain_json(network):
    # Training: row 3 is too short for a clip. Test: row 4 holds a clip but no tuple, row 7 neither.
    store = _memory_store([30, 30, 30, 7, 20, 30, 31, 5])
    phases = []
    result = evaluate_student(
        network,
        store,
        train_rows=np.array([0, 1, 2, 3]),
        test_rows=np.array([4, 5, 6, 7]),
        spec=SPEC,
        input_spec=INPUT,
        options=EvalOptions(tuples_per_video=2, clips_per_video=2),
        progress=lambda phase, done, total: phases.append((phase, done, total)),
    )
    assert (result.pretext_videos, result.pretext_left_out) == (2, 2)
    assert (result.train_videos, result.train_left_out, result.gallery_videos) == (3, 1, 3)
    assert (result.test_videos, result.test_left_out) == (3, 1)
    assert phases == [("pretext", 28, 28), ("training clips", 6, 6), ("test clips", 6, 6)]
    assert result.retrieval_top5 == 1.0  # the gallery has 3 videos of both classes
    assert result.retrieval_top1 == result.retrieval[1]
    assert [example.query for example in result.retrieval_examples] == [4, 5, 6]  # rows of the store
    assert all(sorted(example.neighbours) == [0, 1, 2] for example in result.retrieval_examples)
    hits = [store.labels[shown.neighbours[0]] == store.labels[shown.query] for shown in result.retrieval_examples]
    assert result.retrieval_top1 == pytest.approx(np.mean(hits))
    assert result.retrieval_top1_chance == pytest.approx((2 + 1 + 2) / 9)  # queries of classes 0, 1, 0
    assert result.probe_chance == pytest.approx(2 / 3)  # class 0 is the commonest of 0, 1, 0
    assert sum(map(sum, result.pretext_confusion)) == 2 * 2 * 5
    assert {name: float(found.correct.mean()) for name, found in result.answers.items()} == pytest.approx(
        {name: getattr(result, name) for name in ("pretext_acc", "retrieval_top1", "probe_acc")}
    )
    assert result.answers["pretext_acc"].keys == ("v5",) * 10 + ("v6",) * 10
    assert result.answers["probe_acc"].keys == ("v4", "v5", "v6")
    assert result.answers["probe_acc"].groups == ("g2", "g2", "g3")
    fields = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert "answers" not in fields
    assert fields == result.to_json()
    assert [shown["query"] for shown in fields["retrieval_examples"]] == [4, 5, 6]
    assert fields["pretext_label_histogram"] == [4, 4, 4, 4, 4]
    assert list(fields["retrieval"]) == ["1", "5", "10", "20", "50"]
    low, high = fields["pretext_interval"]
    assert 0 <= low <= result.pretext_acc <= high <= 1


def test_a_list_without_a_video_that_is_long_enough_is_refused_in_one_sentence(network):
    store = _memory_store([30, 20])
    with pytest.raises(ValueError, match="test list has 1 videos and none has the 28 frames"):
        evaluate_student(network, store, train_rows=np.array([0]), test_rows=np.array([1]), spec=SPEC, input_spec=INPUT)
