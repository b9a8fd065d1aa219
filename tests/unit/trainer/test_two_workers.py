"""A whole run by two gloo workers against the same run by one: the same tuples in the same order, the same losses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.report_data import read_metrics

SCRIPT = Path(__file__).with_name("two_workers.py")
ROOT = Path(__file__).parents[3]


def train(world, store, home):
    """Starts the workers and waits for them."""
    (home / "runs" / f"world{world}").mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT)]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(store.path), str(home)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=120)
            assert worker.returncode == 0, errors
    finally:
        for worker in workers:
            worker.kill()
            worker.wait(timeout=10)
    return home / "runs" / f"world{world}"


@pytest.fixture(scope="module")
def runs(store, tmp_path_factory):
    """The run's folder by number of workers."""
    home = tmp_path_factory.mktemp("home")
    return {world: train(world, store, home) for world in (1, 2)}


def views_of(run):
    """Item digests of each step, of all workers in rank order."""
    by_step = {}
    for path in sorted(run.glob("views-rank*.jsonl")):
        for line in map(json.loads, path.read_text().splitlines()):
            by_step.setdefault(line["step"], []).extend(line["items"])
    return by_step


def test_two_workers_train_on_the_tuples_of_one_in_the_same_order(runs):
    assert views_of(runs[2]) == views_of(runs[1])
    assert [len(items) for items in views_of(runs[1]).values()] == [5, 5, 2, 5, 5, 2]
    assert len(list(runs[2].glob("views-rank*.jsonl"))) == 2


def test_two_workers_have_the_losses_of_one(runs):
    one, two = (read_metrics(runs[world] / "metrics.jsonl").steps for world in (1, 2))
    assert len(one) == len(two) == 6
    for alone, shared in zip(one, two, strict=True):
        assert float.fromhex(shared["loss_bits"]) == pytest.approx(float.fromhex(alone["loss_bits"]), rel=1e-5)
        assert [shared[name] for name in ("label_counts", "label_hits", "clips")] == [
            alone[name] for name in ("label_counts", "label_hits", "clips")
        ]
    assert one[0]["loss"] != one[-1]["loss"]


def test_two_workers_choose_and_count_as_one_does(runs):
    one, two = (read_metrics(runs[world] / "metrics.jsonl").epochs for world in (1, 2))
    for alone, shared in zip(one, two, strict=True):
        for name in ("val_loss", "train_loss", "train_pretext_acc", "train_balanced_acc"):
            assert shared[name] == pytest.approx(alone[name], abs=1e-5)
    best = [json.loads((runs[world] / "result.json").read_bytes())["best_step"] for world in (1, 2)]
    assert best[0] == best[1] > 0
