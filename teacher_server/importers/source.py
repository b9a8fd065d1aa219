"""Where weights come from, read into memory without trust: a torch checkpoint or a safetensors file."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from teacher_server.importers.errors import ImportRefused
from teacher_server.importers.pickle_process import Limits, to_safetensors

PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".pkl")
SAFETENSORS = ".safetensors"


@dataclass(frozen=True)
class Source:
    """A checkpoint's tensors by its own names. file: its name without folders. sha256: 64 hex digits, of the file.

    left_out: what it held besides tensors of the network, such as optimiser states.
    """

    file: str
    sha256: str
    tensors: dict[str, Tensor]
    left_out: tuple[str, ...] = ()


def read_source(path: Path, *, trust_pickle: bool = False, limits: Limits | None = None) -> Source:
    """Reads it. What a pickle needs is done in a process of its own. Raises ImportRefused with one sentence."""
    if path.suffix not in (*PICKLE_SUFFIXES, SAFETENSORS):
        expected = ", ".join((*PICKLE_SUFFIXES, SAFETENSORS))
        raise ImportRefused(
            str(path), f"a name with {expected} at its end, run:ID or a fine-tuned student's folder was expected"
        )
    if not path.is_file():
        raise ImportRefused(str(path), "there is no such file")
    with tempfile.TemporaryDirectory(prefix="preceptor-import-") as folder:
        # A copy, so that what is hashed is what is read, whoever writes to the original meanwhile.
        copy = Path(folder) / f"source{path.suffix}"
        try:
            shutil.copyfile(path, copy)
        except OSError as error:
            raise ImportRefused(str(path), f"it cannot be read: {error.strerror}") from None
        sha256 = _sha256(copy)
        left_out: tuple[str, ...] = ()
        if path.suffix != SAFETENSORS:
            chosen = limits if limits is not None else Limits.for_file(copy.stat().st_size)
            target = Path(folder) / f"tensors{SAFETENSORS}"
            left_out = to_safetensors(str(path), copy, target, trust_pickle=trust_pickle, limits=chosen)
            copy = target
        return Source(path.name, sha256, _tensors(str(path), copy), left_out)


def _tensors(name: str, path: Path) -> dict[str, Tensor]:
    try:
        return load_safetensors(path.read_bytes())
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ImportRefused(name, f"it cannot be read as safetensors: {error}") from None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
