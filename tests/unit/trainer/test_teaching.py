"""A teacher bound in blocks of steps: what is asked, what is refused, and what a run does when nobody answers."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from data.errors import StoreMissing
from data.views import ViewBatch
from teacher_server.clients.inprocess import InProcessTeacherClient
from teacher_server.contract import FailedReply
from teacher_server.errors import BadReply, LedgerError, NoReplyYet, NotInLedger, TeacherUnavailable
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import Binding, TeacherId, TeacherReply
from teacher_server.roster.roster import BLOCK_STEPS
from trainer.loader import Asking
from trainer.loop import Outcome
from trainer.report_data import read_metrics
from trainer.sampler import Sampler, split_rows
from trainer.teacher_facts import TeacherFacts
from trainer.teaching import AWAY_WAIT_S, BoundTeacher
from trainer.timeline import Binder

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


class NewVersionEachBlock:
    """A roster that notes the blocks that it is asked about."""

    def __init__(self):
        self.asked = []

    def bind(self, _run, _ref, block):
        self.asked.append(block)
        return Binding(TeacherId("alpha", 1 + block), DIGEST, block)


def make(kd, client, kind="pixels", roster=None, **options):
    binder = Binder(roster or NewVersionEachBlock(), "run", kd.teacher_ref)
    return BoundTeacher(client, binder, config=kd, run_id="run", store_path=Path(kd.store), input_kind=kind, **options)


def pixels_of(views):
    return np.full((len(views), 8, 32, 32, 3), 7, dtype=np.uint8)


def test_the_roster_is_asked_once_a_block_and_each_answer_names_its_version(kd, sampler):
    roster = NewVersionEachBlock()
    teacher = make(kd, ClosedFormClient(), roster=roster)
    first, last = BLOCK_STEPS - 3, 2 * BLOCK_STEPS + 1  # three blocks, begun in the middle of one
    for number, step in enumerate(range(first, last), start=1):
        views = sampler.views(step)
        teacher.put(step, views, pixels_of(views))
        answer = teacher.get()
        assert answer.binding == Binding(TeacherId("alpha", 1 + step // BLOCK_STEPS), DIGEST, step // BLOCK_STEPS)
        assert answer.logits.tolist() == [[float(number)] * 5] * 2
        assert (answer.mask, answer.asking) == (None, Asking())
    assert roster.asked == [0, 1, 2]


def test_answers_ahead_of_a_new_block_keep_the_old_version(kd, sampler):
    teacher = make(kd, ClosedFormClient())
    for step in (BLOCK_STEPS - 1, BLOCK_STEPS):
        teacher.put(step, sampler.views(step), pixels_of(sampler.views(step)))
    assert [str(teacher.get().binding.teacher) for _ in range(2)] == ["alpha@1", "alpha@2"]


@pytest.mark.parametrize("kind", ["views", "pixels"])
def test_a_question_names_its_views_and_brings_their_pixels_where_it_was_told_to(kd, sampler, kind):
    client = ClosedFormClient()
    views = sampler.views(0)
    kd = dataclasses.replace(kd, teacher_dtype="float16", teacher_weight=2.5)
    make(kd, client, kind).put(0, views, pixels_of(views))
    (query,) = client.queries
    assert (query.teacher, query.temperature, query.views_per_item, query.run) == (TeacherId("alpha", 1), 3.0, 3, "run")
    assert (query.timeout_s, query.dtype, query.weight) == (kd.teacher_timeout_s, "float16", 2.5)
    assert ViewBatch.from_bytes(query.views).to_bytes() == views.to_bytes()
    assert query.store == kd.store
    if kind == "views":
        assert query.pixels is None
    else:
        assert np.array_equal(query.pixels, pixels_of(views))


class ActionClient(ClosedFormClient):
    """Answers for items of one clip: three classes and features of size 4, which say the brightness of its pixels."""

    def submit(self, query):
        self.queries.append(query)
        values = query.pixels.reshape(query.num_clips, -1).mean(axis=1, dtype=np.float32)
        logits, features = np.tile(values[:, None], (1, 3)), np.tile(values[:, None], (1, 4))
        return Answered(
            TeacherReply(query.request_id, query.teacher, DIGEST, query.temperature, logits, "cpu", features)
        )


@pytest.mark.parametrize("hint_weight", [0.0, 1.0])
def test_an_action_teacher_is_asked_about_the_first_clip_of_each_tuple(kd, sampler, hint_weight):
    client = ActionClient()
    teacher = make(dataclasses.replace(kd, hint_weight=hint_weight), client, facts=TeacherFacts("action", 3, 4))
    views = sampler.views(0)
    pixels = np.empty((len(views), 8, 32, 32, 3), dtype=np.uint8)
    pixels[:] = np.arange(len(views), dtype=np.uint8)[:, None, None, None, None]
    teacher.put(0, views, pixels)
    (query,) = client.queries
    assert (query.views_per_item, query.want_features) == (1, hint_weight > 0)
    asked = ViewBatch.from_bytes(query.views)
    assert asked.records.tolist() == views.records[::3].tolist()
    assert not asked.records["pretext"].any()
    answer = teacher.get()
    assert answer.logits[:, 0].tolist() == [0.0, 3.0]
    assert (answer.features is None) == (hint_weight == 0)
    if answer.features is not None:
        assert answer.features[:, 3].tolist() == [0.0, 3.0]


def test_features_of_another_size_than_the_run_was_told_are_never_used(kd, sampler):
    teacher = make(dataclasses.replace(kd, hint_weight=1.0), ActionClient(), facts=TeacherFacts("action", 3, 5))
    teacher.put(0, sampler.views(0), pixels_of(sampler.views(0)))
    with pytest.raises(BadReply, match=r"features of size 5, alpha@1 sent \[2, 4\]"):
        teacher.get()


def test_an_action_teacher_that_is_away_leaves_rows_of_its_own_size(kd, sampler):
    kd = dataclasses.replace(kd, hint_weight=1.0, **SKIP)
    teacher = make(kd, SlowClient(), facts=TeacherFacts("action", 3, 4))
    teacher.put(0, sampler.views(0), pixels_of(sampler.views(0)))
    answer = teacher.get()
    assert (answer.logits.shape, answer.features.shape, answer.mask.tolist()) == ((2, 3), (2, 4), [False, False])


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
    """The in-process teacher, but for the `bad` questions after the first `good` ones there is nobody."""

    def __init__(self, inner, good, bad=10**6):
        self._inner = inner
        self._away = range(good, good + bad)
        self.asked = 0

    def submit(self, query):
        self.asked += 1
        if self.asked - 1 not in self._away:
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


class StoreOfAnotherMachine(FalteringClient):
    """The same, but its replica has no store there."""

    def submit(self, query):
        reply = super().submit(query)
        return reply if isinstance(reply, Answered) else FailedReply(StoreMissing(query.store, "no store here"))


@pytest.mark.parametrize("policy", ["wait", "skip"])
def test_a_run_whose_teacher_cannot_read_the_clips_saves_and_says_what_to_do(bench, kd, policy):
    client = StoreOfAnotherMachine(InProcessTeacherClient(TeacherLibrary(bench.home / "teachers")), 3)
    run = bench.folder("run")
    outcome, _ = bench.attempt(dataclasses.replace(kd, on_teacher_loss=policy), run, client=client)
    assert (outcome.status, outcome.step) == ("teacher_unavailable", 3)
    assert "alpha@1 cannot read the clips where it runs" in outcome.reason
    assert "--teacher-input pixels" in outcome.reason
    assert [path.name for path in run.checkpoints.glob("step-*")] == ["step-000000003"]


SKIP = {"on_teacher_loss": "skip", "teacher_budget_s": 0.01}  # shorter than the first pause: one try, then it is lost


def masked_steps(run):
    return [line["step"] for line in read_metrics(run.metrics).steps if line["kd_skipped"]]


def test_a_run_that_may_skip_trains_without_the_term_until_the_teacher_answers_again(bench, kd):
    run = bench.folder("run")
    client = FalteringClient(InProcessTeacherClient(TeacherLibrary(bench.home / "teachers")), 3, bad=5)
    outcome, trainer = bench.attempt(dataclasses.replace(kd, **SKIP), run, client=client)
    assert (outcome.status, outcome.step) == ("finished", 18)
    assert masked_steps(run) == [4, 5, 6, 7, 8]
    for line in read_metrics(run.metrics).steps:
        skipped = line["step"] in range(4, 9)
        assert line["kd_skipped"] == (2 if skipped else 0)
        assert (line["distill"] is None) == (line["agreement"] is None) == skipped
        assert (line["teacher"], line["teacher_dropped"]) == ("alpha@1", 0)  # there was nobody who could reply late
    result = run.read_result()
    assert (result["kd_skipped"], result["teacher_dropped"], result["teacher_retries"]) == (10, 0, 0)
    assert trainer.state.totals.kd_skipped == 10


def test_a_run_that_skips_every_answer_ends_with_the_weights_of_scratch(bench, kd):
    kd = dataclasses.replace(kd, epochs=1, **SKIP)
    skipping, scratch = bench.folder("skipping"), bench.folder("scratch")
    client = FalteringClient(InProcessTeacherClient(TeacherLibrary(bench.home / "teachers")), 0)
    assert bench.attempt(kd, skipping, client=client)[0].status == "finished"
    assert bench.attempt(dataclasses.replace(kd, teacher="none"), scratch)[0].status == "finished"
    ends = [run.checkpoints / "step-000000006" / "state.safetensors" for run in (skipping, scratch)]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    assert skipping.read_result()["kd_skipped"] == 12


def test_what_a_run_has_skipped_is_counted_on_after_a_resume(bench, kd):
    kd = dataclasses.replace(kd, epochs=1, **SKIP)
    run = bench.folder("run")
    library = TeacherLibrary(bench.home / "teachers")
    bench.attempt(kd, run, steps=2, client=FalteringClient(InProcessTeacherClient(library), 0))
    bench.attempt(kd, run, client=FalteringClient(InProcessTeacherClient(library), 1))
    assert masked_steps(run) == [1, 2, 4, 5, 6]
    assert run.read_result()["kd_skipped"] == 10


class Hanging:
    """On its way until `answer` is called. Notes how long it was waited for."""

    def __init__(self, query, waits):
        self._query = query
        self._waits = waits
        self._reply = None
        self.cancelled = False

    def result(self, timeout_s):
        self._waits.append(timeout_s)
        if self._reply is None:
            raise NoReplyYet(str(self._query.teacher), timeout_s, "no reply yet")
        return self._reply

    def answer(self):
        logits = np.ones((self._query.num_clips // 3, 5), dtype=np.float32)
        self._reply = TeacherReply(
            self._query.request_id, self._query.teacher, DIGEST, self._query.temperature, logits, "cpu"
        )

    def cancel(self):
        self.cancelled = True


class SlowClient:
    """Answers nothing by itself."""

    def __init__(self):
        self.pending = []
        self.waits = []

    def submit(self, query):
        self.pending.append(Hanging(query, self.waits))
        return self.pending[-1]

    def close(self):
        pass


def ask_step(teacher, sampler, step):
    teacher.put(step, sampler.views(step), pixels_of(sampler.views(step)))


def test_an_away_teacher_costs_each_step_one_short_wait(kd, sampler):
    client = SlowClient()
    teacher = make(dataclasses.replace(kd, **SKIP), client)
    for step in range(4):
        ask_step(teacher, sampler, step)
        answer = teacher.get()
        assert answer.mask.tolist() == [False, False]
        assert answer.logits.tolist() == [[0.0] * 5] * 2
        assert (answer.binding.teacher, answer.asking) == (TeacherId("alpha", 1), Asking(dropped=1))
    budget, *later = [wait for wait in client.waits if wait > 0]
    assert budget == pytest.approx(0.01, abs=0.01)
    assert later == [AWAY_WAIT_S] * 3


def test_a_late_answer_is_never_applied_but_ends_the_short_waits(kd, sampler):
    """The answer to step 1 comes when step 2 is due; it is dropped, and step 2 gets the whole budget for its own."""
    client = SlowClient()
    teacher = make(dataclasses.replace(kd, **SKIP), client)
    for step in (0, 1):
        ask_step(teacher, sampler, step)
        assert not teacher.get().mask.any()
    client.pending[1].answer()
    ask_step(teacher, sampler, 2)
    client.pending[2].answer()
    client.waits.clear()
    answer = teacher.get()
    assert (answer.mask, answer.asking) == (None, Asking())
    assert client.waits[0] == 0.0  # the look at the late one
    assert client.waits[1] != AWAY_WAIT_S
    assert not client.pending[1].cancelled


class FakeLedger:
    """Answers the questions that it has seen recorded; `recorded` is shared by the ledger before and after a loss."""

    def __init__(self, recorded, inner=None):
        self._recorded = recorded
        self._inner = inner
        self.replayed_items = 0
        self.flushed = 0
        self.closed = False

    @property
    def stats(self):
        return self

    def submit(self, query):
        if query.views in self._recorded:
            self.replayed_items += query.num_clips // 3
            logits = np.full((query.num_clips // 3, 5), self._recorded[query.views], dtype=np.float32)
            return Answered(TeacherReply(query.request_id, query.teacher, DIGEST, query.temperature, logits, "ledger"))
        if self._inner is None:
            return FailedReply(NotInLedger("somewhere", 2, 2))
        return self._inner.submit(query)

    def flush(self):
        self.flushed += 1

    def close(self):
        self.closed = True


def test_after_the_loss_the_ledger_alone_answers_what_was_open_and_what_follows(kd, sampler):
    views = [sampler.views(step).to_bytes() for step in range(3)]
    recorded = {}
    service = SlowClient()
    before, after = FakeLedger(recorded, service), FakeLedger(recorded)
    kd = dataclasses.replace(kd, ledger="auto", on_teacher_loss="replay", teacher_budget_s=0.01)
    teacher = make(kd, before, ledger=before, replay_only=lambda: after)
    for step in (0, 1):
        ask_step(teacher, sampler, step)
    recorded.update({views[0]: 7.0, views[1]: 8.0})  # another run's, meanwhile
    assert teacher.get().logits.tolist() == [[7.0] * 5] * 2
    assert before.closed
    assert all(pending.cancelled for pending in service.pending)
    answer = teacher.get()
    assert answer.logits.tolist() == [[8.0] * 5] * 2
    assert answer.mask is None
    ask_step(teacher, sampler, 2)
    with pytest.raises(NotInLedger):
        teacher.get()
    assert len(service.pending) == 2
    teacher.close()
    assert after.closed


def test_answers_that_came_from_a_ledger_are_counted_across_the_loss(kd, sampler):
    recorded = {sampler.views(step).to_bytes(): 1.0 for step in (0, 2)}
    before, after = FakeLedger(recorded, SlowClient()), FakeLedger(recorded)
    kd = dataclasses.replace(kd, ledger="auto", on_teacher_loss="replay", teacher_budget_s=0.01)
    teacher = make(kd, before, ledger=before, replay_only=lambda: after)
    replayed = []
    for step in range(3):
        ask_step(teacher, sampler, step)
        recorded[sampler.views(step).to_bytes()] = 1.0  # step 1's by another run, once it was asked
        replayed.append(teacher.get().asking.replayed)
    assert replayed == [2, 2, 2]


def test_a_run_whose_ledger_lacks_an_answer_saves_and_says_so(bench, kd):
    run = bench.folder("run")
    outcome, _ = bench.attempt(kd, run, client=FakeLedger({}))
    assert (outcome.status, outcome.step) == ("teacher_unavailable", 0)
    assert outcome.reason == str(NotInLedger("somewhere", 2, 2))
    assert not run.is_finished


def test_a_ledger_is_flushed_with_every_checkpoint(bench, kd, monkeypatch):
    kd = dataclasses.replace(kd, epochs=1, checkpoint_every=2)
    seen = []
    monkeypatch.setattr(BoundTeacher, "flush", lambda _self: seen.append("flush"))
    monkeypatch.setattr("trainer.loop.save_checkpoint", lambda _folder, step, *_rest, **_options: seen.append(step))
    assert bench.attempt(kd, bench.folder("run"))[0].status == "finished"
    assert seen == ["flush", 2, "flush", 4, "flush", 6]


FULL = LedgerError("somewhere", "No space left on device")


def test_a_ledger_that_cannot_be_written_costs_no_checkpoint_and_ends_the_run_in_its_words(bench, kd, monkeypatch):
    def flush(_self):
        raise FULL

    kd = dataclasses.replace(kd, epochs=1, checkpoint_every=2)
    run = bench.folder("run")
    with monkeypatch.context() as patch:
        patch.setattr(BoundTeacher, "flush", flush)
        assert bench.attempt(kd, run)[0] == Outcome("teacher_unavailable", 2, str(FULL))
    assert [path.name for path in run.checkpoints.glob("step-*")] == ["step-000000002"]
    assert bench.attempt(kd, run)[0] == Outcome("finished", 6)


def test_closing_with_a_ledger_that_cannot_be_written_warns_and_hides_no_outcome(kd):
    def close():
        raise FULL

    client = ClosedFormClient()
    client.close = close
    with pytest.warns(UserWarning, match="were not recorded: ledger somewhere: No space left"):
        make(kd, client).close()


def test_flushing_reaches_the_ledger_and_is_nothing_without_one(kd):
    ledger = FakeLedger({})
    make(kd, ledger, ledger=ledger).flush()
    make(kd, ClosedFormClient()).flush()
    assert ledger.flushed == 1
