"""The timeline: what the roster is told after a crash, what is kept when it is away, and files that are refused."""

import dataclasses
import json
import threading

import pytest

from teacher_server.errors import BadQuery, LibraryError, TeacherOverloaded, TeacherUnavailable
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import Binding, TeacherId, TeacherRef
from teacher_server.roster.roster import BLOCK_STEPS, Roster
from trainer.config import ConfigError
from trainer.plan import make_plan
from trainer.timeline import ROSTER_PAUSE_S, Binder, TimelineEntry, recorded_timeline

REF = TeacherRef("alpha")
AWAY = TeacherUnavailable("roster", 1.0, "gone")
TWO = (TimelineEntry(0, "alpha@1", "a" * 64), TimelineEntry(3 * BLOCK_STEPS, "alpha@2", "b" * 64))


class FakeRoster:
    """Binds every block to `version`; raises `error` while there is one."""

    def __init__(self):
        self.version = 1
        self.error = None
        self.asked = []
        self.restored = []

    def bind(self, run, ref, block):
        self.asked.append((run, str(ref), block))
        if self.error is not None:
            raise self.error
        return Binding(TeacherId("alpha", self.version), str(self.version) * 64, block)

    def restore(self, run, bindings, highest_block):
        self.restored.append((run, list(bindings), highest_block))
        if self.error is not None:
            raise self.error


def versions(binder, blocks):
    return [binder.bind(block).teacher.version for block in blocks]


@pytest.mark.parametrize(
    ("steps_done", "highest"), [(1, 0), (BLOCK_STEPS, 0), (BLOCK_STEPS + 1, 1), (4 * BLOCK_STEPS, 3)]
)
def test_the_roster_is_told_the_blocks_that_the_checkpoint_has_seen(steps_done, highest):
    roster = FakeRoster()
    Binder(roster, "run", REF).restore(TWO[:1], steps_done)
    assert roster.restored == [("run", [Binding(TeacherId("alpha", 1), "a" * 64, 0)], highest)]


def test_each_change_of_the_timeline_is_a_binding_of_its_first_block():
    roster = FakeRoster()
    Binder(roster, "run", REF).restore(TWO, 3 * BLOCK_STEPS + 1)
    first, second = Binding(TeacherId("alpha", 1), "a" * 64, 0), Binding(TeacherId("alpha", 2), "b" * 64, 3)
    assert roster.restored == [("run", [first, second], 3)]


def test_a_run_that_has_done_nothing_restores_nothing():
    roster = FakeRoster()
    Binder(roster, "run", REF).restore((), 0)
    assert roster.restored == []


def test_a_lost_roster_goes_on_from_the_checkpoint(bench, config):
    """The same versions after the roster's file is gone, although the alias points elsewhere meanwhile."""
    kd = dataclasses.replace(config, teacher="alpha", batch_size=2, epochs=2, max_steps=10)
    run = bench.folder("run")
    roster = Roster(TeacherLibrary(bench.home / "teachers"))
    bench.attempt(kd, run, steps=3)
    roster.path.unlink()
    roster.resolve(REF)
    roster.promote("alpha", 2, "test")
    bench.attempt(kd, run)
    timeline = [(entry["first_step"], entry["teacher"]) for entry in run.read_result()["teacher_timeline"]]
    assert timeline == [(0, "alpha@1"), (8, "alpha@2")]


def test_the_record_of_the_roster_outranks_the_checkpoint(bench, config):
    kd = dataclasses.replace(config, teacher="alpha", batch_size=2, epochs=2, max_steps=10)
    run = bench.folder("run")
    roster = Roster(TeacherLibrary(bench.home / "teachers"))
    bench.attempt(kd, run, steps=3)
    roster.bind("run", REF, 1)  # an attempt that was killed before its checkpoint had got so far
    roster.promote("alpha", 2, "test")
    bench.attempt(kd, run)
    assert [entry["teacher"] for entry in run.read_result()["teacher_timeline"]] == ["alpha@1"]


@pytest.mark.parametrize("policy", ["wait", "skip"])
def test_a_run_whose_roster_is_away_at_the_start_says_so_or_goes_on_with_the_last_binding(
    bench, config, monkeypatch, policy
):
    kd = dataclasses.replace(config, teacher="alpha", batch_size=2, max_steps=6, on_teacher_loss=policy)
    run = bench.folder("run")
    bench.attempt(kd, run, steps=3)

    def nobody(*_args):
        raise AWAY

    monkeypatch.setattr(Roster, "restore", nobody)
    monkeypatch.setattr(Roster, "bind", nobody)
    if policy == "wait":
        outcome, _ = bench.attempt(dataclasses.replace(kd, teacher_budget_s=0.01), run)
        assert (outcome.status, outcome.step) == ("teacher_unavailable", 3)
        assert outcome.reason.startswith("teacher alpha did not answer within")
        assert outcome.reason.endswith(": gone")
    else:
        assert bench.attempt(kd, run)[0].status == "finished"
        assert run.read_result()["kd_skipped"] == 0


def test_a_roster_that_is_away_leaves_the_last_version_and_is_asked_again_after_a_pause():
    roster, now = FakeRoster(), [0.0]
    binder = Binder(roster, "run", REF, keep_last=True, clock=lambda: now[0])
    assert versions(binder, [0]) == [1]
    roster.error, roster.version = AWAY, 2
    assert versions(binder, [1]) == [1]
    roster.error = None
    assert binder.bind(2) == Binding(TeacherId("alpha", 1), "1" * 64, 2)
    assert [block for _, _, block in roster.asked] == [0, 1]
    now[0] = ROSTER_PAUSE_S
    assert versions(binder, [3]) == [2]


def test_a_pause_ends_when_another_worker_has_reached_the_roster():
    roster = FakeRoster()
    binder = Binder(roster, "run", REF, keep_last=True, clock=lambda: 0.0)
    binder.bind(0)
    roster.error, roster.version = AWAY, 2
    assert versions(binder, [1, 2]) == [1, 1]
    roster.error = None
    binder.ask_again()
    assert versions(binder, [3]) == [2]


class Clock:
    """Time passes while somebody sleeps; `then` is called after each pause."""

    def __init__(self, then=lambda _now: None):
        self.now = 0.0
        self._then = then

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        assert seconds > 0
        self.now += seconds
        self._then(self.now)


@pytest.mark.parametrize("error", [AWAY, TeacherOverloaded(1, 2, 3)])
@pytest.mark.parametrize("call", ["bind", "restore"])
def test_a_roster_that_comes_back_within_the_budget_costs_only_time(call, error):
    def come_back(now):
        if now > 60.0:
            roster.error = None

    roster, clock = FakeRoster(), Clock(come_back)
    binder = Binder(roster, "run", REF, budget_s=120.0, clock=clock, sleep=clock.sleep)
    roster.error = error
    if call == "bind":
        assert binder.bind(0) == Binding(TeacherId("alpha", 1), "1" * 64, 0)
    else:
        binder.restore(TWO, 4 * BLOCK_STEPS)
    assert 60.0 < clock.now < 63.0


@pytest.mark.parametrize("call", ["bind", "restore"])
@pytest.mark.parametrize("keep_last", [False, True])
def test_without_a_version_to_keep_the_last_reason_comes_out_when_the_budget_is_spent(keep_last, call):
    roster, clock = FakeRoster(), Clock()
    recorded = TWO if call == "restore" else ()  # of a run that begins: there is nothing to keep yet
    options = {"budget_s": 9.0, "clock": clock, "sleep": clock.sleep, "recorded": recorded}
    binder = Binder(roster, "run", REF, keep_last=keep_last, **options)
    roster.error = AWAY
    with pytest.raises(TeacherUnavailable, match=r"teacher alpha did not answer within [5-8]\.\d s: gone"):
        binder.bind(0) if call == "bind" else binder.restore((), 0)
    assert 6.0 < clock.now < 9.0


def test_waiting_for_the_roster_ends_when_the_binder_is_stopped():
    roster = FakeRoster()
    binder = Binder(roster, "run", REF, budget_s=1e6)
    roster.error = AWAY
    errors = []

    def bind():
        with pytest.raises(TeacherUnavailable) as caught:
            binder.bind(0)
        errors.append(caught.value)

    waiting = threading.Thread(target=bind)
    waiting.start()
    binder.stop()
    waiting.join(20.0)
    assert [error.args[2] for error in errors] == ["gone"]


def test_other_refusals_of_the_roster_are_never_swallowed():
    roster = FakeRoster()
    binder = Binder(roster, "run", REF, keep_last=True)
    binder.bind(0)
    roster.error = LibraryError("path", "other files")
    with pytest.raises(LibraryError):
        binder.bind(1)


def test_a_recorded_timeline_binds_without_the_roster_and_is_put_on_record():
    roster = FakeRoster()
    binder = Binder(roster, "run", REF, recorded=TWO)
    binder.restore((), 0)
    assert versions(binder, [0, 2, 3, 9]) == [1, 1, 2, 2]
    assert binder.bind(4) == Binding(TeacherId("alpha", 2), "b" * 64, 4)
    assert roster.asked == []
    first, second = Binding(TeacherId("alpha", 1), "a" * 64, 0), Binding(TeacherId("alpha", 2), "b" * 64, 3)
    assert roster.restored == [("run", [first, second], 3)]


def test_digests_are_those_of_the_bindings():
    binder = Binder(FakeRoster(), "run", REF)
    binder.bind(0)
    binder.restore(TWO[1:], 1)
    assert binder.digest_of(TeacherId("alpha", 1)) == "1" * 64
    assert binder.digest_of(TeacherId("alpha", 2)) == "b" * 64
    with pytest.raises(BadQuery, match="no block of run run was bound to alpha@3"):
        binder.digest_of(TeacherId("alpha", 3))


@pytest.fixture
def entries(home):
    library = TeacherLibrary(home / "teachers")
    return [
        {
            "first_step": first,
            "teacher": f"alpha@{version}",
            "digest": library.entry(TeacherId("alpha", version)).digest,
        }
        for first, version in ((0, 1), (BLOCK_STEPS, 2))
    ]


@pytest.fixture
def read(tmp_path, config, home):
    """The timeline in a file with this content, for a run under `teacher`."""

    def read(content, teacher="alpha", **changes):
        path = tmp_path / "timeline.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        config_ = dataclasses.replace(config, teacher=teacher, teacher_timeline=str(path), **changes)
        return recorded_timeline(config_, TeacherLibrary(home / "teachers"))

    return read


@pytest.mark.parametrize("form", ["list", "result"])
def test_a_timeline_is_read_from_a_list_or_from_a_result(read, entries, form):
    timeline = read(entries if form == "list" else {"steps": 12, "teacher_timeline": entries})
    assert [dataclasses.asdict(entry) for entry in timeline] == entries


def test_without_the_setting_there_is_no_timeline(config):
    assert recorded_timeline(config, None) == ()


def change(entries, i, **fields):
    return [entry | fields if j == i else entry for j, entry in enumerate(entries)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda _: "{", "this is not JSON"),
        (lambda _: [], "expected a run's result.json under a teacher, or a list of"),
        (lambda _: {"teacher_timeline": []}, "expected a run's result.json under a teacher"),
        (lambda _: {"steps": 3}, "expected a run's result.json under a teacher"),
        (lambda _: ["alpha@1"], "expected entries .*, got 'alpha@1'"),
        (lambda e: change(e, 0, first_step=0.0), "expected entries"),
        (lambda e: change(e, 0, first_step=True), "expected entries"),
        (lambda e: change(e, 0, digest="abc"), "a digest is 64 hex digits, got 'abc'"),
        (lambda e: change(e, 0, first_step=8), "first_step must begin at 0 and ascend, got 8, 8"),
        (lambda e: [*e, e[0]], "first_step must begin at 0 and ascend, got 0, 8, 0"),
        (lambda e: change(e, 1, first_step=11), "first_step 11 is not on a block boundary: .* as at 8 or 16"),
        (lambda e: change(e, 1, teacher="alpha"), "'alpha' names no version"),
        (lambda e: change(e, 1, teacher="alpha@7"), "no teacher 'alpha@7': known are alpha@1, alpha@2"),
        (lambda e: change(e, 1, teacher="gamma@1"), "it names gamma@1, this run learns from alpha"),
        (lambda e: change(e, 1, digest="0" * 64), "alpha@2 had digest 000000000000 then, in .* it has"),
    ],
)
def test_a_file_that_cannot_be_followed_is_refused_by_name(read, entries, damage, message):
    with pytest.raises(ConfigError, match=rf"teacher timeline .*timeline.json: {message}"):
        read(damage(entries))


@pytest.mark.parametrize(
    ("teacher", "message"), [("alpha@1", "it names alpha@2, this run"), ("none", "it names alpha")]
)
def test_a_run_of_another_teacher_does_not_follow_it(read, entries, teacher, message):
    with pytest.raises(ConfigError, match=message):
        read(entries, teacher=teacher)


def test_versions_that_do_not_fit_the_run_are_refused(read, entries):
    with pytest.raises(ConfigError, match="alpha@1 does not fit this run: it takes 32x32"):
        read(entries, crop=34)


def test_a_missing_file_is_named(config, tmp_path):
    missing = dataclasses.replace(config, teacher="alpha", teacher_timeline=str(tmp_path / "nowhere.json"))
    with pytest.raises(ConfigError, match=r"nowhere.json cannot be read: No such file"):
        recorded_timeline(missing, None)


def test_behind_a_gateway_the_versions_are_not_looked_up_here(entries, config, tmp_path):
    path = tmp_path / "timeline.json"
    path.write_text(json.dumps(change(entries, 1, teacher="alpha@7")))
    remote = dataclasses.replace(config, teacher="alpha", teacher_timeline=str(path))
    assert recorded_timeline(remote, None)[1].teacher == "alpha@7"


def test_a_plan_names_the_version_that_the_lease_is_for(config, entries, tmp_path):
    path = tmp_path / "timeline.json"
    path.write_text(json.dumps(entries))
    kd = dataclasses.replace(config, teacher="alpha")
    assert make_plan(kd).lease_ref == TeacherRef("alpha")
    followed = make_plan(dataclasses.replace(kd, teacher_timeline=str(path)))
    assert followed.lease_ref == TeacherRef("alpha", 1)
    assert [entry.teacher for entry in followed.timeline] == ["alpha@1", "alpha@2"]
    with pytest.raises(ConfigError, match="takes no lease"):
        _ = make_plan(config).lease_ref
