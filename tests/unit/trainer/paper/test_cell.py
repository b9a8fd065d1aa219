"""Whole cells of a few steps on the tiny store, in this process: what they leave, and going on after a stop."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data.store import ClipStore, StoreWriter
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId
from teacher_server.serve.deployment import TeacherService
from teacher_server.zoo.network import VideoNetwork
from trainer.evaluate.probe import commonest_share
from trainer.paper import cell as cell_module
from trainer.paper.cell import run_job
from trainer.paper.load import read_cell
from trainer.paper.plan import GridRequest, Job, make_jobs
from trainer.paper.records import Arm, Cell, TeacherKey, TeacherResult
from trainer.paper.scale import DEMO, FULL_TEACHER_SEED, Choices, Network, TransferRecipe, student_config
from trainer.paper.training import teacher_signal
from trainer.paper.transfer import make_transfers
from trainer.paper.work import Workshop
from trainer.plan import make_plan
from trainer.report_data import read_metrics
from trainer.runs import RunFolder
from trainer.signals import SignalMaker
from trainer.student_files import load_student

SCRATCH = Cell(arm=Arm(student="r3d"), fraction=50.0, seed=0)
MATCHED = Cell(arm=Arm(student="c3d", teacher="r3d", teacher_data="matched"), fraction=50.0, seed=0)
UNTRAINED = Cell(arm=Arm(student="r3d", teacher="c3d", teacher_data="untrained"), fraction=50.0, seed=0)


@pytest.fixture(scope="session")
def second_store(tmp_path_factory):
    """12 videos of three classes in 4 groups, of which the last is the test list's."""
    rng = np.random.default_rng(3)
    path = tmp_path_factory.mktemp("second") / "second"
    lists = {"train01": [], "test01": []}
    with StoreWriter(path, frame_size=(36, 48), classes=("nod", "turn", "wave")) as writer:
        for group, label in itertools.product(range(4), range(3)):
            key = f"v{group}{label}"
            writer.add(key, label, f"person {group}", rng.integers(0, 256, (20, 36, 48, 3), dtype=np.uint8))
            lists["test01" if group == 3 else "train01"].append(key)
        writer.commit(lists)
    return ClipStore.open(path)


@pytest.fixture
def scale(store, second_store):
    """18 training videos of which 4 are held out; half of the rest are 2 batches of 4 and 3."""
    return dataclasses.replace(
        DEMO,
        store=str(store.path),
        second_store=str(second_store.path),
        student=Network(width=0.125, epochs=4),
        teacher=Network(width=0.125, epochs=1),
        clip_len=8,
        interval=2,
        crop=32,
        batch_size=4,
        curve_points=2,
        transfer=TransferRecipe(
            clips=1, head_epochs=1, head_lr=0.01, full_epochs=1, full_lr=0.01, batch_size=8, augment=False
        ),
    )


@pytest.fixture
def shop(scale, home, tmp_path):  # noqa: ARG001 PRECEPTOR_HOME must be there
    return Workshop(tmp_path / "paper", "paper-test", scale, Choices("in_process"), "pixels")


def weights_of(home, teacher):
    """What is served of a teacher's first version."""
    return load_file(TeacherLibrary(home / "teachers").entry(TeacherId(teacher, 1)).weights)


def assert_same(served, expected):
    """Every served tensor is the one of that name."""
    assert served
    assert all(torch.equal(tensor, expected[name]) for name, tensor in served.items())


def job_of(shop, cell):
    (job,) = [job for job in make_jobs(shop.scale, GridRequest((50.0,), (0,))) if job.cell == cell]
    return job


def test_a_scratch_cell_leaves_what_the_tables_read(shop, store):
    assert run_job(shop, job_of(shop, SCRATCH)).status == "done"
    found = read_cell(shop.cell_folder(SCRATCH.id))  # checks that answers and accuracies agree
    result = found.result
    assert result.cell == SCRATCH
    assert [(stage.name, stage.until_epoch) for stage in result.stages] == [("early", 1), ("mid", 3), ("late", 4)]
    assert [point.epoch for point in result.curve] == [1, 2, 3, 4]
    assert {(one.dataset, one.protocol) for one in result.transfers} == set(
        itertools.product(("same", "second"), ("head", "full", "probe", "retrieval"))
    )
    assert (result.num_train, result.num_validation, result.num_test, result.steps) == (6, 4, 8, 8)
    assert (result.teacher, result.cost.teacher_inference_s, result.cost.asked_items) == (None, 0.0, 0)
    test_rows = store.subset("test01")
    assert found.answers.keys == tuple(store.videos.keys[row] for row in test_rows for _ in range(5))
    best = shop.runs / SCRATCH.id / "checkpoints" / "best"
    assert load_student(best).digest == result.weights_sha256
    assert [path.name for path in best.parent.glob("step-*")] == [best.resolve().name]
    chosen = (shop.runs / SCRATCH.id / "train_list.txt").read_text().splitlines()
    assert len(chosen) == 6
    assert set(chosen) < {store.videos.keys[row] for row in store.subset("train01")}
    assert shop.is_done(job_of(shop, SCRATCH))


def test_transfers_are_made_on_the_data_set_that_they_name(shop, store, second_store):
    assert run_job(shop, job_of(shop, SCRATCH)).reason == ""
    found = read_cell(shop.cell_folder(SCRATCH.id))
    assert found.result.second_store_fingerprint == second_store.fingerprint
    for dataset, where in (("same", store), ("second", second_store)):
        rows = where.subset("test01")
        assert found.answers.transfers.groups[dataset] == tuple(where.groups[row] for row in rows)
        (head,) = [t for t in found.result.transfers if (t.dataset, t.protocol) == (dataset, "head")]
        assert head.chance == commonest_share(where.labels[where.subset("train01")], where.labels[rows])


def test_transfers_are_made_again_when_the_second_data_set_is_another(shop, second_store, tmp_path):
    trained = shop.runs / SCRATCH.id
    assert run_job(shop, job_of(shop, SCRATCH)).reason == ""
    student = load_student(trained / "checkpoints" / "best")
    folder, calls = tmp_path / "kept", []
    first = make_transfers(student, shop.scale, folder, lambda *figures: calls.append(figures))
    calls.clear()
    assert make_transfers(student, shop.scale, folder, lambda *figures: calls.append(figures)).records == first.records
    assert calls == []
    with StoreWriter(tmp_path / "other", frame_size=second_store.frame_size, classes=("a", "b")) as writer:
        for name, label in (("x", 0), ("y", 1), ("z", 1)):
            writer.add(name, label, name, np.zeros((20, 36, 48, 3), dtype=np.uint8))
        writer.commit({"train01": ["x", "y"], "test01": ["z"]})
    scale = dataclasses.replace(shop.scale, second_store=str(tmp_path / "other"))
    other = make_transfers(student, scale, folder, lambda *figures: calls.append(figures))
    assert [t for t in other.records if t.dataset == "same"] == [t for t in first.records if t.dataset == "same"]
    assert {t.chance for t in other.records if t.dataset == "second"} != {
        t.chance for t in first.records if t.dataset == "second"
    }
    assert calls


def test_a_matched_teacher_is_added_once_and_its_answers_are_charged_though_replayed(shop, home):
    for cell in (SCRATCH, MATCHED):
        assert run_job(shop, job_of(shop, cell)).reason == ""
    record = TeacherResult.model_validate_json((shop.folder / "teachers" / "r3d-matched-f50-s0.json").read_bytes())
    first, scratch = (read_cell(shop.cell_folder(cell.id)).result for cell in (MATCHED, SCRATCH))
    assert (record.test_acc, record.training_s) == (scratch.stages[-1].test_acc, scratch.cost.student_s)
    assert (first.teacher, first.teacher_digest) == (record.teacher, record.digest)
    student = load_student(shop.runs / SCRATCH.id / "checkpoints" / "best")
    assert_same(weights_of(home, "paper-r3d-matched-f50-s0"), student.network.state_dict())
    assert (first.cost.asked_items, first.cost.replayed_items) == (24, 0)

    again = Cell(arm=MATCHED.arm.model_copy(update={"contrast": False}), fraction=50.0, seed=0)
    assert run_job(shop, Job(again.id, cell=again)).reason == ""
    second = read_cell(shop.cell_folder(again.id)).result
    assert (second.cost.asked_items, second.cost.replayed_items) == (0, 24)
    assert second.cost.teacher_inference_s == first.cost.teacher_inference_s > 0
    assert second.transfers == ()
    assert TeacherLibrary(home / "teachers").versions("paper-r3d-matched-f50-s0") == (1,)


def test_an_untrained_teacher_has_the_students_width_and_random_weights(shop, home):
    assert run_job(shop, job_of(shop, UNTRAINED)).reason == ""
    result = read_cell(shop.cell_folder(UNTRAINED.id)).result
    assert (result.teacher, result.cost.teacher_training_s) == ("paper-c3d-untrained@1", 0.0)
    card = TeacherLibrary(home / "teachers").entry(TeacherId("paper-c3d-untrained", 1)).card
    assert (card.arch, card.width, card.provenance.steps) == ("c3d", 0.125, 0)
    torch.manual_seed(FULL_TEACHER_SEED)
    fresh = VideoNetwork("c3d", 0.125, projector=False).state_dict()
    assert_same(weights_of(home, "paper-c3d-untrained"), fresh)
    assert 0 <= result.teacher_test_acc <= 0.5


def test_a_teacher_on_all_the_data_is_trained_as_the_scale_says(shop):
    key = TeacherKey(arch="r3d", data="full", fraction=100.0, seed=100)
    job = Job("teacher-r3d-full", teacher=key)
    assert run_job(shop, job).reason == ""
    record = TeacherResult.model_validate_json((shop.folder / "teachers" / "r3d-full.json").read_bytes())
    assert (record.key, record.epochs, record.num_train, record.steps) == (key, 1, 12, 3)
    assert shop.is_done(job)


def test_a_cell_that_was_stopped_goes_on_and_ends_as_one_that_was_not(shop, tmp_path, monkeypatch):
    other = dataclasses.replace(shop, folder=tmp_path / "undisturbed")
    assert run_job(other, job_of(other, SCRATCH)).status == "done"

    job = job_of(shop, SCRATCH)
    shop.folder.mkdir()
    shop.stop_request.touch()
    assert run_job(shop, job).status == "stopped"  # in the middle of the first epoch
    assert [line["step"] for line in read_metrics(shop.runs / job.id / "metrics.jsonl").steps] == [1]
    shop.stop_request.unlink()

    transfer = cell_module.make_transfers

    def ask_for_a_stop(*args):
        shop.stop_request.touch()
        return transfer(*args)

    with monkeypatch.context() as patch:
        patch.setattr(cell_module, "make_transfers", ask_for_a_stop)
        assert run_job(shop, job).status == "stopped"  # after training
    assert not shop.is_done(job)
    shop.stop_request.unlink()

    assert run_job(shop, job).status == "done"
    found, expected = (read_cell(one.cell_folder(SCRATCH.id)) for one in (shop, other))
    assert found.result.weights_sha256 == expected.result.weights_sha256
    assert found.result.stages == expected.result.stages
    assert [one.accuracy for one in found.result.transfers] == [one.accuracy for one in expected.result.transfers]
    for name, correct in found.answers.correct.items():
        assert np.array_equal(correct, expected.answers.correct[name])


def test_a_teacher_that_the_library_has_other_weights_of_teaches_nobody(shop, home):
    for cell in (SCRATCH, MATCHED):
        assert run_job(shop, job_of(shop, cell)).reason == ""
    again = Job("again", cell=Cell(arm=MATCHED.arm.model_copy(update={"contrast": False}), fraction=50.0, seed=0))
    record = shop.folder / "teachers" / "r3d-matched-f50-s0.json"
    told = json.loads(record.read_bytes())
    record.write_text(json.dumps({**told, "digest": "0" * 64}))
    reason = run_job(shop, again).reason
    assert f"has digest {'0' * 64}, the library says: {told['digest']}; go on with the PRECEPTOR_HOME" in reason
    record.write_text(json.dumps(told))
    shutil.rmtree(home / "teachers" / "paper-r3d-matched-f50-s0")
    assert "the library says: no teacher 'paper-r3d-matched-f50-s0" in run_job(shop, again).reason


def test_a_cell_whose_run_learned_from_another_teacher_is_refused(shop):
    for cell in (SCRATCH, MATCHED):
        assert run_job(shop, job_of(shop, cell)).reason == ""
    shutil.rmtree(shop.cell_folder(MATCHED.id))
    path = shop.runs / MATCHED.id / "result.json"
    told = json.loads(path.read_bytes())
    told["teacher_timeline"][0]["digest"] = "0" * 64
    path.write_text(json.dumps(told))
    assert f"learned from {'0' * 64}, this cell's teacher is" in run_job(shop, job_of(shop, MATCHED)).reason


def test_a_finished_run_of_other_settings_is_not_taken_for_this_cells(shop):
    assert run_job(shop, job_of(shop, SCRATCH)).reason == ""
    shutil.rmtree(shop.cell_folder(SCRATCH.id))
    path = shop.runs / SCRATCH.id / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "identity": "another"}))
    assert "was trained with other settings: remove that folder" in run_job(shop, job_of(shop, SCRATCH)).reason


def test_a_job_that_goes_wrong_says_why_and_raises_nothing(shop):
    full = Cell(arm=Arm(student="r3d", teacher="c3d", teacher_data="full"), fraction=50.0, seed=0)
    report = run_job(shop, Job(full.id, cell=full))
    assert report.status == "failed"
    assert report.reason == "TrainingFailed: teacher c3d-full is not there: its own training comes first"


def test_a_run_folder_that_was_killed_before_its_settings_were_written_is_made_again(shop):
    (shop.runs / SCRATCH.id).mkdir(parents=True)
    assert run_job(shop, job_of(shop, SCRATCH)).reason == ""
    assert json.loads((shop.runs / SCRATCH.id / "config.json").read_bytes())["student"] == "r3d"


def test_a_job_that_is_the_first_to_want_a_teacher_deploys_the_service_with_the_folders_gpus(shop, monkeypatch):
    asked = []

    class Service:
        def acquire(self, run, ref, options):
            asked.append((run, str(ref), options.num_gpus))

        def release(self, run):
            asked.append(run)

    monkeypatch.setattr(TeacherService, "connect", lambda _root: Service())
    monkeypatch.setattr(SignalMaker, "make", lambda _self: None)
    config = student_config(shop.scale, SCRATCH, "alpha@1", Choices("serve"))
    plan = make_plan(config)
    with teacher_signal(dataclasses.replace(shop, teacher_gpus=0.3), plan, RunFolder(shop.runs / "cell")):
        pass
    assert asked == [("paper-test-cell", "alpha@1", 0.3), "paper-test-cell"]
