"""What a student was trained on is known again by the videos, wherever their store lies and however it was made."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from data.store import ClipStore, StoreWriter
from trainer.lessons import Lesson, lesson_of_run, lesson_on, rows_met
from trainer.student_files import load_student


def _store(path, videos, frame_size=(36, 40)):
    """videos: (key, frames)."""
    rng = np.random.default_rng(len(videos))
    with StoreWriter(path, frame_size=frame_size, classes=("left", "right")) as writer:
        for i, (key, frames) in enumerate(videos):
            writer.add(key, i % 2, "g1", rng.integers(0, 256, (frames, *frame_size, 3), dtype=np.uint8))
        writer.commit({"train01": [key for key, _ in videos]})
    return ClipStore.open(path)


VIDEOS = [("a/1", 30), ("a/2", 31), ("b/1", 32), ("b/\udce9", 33)]


def test_videos_are_known_again_in_another_store_by_key_and_length(tmp_path):
    learned = _store(tmp_path / "learned", VIDEOS)
    lesson = lesson_on(learned, np.array([0, 1, 3]), "train01", used_labels=False)
    again = _store(tmp_path / "again", [("new", 30), *VIDEOS[::-1]], frame_size=(48, 64))
    assert rows_met(lesson, again).tolist() == [1, 3, 4]  # b/1 was not in it
    others = _store(tmp_path / "others", [("a/1", 30), ("a/2", 99)])  # the same name, another video
    assert rows_met(lesson, others).tolist() == [0]
    assert Lesson.model_validate_json(lesson.model_dump_json()) == lesson
    assert rows_met(Lesson(name="train01 of two", used_labels=False, videos=None), again) is None


@pytest.fixture
def trained(bench, config):
    run = bench.folder("mine")
    run.write_json(run.config, {**config.to_json(), "run_id": "mine", "identity": config.identity()})
    bench.attempt(dataclasses.replace(config, max_steps=2), run)
    return run


@pytest.mark.usefixtures("trained")
def test_a_run_learned_from_the_whole_of_its_list(store):
    (lesson,) = load_student("mine").lessons
    assert (lesson.name, lesson.used_labels) == (f"train01 of {store.path.name}", False)
    np.testing.assert_array_equal(rows_met(lesson, store), np.sort(store.subset("train01")))


def test_a_store_that_was_moved_is_still_that_of_the_run(trained, store, tmp_path):
    """Nothing lies at the old place, or something else: the run's folder says which videos it trained on."""
    moved = ClipStore.open(shutil.copytree(store.path, tmp_path / "moved"))
    trained_on = [store.videos.keys.index(key) for key in trained.train_list.read_text().split()]
    for old_place in (tmp_path / "nothing", _store(tmp_path / "others", VIDEOS).path):
        trained.write_json(trained.config, {**json.loads(trained.config.read_bytes()), "store": str(old_place)})
        (lesson,) = load_student("mine").lessons
        assert rows_met(lesson, moved).tolist() == sorted(trained_on)
    trained.train_list.unlink()
    trained.write_json(trained.config, {**json.loads(trained.config.read_bytes()), "store": str(tmp_path / "nothing")})
    assert load_student("mine").lessons[0].videos is None


@pytest.mark.parametrize(
    ("change", "has_action_head"), [({"ce_weight": 0.5}, False), ({"extra_loss": "a:b"}, False), ({}, True)]
)
def test_labels_an_own_loss_and_the_answers_of_an_action_teacher_count_as_labels(
    trained, config, change, has_action_head
):
    changed = dataclasses.replace(config, **change)
    assert lesson_of_run(trained, changed, has_action_head=has_action_head).used_labels
    assert not lesson_of_run(trained, config, has_action_head=False).used_labels
