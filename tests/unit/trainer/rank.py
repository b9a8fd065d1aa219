"""One of several workers, as a process of its own: python rank.py RANK WORLD FOLDER

Writes FOLDER/rank<R>.safetensors with what test_collective.py compares with one process over the global batch.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from teacher_server.zoo.network import VideoNetwork
from trainer.collective import Collective
from trainer.config import RunConfig
from trainer.step import StudentBatch, train_step

CONFIG = RunConfig(contrast=True, alpha=0.5, kd_weight=2.0, temperature=4.0, crop=32, clip_len=8, lr=0.1)
CASES = {
    "equal": (2, 2),
    "unequal": (2, 3),
    "scratch": (3, 2),
    "some": (2, 3),
    "one worker": (2, 3),
    "nobody": (2, 2),
}
ANSWERED = {  # the tuples with an answer; cases that are not named have all of them
    "some": (True, False, True, True, False),
    "one worker": (False, False, True, False, True),
    "nobody": (False, False, False, False),
}
TERMS = ("loss", "pretext", "contrast", "distill", "pretext_acc", "agreement", "kd_skipped")


def network() -> VideoNetwork:
    """float64, and batch-norm with fixed statistics: no tuple depends on its neighbours, and rounding hides nothing."""
    torch.manual_seed(0)
    made = VideoNetwork("r3d", 0.125).double().train()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()
    return made


def global_batch(case: str) -> StudentBatch:
    """All tuples of a case."""
    total = sum(CASES[case])
    generator = torch.Generator().manual_seed(total)
    first, middle, last = torch.randn(3, total, 3, 8, 32, 32, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (total,), generator=generator)
    teacher = torch.randn(total, 5, generator=generator, dtype=torch.float64)
    mask = None
    if case in ANSWERED:
        mask = torch.tensor(ANSWERED[case])
        teacher[~mask] = float("nan")  # what was not answered means nothing
    return StudentBatch((first, middle, last), labels, None if case == "scratch" else teacher, mask)


def share(batch: StudentBatch, start: int, stop: int) -> StudentBatch:
    """Tuples start .. stop-1. A worker whose tuples were all answered has no mask, as the loader makes its batches."""
    first, middle, last = (clip[start:stop] for clip in batch.clips)
    teacher = None if batch.teacher_logits is None else batch.teacher_logits[start:stop]
    mask = None if batch.teacher_mask is None else batch.teacher_mask[start:stop]
    if mask is not None and mask.all():
        mask = None
    return StudentBatch((first, middle, last), batch.pretext_labels[start:stop], teacher, mask)


def step(batch: StudentBatch, collective: Collective) -> dict[str, Tensor]:
    """One training step: the gradients, the weights after it and the figures."""
    student = network()
    optimizer = torch.optim.SGD(student.parameters(), lr=CONFIG.lr, momentum=0.9)
    numbers = train_step(student, optimizer, batch, CONFIG, collective)
    out = {f"grad.{n}": p.grad.contiguous() for n, p in student.named_parameters() if p.grad is not None}
    out |= {f"weight.{n}": p.detach().contiguous() for n, p in student.named_parameters()}
    figures = [getattr(numbers, name) for name in TERMS]
    out["numbers"] = torch.tensor([float("nan") if value is None else value for value in figures], dtype=torch.float64)
    return out


def operations(collective: Collective) -> dict[str, Tensor]:
    """Every operation once, on values that name their rank."""
    rank = collective.rank
    rows = torch.full((rank + 1, 2), float(rank), requires_grad=True)
    gathered = collective.gather_rows(rows)
    (gathered * torch.arange(1.0, 7.0).view(3, 2)).sum().backward()
    assert rows.grad is not None
    flags = [collective.any(rank == 1), collective.any(False), collective.any(True)]
    buffers = nn.BatchNorm3d(3)
    buffers.running_mean.fill_(rank + 1.0)
    buffers.num_batches_tracked.fill_(rank + 5)
    collective.same_buffers(buffers)
    layer = nn.Linear(1, 1)
    if rank == 1:
        layer.weight.grad = torch.full((1, 1), 7.0)
    collective.sum_gradients(layer)
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    return {
        "gathered": gathered.detach(),
        "rows_grad": rows.grad,
        "flags": torch.tensor(flags),
        "running_mean": buffers.running_mean.clone(),
        "num_batches": buffers.num_batches_tracked.clone(),
        "sum": collective.sum(torch.tensor([1.0 + rank])),
        "numbers": torch.tensor(collective.gather_number(2**60 + rank)),
        "weight_grad": layer.weight.grad,
        "bias_grad": layer.bias.grad,
    }


def main(rank: int, world: int, folder: Path) -> None:
    """The process's body."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    collective = Collective(rank, world)
    tensors = {f"operations/{name}": tensor for name, tensor in operations(collective).items()}
    for case, sizes in CASES.items():
        start = sum(sizes[:rank])
        batch = share(global_batch(case), start, start + sizes[rank])
        tensors |= {f"{case}/{name}": tensor for name, tensor in step(batch, collective).items()}
    dist.destroy_process_group()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / f"rank{rank}.safetensors")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
