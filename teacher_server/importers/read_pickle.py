"""The only place where a pickle is read: a process of its own that turns a torch checkpoint into safetensors.

    python -m teacher_server.importers.read_pickle SRC DST.safetensors [--trust-pickle] --memory-bytes N --cpu-seconds N

Limits on memory, CPU time and file size are set after torch is loaded and before the first byte of SRC is read.
torch's restricted unpickler reads it, which makes tensors and plain containers only; --trust-pickle allows the full
one, which runs whatever the file says. Only tensors survive. The outcome, good or bad, is DST.json; without that file
the process died. `teacher_server.importers.pickle_process` starts it.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import resource
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")
_UNKNOWN_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_LISTED_MAX = 200


class NoCheckpoint(ValueError):
    """The file holds nothing that can be imported. Argument: why, as a clause."""


def main(arguments: list[str] | None = None) -> int:
    """0 with tensors, 1 with a refusal; DST.json says which."""
    options = _parse(arguments)
    _limit(options.memory_bytes, options.cpu_seconds)
    try:
        tensors, left_out = tensors_of(_load(options.src, trust=options.trust_pickle))
        save_file(tensors, options.dst)
        outcome: dict[str, object] = {"num_tensors": len(tensors), "left_out": left_out[:_LISTED_MAX]}
    except MemoryError:
        outcome = {"error": f"it takes more than the {options.memory_bytes // 2**20} MiB that reading it may take"}
    except Exception as error:  # whatever a foreign file raises is a refusal, told to the parent in one sentence
        outcome = {"error": refusal(error)}
    options.dst.with_suffix(".json").write_text(json.dumps(outcome))
    return 1 if "error" in outcome else 0


def tensors_of(content: object) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors of a loaded checkpoint by name, each contiguous and on its own, and the names of what was left out.

    Containers named in WRAPPERS are opened, `module.` (of DataParallel) is taken off. Raises NoCheckpoint.
    """
    left_out: list[str] = []
    while True:
        if isinstance(content, torch.nn.Module):
            content = content.state_dict()
        if not isinstance(content, Mapping):
            raise NoCheckpoint(f"it holds a {type(content).__name__} where a dict of tensors was expected")
        inner = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping | torch.nn.Module)), None)
        if inner is None:
            break
        left_out += [str(key) for key in content if key != inner]
        content = content[inner]
    tensors: dict[str, torch.Tensor] = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            left_out.append(str(key))
            continue
        name = key.removeprefix("module.")
        if name in tensors:
            raise NoCheckpoint(f"{name} is there twice, with and without `module.`")
        tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
    if not tensors:
        raise NoCheckpoint(f"it holds no tensors, only {', '.join(left_out[:6]) or 'an empty dict'}")
    return tensors, left_out


def refusal(error: Exception) -> str:
    """Why the file cannot be read, as a clause of one line."""
    text = " ".join(str(error).split())
    if isinstance(error, NoCheckpoint):
        return text
    if isinstance(error, pickle.UnpicklingError) and (found := _UNKNOWN_GLOBAL.search(text)):
        return (
            f"it names Python code ({found[1]}), which was not run; if you trust whoever made the file, repeat with "
            "--trust-pickle"
        )
    if "memory" in text or "allocat" in text:
        return f"it takes more memory than reading it may take ({text[:150]})"
    return f"it is damaged, or no file that torch.save wrote (torch: {type(error).__name__}: {text[:150]})"


def _load(path: Path, *, trust: bool) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError):  # RuntimeError: a TorchScript archive
        if not trust:
            raise
    return torch.load(path, map_location="cpu", weights_only=False)


def _limit(memory_bytes: int, cpu_seconds: int) -> None:
    """From here on: so much more address space than torch itself takes, so many CPU seconds, files of that size."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    address_space = pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Turns a torch checkpoint into safetensors.")
    parser.add_argument("src", type=Path)
    parser.add_argument("dst", type=Path)
    parser.add_argument("--trust-pickle", action="store_true")
    parser.add_argument("--memory-bytes", type=int, required=True)
    parser.add_argument("--cpu-seconds", type=int, required=True)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
