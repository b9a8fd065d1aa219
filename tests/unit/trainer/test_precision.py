"""Mixed precision gives float32 to the losses; clipped gradients have the norm that they may have."""

import dataclasses

import pytest
import torch

from teacher_server.zoo.network import VideoNetwork
from trainer.batch import StudentBatch
from trainer.collective import Collective
from trainer.config import ConfigError, RunConfig
from trainer.plan import make_plan
from trainer.precision import forward_tuple
from trainer.start import new_state
from trainer.step import train_step

CONFIG = RunConfig(teacher="none", crop=32, clip_len=8, momentum=0.0, weight_decay=0.0, lr=0.1)


def clips(dtype=torch.float32):
    first, middle, last = torch.randn(3, 4, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return first, middle, last


def test_bfloat16_comes_out_as_float32_near_the_float32_forward_pass():
    torch.manual_seed(0)
    network = VideoNetwork("r3d", 0.125).eval()
    with torch.no_grad():
        full = forward_tuple(network, clips(), "float32")
        mixed = forward_tuple(network, clips(), "bfloat16")
    assert mixed.action_logits is None
    for name in ("pretext_logits", "z1", "z2"):
        assert getattr(mixed, name).dtype == torch.float32
        torch.testing.assert_close(getattr(mixed, name), getattr(full, name), rtol=0.05, atol=0.05)
        assert not torch.equal(getattr(mixed, name), getattr(full, name))  # it did compute in bfloat16
    assert [feature.dtype for feature in mixed.features] == [torch.float32] * 3


def vector(network):
    """A copy of all weights as one vector."""
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def update_of(config):
    """What one step changes in all weights, as one vector."""
    torch.manual_seed(0)
    state = new_state(config, torch.device("cpu"), num_train=4, teacher=None)
    before = vector(state.network)
    batch = StudentBatch(clips(), torch.tensor([0, 1, 2, 3]), None)
    train_step(state, batch, config, Collective(), 0.0)
    return before - vector(state.network)


@pytest.mark.usefixtures("home")
def test_mixed_precision_is_refused_where_the_run_turns_out_to_be_on_a_cpu(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="--student-precision bfloat16 needs a GPU: on the CPU its backward pass"):
        make_plan(dataclasses.replace(config, device="auto", student_precision="bfloat16"))


def test_a_gradient_that_is_too_long_is_shortened_and_a_short_one_is_left_alone():
    free = update_of(CONFIG)
    norm = float(free.norm()) / CONFIG.lr
    clipped = update_of(dataclasses.replace(CONFIG, grad_clip=norm / 4))
    torch.testing.assert_close(clipped, free / 4, rtol=1e-3, atol=1e-6)
    assert float(clipped.norm()) == pytest.approx(CONFIG.lr * norm / 4, rel=1e-3)
    assert torch.equal(update_of(dataclasses.replace(CONFIG, grad_clip=2 * norm)), free)
