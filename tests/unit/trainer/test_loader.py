"""The loader against batches made one tuple at a time; order, bounds and errors with a teacher that records."""

import dataclasses
import threading

import numpy as np
import pytest
import torch

from data.errors import StoreDamaged
from data.prepare import prepare
from data.render import render
from teacher_server.errors import TeacherUnavailable
from teacher_server.protocol import Binding, TeacherId
from trainer.loader import Asking, Loader, TeacherAnswer
from trainer.plan import student_input
from trainer.sampler import Sampler, split_rows

WAIT_S = 20.0  # of an event that another thread sets; never reached unless the test fails


class RecordingTeacher:
    """Answers step s with logits that say s. Notes every call."""

    def __init__(self):
        self.put_steps = []
        self.answered = 0
        self.most_open = 0
        self.pixels = []
        self.on_put = lambda _step: None
        self.before_get = lambda _step: None
        self.stopped = threading.Event()

    def put(self, step, views, pixels):
        self.on_put(step)
        self.put_steps.append(step)
        self.pixels.append((views, pixels))
        self.most_open = max(self.most_open, len(self.put_steps) - self.answered)

    def get(self):
        step = self.put_steps[self.answered]
        self.before_get(step)
        self.answered += 1
        logits = np.full((len(self.pixels[step - self.put_steps[0]][1]) // 3, 5), float(step), dtype=np.float32)
        logits.flags.writeable = False  # as replies arrive
        return TeacherAnswer(logits, Binding(TeacherId("alpha", 1 + step // 2), "d" * 64, 0))

    def stop(self):
        self.stopped.set()

    def close(self):
        pass


@pytest.fixture
def sampler(store, config):
    return Sampler(store.videos, split_rows(store, config)[0], config)


def make(sampler, store, config, teacher=None, **options):
    return Loader(sampler, store, student_input(config), teacher, **{"first": 0, "stop": 6} | options)


def collect(loader, seen):
    """Notes the steps, so that an error does not lose what came before it."""
    for step in loader:
        seen.append(step.step)


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name == "loader"]


@pytest.mark.parametrize("modality", ["rgb", "res"])
def test_a_batch_holds_every_view_at_its_place(sampler, store, config, modality):
    """Reference: each view rendered and prepared by itself."""
    config = dataclasses.replace(config, modality=modality)
    with make(sampler, store, config, first=2, stop=4) as loader:
        steps = list(loader)
    assert [step.step for step in steps] == [2, 3]
    for step in steps:
        views = sampler.views(step.step)
        assert step.views.to_bytes() == views.to_bytes()
        assert step.batch.pretext_labels.tolist() == views.records["pretext"][1::3].tolist()
        assert (step.batch.teacher_logits, step.binding, step.teacher_wait_s) == (None, None, 0.0)
        for i, (record, frames) in enumerate(zip(views.records, store.gather(views), strict=True)):
            alone = prepare(render(frames, record)[None], student_input(config))[0]
            assert torch.equal(step.batch.clips[i % 3][i // 3], alone)


def test_workers_share_a_step(sampler, store, config):
    config = dataclasses.replace(config, batch_size=5)
    sampler = Sampler(store.videos, split_rows(store, config)[0], config)
    with make(sampler, store, config, stop=1) as loader:
        (whole,) = loader
    parts = []
    for rank in range(2):
        with make(sampler, store, config, stop=1, rank=rank, world=2) as loader:
            parts += list(loader)
    assert [len(part.batch.pretext_labels) for part in parts] == [2, 3]
    for i in range(3):
        assert torch.equal(torch.cat([part.batch.clips[i] for part in parts]), whole.batch.clips[i])


def test_answers_meet_their_steps_and_the_teacher_sees_the_same_pixels(sampler, store, config):
    teacher = RecordingTeacher()
    with make(sampler, store, config, teacher, first=1) as loader:
        steps = list(loader)
    assert teacher.put_steps == [1, 2, 3, 4, 5]
    for step, (views, pixels) in zip(steps, teacher.pixels, strict=True):
        assert step.batch.teacher_logits.tolist() == [[float(step.step)] * 5] * 4
        assert step.binding.teacher == TeacherId("alpha", 1 + step.step // 2)
        assert views.to_bytes() == step.views.to_bytes()
        assert torch.equal(prepare(pixels, student_input(config))[1::3], step.batch.clips[1])


def test_the_mask_and_the_cost_of_an_answer_meet_their_step(sampler, store, config):
    teacher = RecordingTeacher()
    masks = {1: np.array([True, False, False, True])}
    answer = teacher.get

    def get():
        answered = answer()
        step = int(answered.logits[0, 0])
        return dataclasses.replace(answered, mask=masks.get(step), asking=Asking(retries=step))

    teacher.get = get
    with make(sampler, store, config, teacher, stop=3) as loader:
        steps = list(loader)
    assert [step.batch.teacher_mask if i != 1 else None for i, step in enumerate(steps)] == [None] * 3
    assert steps[1].batch.teacher_mask.tolist() == [True, False, False, True]
    assert [step.asking.retries for step in steps] == [0, 1, 2]


@pytest.mark.parametrize("prefetch", [1, 2, 3])
def test_questions_are_asked_ahead_and_never_more_than_prefetch_are_open(sampler, store, config, prefetch):
    """The first answer is held back until `prefetch` questions are there: it can only come if they are asked ahead."""
    teacher = RecordingTeacher()
    ahead = threading.Event()
    teacher.on_put = lambda step: ahead.set() if step == prefetch - 1 else None
    teacher.before_get = lambda _step: ahead.wait(WAIT_S) or pytest.fail("nothing was asked ahead")
    with make(sampler, store, config, teacher, prefetch=prefetch) as loader:
        for done, _ in enumerate(loader, start=1):
            assert len(teacher.put_steps) <= done + prefetch
    assert teacher.put_steps == list(range(6))
    assert teacher.most_open == prefetch
    free = [loader._slots.acquire(blocking=False) for _ in range(prefetch + 1)]
    assert free == [True] * prefetch + [False]  # every step gave back exactly the slot that it took


def test_an_error_of_the_producer_comes_after_the_steps_before_it(sampler, store, config, monkeypatch):
    views = sampler.views

    def failing(step, rank, world):
        if step == 2:
            raise StoreDamaged("store", "a checksum differs")
        return views(step, rank, world)

    monkeypatch.setattr(sampler, "views", failing)
    seen = []
    with make(sampler, store, config) as loader, pytest.raises(StoreDamaged, match="a checksum differs"):
        collect(loader, seen)
    assert seen == [0, 1]
    assert loader_threads() == []


@pytest.mark.parametrize("side", ["on_put", "before_get"])
def test_an_error_of_the_teacher_reaches_the_loop(sampler, store, config, side):
    teacher = RecordingTeacher()

    def failing(step):
        if step == 3:
            raise TeacherUnavailable("alpha@1", 1.0, "gone")

    setattr(teacher, side, failing)
    seen = []
    with make(sampler, store, config, teacher) as loader, pytest.raises(TeacherUnavailable, match="gone"):
        collect(loader, seen)
    assert seen == [0, 1, 2]
    assert loader_threads() == []


def test_leaving_early_ends_the_thread_that_waits_for_room(sampler, store, config):
    with make(sampler, store, config, RecordingTeacher()) as loader:
        next(iter(loader))
        assert len(loader_threads()) == 1
    assert loader_threads() == []


def test_leaving_ends_a_question_that_waits_for_the_roster(sampler, store, config):
    teacher, waiting = RecordingTeacher(), threading.Event()

    def wait(_step):
        waiting.set()
        assert teacher.stopped.wait(WAIT_S)

    teacher.on_put = wait
    with make(sampler, store, config, teacher):
        assert waiting.wait(WAIT_S)
    assert loader_threads() == []


def test_a_run_with_nothing_left_to_do_yields_nothing(sampler, store, config):
    with make(sampler, store, config, first=6, stop=6) as loader:
        assert list(loader) == []


def test_a_batch_says_its_step_and_where_its_videos_stand_in_the_training_list(sampler, store, config):
    rows = split_rows(store, config)[0]
    with make(sampler, store, config) as loader:
        for loaded in loader:
            videos = loaded.views.records["video"].reshape(-1, 3)
            assert loaded.batch.step == loaded.step
            assert rows[loaded.batch.positions.numpy()].tolist() == videos[:, 0].tolist()
            assert loaded.batch.action_labels is None


def test_the_classes_of_the_videos_come_only_where_they_are_asked_for(sampler, store, config):
    with make(sampler, store, config, labels=store.labels) as loader:
        loaded = next(iter(loader))
    keys = [store.videos.keys[row] for row in loaded.views.records["video"][::3]]
    assert loaded.batch.action_labels.tolist() == [store.classes.index(key.split("/")[0]) for key in keys]
