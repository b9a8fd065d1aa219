"""A trained student as a file for other programs: a .pth state dict, or an ONNX model.

    student.pth    a plain dict of tensors, read with torch.load(weights_only=True). Networks of torchvision have its
                   names (stem.*, layer1.* to layer4.*, fc.* for the action head), all others have ours.
    student.onnx   --takes clip:   clip [N,3,T,H,W]       -> features [N,D], and where the student has such heads
                                                             action_logits [N,K], projection [N,128]
                   --takes tuple:  first, middle, last    -> pretext_logits [N,5]

Clips in ONNX are what data.prepare makes of pixels: normalised, of the student's modality, float32. N is free; T, H and
W are those that the student was trained with. The metadata entry `preceptor` says all of it as JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from data.atomic import write_atomic
from teacher_server.importers.torchvision import exported_name
from teacher_server.zoo.heads import CLIPS_PER_TUPLE
from teacher_server.zoo.names import TORCHVISION_ARCHITECTURES
from teacher_server.zoo.network import VideoNetwork
from trainer.config import ConfigError
from trainer.plan import student_input
from trainer.student_files import LoadedStudent

Takes = Literal["clip", "tuple"]

METADATA = "preceptor"
_EXAMPLES = 2  # a batch of 1 would be taken for a constant
_TUPLE_INPUTS = ("first", "middle", "last")
_LOGGER = "torch.onnx._internal.exporter._registration"


def write_pth(student: LoadedStudent, path: Path) -> None:
    """Writes the student's tensors, whole or not at all. Raises OSError."""
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in student.network.state_dict().items()}
    if student.config.student in TORCHVISION_ARCHITECTURES:
        tensors = {exported_name(name): tensor for name, tensor in tensors.items()}
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    write_atomic(path, buffer.getvalue())


def write_onnx(student: LoadedStudent, path: Path, takes: Takes = "clip") -> None:
    """Writes the student's network in evaluation mode, whole or not at all.

    Raises ConfigError without the packages that it takes, or for a student without a pretext head; OSError.
    """
    config, network = student.config, student.network.eval()
    if takes == "tuple" and network.pretext_head is None:
        raise ConfigError(f"student {student.source} has no pretext head: export it with --takes clip")
    _check_packages()
    module = _PerTuple(network) if takes == "tuple" else _PerClip(network)
    count = CLIPS_PER_TUPLE if takes == "tuple" else 1
    clips = tuple(torch.zeros(_EXAMPLES, 3, config.clip_len, config.crop, config.crop) for _ in range(count))
    batch = torch.export.Dim("batch")
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            clips,
            dynamo=True,
            verbose=False,
            input_names=list(_TUPLE_INPUTS if takes == "tuple" else ("clip",)),
            output_names=module.outputs,
            dynamic_shapes=tuple({0: batch} for _ in clips),
        )
    assert program is not None  # with dynamo there is one
    program.model.metadata_props[METADATA] = json.dumps(_metadata(student, takes), sort_keys=True)
    write_atomic(path, program.model_proto.SerializeToString())


class _PerClip(nn.Module):
    """What a student says about one clip. outputs: names, in the order of what forward returns."""

    def __init__(self, network: VideoNetwork) -> None:
        super().__init__()
        self._network = network
        heads = {"action_logits": network.action_head, "projection": network.projector}
        self.outputs = ["features", *(name for name, head in heads.items() if head is not None)]

    def forward(self, clip: Tensor) -> tuple[Tensor, ...]:
        """[N,3,T,H,W] -> features [N,D] and what the heads make of them."""
        features = self._network.features(clip)
        heads = (self._network.action_head, self._network.projector)
        return (features, *(head(features) for head in heads if head is not None))


class _PerTuple(nn.Module):
    """What was done to the middle one of three clips."""

    def __init__(self, network: VideoNetwork) -> None:
        super().__init__()
        self._network = network
        self.outputs = ["pretext_logits"]

    def forward(self, first: Tensor, middle: Tensor, last: Tensor) -> Tensor:
        """Three times [N,3,T,H,W] -> [N,5]."""
        return self._network.pretext_logits([self._network.features(clip) for clip in (first, middle, last)])


def _metadata(student: LoadedStudent, takes: Takes) -> dict[str, object]:
    """What a caller must know to make the inputs and to read the outputs."""
    config, spec = student.config, student_input(student.config)
    return {
        "arch": config.student,
        "width": config.width,
        "takes": takes,
        "clip_len": config.clip_len,
        "interval": config.interval,
        "crop": spec.crop,
        "modality": spec.modality,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "classes": list(student.classes),
        "weights": student.digest,
    }


def _check_packages() -> None:
    try:
        import onnxscript  # noqa: F401 (torch's exporter needs it, and onnx, which it brings)
    except ImportError:
        raise ConfigError('ONNX needs two more packages: pip install "preceptor[onnx]"') from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says about itself: deprecated calls, torchvision, which is not needed, and that
    several inputs share their batch axis."""
    logger = logging.getLogger(_LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", message="# The axis name: batch will not be used", category=UserWarning)
            yield
    finally:
        logger.setLevel(level)
