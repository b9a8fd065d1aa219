"""Fine-tuning against a plain loop, and what ends early against what does not."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data.draw import draw_clips, epoch_order, uniform_clips
from data.errors import VideoTooShort
from data.input_spec import InputSpec
from data.prepare import prepare
from data.render import render
from data.views import Augment, ClipSpec
from teacher_server.zoo.network import VideoNetwork
from trainer.errors import EvaluationError
from trainer.evaluate import clip_features
from trainer.evaluate.finetune import SplitFeatures, finetune, mean_logits, with_action_head
from trainer.evaluate.finetune_clips import batch_bounds, even_clip_of
from trainer.evaluate.finetune_recipe import FinetuneRecipe
from trainer.evaluate.finetune_state import PROGRESS
from trainer.student_files import tensors_digest

SPEC = ClipSpec(clip_len=8, interval=2, crop=32)
INPUT = InputSpec(modality="res", crop=32)
FAST = FinetuneRecipe(epochs=3, lr=0.05, batch_size=3, clips_per_video=2)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = VideoNetwork("c3d", 0.05)
    network.train()
    network.forward_tuple(tuple(torch.randn(4, 3, 8, 32, 32) for _ in range(3)))
    return network.eval()


@pytest.fixture
def tune(network, store):
    def run(recipe, train_rows=range(7), test_rows=range(16, 20), **more):
        train, test = np.array(train_rows), np.array(test_rows)
        return finetune(
            network, store, train_rows=train, test_rows=test, spec=SPEC, input_spec=INPUT, recipe=recipe, **more
        )

    return run


def _reference(network, store, rows, recipe):
    """The training as one would write it down: SGD with momentum on one linear layer, or on everything."""
    tuned = with_action_head(network, len(store.classes), recipe)
    head = tuned.action_head
    weights = [*tuned.backbone.parameters(), *head.parameters()] if recipe.mode == "full" else [*head.parameters()]
    momenta = [torch.zeros_like(weight) for weight in weights]
    tuned.train(recipe.mode == "full")
    for epoch in range(recipe.epochs):
        order = epoch_order(store.videos, rows, view_seed=recipe.view_seed, epoch=epoch)
        for start, stop in ((0, 3), (3, 7)):  # the last video alone joins the batch before
            part = order[start:stop]
            clips = draw_clips(
                store.videos, part, view_seed=recipe.view_seed, epoch=epoch, spec=SPEC, augment=Augment()
            )
            pixels = np.stack([render(f, v) for f, v in zip(store.gather(clips), clips.records, strict=True)])
            loss = F.cross_entropy(head(tuned.backbone(prepare(pixels, INPUT))), torch.from_numpy(store.labels[part]))
            for weight, momentum, gradient in zip(weights, momenta, torch.autograd.grad(loss, weights), strict=True):
                momentum.mul_(recipe.momentum).add_(gradient + recipe.weight_decay * weight.detach())
                weight.data.sub_(recipe.lr * momentum)
    return tuned.eval()


@pytest.mark.parametrize("mode", ["head", "full"])
def test_training_equals_a_plain_loop_over_drawn_clips(tune, network, store, mode):
    recipe = dataclasses.replace(FAST, mode=mode)
    result, wanted = tune(recipe), _reference(network, store, np.arange(7), recipe)
    for name, tensor in wanted.state_dict().items():
        torch.testing.assert_close(result.network.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_test_videos_are_named_by_the_mean_of_the_logits_of_even_centre_clips(tune, store):
    result = tune(FAST, test_rows=range(16, 25))  # the last one is too short for a tuple, and long enough for a clip
    rows, wanted = np.arange(16, 25), []
    for row in rows:
        clips = uniform_clips(store.videos, np.array([row]), spec=SPEC, clips_per_video=2)
        pixels = np.stack([render(f, v) for f, v in zip(store.gather(clips), clips.records, strict=True)])
        with torch.no_grad():
            wanted.append(result.network.action_head(result.network.backbone(prepare(pixels, INPUT))).mean(dim=0))
    np.testing.assert_allclose(result.logits_VK, torch.stack(wanted).numpy(), rtol=1e-4, atol=1e-5)
    right = result.logits_VK.argmax(axis=1) == store.labels[rows]
    assert result.correct.tolist() == right.tolist()
    assert result.accuracy == right.mean()
    assert result.confusion.sum() == 9
    assert np.diag(result.confusion).sum() == right.sum()


def test_ten_clips_are_answered_by_the_mean_of_their_logits(network):
    """Written out for a head that gives the first two features as they are; the third video's logits tie."""
    tuned = with_action_head(network, 2, FinetuneRecipe())
    linear = tuned.action_head.linear
    with torch.no_grad():
        linear.weight.zero_()
        linear.weight[0, 0] = linear.weight[1, 1] = 1.0
        linear.bias.zero_()
    features_VMD = np.zeros((3, 10, linear.in_features), dtype=np.float32)
    features_VMD[0, :, 0] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]  # 5.5 against 0, although
    features_VMD[0, :, 1] = [11, 0, 0, 0, 0, 0, 0, 0, 0, 0]  # one clip alone says the other: 1.1
    features_VMD[1, :, 0], features_VMD[1, 9, 1] = 1, 20  # nine clips say the first class, the mean the second: 1, 2
    features_VMD[2, ::2, 0], features_VMD[2, 1::2, 1] = 4, 4
    logits_VK = mean_logits(tuned, features_VMD)
    assert logits_VK == pytest.approx(np.array([[5.5, 1.1], [1, 2], [2, 2]]))
    assert logits_VK.argmax(axis=1).tolist() == [0, 1, 0]  # of equal logits the first class, as everywhere


def test_mode_head_leaves_the_backbone_and_its_statistics_as_they_were(tune, network):
    before = tensors_digest(network.backbone.state_dict())
    result = tune(FAST)
    assert tensors_digest(result.network.backbone.state_dict()) == before
    assert tensors_digest(network.backbone.state_dict()) == before


def test_mode_full_changes_a_copy_of_the_backbone_only(tune, network):
    before = tensors_digest(network.state_dict())
    result = tune(dataclasses.replace(FAST, mode="full", epochs=1))
    assert tensors_digest(network.state_dict()) == before
    assert tensors_digest(result.network.backbone.state_dict()) != tensors_digest(network.backbone.state_dict())
    assert not result.network.training


def test_fixed_clips_from_known_features_train_the_same_layer_as_clips_that_are_rendered(tune, network, store):
    recipe = dataclasses.replace(FAST, augment=False)
    train, test = np.arange(7), np.arange(16, 20)
    known = SplitFeatures(*(clip_features(network, store, rows, SPEC, INPUT, 2) for rows in (train, test)))
    from_features, alone = tune(recipe, features=known), tune(recipe)
    assert from_features.logits_VK.tolist() == alone.logits_VK.tolist()
    rendered = copy.deepcopy(alone.network)
    rendered.load_state_dict(with_action_head(network, 2, recipe).state_dict())
    optimizer = torch.optim.SGD(rendered.action_head.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for epoch in range(recipe.epochs):
        order = epoch_order(store.videos, train, view_seed=0, epoch=epoch)
        for start, stop in batch_bounds(7, 3):
            part = order[start:stop]
            places = np.searchsorted(train, part)
            chosen = even_clip_of(store.videos, part, epoch, 0, 2)
            optimizer.zero_grad()
            logits = rendered.action_head(torch.from_numpy(known.train_VMD[places, chosen]))
            F.cross_entropy(logits, torch.from_numpy(store.labels[part])).backward()
            optimizer.step()
    for name, tensor in rendered.action_head.state_dict().items():
        torch.testing.assert_close(alone.network.action_head.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


def test_every_epoch_of_fixed_clips_shows_one_of_the_even_clips_and_in_time_all(store):
    rows = np.arange(4)
    chosen = np.stack([even_clip_of(store.videos, rows, epoch, 0, 3) for epoch in range(40)])
    assert set(chosen.ravel()) == {0, 1, 2}
    assert len({tuple(column) for column in chosen.T}) == 4


@pytest.mark.parametrize(
    ("num_videos", "batch_size", "wanted"),
    [
        (7, 3, ((0, 3), (3, 7))),
        (8, 3, ((0, 3), (3, 6), (6, 8))),
        (6, 3, ((0, 3), (3, 6))),
        (1, 8, ((0, 1),)),
        (3, 1, ((0, 1), (1, 2), (2, 3))),
    ],
)
def test_no_video_is_left_out_of_an_epoch_and_none_is_alone_in_a_batch_of_several(num_videos, batch_size, wanted):
    assert batch_bounds(num_videos, batch_size) == wanted


class _Enough(Exception):
    pass


@pytest.mark.parametrize("mode", ["head", "full"])
def test_a_fine_tuning_that_was_ended_at_any_step_goes_on_to_the_same_weights(tune, tmp_path, mode):
    recipe = dataclasses.replace(FAST, mode=mode, epochs=2)
    undisturbed, steps = tune(recipe), []

    def end_every_second_step(phase, done, _total):
        if phase == "fine-tuning":
            steps.append(done)
            if len(steps) % 2 == 0:
                raise _Enough

    result = None
    while result is None:
        try:
            result = tune(recipe, folder=tmp_path / "work", progress=end_every_second_step)
        except _Enough:
            assert len(steps) < 20
    assert steps == [1, 2, 3, 4]  # 2 epochs of 2 batches, no step twice
    assert result.logits_VK.tolist() == undisturbed.logits_VK.tolist()
    assert result.losses.tolist() == undisturbed.losses.tolist()
    assert result.train_accuracy == undisturbed.train_accuracy
    assert tensors_digest(result.network.state_dict()) == tensors_digest(undisturbed.network.state_dict())


@pytest.mark.parametrize("left_behind", ["another recipe", "damaged"])
def test_what_another_computation_left_is_passed_over(tune, tmp_path, left_behind):
    tune(dataclasses.replace(FAST, lr=0.01), folder=tmp_path)
    if left_behind == "damaged":
        (tmp_path / PROGRESS).write_bytes((tmp_path / PROGRESS).read_bytes()[:-9])
    assert tune(FAST, folder=tmp_path).logits_VK.tolist() == tune(FAST).logits_VK.tolist()


def test_the_new_layer_depends_on_its_seed_alone_and_draws_nothing_from_torchs_generator(network):
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one, same, other = (with_action_head(network, 3, FinetuneRecipe(seed=seed)).action_head for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.linear.weight, same.linear.weight)
    assert not torch.equal(one.linear.weight, other.linear.weight)


def test_a_loss_that_is_not_finite_is_refused_in_a_sentence(tune):
    with pytest.raises(EvaluationError, match=r"not finite.*: choose a smaller lr"):
        tune(dataclasses.replace(FAST, mode="full", lr=1e30))


@pytest.mark.parametrize(("train", "test"), [([0, 24], [16]), ([0, 1], [24])])
def test_a_video_without_room_for_a_clip_is_refused_and_not_left_out(network, store, train, test):
    rows = {"train_rows": np.array(train), "test_rows": np.array(test)}
    with pytest.raises(VideoTooShort):
        finetune(network, store, **rows, spec=ClipSpec(30, 2, 32), input_spec=INPUT, recipe=FAST)


def test_features_that_do_not_fit_are_refused(tune):
    known = SplitFeatures(np.zeros((7, 2, 4), np.float32), np.zeros((3, 2, 4), np.float32))
    with pytest.raises(ValueError, match=r"test features must be \[4 videos, 2 clips, D\], got \(3, 2, 4\)"):
        tune(FAST, features=known)
    with pytest.raises(ValueError, match="no use in mode full"):
        tune(dataclasses.replace(FAST, mode="full"), features=known)


@pytest.mark.parametrize("change", [{"epochs": 0}, {"lr": 0.0}, {"batch_size": 0}, {"mode": "half"}])
def test_a_recipe_that_cannot_be_is_refused(change):
    with pytest.raises(EvaluationError):
        dataclasses.replace(FAST, **change)
