"""Workers that differ: a step learns from one version only, and a run goes on from one step only."""

import pytest
import torch

from teacher_server.protocol import Binding, TeacherId
from trainer.agreement import OneVersion, check_same_start
from trainer.batch import StudentBatch
from trainer.collective import Collective
from trainer.errors import CheckpointError
from trainer.loader import Asking, LoadedStep

OLD, NEW = "1a" * 32, "2b" * 32


class Others(Collective):
    """A worker among others, whose numbers are given; `seen` keeps what this worker added."""

    def __init__(self, rank, digests):
        super().__init__(rank, len(digests))
        object.__setattr__(self, "numbers", [int(digest[:15], 16) for digest in digests])

    def gather_number(self, number):
        assert self.numbers[self.rank] == number
        return self.numbers


class FakeSignal:
    def __init__(self):
        self.asked_again = 0

    def ask_roster_again(self):
        self.asked_again += 1


def loaded(digest, mask=None):
    clip = torch.zeros(3, 3, 8, 32, 32)
    batch = StudentBatch((clip, clip, clip), torch.zeros(3, dtype=torch.int64), torch.zeros(3, 5), mask)
    binding = None if digest is None else Binding(TeacherId("alpha", 1), digest, 0)
    return LoadedStep(0, None, batch, binding, Asking(), 0.0, 0.0)


@pytest.mark.parametrize(
    ("rank", "digests", "is_masked"),
    [(0, (OLD, NEW), False), (1, (OLD, NEW), True), (2, (NEW, OLD, NEW), False), (1, (NEW, OLD, NEW), True)],
)
def test_a_worker_that_is_bound_to_another_version_than_the_first_does_without_distillation(rank, digests, is_masked):
    step = loaded(digests[rank])
    got = OneVersion(FakeSignal(), Others(rank, digests))(step)
    assert got.batch.num_answered == (0 if is_masked else 3)
    assert got.binding == step.binding
    assert got.batch.clips is step.batch.clips


def test_workers_of_one_version_keep_their_step_as_it_is():
    mask = torch.tensor([True, False, True])
    step, signal = loaded(NEW, mask), FakeSignal()
    assert OneVersion(signal, Others(1, (NEW, NEW)))(step) is step
    assert signal.asked_again == 0


def test_the_roster_is_asked_again_by_all_when_the_workers_begin_to_differ():
    signals = [FakeSignal(), FakeSignal()]
    for rank, signal in enumerate(signals):
        agree, differ = Others(rank, (OLD, OLD)), Others(rank, (OLD, NEW))
        one_version = OneVersion(signal, agree)
        counts = []
        for collective in (agree, differ, differ, agree, differ):
            one_version._collective = collective
            one_version(loaded((OLD, NEW)[rank] if collective is differ else OLD))
            counts.append(signal.asked_again)
        assert counts == [0, 1, 1, 1, 2]


def test_scratch_and_a_single_worker_have_nothing_to_compare():
    scratch, alone = loaded(None), loaded(OLD)
    assert OneVersion(None, Others(0, (OLD, NEW)))(scratch) is scratch
    assert OneVersion(FakeSignal(), Collective())(alone) is alone


class Steps(Collective):
    """Two workers that found these checkpoints."""

    def gather_number(self, number):
        return [4, number]


def test_a_run_whose_workers_found_other_checkpoints_names_both():
    check_same_start(4, Steps(1, 2))
    with pytest.raises(CheckpointError, match="worker 0 found a checkpoint of step 4, worker 1 one of step 0"):
        check_same_start(0, Steps(1, 2))


def test_one_worker_always_agrees_with_itself():
    check_same_start(7, Collective())
