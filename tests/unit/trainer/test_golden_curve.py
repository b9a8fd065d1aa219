"""Training does today what it did when golden_curve.json was recorded; golden_curve.py says how to record it again."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from trainer.fingerprint import this_machine

SCRIPT = Path(__file__).with_name("golden_curve.py")


@pytest.fixture(scope="module")
def golden():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("golden_curve", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recorded(golden):
    return json.loads(golden.FILE.read_bytes())


@pytest.fixture(scope="module")
def home(golden, tmp_path_factory):
    """PRECEPTOR_HOME for the module: the videos are drawn once."""
    folder = tmp_path_factory.mktemp("home")
    golden.build_store(folder / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRECEPTOR_HOME", str(folder))
        patch.delenv("RAY_ADDRESS", raising=False)
        yield folder


@pytest.mark.parametrize("arm", ["scratch", "kd"])
def test_twenty_steps_have_the_recorded_losses(golden, recorded, home, arm):
    """To the last bit on the CPU model and torch version that they were recorded with, within 1e-4 elsewhere."""
    expected = [float.fromhex(loss) for loss in recorded["losses"][arm]]
    got = golden.losses(home, arm)
    assert len(expected) == golden.STEPS
    if recorded["machine"] == asdict(this_machine()):
        assert [loss.hex() for loss in got] == recorded["losses"][arm]
    else:
        assert got == pytest.approx(expected, abs=1e-4)


def test_an_older_cpu_s_kernels_give_the_recorded_losses_within_the_tolerance(golden, recorded, home):
    """What runs on a machine without AVX-512, as far as this one can show it; in a process of its own, because the
    libraries choose their kernels once."""
    older = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
    environment = {
        **os.environ,
        **older,
        "PRECEPTOR_HOME": str(home / "older"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    golden.build_store(home / "older" / "store")
    command = [sys.executable, str(SCRIPT), "scratch"]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=300)
    expected = [float.fromhex(loss) for loss in recorded["losses"]["scratch"]]
    assert [float.fromhex(loss) for loss in done.stdout.split()] == pytest.approx(expected, abs=1e-4)


def test_small_changes_of_the_training_show(golden, home):
    """In the last bits as soon as weights were updated; a tenth more learning rate by more than the tolerance too."""
    plain = golden.losses(home, "scratch")
    decayed = golden.losses(home, "scratch", max_steps=3, weight_decay=2 * golden.CONFIG.weight_decay)
    assert decayed[0] == plain[0]
    assert decayed[1:] != plain[1:3]
    faster = golden.losses(home, "scratch", lr=1.1 * golden.CONFIG.lr)
    assert faster[0] == plain[0]
    assert faster != pytest.approx(plain, abs=5e-4)
