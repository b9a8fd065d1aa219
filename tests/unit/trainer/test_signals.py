"""What a run asks and whom, by its transport and ledger; a recorded run is repeated without any teacher."""

import contextlib
import dataclasses
import io
from typing import ClassVar

import pytest
from rich.console import Console

import trainer.launch
import trainer.signals as module
from data.home import ledgers_folder
from teacher_server.clients.inprocess import InProcessTeacherClient
from teacher_server.contract import FailedReply
from teacher_server.errors import TeacherUnavailable
from teacher_server.ledger.client import LedgerClient
from teacher_server.ledger.store import HEADER
from teacher_server.protocol import Binding, TeacherId
from trainer.collective import Collective
from trainer.launch import launch
from trainer.loop import Trainer
from trainer.progress import Progress
from trainer.report_data import read_metrics
from trainer.signals import SignalMaker, token_from_environment

GATEWAY = "http://127.0.0.1:8000"


@pytest.fixture
def kd(config):
    return dataclasses.replace(config, teacher="alpha", epochs=1)


def forbidden(*_args, **_options):
    pytest.fail("this must not be needed")


@pytest.fixture
def alone(monkeypatch):
    """No cluster, no service, no gateway and no teacher in the process."""
    for owner, name in (
        (module, "TeacherService"),
        (module, "HttpRunControl"),
        (module, "HttpTeacherClient"),
        (module, "InProcessTeacherClient"),
        (trainer.launch, "connected"),
        (trainer.launch, "TeacherLease"),
    ):
        monkeypatch.setattr(owner, name, forbidden)


def train(bench, config, name):
    """The whole of a run in this process; its folder."""
    run = bench.folder(name)
    with Progress(run.metrics, 3, Console(file=io.StringIO())) as progress:
        outcome = launch(bench.plan(config), run, progress)
    assert outcome.status == "finished", outcome.reason
    return run


def last_weights(run):
    return (run.checkpoints / "step-000000003" / "state.safetensors").read_bytes()


def maker(bench, config, token=None):
    return SignalMaker(bench.plan(config), "run", "views", token)


def test_scratch_asks_nobody(bench, config, alone):  # noqa: ARG001 a fixture for its effect
    assert maker(bench, config).make() is None


@pytest.mark.parametrize("mode", ["record", "auto"])
def test_a_recorded_run_is_repeated_bit_for_bit_without_any_teacher(bench, kd, mode, request):
    recorded = train(bench, dataclasses.replace(kd, ledger=mode), "recorded")
    plain = train(bench, kd, "plain")
    assert list(ledgers_folder().iterdir())
    request.getfixturevalue("alone")
    replaying = dataclasses.replace(kd, ledger="replay", teacher_transport="serve", seed=kd.seed)
    replayed = train(bench, replaying, "replayed")
    assert last_weights(recorded) == last_weights(plain) == last_weights(replayed)
    assert replayed.read_result()["replayed_items"] == 12
    assert plain.read_result()["replayed_items"] == 0
    losses = [[line["distill"] for line in read_metrics(run.metrics).steps] for run in (plain, replayed)]
    assert losses[0] == losses[1]


def test_later_epochs_of_the_same_views_are_replayed(bench, kd):
    config = dataclasses.replace(kd, epochs=2, views_per_video=1, ledger="auto")
    run = bench.folder("run")
    signal = SignalMaker(bench.plan(config), run.run_id, "pixels", None).make()
    with contextlib.closing(signal):
        trainer_ = Trainer(bench.plan(config), run, collective=Collective(), teacher=signal, should_stop=lambda: False)
        assert trainer_.run().status == "finished"
    assert run.read_result()["replayed_items"] == 12


def test_a_run_that_only_replays_ends_with_the_ledgers_own_words_when_it_lacks_an_answer(bench, kd):
    train(bench, dataclasses.replace(kd, ledger="record"), "recorded")
    run = bench.folder("other")
    config = dataclasses.replace(kd, ledger="replay", view_seed=1)
    with Progress(run.metrics, 3, Console(file=io.StringIO())) as progress:
        outcome = launch(bench.plan(config), run, progress)
    assert (outcome.status, outcome.step) == ("teacher_unavailable", 0)
    assert "has no answer to 4 of 4 items: record them first" in outcome.reason


def test_a_run_whose_version_has_no_ledger_ends_with_its_own_words_too(bench, kd):
    run = bench.folder("run")
    of_another = ledgers_folder() / "alpha@9-0123" / HEADER
    of_another.parent.mkdir(parents=True)
    of_another.touch()
    config = dataclasses.replace(kd, ledger="replay")
    with Progress(run.metrics, 3, Console(file=io.StringIO())) as progress:
        outcome = launch(bench.plan(config), run, progress)
    assert outcome.status == "teacher_unavailable"
    assert "there is none for alpha@1" in outcome.reason


class FakeGateway:
    """Control and client of a gateway in one; the class keeps the calls."""

    calls: ClassVar[list[tuple]] = []

    def __init__(self, url, token):
        self.calls.append(("connect", url, token))
        self._inner = None

    def acquire(self, run, ref):
        self.calls.append(("acquire", run, str(ref)))

    def renew(self, run):  # noqa: ARG002 the contract's signature
        return True

    def release(self, run):
        self.calls.append(("release", run))

    def restore(self, *_args):
        pytest.fail("there is nothing to restore")

    def bind(self, run, ref, block):
        self.calls.append(("bind", run, str(ref), block))
        return Binding(TeacherId("alpha", 1), self.digest, block)

    def submit(self, query):
        if self._inner is None:
            self._inner = InProcessTeacherClient(self.library)
        return self._inner.submit(query)

    def close(self):
        if self._inner is not None:
            self._inner.close()


def test_students_of_another_cluster_take_everything_from_the_gateway(bench, kd, monkeypatch):
    """No Ray, no library: a lease, a binding and the answers all come from its URL, with the token."""
    plain = train(bench, kd, "plain")
    monkeypatch.setattr(FakeGateway, "calls", [])
    library = module.TeacherLibrary(bench.home / "teachers")
    monkeypatch.setattr(FakeGateway, "library", library, raising=False)
    monkeypatch.setattr(FakeGateway, "digest", library.entry(TeacherId("alpha", 1)).digest, raising=False)
    for owner, name in (
        (module, "HttpRunControl"),
        (module, "HttpTeacherClient"),
        (trainer.launch, "HttpRunControl"),
    ):
        monkeypatch.setattr(owner, name, FakeGateway)
    for owner, name in ((module, "TeacherService"), (module, "Roster"), (trainer.launch, "connected")):
        monkeypatch.setattr(owner, name, forbidden)
    monkeypatch.setenv("PRECEPTOR_TOKEN", "secret")
    run = train(bench, dataclasses.replace(kd, teacher_transport="http", gateway=GATEWAY), "remote")
    assert last_weights(run) == last_weights(plain)
    assert set(FakeGateway.calls) == {
        ("connect", GATEWAY, "secret"),
        ("acquire", "remote", "alpha"),
        ("bind", "remote", "alpha", 0),
        ("release", "remote"),
    }


def test_the_token_is_in_no_text_of_what_the_workers_are_told(bench, kd):
    job = trainer.launch._Job(bench.plan(kd), bench.folder("run").path, "views", "secret")
    assert "secret" not in repr(job)


def test_an_empty_token_is_none(monkeypatch):
    monkeypatch.setenv("PRECEPTOR_TOKEN", "")
    assert token_from_environment() is None


@pytest.mark.parametrize(("ledger", "kind"), [("off", InProcessTeacherClient), ("auto", LedgerClient)])
def test_a_ledger_stands_before_the_transports_client(bench, kd, ledger, kind):
    with contextlib.closing(maker(bench, dataclasses.replace(kd, ledger=ledger)).make()) as signal:
        assert isinstance(signal._client, kind)


def test_after_a_loss_the_ledger_goes_on_with_what_this_run_recorded(bench, kd, monkeypatch):
    """The second epoch repeats the views of the first, and the teacher is gone by then."""
    config = dataclasses.replace(
        kd, epochs=2, views_per_video=1, ledger="record", on_teacher_loss="replay", teacher_budget_s=0.01
    )
    library = module.TeacherLibrary(bench.home / "teachers")
    inner = InProcessTeacherClient(library)
    monkeypatch.setattr(module, "InProcessTeacherClient", lambda _library: GoneAfter(inner, 3))
    run = train(bench, config, "run")
    assert run.read_result()["replayed_items"] == 12
    assert run.read_result()["kd_skipped"] == 0


class GoneAfter:
    """Answers so many questions."""

    def __init__(self, inner, good):
        self._inner = inner
        self._good = good

    def submit(self, query):
        self._good -= 1
        pending = self._inner.submit(query)
        if self._good < 0:
            pending.cancel()
            return FailedReply(TeacherUnavailable(str(query.teacher), 0.0, "no replica lives"))
        pending.result(timeout_s=60.0)
        return pending

    def close(self):
        self._inner.close()


@pytest.mark.parametrize("teacher", ["alpha", "beta"])
def test_features_are_recorded_for_the_hints_and_replayed_with_the_same_bits(bench, kd, request, teacher):
    """Answers that were recorded without features are asked for again by a run that wants them."""
    kd = dataclasses.replace(kd, teacher=teacher)
    hinting = dataclasses.replace(kd, hint_weight=1.0)
    train(bench, dataclasses.replace(kd, ledger="record"), "without")
    recorded = train(bench, dataclasses.replace(hinting, ledger="auto"), "recorded")
    request.getfixturevalue("alone")
    replayed = train(bench, dataclasses.replace(hinting, ledger="replay"), "replayed")
    assert last_weights(replayed) == last_weights(recorded)
