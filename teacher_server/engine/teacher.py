"""A frozen teacher: card and weights in, logits out. Knows nothing of Ray or HTTP.

    FrozenTeacher.load(entry).answer(pixels) -> TeacherAnswer(logits, features)

    pixels -> chunks of the card's size -> prepare -> backbone (card's precision) -> head (float32)

Every forward pass has the card's fixed number of items; a short last chunk is padded with its own first item. So the
shapes that the kernels see never change, and an answer depends on nothing but its own pixels: not on neighbours in
the chunk, on the position, or on the padding.

On the CPU every chunk is computed by one thread, and more threads compute more chunks at a time: torch's own
parallelism inside an operation changes the last bits of some convolutions (seen: the temporal ones of r2plus1d, whose
channel numbers are odd), so answers would depend on how many cores the machine has. The head is applied to one item at
a time: MKL's small matrix products give a row other last bits in another place of the matrix on some CPUs (seen: 4x64
by 64x3 on an Intel Xeon with AMX; on AMD EPYCs none).

Axis letters: N clips, I items, T frames, H, W, K classes, D features.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from data.prepare import prepare
from teacher_server.card import Card, TeacherCard
from teacher_server.engine.backbone import FrozenBackbone
from teacher_server.engine.weights import build_teacher_network, load_network
from teacher_server.errors import BadQuery, LibraryError, LibraryUnreadable, TeacherError
from teacher_server.library import TeacherEntry
from teacher_server.protocol import TeacherId
from teacher_server.zoo.names import ARCH_VERSION
from teacher_server.zoo.network import VideoNetwork


@dataclass(frozen=True)
class TeacherAnswer:
    """Raw logits float32 [I, K], not yet softened, and features float32 [I, D], the mean over an item's clips."""

    logits: NDArray[np.float32]
    features: NDArray[np.float32]

    def take(self, items: Sequence[int]) -> TeacherAnswer:
        """The answer about these items, in their order."""
        return TeacherAnswer(self.logits[list(items)], self.features[list(items)])

    def equals(self, other: TeacherAnswer) -> bool:
        """Whether all numbers are the same, to the bit."""
        return np.array_equal(self.logits, other.logits) and np.array_equal(self.features, other.features)


class Teacher(Protocol):
    """Whatever answers: one network, or several as one. Threads may share it.

    digest: the teacher digest, 64 hex digits. teacher_server.engine.ensemble.load_teacher makes either kind.
    """

    teacher: TeacherId
    digest: str

    @property
    def card(self) -> Card:
        """What it takes and what it answers with."""
        ...

    @property
    def engine(self) -> str:
        """On what answers are computed. The same digest gives the same bytes on one engine only."""
        ...

    @property
    def num_bytes(self) -> int:
        """Memory that its parameters and buffers take."""
        ...

    def answer(self, pixels_NTHW3: NDArray[np.uint8]) -> TeacherAnswer:
        """Logits and features for whole items; any number of them. Raises BadQuery for pixels that do not fit."""
        ...

    def check_pixels(self, shape: tuple[int, ...]) -> None:
        """Raises BadQuery unless pixels of this shape [N, T, H, W, 3] can be answered."""
        ...


class FrozenTeacher:
    """One version of a teacher in memory, in evaluation mode, without gradients. Threads may share it.

    network: it is taken over and changed in place. num_threads: chunks that are computed at a time, on the CPU; no
    answer depends on it.
    """

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
        self._network = network.eval().requires_grad_(False).to(self.device)
        chunk_shape = (self._chunk_clips, 3, card.clip_len, card.crop, card.crop)
        self._backbone = FrozenBackbone(
            network.backbone, self.device, card.precision, chunk_shape if card.compile else None
        )
        self._threads = _borrow_threads(num_threads if self.device.type == "cpu" else 1, self)

    @classmethod
    def load(cls, entry: TeacherEntry, device: str = "cpu", num_threads: int = 1) -> FrozenTeacher:
        """Reads the weights, checks hash, names, shapes and values, and runs the self-test on `device`.

        Raises LibraryError that names the file and what is wrong with it.
        """
        card = entry.card
        if not isinstance(card, TeacherCard):
            raise LibraryError(
                str(entry.folder), "is an ensemble, not a network: use teacher_server.engine.ensemble.load_teacher"
            )
        if card.arch_version != ARCH_VERSION:
            raise LibraryError(
                str(entry.folder),
                f"made for version {card.arch_version} of {card.arch}, this program has {ARCH_VERSION}: its numbers "
                "would be others; export or import it again as a new version",
            )
        teacher = cls(entry.teacher, card, entry.digest, load_network(entry, card), device, num_threads)
        teacher.self_test(str(entry.weights))
        return teacher

    @property
    def engine(self) -> str:
        """On what answers are computed. The same digest gives the same bytes on one engine only."""
        return engine_of(self.device)

    @property
    def num_bytes(self) -> int:
        """Memory of its parameters and buffers; activations are not counted."""
        tensors = (*self._network.parameters(), *self._network.buffers())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @property
    def _chunk_clips(self) -> int:
        return self.card.chunk_items * self.card.views_per_item

    def answer(self, pixels_NTHW3: NDArray[np.uint8]) -> TeacherAnswer:
        """Logits and features for whole items; any number of them. Raises BadQuery for pixels that do not fit."""
        self.check_pixels(pixels_NTHW3.shape)
        chunk = self._chunk_clips
        starts = range(0, len(pixels_NTHW3), chunk)
        parts = list(self._threads.map(lambda i: self._chunk(pixels_NTHW3[i : i + chunk], chunk), starts))
        logits = np.concatenate([part.logits for part in parts])
        return TeacherAnswer(logits, np.concatenate([part.features for part in parts]))

    def check_pixels(self, shape: tuple[int, ...]) -> None:
        """Raises BadQuery unless pixels of this shape [N, T, H, W, 3] can be answered."""
        check_pixels(self.teacher, self.card, shape)

    def self_test(self, path: str) -> None:
        """Noise, answered in one full chunk, again, alone, and in another place of the chunk: finite and the same.

        Equal means to the bit, on every device, because every pass has the same shape. It also warms the kernels up.
        Raises LibraryError naming `path`; LibraryUnreadable when memory was short, which may pass.
        """
        try:
            self._test(path)
        except TeacherError:
            raise
        except Exception as error:  # torch's: no compiler; or whatever a plug-in raises
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            kind = LibraryUnreadable if is_out_of_memory(error) else LibraryError
            raise kind(path, f"cannot be computed on {self.device}: {reason}") from None

    def _test(self, path: str) -> None:
        card, views, last = self.card, self.card.views_per_item, self.card.chunk_items - 1
        shape = (self._chunk_clips, card.clip_len, card.crop, card.crop, 3)
        noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        full = self.answer(noise)
        if full.logits.shape != (card.chunk_items, len(card.classes)):
            raise LibraryError(path, f"gives logits {list(full.logits.shape)} for {len(card.classes)} classes")
        if not (np.isfinite(full.logits).all() and np.isfinite(full.features).all()):
            raise LibraryError(path, "the self-test gave numbers that are not finite")
        chunks = "; with chunks of one item (import it with --chunk-items 1) no answer can depend on that"
        for pixels, expected, case in (
            (noise, full, "the second time"),
            (noise[:views], full.take([0]), f"for the first item alone{chunks}"),
            (np.roll(noise, views, axis=0), full.take([last, *range(last)]), f"in another place of the chunk{chunks}"),
        ):
            found = self.answer(pixels)
            if not np.array_equal(found.logits, expected.logits) or not np.array_equal(
                found.features, expected.features
            ):
                raise LibraryError(path, f"the self-test gave other numbers {case}")

    @torch.inference_mode()
    def _chunk(self, pixels: NDArray[np.uint8], size: int) -> TeacherAnswer:
        """Up to `size` clips as one forward pass of exactly `size`."""
        views = self.card.views_per_item
        num_items = len(pixels) // views
        if len(pixels) < size:
            padding = np.broadcast_to(pixels[:1], (size - len(pixels), *pixels.shape[1:]))
            pixels = np.concatenate([pixels, padding])
        features_ND = self._backbone(prepare(self._on_device(pixels), self.input_spec))
        features_IVD = features_ND.unflatten(0, (-1, views))
        logits = self._logits(features_IVD)
        features = features_IVD.mean(dim=1)
        return TeacherAnswer(logits[:num_items].cpu().numpy(), features[:num_items].cpu().numpy())

    def _logits(self, features_IVD: torch.Tensor) -> torch.Tensor:
        """Of the head, one item at a time on the CPU: see the top of this module."""
        if self.device.type != "cpu":
            return self._head(features_IVD)
        # Copies: how an item's features lie to the CPU's cache lines must not depend on its place either.
        return torch.cat([self._head(item_VD.clone()[None]) for item_VD in features_IVD])

    def _head(self, features_IVD: torch.Tensor) -> torch.Tensor:
        if self._network.action_head is None:
            return self._network.pretext_logits(features_IVD.unbind(dim=1))
        return self._network.action_head(features_IVD.flatten(0, 1))

    def _on_device(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8] | torch.Tensor:
        """On the CPU the array itself: `prepare` reads it where it lies, also when it is read-only."""
        return pixels if self.device.type == "cpu" else torch.tensor(pixels, device=self.device)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory was short, of the device or of the machine; torch has no class of its own for the latter."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return (
        isinstance(error, RuntimeError) and re.search("DefaultCPUAllocator|not enough memory", str(error)) is not None
    )


def engine_of(device: torch.device) -> str:
    """`cpu`, or the device's type and model, as `cuda:nvidia-h200`: another model computes with other kernels."""
    if device.type != "cuda":
        return device.type
    model = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")
    return f"{device.type}:{model}"


_spare_threads: defaultdict[int, list[ThreadPoolExecutor]] = defaultdict(list)  # by their number


def _borrow_threads(count: int, borrower: object) -> ThreadPoolExecutor:
    """As _single_threads, until the borrower is gone; then the next one gets them.

    glibc gives every new thread another one of its arenas, and each arena keeps what a forward pass once needed. With
    threads of its own for each version that comes and goes, a replica grew by .7 to 2.6 MiB a swap.
    """
    spare = _spare_threads[count]
    try:
        threads = spare.pop()
    except IndexError:
        threads = _single_threads(count)
    weakref.finalize(borrower, spare.append, threads).atexit = False
    return threads


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


def check_pixels(teacher: TeacherId, card: Card, shape: tuple[int, ...]) -> None:
    """Raises BadQuery unless a teacher with this card can answer pixels of this shape [N, T, H, W, 3]."""
    if len(shape) != 5 or shape[-1] != 3 or shape[0] == 0 or shape[0] % card.views_per_item:
        raise BadQuery(
            f"{teacher} takes uint8 [clips, T, H, W, 3] in whole items of {card.views_per_item} clips, "
            f"got {list(shape)}"
        )
    if shape[1] < card.min_clip_len:
        raise BadQuery(f"{teacher} takes clips of at least {card.min_clip_len} frames, got {shape[1]}")
    if shape[2:4] != (card.crop, card.crop) and not card.resize:
        raise BadQuery(f"{teacher} takes {card.crop}x{card.crop} pixels, got {shape[2]}x{shape[3]}")


__all__ = [
    "FrozenTeacher",
    "Teacher",
    "TeacherAnswer",
    "build_teacher_network",
    "check_pixels",
    "engine_of",
    "is_out_of_memory",
]
