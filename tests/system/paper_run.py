"""The paper's experiments in their smallest size: python paper_run.py FOLDER serve|in_process

One seed, all of the data, no controls: 3 teachers and 9 cells of a few steps on the store `demo`.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from rich.console import Console

from data.demo_store import FRAME_SIZE
from trainer.paper.plan import GridRequest
from trainer.paper.run import PaperRequest, run_paper
from trainer.paper.scale import DEMO, Choices, Network, TransferRecipe

SMALLEST = dataclasses.replace(
    DEMO,
    store="demo",
    second_store="demo",
    frame_size=FRAME_SIZE,
    student=Network(width=0.125, epochs=4),
    teacher=Network(width=0.125, epochs=1),
    curve_points=2,
    transfer=TransferRecipe(
        clips=1, head_epochs=1, head_lr=0.01, full_epochs=1, full_lr=0.01, batch_size=8, augment=False
    ),
)

if __name__ == "__main__":
    folder, transport = sys.argv[1:]
    request = PaperRequest(
        SMALLEST,
        GridRequest(fractions=(100.0,), seeds=(0,), controls=()),
        Choices(transport),  # type: ignore[arg-type]
        Path(folder),
        workers=2,
        measure=False,
    )
    sys.exit(run_paper(request, Console(soft_wrap=True)))
