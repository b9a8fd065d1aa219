"""The golden curve: losses of 20 steps on a part of the built-in set, scratch and with a bundled teacher, one thread.

The videos are drawn straight into a store: encoding and decoding them would take longer than the steps. To record the
losses again, after a change that is meant to change training:

    PYTHONPATH=. python tests/unit/trainer/golden_curve.py

With an arm's name it prints that arm's losses instead.

Another CPU rounds otherwise, and training multiplies a rounding. With batches of 4 and a learning rate of .02 the loss
of step 20 moved by .3 between an AMD EPYC and an Intel Xeon. With all videos in each batch (batch-norm sees more) and
1e-4 no loss moves by more than 4.3e-5 when torch, oneDNN and MKL are held to AVX2 or SSE instead of AVX-512, and the
updates of 20 steps still change the losses by some hundredths.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.demo import videos_of
from data.demo_figures import ACTIONS
from data.demo_videos import draw_video
from data.store_writer import StoreWriter
from trainer.collective import Collective
from trainer.config import RunConfig
from trainer.fingerprint import this_machine
from trainer.loop import Trainer
from trainer.plan import make_plan
from trainer.report_data import read_metrics
from trainer.runs import RunFolder
from trainer.signals import SignalMaker

FILE = Path(__file__).with_suffix(".json")
STEPS = 20
NUM_CLASSES = 4
FRAME_SIZE = (60, 80)
ARMS = {"scratch": "none", "kd": "r2plus1d@1"}
CONFIG = RunConfig(
    batch_size=12,
    epochs=100,
    max_steps=STEPS,
    lr=1e-4,
    schedule="plateau",  # no step depends on how many come after it
    val_fraction=0.25,
    num_workers=0,
    threads=1,
    device="cpu",
    teacher_transport="in_process",
    evaluate=False,
)


def build_store(path: Path) -> None:
    """The tiny set's videos of the first classes, every second pixel of every second row: 16 to train on, 8 to test."""
    subsets: dict[str, list[str]] = {"train01": [], "test01": []}
    with StoreWriter(path, frame_size=FRAME_SIZE, classes=[action.name for action in ACTIONS[:NUM_CLASSES]]) as writer:
        for video in videos_of("tiny"):
            if video.action < NUM_CLASSES:
                frames = np.ascontiguousarray(draw_video(0, video)[:, ::2, ::2])
                writer.add(video.name, video.action, f"g{video.group:02d}", frames)
                subsets["train01" if video.is_train else "test01"].append(video.name)
        writer.commit(subsets)


def losses(home: Path, arm: str, **changes: Any) -> list[float]:
    """Of every step, to the last bit. home: PRECEPTOR_HOME, with the store. changes: of the settings."""
    config = dataclasses.replace(CONFIG, teacher=ARMS[arm], store=str(home / "store"), **changes)
    plan, run = make_plan(config), RunFolder(Path(tempfile.mkdtemp(prefix=f"{arm}-", dir=home)))
    teacher = SignalMaker(plan, run.run_id, "pixels", None).make()
    try:
        Trainer(plan, run, collective=Collective(), teacher=teacher, should_stop=lambda: False).run()
    finally:
        if teacher is not None:
            teacher.close()
    return [float.fromhex(line["loss_bits"]) for line in read_metrics(run.metrics).steps]


def record() -> dict[str, Any]:
    """What the file holds: the machine, and the losses of each arm as hexadecimal floats and to be read."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PRECEPTOR_HOME"] = folder
        build_store(Path(folder) / "store")
        curves = {arm: losses(Path(folder), arm) for arm in ARMS}
    return {
        "machine": dataclasses.asdict(this_machine()),
        "losses": {arm: [loss.hex() for loss in curve] for arm, curve in curves.items()},
        "rounded": {arm: [round(loss, 6) for loss in curve] for arm, curve in curves.items()},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        print(*[loss.hex() for loss in losses(Path(os.environ["PRECEPTOR_HOME"]), sys.argv[1])])
        sys.exit()
    FILE.write_text(json.dumps(record(), indent=1) + "\n")
    print(f"recorded {FILE}")
