"""What workers exchange. With one worker every operation is the identity and no process group is needed.

Axis letters: B tuples of this worker, G tuples of the global batch, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Collective:
    """This worker's place. world > 1 needs an initialised torch.distributed process group."""

    rank: int = 0
    world: int = 1

    def gather_rows(self, rows_BD: Tensor) -> Tensor:
        """[G, D] the rows of all workers in rank order. Only this worker's own rows carry gradient.

        Shares may differ by a row, gloo gathers equal shapes only: shares are padded to the largest.
        """
        if self.world == 1:
            return rows_BD
        counts = self._gather(torch.tensor([len(rows_BD)], device=rows_BD.device))
        longest = max(int(count) for count in counts)
        padded = torch.zeros(longest, rows_BD.shape[1], dtype=rows_BD.dtype, device=rows_BD.device)
        padded[: len(rows_BD)] = rows_BD.detach()
        parts = [part[: int(count)] for part, count in zip(self._gather(padded), counts, strict=True)]
        parts[self.rank] = rows_BD
        return torch.cat(parts)

    def sum_gradients(self, network: nn.Module) -> None:
        """Adds the workers' gradients in place. A parameter without gradient on this worker counts as zero."""
        parameters = [p for p in network.parameters() if p.requires_grad]
        if self.world == 1 or not parameters:
            return
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters])
        dist.all_reduce(flat)
        offset = 0
        for p in parameters:
            p.grad = flat[offset : offset + p.numel()].view_as(p).clone()
            offset += p.numel()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the workers."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gather_number(self, number: int) -> list[int]:
        """One number of each worker, in rank order; below 2**63."""
        if self.world == 1:
            return [number]
        return [int(part) for part in self._gather(torch.tensor([number], dtype=torch.int64))]

    def any(self, flag: bool) -> bool:
        """Whether it is true on any worker, so that all of them stop at the same step."""
        if self.world == 1:
            return flag
        return bool(self.sum(torch.tensor([float(flag)])) > 0)

    def same_buffers(self, network: nn.Module) -> None:
        """Gives every worker the batch-norm statistics of rank 0, which the checkpoint holds."""
        if self.world > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        parts = [torch.zeros_like(tensor) for _ in range(self.world)]
        dist.all_gather(parts, tensor)
        return parts
