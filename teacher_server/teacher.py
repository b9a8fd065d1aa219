"""A frozen teacher: card and weights in, logits out. Knows nothing of Ray or HTTP.

    FrozenTeacher.load(entry).answer(pixels) -> TeacherAnswer(logits, features)

Every forward pass has the card's fixed number of items; a short last chunk is padded with its own first item. So the
shapes that the kernels see never change, and an answer depends on nothing but its own pixels: not on neighbours in
the chunk, on the position, or on the padding.

On the CPU every chunk is computed by one thread, and more threads compute more chunks at a time: torch's own
parallelism inside an operation changes the last bits of some convolutions (seen: the temporal ones of r2plus1d, whose
channel numbers are odd), so answers would depend on how many cores the machine has.

Axis letters: N clips, I items, T frames, H, W, K classes, D features.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from data.prepare import prepare
from teacher_server.card import TeacherCard
from teacher_server.errors import BadQuery, LibraryError
from teacher_server.library import TeacherEntry
from teacher_server.protocol import TeacherId
from teacher_server.zoo.names import ARCH_VERSION
from teacher_server.zoo.network import VideoNetwork


@dataclass(frozen=True)
class TeacherAnswer:
    """Raw logits float32 [I, K], not yet softened, and features float32 [I, D], the mean over an item's clips."""

    logits: NDArray[np.float32]
    features: NDArray[np.float32]


class FrozenTeacher:
    """One version of a teacher in memory, in evaluation mode, without gradients. Threads may share it."""

    def __init__(
        self,
        teacher: TeacherId,
        card: TeacherCard,
        digest: str,
        network: VideoNetwork,
        device: str = "cpu",
        num_threads: int = 1,
    ) -> None:
        self.teacher = teacher
        self.card = card
        self.digest = digest
        self.input_spec = card.input_spec
        self.device = torch.device(device)
        network.to(device=self.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self._network = network.eval().requires_grad_(False)
        self._threads = _single_threads(num_threads if self.device.type == "cpu" else 1)

    @classmethod
    def load(cls, entry: TeacherEntry, device: str = "cpu", num_threads: int = 1) -> FrozenTeacher:
        """Reads the weights, checks every name and shape against the card, and runs the self-test on `device`.

        num_threads: chunks that are computed at a time, on the CPU; no answer depends on it.
        Raises LibraryError that names the file and what is wrong with it.
        """
        card = entry.card
        if card.arch_version != ARCH_VERSION:
            raise LibraryError(
                str(entry.folder),
                f"made for version {card.arch_version} of {card.arch}, this program has {ARCH_VERSION}",
            )
        network = build_teacher_network(card)
        if network.backbone.feature_size != card.feature_size:
            raise LibraryError(
                str(entry.folder),
                f"feature_size is {card.feature_size}, {card.arch} has {network.backbone.feature_size}",
            )
        _load_weights(network, entry)
        teacher = cls(entry.teacher, card, entry.digest, network, device, num_threads)
        teacher.self_test(str(entry.weights))
        return teacher

    @property
    def engine(self) -> str:
        """On what answers are computed. The same digest gives the same bytes on one engine only."""
        return self.device.type

    def answer(self, pixels_NTHW3: NDArray[np.uint8]) -> TeacherAnswer:
        """Logits and features for whole items; any number of them. Raises BadQuery for pixels that do not fit."""
        self.check_pixels(pixels_NTHW3.shape)
        views = self.card.views_per_item
        chunk = self.card.chunk_items * views
        starts = range(0, len(pixels_NTHW3), chunk)
        parts = list(self._threads.map(lambda i: self._chunk(pixels_NTHW3[i : i + chunk], chunk), starts))
        logits = np.concatenate([part.logits for part in parts])
        return TeacherAnswer(logits, np.concatenate([part.features for part in parts]))

    def check_pixels(self, shape: tuple[int, ...]) -> None:
        """Raises BadQuery unless pixels of this shape [N, T, H, W, 3] can be answered."""
        card = self.card
        if len(shape) != 5 or shape[-1] != 3 or shape[0] == 0 or shape[0] % card.views_per_item:
            raise BadQuery(
                f"{self.teacher} takes uint8 [clips, T, H, W, 3] in whole items of {card.views_per_item} clips, "
                f"got {list(shape)}"
            )
        if shape[1] < card.min_clip_len:
            raise BadQuery(f"{self.teacher} takes clips of at least {card.min_clip_len} frames, got {shape[1]}")
        if shape[2:4] != (card.crop, card.crop) and not card.resize:
            raise BadQuery(f"{self.teacher} takes {card.crop}x{card.crop} pixels, got {shape[2]}x{shape[3]}")

    def self_test(self, path: str) -> None:
        """One chunk of noise, twice: finite, repeatable, and the same alone as among others.

        It also warms the kernels up. Raises LibraryError naming `path`.
        """
        card = self.card
        shape = (card.chunk_items * card.views_per_item, card.clip_len, card.crop, card.crop, 3)
        noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        first, second = self.answer(noise).logits, self.answer(noise).logits
        alone = self.answer(noise[: card.views_per_item]).logits
        if not np.isfinite(first).all():
            raise LibraryError(path, "the self-test gave logits that are not finite")
        if not np.array_equal(first, second) or not np.array_equal(first[:1], alone):
            raise LibraryError(path, "the self-test gave other logits the second time, or for the first item alone")

    @torch.inference_mode()
    def _chunk(self, pixels: NDArray[np.uint8], size: int) -> TeacherAnswer:
        """Up to `size` clips as one forward pass of exactly `size`."""
        views = self.card.views_per_item
        num_items = len(pixels) // views
        if len(pixels) < size:
            padding = np.broadcast_to(pixels[:1], (size - len(pixels), *pixels.shape[1:]))
            pixels = np.concatenate([pixels, padding])
        features_ND = self._network.features(prepare(self._on_device(pixels), self.input_spec))
        features_IVD = features_ND.unflatten(0, (-1, views))
        if self._network.action_head is None:
            logits = self._network.pretext_logits(features_IVD.unbind(dim=1))
        else:
            logits = self._network.action_head(features_ND)
        features = features_IVD.mean(dim=1)
        return TeacherAnswer(logits[:num_items].cpu().numpy(), features[:num_items].cpu().numpy())

    def _on_device(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8] | torch.Tensor:
        """On the CPU the array itself: `prepare` reads it where it lies, also when it is read-only."""
        return pixels if self.device.type == "cpu" else torch.tensor(pixels, device=self.device)


def _single_threads(count: int) -> ThreadPoolExecutor:
    """A pool of threads in each of which torch computes with one thread.

    torch.set_num_threads counts for the thread that calls it and for threads that are yet to use torch: these take it
    over at their first use. So the threads of the pool make that first use before they set their number, and the
    caller sets its own again after them.
    """
    everybody = threading.Barrier(count)
    pool = ThreadPoolExecutor(count, thread_name_prefix="teacher-chunk")

    def begin(_: int) -> None:
        everybody.wait(timeout=60)  # so that every thread of the pool gets one of these calls
        torch.get_num_threads()  # the first use
        torch.set_num_threads(1)

    before = torch.get_num_threads()
    list(pool.map(begin, range(count)))
    torch.set_num_threads(before)
    return pool


def build_teacher_network(card: TeacherCard) -> VideoNetwork:
    """The network that the card describes, with the one head that it serves and no projector."""
    pretext = len(card.classes) if card.head == "pretext" else 0
    action = len(card.classes) if card.head == "action" else 0
    return VideoNetwork(card.arch, card.width, pretext_classes=pretext, action_classes=action, projector=False)


def _load_weights(network: VideoNetwork, entry: TeacherEntry) -> None:
    path = str(entry.weights)
    try:
        tensors = load_safetensors(entry.weights.read_bytes())
    except (OSError, SafetensorError) as error:
        raise LibraryError(path, f"cannot be read as safetensors: {error}") from None
    wanted = network.state_dict()
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or extra:
        raise LibraryError(
            path, f"{len(missing)} tensors are missing {missing[:3]}, {len(extra)} are unknown {extra[:3]}"
        )
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape or tensor.dtype != wanted[name].dtype:
            raise LibraryError(
                path,
                f"{name} is {tensor.dtype} {list(tensor.shape)}, the card's network has "
                f"{wanted[name].dtype} {list(wanted[name].shape)}",
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise LibraryError(path, f"{name} holds values that are not finite")
    network.load_state_dict(tensors)
