"""What `preceptor verify` compares: a digest of a student's tensors after a step, and the machine that computed it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from torch import nn

_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Machine:
    """What decides the bits of a CPU computation, besides the program and the number of threads."""

    cpu: str
    torch: str


def this_machine() -> Machine:
    """The machine that this process runs on."""
    return Machine(cpu_model(), torch.__version__)


def cpu_model() -> str:
    """Name and numbers, such as `AMD EPYC, family 25, model 1, stepping 1`: virtual machines name very different CPUs
    alike, and kernels are chosen by what they can do. The architecture where the system does not say."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    facts: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())  # of the first core
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    numbers = {"cpu family": "family", "model": "model", "stepping": "stepping"}
    return ", ".join([facts["model name"], *(f"{word} {facts[key]}" for key, word in numbers.items() if key in facts)])


def weights_digest(*modules: nn.Module) -> str:
    """16 hex digits: xxh3_64 over the bytes of all parameters and buffers, in the order of their names' listing.

    The tensors lie on the CPU; how they lie in memory makes no difference.
    """
    digest = xxhash.xxh3_64()
    for module in modules:
        for tensor in module.state_dict().values():
            digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
