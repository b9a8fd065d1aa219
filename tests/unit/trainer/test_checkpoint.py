"""Checkpoints: whole or absent, the newest whole one is found, and only the same run may go on from it."""

import copy
import dataclasses
import itertools
import json
import os
import warnings

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

import trainer.checkpoint as module
from teacher_server.zoo.network import VideoNetwork
from trainer.checkpoint import (
    CheckpointError,
    TrainingState,
    load_network_tensors,
    load_newest,
    newest_checkpoint,
    newest_step,
    point_to_best,
    save_checkpoint,
    whole_checkpoints,
)
from trainer.config import RunConfig
from trainer.fingerprint import this_machine
from trainer.objective import Objective
from trainer.teacher_facts import TeacherFacts
from trainer.timeline import TimelineEntry
from trainer.totals import Selection, Totals

FIXED = {"workers": 1, "threads": 1, "device": "cpu", "store_fingerprint": "f" * 32, "settings": "0123456789ab"}


def new_state(seed=0):
    torch.manual_seed(seed)
    network = VideoNetwork("r3d", 0.125).train()
    config = RunConfig(hint_weight=1.0, contrast_mode="memory_bank", bank_negatives=4)
    teacher = TeacherFacts(feature_size=8)
    objective = Objective(config, student_features=network.feature_size, teacher=teacher, num_train=6)
    optimizer = SGD([*network.parameters(), *objective.parameters()], lr=0.1, momentum=0.9)
    schedule = ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    return TrainingState(network, objective, optimizer, schedule, Totals(), [])


def step(state, seed):
    """Something that changes weights, momentum and batch-norm statistics."""
    generator = torch.Generator().manual_seed(seed)
    clips = torch.randn(3, 2, 3, 8, 32, 32, generator=generator)
    state.optimizer.zero_grad()
    output = state.network.forward_tuple(tuple(clips))
    hint = state.objective.hint(state.objective.student_features(output))
    (output.pretext_logits.square().mean() + hint.square().mean()).backward()
    state.optimizer.step()
    state.objective.bank.update(torch.tensor([seed, 5]), output.z1.detach(), output.z2.detach())
    state.totals.seconds += 0.1
    state.totals.clips += 6


def bits(tensor):
    return tensor.detach().contiguous().numpy().tobytes()


def everything(state):
    """All that a checkpoint must bring back, as comparable values."""
    parameters = [*state.network.parameters(), *state.objective.parameters()]
    momentum = [state.optimizer.state.get(p, {}).get("momentum_buffer") for p in parameters]
    return {
        "network": {name: bits(tensor) for name, tensor in state.network.state_dict().items()},
        "objective": {name: bits(tensor) for name, tensor in state.objective.state_dict().items()},
        "momentum": [None if buffer is None else bits(buffer) for buffer in momentum],
        "schedule": state.schedule.state_dict(),
        "lr": state.optimizer.param_groups[0]["lr"],
        "totals": dataclasses.asdict(state.totals),
        "selection": dataclasses.asdict(state.selection),
        "timeline": list(state.timeline),
    }


@pytest.fixture(scope="module")
def trained():
    """A state after two steps, with a fallen learning rate and a swapped teacher."""
    state = new_state()
    for seed in range(2):
        step(state, seed)
    for loss in (1.0, 1.0 / 3.0, 2.0):
        state.schedule.step(loss)
    assert state.optimizer.param_groups[0]["lr"] == 0.05
    state.timeline.extend([TimelineEntry(0, "alpha@1", "a" * 64), TimelineEntry(8, "alpha@2", "b" * 64)])
    state.totals.epoch_loss = 1.0 / 3.0
    state.totals.add_labels([2, 1], [1, 1])
    state.selection.lowest_loss, state.selection.epochs_without = 1.0 / 3.0, 1
    return state


def save_three(folder, state):
    for number in (2, 4, 6):
        save_checkpoint(folder, number, state, FIXED)


def test_round_trip_brings_back_every_bit(trained, tmp_path):
    save_checkpoint(tmp_path, 2, trained, FIXED)
    state = new_state(seed=1)
    assert everything(state) != everything(trained)
    assert load_newest(tmp_path, state, FIXED) == 2
    assert everything(state) == everything(trained)


def test_the_state_goes_on_as_if_it_had_never_been_written(trained, tmp_path):
    save_checkpoint(tmp_path, 2, trained, FIXED)
    undisturbed, restored = copy.deepcopy(trained), new_state(seed=1)
    load_newest(tmp_path, restored, FIXED)
    for state in (undisturbed, restored):
        step(state, 2)
        state.schedule.step(3.0)
    assert everything(restored) == everything(undisturbed) != everything(trained)
    assert restored.optimizer.param_groups[0]["lr"] == 0.025


def test_a_layout_of_the_weights_survives(trained, tmp_path):
    """Weights lie channels last in memory; the file holds them in the order of their indices."""
    trained = copy.deepcopy(trained)
    trained.network.to(memory_format=torch.channels_last_3d)
    save_checkpoint(tmp_path, 2, trained, FIXED)
    state = new_state(seed=1)
    state.network.to(memory_format=torch.channels_last_3d)
    load_newest(tmp_path, state, FIXED)
    assert everything(state) == everything(trained)
    weight = state.network.backbone.stem.weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_a_new_run_starts_at_step_0_and_is_left_as_it_is(tmp_path):
    state = new_state()
    before = everything(state)
    assert load_newest(tmp_path / "none", state, FIXED) == 0
    assert newest_step(tmp_path / "none") == 0
    assert everything(state) == before
    with pytest.raises(CheckpointError, match="no checkpoint under"):
        newest_checkpoint(tmp_path / "none")


def test_only_the_newest_are_kept(trained, tmp_path):
    save_three(tmp_path, trained)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000004", "step-000000006"]
    assert (newest_step(tmp_path), newest_checkpoint(tmp_path)) == (6, tmp_path / "step-000000006")


def flip(path):
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(blob)


DAMAGE = {
    "a bit of the weights": lambda folder: flip(folder / "state.safetensors"),
    "weights cut short": lambda folder: os.truncate(folder / "state.safetensors", 1000),
    "weights gone": lambda folder: (folder / "state.safetensors").unlink(),
    "state cut short": lambda folder: os.truncate(folder / "state.json", 100),
    "state empty": lambda folder: os.truncate(folder / "state.json", 0),
    "state gone": lambda folder: (folder / "state.json").unlink(),
    "state of another kind": lambda folder: (folder / "state.json").write_text("[]"),
    "state of another format": lambda folder: (folder / "state.json").write_text('{"format": 2}'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(trained, tmp_path, damage):
    save_three(tmp_path, trained)
    damage(tmp_path / "step-000000006")
    state = new_state(seed=1)
    with pytest.warns(UserWarning, match=r"step-000000006 is damaged: going back to the one before"):
        assert load_newest(tmp_path, state, FIXED) == 4
    assert everything(state) == everything(trained)
    with pytest.raises(CheckpointError, match="is missing or damaged"):
        load_network_tensors(tmp_path / "step-000000006")


def test_a_run_that_went_back_replaces_what_was_damaged_and_keeps_what_is_sound(trained, tmp_path):
    save_three(tmp_path, trained)
    flip(tmp_path / "step-000000006" / "state.safetensors")
    save_checkpoint(tmp_path, 5, trained, FIXED)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000004", "step-000000005"]
    save_checkpoint(tmp_path, 6, trained, FIXED)
    assert load_newest(tmp_path, new_state(seed=1), FIXED) == 6


def test_a_damaged_checkpoint_of_the_same_step_is_written_again(trained, tmp_path):
    save_three(tmp_path, trained)
    flip(tmp_path / "step-000000006" / "state.safetensors")
    save_checkpoint(tmp_path, 6, trained, FIXED)
    assert load_newest(tmp_path, new_state(seed=1), FIXED) == 6


def test_when_all_are_damaged_the_run_starts_anew(trained, tmp_path):
    save_three(tmp_path, trained)
    for path in tmp_path.iterdir():
        flip(path / "state.safetensors")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert load_newest(tmp_path, new_state(seed=1), FIXED) == 0
    assert len(caught) == 2


@pytest.mark.parametrize("name", FIXED)
def test_a_checkpoint_of_another_setting_is_refused_in_one_sentence(trained, tmp_path, name):
    save_checkpoint(tmp_path, 2, trained, FIXED)
    state = new_state(seed=1)
    before = everything(state)
    with pytest.raises(CheckpointError) as caught:
        load_newest(tmp_path, state, {**FIXED, name: "other"})
    text = str(caught.value)
    assert f"was made with {name} = {FIXED[name]}, this run has other" in text
    assert "resume with the old value, or start afresh with --resume never" in text
    assert "\n" not in text
    assert everything(state) == before


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("call", range(4))
def test_killed_at_any_write_the_old_checkpoint_is_found_and_the_next_save_succeeds(
    trained, tmp_path, monkeypatch, call
):
    """The durable operations of a save, in order: two files, the rename, the sync of the folder."""
    save_checkpoint(tmp_path, 2, trained, FIXED)
    calls = itertools.count()

    def dying(real):
        def replacement(*args):
            if next(calls) == call:
                raise Killed
            return real(*args)

        return replacement

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomic", dying(module.write_atomic))
        patch.setattr(module, "sync_folder", dying(module.sync_folder))
        real_rename = os.rename
        rename = dying(real_rename)  # write_atomic uses os.replace, so only the folder's rename comes here
        patch.setattr(os, "rename", rename)
        with pytest.raises(Killed):
            save_checkpoint(tmp_path, 4, trained, FIXED)
    state = new_state(seed=1)
    assert load_newest(tmp_path, state, FIXED) == (4 if call == 3 else 2)
    assert everything(state) == everything(trained)
    save_checkpoint(tmp_path, 4, trained, FIXED)
    assert load_newest(tmp_path, new_state(seed=1), FIXED) == 4
    save_checkpoint(tmp_path, 6, trained, FIXED)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000004", "step-000000006"]


def test_momentum_comes_back_laid_out_in_memory_as_it_was(tmp_path):
    state, again = new_state(), new_state(seed=1)
    for one in (state, again):
        one.network.to(memory_format=torch.channels_last_3d)
    step(state, 0)
    save_checkpoint(tmp_path, 1, state, FIXED)
    load_newest(tmp_path, again, FIXED)
    strides = [
        [one.optimizer.state[weight]["momentum_buffer"].stride() for weight in one.network.backbone.parameters()]
        for one in (state, again)
    ]
    assert strides[0] == strides[1]
    assert strides[0] != [weight.detach().contiguous().stride() for weight in state.network.backbone.parameters()]


def test_a_checkpoint_before_the_first_step_is_the_best_of_nothing(tmp_path):
    save_checkpoint(tmp_path, 0, new_state(), FIXED)
    assert names(tmp_path) == ["00"]


def test_a_step_that_is_saved_already_is_not_written_again(trained, tmp_path):
    path = save_checkpoint(tmp_path, 2, trained, FIXED)
    before = (path / "state.json").stat().st_mtime_ns
    save_checkpoint(tmp_path, 2, trained, FIXED)
    assert (path / "state.json").stat().st_mtime_ns == before


def test_totals_that_an_older_program_did_not_write_start_at_zero(trained, tmp_path):
    path = save_checkpoint(tmp_path, 2, trained, FIXED) / "state.json"
    content = json.loads(path.read_bytes())
    for name in ("epoch_steps", "epoch_loss", "epoch_pretext_acc"):
        del content["totals"][name]
    path.write_text(json.dumps(content))
    state = new_state(seed=1)
    load_newest(tmp_path, state, FIXED)
    assert (state.totals.clips, state.totals.epoch_loss) == (12, 0.0)


def test_the_network_alone_can_be_read(trained, tmp_path):
    tensors = load_network_tensors(save_checkpoint(tmp_path, 2, trained, FIXED))
    expected = trained.network.state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def save_with_best(folder, state, *, keep, best_at):
    """Checkpoints at steps 2, 4, ..; best_at[i] is what validation has chosen by then."""
    state = copy.deepcopy(state)
    for i, best in enumerate(best_at):
        state.selection.best_step = best
        save_checkpoint(folder, 2 * (i + 1), state, FIXED, keep=keep)


def names(folder):
    return sorted(path.name.removeprefix("step-0000000") for path in folder.iterdir())


def test_the_best_checkpoint_is_kept_and_named(trained, tmp_path):
    save_with_best(tmp_path, trained, keep=2, best_at=[2, 2, 2, 2])
    assert names(tmp_path) == ["02", "06", "08", "best"]
    assert (tmp_path / "best").resolve() == tmp_path / "step-000000002"
    assert load_network_tensors(tmp_path / "best").keys() == trained.network.state_dict().keys()
    assert (newest_step(tmp_path), newest_checkpoint(tmp_path).name) == (8, "step-000000008")


def test_what_was_best_to_an_older_kept_checkpoint_is_kept_for_going_back_to_it(trained, tmp_path):
    save_with_best(tmp_path, trained, keep=2, best_at=[2, 2, 6])
    assert names(tmp_path) == ["02", "04", "06", "best"]
    assert (tmp_path / "best").resolve().name == "step-000000006"
    flip(tmp_path / "step-000000006" / "state.safetensors")
    state = new_state(seed=1)
    with pytest.warns(UserWarning, match="going back to the one before"):
        assert load_newest(tmp_path, state, FIXED) == 4
    save_checkpoint(tmp_path, 5, state, FIXED)
    assert names(tmp_path) == ["02", "04", "05", "best"]
    assert (tmp_path / "best").resolve().name == "step-000000002"


def test_best_moves_in_one_piece_and_a_kill_before_that_is_made_up_for(trained, tmp_path, monkeypatch):
    save_with_best(tmp_path, trained, keep=2, best_at=[2])
    state = copy.deepcopy(trained)
    state.selection.best_step = 4

    def killed(_source, target):
        if target == tmp_path / "best":
            raise Killed
        os.rename(_source, target)

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", killed)
        with pytest.raises(Killed):
            save_checkpoint(tmp_path, 4, state, FIXED)
    assert (tmp_path / "best").resolve().name == "step-000000002"
    point_to_best(tmp_path, state.selection)
    assert (tmp_path / "best").resolve().name == "step-000000004"
    point_to_best(tmp_path, Selection())
    assert not (tmp_path / "best").is_symlink()


def test_the_facts_of_the_whole_checkpoints_are_listed_and_damaged_ones_left_out(trained, tmp_path):
    save_three(tmp_path, trained)
    both = whole_checkpoints(tmp_path)
    assert [(facts.step, facts.path.name, facts.machine) for facts in both] == [
        (4, "step-000000004", this_machine()),
        (6, "step-000000006", this_machine()),
    ]
    assert (both[0].fixed, list(both[0].timeline)) == (FIXED, trained.timeline)
    flip(tmp_path / "step-000000006" / "state.safetensors")
    assert [facts.step for facts in whole_checkpoints(tmp_path)] == [4]
