"""Cells with known means, as files: an arm is right on exactly the items that are wanted."""

import json

import numpy as np

from trainer.paper.published import PAIRS, ROWS
from trainer.paper.records import STAGES, Arm, Cell, CellResult, Cost, CurvePoint, Stage, Transfer

NUM_GROUPS, ITEMS_PER_GROUP = 20, 50
NUM_ITEMS = NUM_GROUPS * ITEMS_PER_GROUP
GROUPS = tuple(f"g{i // ITEMS_PER_GROUP:02d}" for i in range(NUM_ITEMS))
EPOCHS, STEPS_PER_EPOCH = 8, 10


def correct(share):
    """Right on the first `share` of each group's items, so that of two arms the better is right wherever the worse is
    and their difference is the same in every group. share: in fiftieths."""
    return np.arange(NUM_ITEMS) % ITEMS_PER_GROUP < round(share * ITEMS_PER_GROUP)


def cell_result(arm, fraction=100.0, seed=0, *, stages=(0.4, 0.5, 0.6), best=None, curve=None, **more):
    """A result whose stages have the accuracies `stages`; further fields replace the defaults."""
    best = best or stages
    if curve is None:
        tests = np.interp(np.arange(1, EPOCHS + 1), [2, 6, 8], stages)
        curve = [(0.1 + value, value, value) for value in tests]
    points = tuple(
        CurvePoint(
            epoch=i + 1,
            step=(i + 1) * STEPS_PER_EPOCH,
            seconds=2.0 * (i + 1),
            train_acc=train,
            val_acc=val,
            val_loss=1.0,
            test_acc=test,
        )
        for i, (train, val, test) in enumerate(curve)
    )
    until = [max(1, round(share * EPOCHS)) for _, share in STAGES]
    fields = {
        "cell": Cell(arm=arm, fraction=fraction, seed=seed),
        "curve": points,
        "stages": tuple(
            Stage(
                name=name,
                until_epoch=epoch,
                epoch=epoch,
                step=epoch * STEPS_PER_EPOCH,
                test_acc=chosen,
                best_test_acc=reached,
                best_test_epoch=epoch,
            )
            for (name, _), epoch, chosen, reached in zip(STAGES, until, stages, best, strict=True)
        ),
        "transfers": (),
        "cost": Cost(
            student_s=16.0,
            evaluation_s=1.0,
            teacher_inference_s=0.0 if arm.teacher is None else 4.0,
            teacher_training_s=0.0 if arm.teacher is None else 30.0,
            asked_items=0 if arm.teacher is None else 100,
            replayed_items=0,
        ),
        "num_train": 100,
        "num_validation": 10,
        "num_test": 50,
        "epochs": EPOCHS,
        "steps": EPOCHS * STEPS_PER_EPOCH,
        "teacher": None if arm.teacher is None else f"{arm.teacher}@1",
        "teacher_digest": None if arm.teacher is None else f"{arm.teacher}-{arm.teacher_data}" * 4,
        "teacher_test_acc": None if arm.teacher is None else 0.7,
        "store_fingerprint": "f" * 32,
        "second_store_fingerprint": "e" * 32 if more.get("transfers") else None,
        "weights_sha256": "0" * 64,
        **more,
    }
    return CellResult(**fields)


def write_cell(folder, result, answers=None, groups=GROUPS, keys=None, more_answers=None):
    """As `preceptor paper` lays a cell down. answers: per stage; by default such that the stages' accuracies hold.
    more_answers: arrays by name."""
    path = folder / "cells" / result.cell.id
    path.mkdir(parents=True)
    (path / "result.json").write_text(result.model_dump_json())
    answers = answers or {stage.name: correct(stage.test_acc) for stage in result.stages}
    keys = keys or tuple(f"A/v_A_{group}_c01" for group in groups)
    arrays = {f"correct_{name}": values for name, values in answers.items()}
    for transfer in result.transfers:
        arrays[f"correct_{transfer.dataset}_{transfer.protocol}"] = correct(transfer.accuracy)
        arrays[f"groups_{transfer.dataset}"] = np.array(GROUPS)
    arrays |= more_answers or {}
    np.savez(path / "answers.npz", groups=np.array(groups), keys=np.array(keys), **arrays)
    return path


def full_arm(student, teacher, **more):
    """A distillation from a teacher on all data."""
    return Arm(student=student, teacher=teacher, teacher_data="full", **more)


def write_grid(folder, gain, *, fractions=(100.0, 50.0, 25.0, 2.0), seeds=(0, 1), late_at=None, more_of=None):
    """The nine rows. Scratch has .4, .5 and .6, or late_at[fraction] late; a pair has gain(student, teacher, fraction)
    more at every stage. more_of: arm -> further fields of its results."""
    for fraction in fractions:
        for seed in seeds:
            for student, teacher in ROWS:
                over = 0.0 if teacher is None else gain(student, teacher, fraction)
                arm = Arm(student=student) if teacher is None else full_arm(student, teacher)
                stages = (0.4 + over, 0.5 + over, (late_at or {}).get(fraction, 0.6) + over)
                more = more_of(arm) if more_of else {}
                write_cell(folder, cell_result(arm, fraction, seed, stages=stages, **more))
    return folder


def write_controls(folder, gain, *, fraction=100.0, seeds=(0, 1), kinds=("untrained", "smoothed")):
    """Controls of all six pairs, each with .4 + gain early."""
    for student, teacher in PAIRS:
        arms = {
            "untrained": Arm(student=student, teacher=teacher, teacher_data="untrained"),
            "smoothed": full_arm(student, teacher, target="smoothed"),
            "shuffled": full_arm(student, teacher, target="shuffled"),
        }
        for kind in kinds:
            for seed in seeds:
                stages = (0.4 + gain, 0.5 + gain, 0.6 + gain)
                write_cell(folder, cell_result(arms[kind], fraction, seed, stages=stages))


def action(dataset, protocol, accuracy):
    """A transfer without an interval. accuracy: in fiftieths."""
    return Transfer(dataset=dataset, protocol=protocol, accuracy=accuracy, interval=None, chance=0.1, seconds=1.0)


def write_run(folder, **facts):
    """run.json."""
    (folder / "run.json").write_text(json.dumps(facts))
