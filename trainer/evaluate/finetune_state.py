"""The state of a fine-tuning between two steps, and the one file that keeps it: an attempt goes on where one ended.

The file is a cache: one of another computation, or one that is damaged, is passed over and written anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor
from torch.optim import SGD

from data.atomic import write_atomic
from data.input_spec import InputSpec
from data.render import RENDERER
from data.store import ClipStore
from data.views import ClipSpec
from teacher_server.zoo.network import VideoNetwork
from trainer.evaluate.finetune_recipe import FinetuneRecipe
from trainer.student_files import tensors_digest

PROGRESS = "progress.safetensors"
_SAVE_EVERY_S = 30.0
_FORMAT = 1
_MOMENTUM = "momentum_buffer"


@dataclass
class TuningState:
    """step: steps done. sums_E2: float64, for each epoch the sums of its clips' losses and right answers."""

    network: VideoNetwork
    optimizer: SGD
    sums_E2: Tensor
    step: int = 0

    @classmethod
    def start(
        cls, network: VideoNetwork, whole: bool, epochs: int, lr: float, momentum: float, weight_decay: float
    ) -> TuningState:
        """Before the first step. whole: the backbone is trained too, and not only the action head."""
        network.backbone.requires_grad_(whole)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = SGD(trained, lr=lr, momentum=momentum, weight_decay=weight_decay)
        return cls(network, optimizer, torch.zeros(epochs, 2, dtype=torch.float64))


class TuningFile:
    """<folder>/progress.safetensors: `network.*`, `momentum.*`, the step, the sums and the key of the computation."""

    def __init__(self, folder: Path, key: bytes) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / PROGRESS
        self._key = torch.tensor(list(key), dtype=torch.uint8)
        self._saved_at = time.monotonic()

    def save(self, state: TuningState) -> None:
        """Replaces the file, whole or not at all."""
        tensors = {f"network.{name}": tensor for name, tensor in state.network.state_dict().items()}
        for name, parameter in state.network.named_parameters():
            buffer = state.optimizer.state.get(parameter, {}).get(_MOMENTUM)
            if buffer is not None:
                tensors[f"momentum.{name}"] = buffer
        tensors |= {"sums": state.sums_E2, "step": torch.tensor(state.step), "key": self._key}
        blob = save_safetensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        write_atomic(self._path, blob)
        self._saved_at = time.monotonic()

    def save_now_and_then(self, state: TuningState) -> None:
        """Saves when the last time is long ago."""
        if time.monotonic() - self._saved_at >= _SAVE_EVERY_S:
            self.save(state)

    def load(self, state: TuningState) -> None:
        """Puts the file's state into `state`; leaves it as it is when there is none of this computation."""
        try:
            tensors = load_safetensors(self._path.read_bytes())
        except (OSError, SafetensorError):
            return
        if "key" not in tensors or not torch.equal(tensors["key"], self._key):
            return
        prefix = "network."
        state.network.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        for name, parameter in state.network.named_parameters():
            if f"momentum.{name}" in tensors:
                buffer = torch.empty_like(parameter).copy_(tensors[f"momentum.{name}"])  # in the parameter's layout
                state.optimizer.state[parameter][_MOMENTUM] = buffer
        state.sums_E2.copy_(tensors["sums"])
        state.step = int(tensors["step"])


def tuning_key(
    recipe: FinetuneRecipe,
    spec: ClipSpec,
    input_spec: InputSpec,
    store: ClipStore,
    train_rows: NDArray[np.int64],
    network: VideoNetwork,
) -> bytes:
    """32 bytes that two computations share when they have the same numbers."""
    facts = {
        "format": _FORMAT,
        "renderer": RENDERER,
        "recipe": dataclasses.asdict(recipe),
        "clips": [spec.clip_len, spec.crop],
        "input": dataclasses.asdict(input_spec),
        "store": store.videos.fingerprint,
        "rows": hashlib.sha256(np.ascontiguousarray(train_rows).tobytes()).hexdigest(),
        "classes": len(store.classes),
        "weights": tensors_digest(network.state_dict()),
        "device": next(network.parameters()).device.type,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()
