"""A teacher bound in blocks of steps: what is asked, what is refused, and what a run does when nobody answers."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from data.views import ViewBatch
from teacher_server.contract import FailedReply
from teacher_server.errors import BadReply, TeacherUnavailable
from teacher_server.inprocess import InProcessTeacherClient
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import Binding, TeacherId, TeacherReply
from teacher_server.roster import BLOCK_STEPS
from trainer.sampler import Sampler, split_rows
from trainer.teaching import BoundTeacher

DIGEST = "d" * 64


class Answered:
    """A pending reply that is there already."""

    def __init__(self, reply):
        self._reply = reply

    def result(self, timeout_s):  # noqa: ARG002 the contract's signature
        return self._reply

    def cancel(self):
        pass


class ClosedFormClient:
    """Logits: the question's number. `lie` changes a field of every reply."""

    def __init__(self, **lie):
        self.queries = []
        self.closed = False
        self._lie = lie

    def submit(self, query):
        self.queries.append(query)
        logits = np.full((query.num_clips // 3, 5), float(len(self.queries)), dtype=np.float32)
        reply = TeacherReply(query.request_id, query.teacher, DIGEST, query.temperature, logits, "cpu")
        return Answered(dataclasses.replace(reply, **self._lie))

    def close(self):
        self.closed = True


@pytest.fixture
def kd(config):
    return dataclasses.replace(config, teacher="alpha", temperature=3.0, batch_size=2, epochs=3)


@pytest.fixture
def sampler(store, kd):
    return Sampler(store.videos, split_rows(store, kd)[0], kd)


def make(kd, client, kind="pixels", bound=None):
    """bound: takes the blocks that the roster is asked about."""
    bound = [] if bound is None else bound

    def bind(block):
        bound.append(block)
        return Binding(TeacherId("alpha", 1 + block), DIGEST, block)

    return BoundTeacher(client, bind, config=kd, run_id="run", store_path=Path(kd.store), input_kind=kind)


def pixels_of(views):
    return np.full((len(views), 8, 32, 32, 3), 7, dtype=np.uint8)


def test_the_roster_is_asked_once_a_block_and_each_answer_names_its_version(kd, sampler):
    client, bound = ClosedFormClient(), []
    teacher = make(kd, client, bound=bound)
    first, last = BLOCK_STEPS - 3, 2 * BLOCK_STEPS + 1  # three blocks, begun in the middle of one
    for number, step in enumerate(range(first, last), start=1):
        views = sampler.views(step)
        teacher.put(step, views, pixels_of(views))
        answer = teacher.get()
        assert answer.binding == Binding(TeacherId("alpha", 1 + step // BLOCK_STEPS), DIGEST, step // BLOCK_STEPS)
        assert answer.logits.tolist() == [[float(number)] * 5] * 2
    assert bound == [0, 1, 2]


def test_answers_ahead_of_a_new_block_keep_the_old_version(kd, sampler):
    teacher = make(kd, ClosedFormClient())
    for step in (BLOCK_STEPS - 1, BLOCK_STEPS):
        teacher.put(step, sampler.views(step), pixels_of(sampler.views(step)))
    assert [str(teacher.get().binding.teacher) for _ in range(2)] == ["alpha@1", "alpha@2"]


@pytest.mark.parametrize("kind", ["views", "pixels"])
def test_a_question_carries_what_it_was_told_to(kd, sampler, kind):
    client = ClosedFormClient()
    views = sampler.views(0)
    make(kd, client, kind).put(0, views, pixels_of(views))
    (query,) = client.queries
    assert (query.teacher, query.temperature, query.views_per_item, query.run) == (TeacherId("alpha", 1), 3.0, 3, "run")
    assert query.timeout_s == kd.teacher_timeout_s
    if kind == "views":
        assert ViewBatch.from_bytes(query.views).to_bytes() == views.to_bytes()
        assert (query.store, query.pixels) == (kd.store, None)
    else:
        assert np.array_equal(query.pixels, pixels_of(views))
        assert (query.store, query.views) == (None, None)


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"digest": "e" * 64}, "asked alpha@1 \\(dddddddddddd\\)"),
        ({"teacher": TeacherId("alpha", 9)}, "got an answer from alpha@9"),
        ({"temperature": 4.0}, "asked for temperature 3.0, the reply from alpha@1 has 4.0"),
        ({"logits": np.zeros((1, 5), dtype=np.float32)}, r"expected logits \[2, 5\]"),
        ({"logits": np.full((2, 5), np.nan, dtype=np.float32)}, "not finite"),
    ],
)
def test_an_answer_that_does_not_fit_the_question_is_never_used(kd, sampler, lie, message):
    teacher = make(kd, ClosedFormClient(**lie))
    teacher.put(0, sampler.views(0), pixels_of(sampler.views(0)))
    with pytest.raises(BadReply, match=message):
        teacher.get()


def test_closing_cancels_and_closes_the_client(kd, sampler):
    client = ClosedFormClient()
    teacher = make(kd, client)
    teacher.put(0, sampler.views(0), pixels_of(sampler.views(0)))
    teacher.close()
    assert client.closed


class FalteringClient:
    """The in-process teacher for the first `good` questions, then nobody."""

    def __init__(self, inner, good):
        self._inner = inner
        self._good = good

    def submit(self, query):
        self._good -= 1
        if self._good >= 0:
            return Answered(self._inner.submit(query).result(timeout_s=60.0))
        return FailedReply(TeacherUnavailable(str(query.teacher), 0.0, "no replica lives"))

    def close(self):
        self._inner.close()


@pytest.mark.parametrize("good", [0, 3])
def test_a_run_without_its_teacher_saves_and_says_so_and_goes_on_to_the_same_end(bench, kd, good):
    kd = dataclasses.replace(kd, epochs=1)
    undisturbed = bench.folder("undisturbed")
    assert bench.attempt(kd, undisturbed)[0].status == "finished"

    run = bench.folder("run")
    client = FalteringClient(InProcessTeacherClient(TeacherLibrary(bench.home / "teachers")), good)
    outcome, _ = bench.attempt(dataclasses.replace(kd, teacher_budget_s=0.01), run, client=client)
    assert (outcome.status, outcome.step) == ("teacher_unavailable", good)
    assert re.fullmatch(r"teacher alpha@1 did not answer within \d\.\d s: no replica lives", outcome.reason)
    assert [path.name for path in run.checkpoints.glob("step-*")] == [f"step-{good:09d}"]
    assert not run.is_finished

    assert bench.attempt(kd, run)[0].status == "finished"
    ends = [folder.checkpoints / "step-000000006" / "state.safetensors" for folder in (undisturbed, run)]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    assert run.read_result()["teacher_timeline"] == undisturbed.read_result()["teacher_timeline"]


def test_training_changes_no_byte_of_the_teacher(bench, kd):
    library = TeacherLibrary(bench.home / "teachers")
    client = InProcessTeacherClient(library)
    before = library.entry(TeacherId("alpha", 1)).digest
    _, trainer = bench.attempt(dataclasses.replace(kd, max_steps=2), bench.folder("run"), client=client)
    assert trainer.state.totals.clips == 2 * 2 * 3
    assert library.entry(TeacherId("alpha", 1)).digest == before
    (used,) = client._teachers.values()
    fresh = InProcessTeacherClient(library)._teacher(TeacherId("alpha", 1))
    assert used is not fresh
    for name, tensor in used._network.state_dict().items():
        assert torch.equal(tensor, fresh._network.state_dict()[name])
    assert all(p.grad is None and not p.requires_grad for p in used._network.parameters())
