"""One of several workers, as a process of its own: python rank.py RANK WORLD FOLDER

Writes FOLDER/rank<R>.safetensors with what test_collective.py compares with one process over the global batch.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from teacher_server.zoo.network import VideoNetwork
from trainer.batch import StudentBatch
from trainer.checkpoint import TrainingState
from trainer.collective import Collective
from trainer.config import RunConfig
from trainer.objective import Objective
from trainer.step import train_step
from trainer.teacher_facts import TeacherFacts

CONFIG = RunConfig(contrast=True, alpha=0.5, kd_weight=2.0, temperature=4.0, crop=32, clip_len=8, lr=0.1)
CASES = {
    "equal": (2, 2),
    "unequal": (2, 3),
    "scratch": (3, 2),
    "some": (2, 3),
    "one worker": (2, 3),
    "nobody": (2, 2),
    "bank": (2, 3),
    "hint": (3, 2),
    "shuffled": (2, 3),
    "smoothed": (2, 3),
    "smoothed_mean": (2, 3),
    "no projector": (2, 3),
    "bank of features": (2, 3),
    "supervised": (3, 2),
    "other temperatures": (2, 3),
    "bank at other temperatures": (3, 2),
}
BANK = dataclasses.replace(CONFIG, contrast_mode="memory_bank", bank_negatives=4)
CONFIGS = {  # of the cases that turn something on
    "bank": BANK,
    "hint": dataclasses.replace(BANK, hint_weight=0.7),
    "shuffled": dataclasses.replace(CONFIG, kd_target="shuffled"),
    "smoothed": dataclasses.replace(CONFIG, kd_target="smoothed"),
    "smoothed_mean": dataclasses.replace(CONFIG, kd_target="smoothed_mean"),
    "no projector": dataclasses.replace(CONFIG, projector=False),
    "bank of features": dataclasses.replace(BANK, projector=False),
    "supervised": dataclasses.replace(CONFIG, ce_weight=0.3),
    "other temperatures": dataclasses.replace(CONFIG, temperature=1.5, contrast_temperature=0.5),
    "bank at other temperatures": dataclasses.replace(BANK, temperature=20.0, contrast_temperature=0.2),
}
NUM_TRAIN, FEATURES, ACTIONS = 9, 6, 3
ANSWERED = {  # the tuples with an answer; cases that are not named have all of them
    "some": (True, False, True, True, False),
    "one worker": (False, False, True, False, True),
    "nobody": (False, False, False, False),
    "hint": (True, False, True, True, True),
    "shuffled": (True, True, True, False, True),
    "smoothed_mean": (True, False, True, True, False),
}
TERMS = ("loss", "pretext", "contrast", "distill", "pretext_acc", "agreement", "kd_skipped", "kl", "cka", "hint", "ce")


def network(*, projector: bool = True) -> VideoNetwork:
    """float64, and batch-norm with fixed statistics: no tuple depends on its neighbours, and rounding hides nothing."""
    torch.manual_seed(0)
    made = VideoNetwork("r3d", 0.125, action_classes=ACTIONS, projector=projector).double().train()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()
    return made


def global_batch(case: str) -> StudentBatch:
    """All tuples of a case."""
    total = sum(CASES[case])
    generator = torch.Generator().manual_seed(total)
    first, middle, last = torch.randn(3, total, 3, 8, 32, 32, generator=generator, dtype=torch.float64)
    # Few labels where answers are shuffled within them.
    labels = torch.randint(0, 2 if case == "shuffled" else 5, (total,), generator=generator)
    teacher = torch.randn(total, 5, generator=generator, dtype=torch.float64)
    mask = None
    if case in ANSWERED:
        mask = torch.tensor(ANSWERED[case])
        teacher[~mask] = float("nan")  # what was not answered means nothing
    features = torch.randn(total, FEATURES, generator=generator, dtype=torch.float64) if case == "hint" else None
    if features is not None:
        features[~mask] = float("nan")
    return StudentBatch(
        (first, middle, last),
        labels,
        None if case == "scratch" else teacher,
        mask,
        teacher_features=features,
        step=3,
        positions=torch.randperm(NUM_TRAIN, generator=generator)[:total],
        action_labels=torch.randint(0, ACTIONS, (total,), generator=generator),
    )


def share(batch: StudentBatch, start: int, stop: int) -> StudentBatch:
    """Tuples start .. stop-1. A worker whose tuples were all answered has no mask, as the loader makes its batches."""
    first, middle, last = (clip[start:stop] for clip in batch.clips)
    fields = ("pretext_labels", "teacher_logits", "teacher_mask", "teacher_features", "positions", "action_labels")
    parts = {name: None if (rows := getattr(batch, name)) is None else rows[start:stop] for name in fields}
    if parts["teacher_mask"] is not None and parts["teacher_mask"].all():
        parts["teacher_mask"] = None
    return dataclasses.replace(batch, clips=(first, middle, last), **parts)


def step(case: str, batch: StudentBatch, collective: Collective) -> dict[str, Tensor]:
    """One training step: the gradients, the weights and the objective's state after it, and the figures."""
    config = CONFIGS.get(case, CONFIG)
    student = network(projector=config.projector)
    objective = Objective(
        config,
        student_features=student.feature_size,
        teacher=TeacherFacts(feature_size=FEATURES),
        num_train=NUM_TRAIN,
    ).double()
    parameters = [*student.parameters(), *objective.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=config.lr, momentum=0.9)
    state = TrainingState(student, objective, optimizer, None, None, [])
    numbers = train_step(state, batch, config, collective, config.kd_weight)
    trained = [*student.named_parameters(), *objective.named_parameters(prefix="objective")]
    out = {f"grad.{n}": p.grad.contiguous() for n, p in trained if p.grad is not None}
    out |= {f"weight.{n}": p.detach().contiguous() for n, p in trained}
    out |= {f"bank.{n}": buffer.contiguous() for n, buffer in objective.named_buffers()}
    out["labels"] = torch.tensor([numbers.label_counts, numbers.label_hits])
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
        tensors |= {f"{case}/{name}": tensor for name, tensor in step(case, batch, collective).items()}
    dist.barrier()
    dist.destroy_process_group()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / f"rank{rank}.safetensors")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    sys.stderr.flush()
    os._exit(0)  # as in two_workers.py
