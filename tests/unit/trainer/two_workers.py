"""One worker of a whole run, as a process of its own: python two_workers.py RANK WORLD STORE HOME

Writes HOME/runs/world<W>; what test_two_workers.py compares is in its files.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from trainer.collective import Collective
from trainer.config import RunConfig
from trainer.loop import Trainer
from trainer.plan import make_plan
from trainer.runs import RunFolder


def config(store: str) -> RunConfig:
    """6 steps of 5 or 2 tuples; the settings of both worlds are the same."""
    return RunConfig(
        teacher="none", store=store, width=0.125, clip_len=8, interval=2, crop=32, batch_size=5, val_fraction=0.25,
        epochs=2, num_workers=2, device="cpu", evaluate=False, log_views=True, grad_clip=0.5,
        contrast_mode="memory_bank",
    )  # fmt: skip


def main(rank: int, world: int, store: str, home: Path) -> None:
    """The process's body."""
    os.environ["PRECEPTOR_HOME"] = str(home)
    run = RunFolder(home / "runs" / f"world{world}")
    if world > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group(
            "gloo", init_method=f"file://{home}/meeting", rank=rank, world_size=world, timeout=timedelta(seconds=60)
        )
    plan = make_plan(config(store))
    trainer = Trainer(plan, run, collective=Collective(rank, world), teacher=None, should_stop=lambda: False)
    for module in trainer.state.network.modules():
        if isinstance(module, nn.BatchNorm3d):  # with fixed statistics no tuple depends on its neighbours
            module.eval()
    outcome = trainer.run()
    assert outcome.status == "finished", outcome
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
    # Without interpreter shutdown, in which gloo's threads abort the process when they still hold a tensor ("terminate
    # called without an active exception", pytorch#179291). All files are closed.
    sys.stderr.flush()
    os._exit(0)
