"""The claim on a service, over any control: taken in a thread, kept, taken again, given back."""

import threading

import pytest

import trainer.lease as module
from teacher_server.errors import NoCapacity, TeacherUnavailable
from teacher_server.protocol import TeacherRef
from trainer.lease import TeacherLease

REF = TeacherRef("alpha", 2)
WAIT_S = 20.0  # of an event that another thread sets; never reached unless the test fails
AWAY = TeacherUnavailable("roster", 1.0, "gone")


class FakeControl:
    """Notes its calls. held: what `renew` says."""

    def __init__(self):
        self.calls = []
        self.held = True
        self.error = None
        self.renewed = threading.Event()
        self.acquired_again = threading.Event()

    def acquire(self, run, ref):
        self.calls.append(("acquire", run, ref))
        if self.calls.count(("acquire", run, ref)) > 1:
            self.acquired_again.set()
        if self.error is not None:
            raise self.error

    def renew(self, run):
        self.calls.append(("renew", run))
        self.renewed.set()
        if self.error is not None:
            raise self.error
        return self.held

    def release(self, run):
        self.calls.append(("release", run))
        if self.error is not None:
            raise self.error


BROKEN = OSError("no space left on device")


@pytest.fixture
def control():
    return FakeControl()


@pytest.fixture
def soon(monkeypatch):
    """Renewals at once."""
    monkeypatch.setattr(module, "LEASE_TTL_S", 0.004)


def test_the_teacher_is_there_after_waiting_and_the_lease_goes_back(control):
    with TeacherLease(lambda: control, "run", REF) as lease:
        assert lease.wait() is control
        lease.check()
        lease.release()
    assert control.calls == [("acquire", "run", REF), ("release", "run")]


def test_a_lease_may_be_taken_in_another_way_than_the_contracts(control):
    seen = []
    with TeacherLease(lambda: control, "run", REF, seen.append) as lease:
        lease.wait()
    assert seen == [control]
    assert control.calls == []


@pytest.mark.parametrize("where", ["connect", "acquire"])
def test_what_goes_wrong_in_getting_the_teachers_is_raised_in_the_main_thread(control, where):
    error = NoCapacity("no room")

    def connect():
        if where == "connect":
            raise error
        return control

    control.error = error
    with TeacherLease(connect, "run", REF) as lease:
        for ask in (lease.wait, lease.check):
            with pytest.raises(NoCapacity, match="no room"):
                ask()


def test_a_lease_that_ran_out_is_taken_again(control, soon):  # noqa: ARG001 a fixture for its effect
    control.held = False
    with TeacherLease(lambda: control, "run", REF) as lease:
        lease.wait()
        assert control.acquired_again.wait(WAIT_S)


@pytest.mark.parametrize("error", [AWAY, BROKEN])
def test_a_service_that_is_away_for_a_while_does_not_end_the_renewals(control, soon, error):  # noqa: ARG001
    with TeacherLease(lambda: control, "run", REF) as lease:
        lease.wait()
        control.error = error
        control.renewed.clear()
        assert control.renewed.wait(WAIT_S)
        control.renewed.clear()
        assert control.renewed.wait(WAIT_S)
        lease.check()


def test_a_lease_that_goes_back_during_a_renewal_is_not_taken_again(control, soon):  # noqa: ARG001
    def renew(_run):
        lease.release()
        return False

    control.renew = renew
    with TeacherLease(lambda: control, "run", REF) as lease:
        lease.wait()
        lease._thread.join(WAIT_S)
    assert control.calls == [("acquire", "run", REF), ("release", "run")]


@pytest.mark.parametrize("error", [AWAY, BROKEN])
def test_a_lease_that_cannot_be_given_back_is_left_to_run_out(control, error):
    with TeacherLease(lambda: control, "run", REF) as lease:
        lease.wait()
        control.error = error
        lease.release()
    assert control.calls[-1] == ("release", "run")


def test_nothing_is_renewed_after_the_lease_went_back(control, soon):  # noqa: ARG001
    with TeacherLease(lambda: control, "run", REF) as lease:
        lease.wait()
        assert control.renewed.wait(WAIT_S)
        lease.release()
    released = control.calls.index(("release", "run"))
    assert len(control.calls) - released <= 2  # at most one renewal was under way
    assert not [thread for thread in threading.enumerate() if thread.name == "teacher-lease"]
