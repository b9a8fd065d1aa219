"""Training does today what it did when golden_curve.json was recorded; golden_curve.py says how to record it again."""

import importlib.util
import json
from pathlib import Path

import pytest

from trainer.fingerprint import cpu_model

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
    """To the last bit on the CPU model that they were recorded on, within 1e-4 on another."""
    expected = [float.fromhex(loss) for loss in recorded["losses"][arm]]
    got = golden.losses(home, arm)
    assert len(expected) == golden.STEPS
    if recorded["machine"]["cpu"] == cpu_model():
        assert [loss.hex() for loss in got] == recorded["losses"][arm]
    else:
        assert got == pytest.approx(expected, abs=1e-4)


def test_a_small_change_of_the_training_shows(golden, recorded, home):
    """The first loss is taken before the first update, the ones after it are not what was recorded."""
    expected = [float.fromhex(loss) for loss in recorded["losses"]["scratch"][:3]]
    got = golden.losses(home, "scratch", max_steps=3, weight_decay=2 * golden.CONFIG.weight_decay)
    assert got[0] == pytest.approx(expected[0], abs=1e-4)
    assert got[1:] != pytest.approx(expected[1:], abs=1e-7)
