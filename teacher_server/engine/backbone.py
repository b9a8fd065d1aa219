"""A teacher's backbone, made ready to compute the same numbers for ever.

    fold batch-norm (zoo only, float64) -> compute type -> channels last -> device -> compiled?  -> CUDA graph per shape
                                                                  (card)                  (CUDA only)

Precision and compiling change the numbers, so they stand on the card. A CUDA graph launches the same kernels that it
recorded, so it is a matter of speed only; the CPU never has one. Which kernels cuDNN chooses is settled while a
graph is recorded: the repeatable ones, in full float32.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from teacher_server.card import Precision
from teacher_server.zoo.fold import fold_batch_norm
from teacher_server.zoo.layers import Backbone, to_channels_last

MAX_GRAPHS = 4
_RECORDING = threading.Lock()
_WARM_UP_PASSES = 3  # cuDNN and cuBLAS make their handles and plans in the first ones; a recording must not
_DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Forward = Callable[[Tensor], Tensor]


class FrozenBackbone:
    """[B,3,T,H,W] float32 -> features [B,D] float32. Called by one thread at a time on CUDA, by any number elsewhere.

    network: in evaluation mode; it is changed in place. A plug-in that is no Backbone keeps its batch-norms: nobody
    promises in which order it registers them. compiled_shape: the one shape [B,3,T,H,W] that is compiled;
    others run as they are, so that the path, and with it every number, follows from the shape alone.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        precision: Precision = "float32",
        compiled_shape: tuple[int, ...] | None = None,
    ) -> None:
        if isinstance(network, Backbone):
            fold_batch_norm(network)
        self._dtype = _DTYPES[precision]
        network.to(device=device, dtype=self._dtype)
        to_channels_last(network)
        self._network = network
        self._compiled_shape = compiled_shape
        self._compiled: Forward | None = None
        if compiled_shape is not None:
            self._compiled = torch.compile(network, fullgraph=True, dynamic=False)
        self._graphs = GraphCache(_record) if device.type == "cuda" else None

    def __call__(self, x_BCTHW: Tensor) -> Tensor:
        """The features of a chunk. Runs under the caller's inference mode."""
        x = x_BCTHW.to(dtype=self._dtype, memory_format=torch.channels_last_3d)
        forward = self._forward_of(tuple(x.shape))
        features = forward(x) if self._graphs is None else self._graphs(forward, x)
        return features.to(torch.float32)

    def _forward_of(self, shape: tuple[int, ...]) -> Forward:
        if self._compiled is not None and shape == self._compiled_shape:
            return self._compiled
        return self._network


class GraphCache:
    """Recorded passes by input shape, the most recently used ones; each keeps its own input, output and buffers.

    record: (forward, example input) -> the same forward, recorded.
    """

    def __init__(self, record: Callable[[Forward, Tensor], Forward], max_graphs: int = MAX_GRAPHS) -> None:
        self._record = record
        self._max_graphs = max_graphs
        self._recorded: dict[tuple[int, ...], Forward] = {}  # the least recently used first

    def __call__(self, forward: Forward, x: Tensor) -> Tensor:
        """What `forward` gives for x, by the recording for x's shape."""
        shape = tuple(x.shape)
        recorded = self._recorded.pop(shape, None)
        if recorded is None:
            while len(self._recorded) >= self._max_graphs:
                del self._recorded[next(iter(self._recorded))]  # before recording: its memory is needed
            recorded = self._record(forward, x)
        self._recorded[shape] = recorded
        return recorded(x)


def _record(forward: Forward, example: Tensor) -> Forward:
    """`forward` as a CUDA graph for inputs like the example. Other threads may use the device meanwhile, but only one
    may record."""
    device = example.device
    graph = torch.cuda.CUDAGraph()
    static_input = example.clone()
    with _RECORDING, torch.cuda.device(device), _repeatable_kernels():
        side, current = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_PASSES):
                forward(static_input)
        current.wait_stream(side)
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            static_output = forward(static_input)

    def replay(x: Tensor) -> Tensor:
        with torch.cuda.device(device):
            static_input.copy_(x)
            graph.replay()
            return static_output.clone()

    return replay


@contextmanager
def _repeatable_kernels() -> Iterator[None]:
    """cuDNN without a search by stopwatch, whose winner differs from run to run, and without TF32's 10 bits."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield
