"""Two real workers over gloo against one process over the global batch."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainer.collective import Collective

SCRIPT = Path(__file__).with_name("rank.py")
ROOT = Path(__file__).parents[3]
WORLD = 2
CASES = ["equal", "unequal", "scratch", "some", "one worker", "nobody"]
CASES += ["bank", "hint", "shuffled", "smoothed", "smoothed_mean", "supervised", "no projector", "bank of features"]
CASES += ["other temperatures", "bank at other temperatures"]


@pytest.fixture(scope="module")
def rank():
    """The script as a module, for its inputs."""
    spec = importlib.util.spec_from_file_location("rank", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of the two workers found."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(number), str(WORLD), str(folder)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(WORLD)
    ]
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=120)
            assert worker.returncode == 0, errors
    finally:
        for worker in workers:
            worker.kill()
            worker.wait(timeout=10)
    return [load_file(folder / f"rank{number}.safetensors") for number in range(WORLD)]


def part(result, prefix):
    return {name.removeprefix(f"{prefix}/"): t for name, t in result.items() if name.startswith(f"{prefix}/")}


@pytest.mark.parametrize("case", CASES)
def test_the_summed_gradients_are_those_of_one_process_over_the_global_batch(rank, results, case):
    expected = rank.step(case, rank.global_batch(case), Collective())
    gradients = [name for name in expected if name.startswith("grad.")]
    has_projector = case not in ("no projector", "bank of features")
    assert any(name.startswith("grad.projector") for name in gradients) == has_projector
    assert any(name.startswith("grad.objective.hint") for name in gradients) == (case == "hint")
    for result in results:
        got = part(result, case)
        assert set(gradients) == {name for name in got if name.startswith("grad.") and got[name].any()}
        for name in gradients:
            torch.testing.assert_close(
                got[name], expected[name], rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n} {m}"
            )


@pytest.mark.parametrize("case", CASES)
def test_the_workers_end_a_step_with_the_same_bytes(results, case):
    first, second = (part(result, case) for result in results)
    weights = [name for name in first if name.startswith(("weight.", "bank."))]
    assert len(weights) > 2
    for name in weights:
        assert torch.equal(first[name], second[name])


@pytest.mark.parametrize("case", CASES)
def test_the_figures_of_a_step_are_those_of_the_global_batch(rank, results, case):
    alone = rank.step(case, rank.global_batch(case), Collective())
    off = {name for name, value in zip(rank.TERMS, alone["numbers"].tolist(), strict=True) if value != value}
    expected_off = {"distill", "agreement", "kl"} if case in ("scratch", "nobody") else set()
    expected_off |= set() if case == "hint" else {"hint", "cka"}
    assert off == expected_off | (set() if case == "supervised" else {"ce"})
    for result in results:
        got = part(result, case)
        torch.testing.assert_close(got["numbers"], alone["numbers"], rtol=1e-6, atol=1e-7, equal_nan=True)
        assert torch.equal(got["labels"], alone["labels"])


def test_rows_are_gathered_in_rank_order_and_only_the_own_carry_gradient(results):
    weights = torch.arange(1.0, 7.0).view(3, 2)
    for number, result in enumerate(results):
        got = part(result, "operations")
        assert got["gathered"].tolist() == [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
        assert torch.equal(got["rows_grad"], weights[:1] if number == 0 else weights[1:])


def test_a_flag_on_any_worker_is_seen_by_all(results):
    for result in results:
        assert part(result, "operations")["flags"].tolist() == [True, False, True]


def test_every_worker_gets_the_buffers_of_the_first(results):
    for result in results:
        got = part(result, "operations")
        assert got["running_mean"].tolist() == [1.0, 1.0, 1.0]
        assert int(got["num_batches"]) == 5


def test_whole_numbers_are_gathered_exactly_in_rank_order(results):
    for result in results:
        assert part(result, "operations")["numbers"].tolist() == [2**60, 2**60 + 1]


def test_sums_and_gradients_count_a_worker_without_gradient_as_zero(results):
    for result in results:
        got = part(result, "operations")
        assert (float(got["sum"]), float(got["weight_grad"]), float(got["bias_grad"])) == (3.0, 7.0, 0.0)


def test_one_worker_needs_no_process_group():
    alone = Collective()
    rows = torch.ones(2, 3, requires_grad=True)
    assert alone.gather_rows(rows) is rows
    assert (alone.any(True), alone.any(False)) == (True, False)
    assert float(alone.sum(torch.tensor(3.0))) == 3.0
    assert alone.gather_number(2**60) == [2**60]
    layer = torch.nn.Linear(1, 1)
    alone.sum_gradients(layer)
    assert layer.weight.grad is None
