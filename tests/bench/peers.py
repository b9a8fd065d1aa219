"""What the service is compared with: the same frozen network behind Ray Serve's own `@serve.batch`.

BatchedViews   gets views, renders them in the request, merges with @serve.batch
FloatPixels    gets normalised float32 pixels by value, as the nearest older system ships them, merges likewise

Both render and forward in threads, so that their event loop is free to collect the next batch.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from ray import serve
from safetensors.torch import load_file

from data.render import render_batch
from data.store import ClipStore
from data.views import ViewBatch
from teacher_server.engine.teacher import FrozenTeacher, build_teacher_network
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId
from teacher_server.zoo.fold import fold_batch_norm

BATCH_WAIT_S = 0.01  # Ray's default
QUIET = {"enable_access_log": False}


@serve.deployment(
    max_ongoing_requests=1000, ray_actor_options={"num_cpus": 1}, logging_config={"enable_access_log": False}
)
class BatchedViews:
    """One question of whole items after another in a batch; `max_batch` questions at most."""

    def __init__(self, library_root: str, teacher: TeacherId, store: str, max_batch: int) -> None:
        self._frozen = FrozenTeacher.load(TeacherLibrary(Path(library_root)).entry(teacher))
        self._store = ClipStore.open(store)
        self._chunk = self._frozen.card.chunk_items * self._frozen.card.views_per_item
        self._forwards = 0
        self._renders = ThreadPoolExecutor(1)
        self._forward = ThreadPoolExecutor(1)
        self._together.set_max_batch_size(max_batch)

    async def ask(self, views: bytes) -> NDArray[np.float32]:
        """Logits [I, K]."""
        loop = asyncio.get_running_loop()
        return await self._together(await loop.run_in_executor(self._renders, self._render, views))

    def forwards(self) -> int:
        """Passes of the fixed chunk so far."""
        return self._forwards

    def _render(self, views: bytes) -> NDArray[np.uint8]:
        batch = ViewBatch.from_bytes(views)
        return render_batch(self._store.gather(batch), batch)

    @serve.batch(max_batch_size=1, batch_wait_timeout_s=BATCH_WAIT_S)
    async def _together(self, pixels: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        together = np.concatenate(pixels)
        self._forwards += -(-len(together) // self._chunk)
        answer = await asyncio.get_running_loop().run_in_executor(self._forward, self._frozen.answer, together)
        ends = np.cumsum([len(each) // self._frozen.card.views_per_item for each in pixels])
        return np.split(answer.logits, ends[:-1])


@serve.deployment(
    max_ongoing_requests=1000, ray_actor_options={"num_cpus": 1}, logging_config={"enable_access_log": False}
)
class FloatPixels:
    """Clips float32 [N, 3, T, H, W], normalised by whoever asks."""

    def __init__(self, library_root: str, teacher: TeacherId, max_batch: int) -> None:
        entry = TeacherLibrary(Path(library_root)).entry(teacher)
        self._network = build_teacher_network(entry.card)
        self._network.load_state_dict(load_file(entry.weights))
        fold_batch_norm(self._network.eval().backbone)  # as in ours
        self._network.requires_grad_(False).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self._forward = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
        self._together.set_max_batch_size(max_batch)

    async def ask(self, clips: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits [I, K]."""
        return await self._together(clips)

    @serve.batch(max_batch_size=1, batch_wait_timeout_s=BATCH_WAIT_S)
    async def _together(self, clips: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        together = np.concatenate(clips)
        logits = await asyncio.get_running_loop().run_in_executor(self._forward, self._logits, together)
        return np.split(logits, np.cumsum([len(each) // 3 for each in clips])[:-1])

    @torch.inference_mode()
    def _logits(self, clips: NDArray[np.float32]) -> NDArray[np.float32]:
        x = torch.from_numpy(clips).contiguous(memory_format=torch.channels_last_3d)
        features = self._network.features(x).unflatten(0, (-1, 3))
        return self._network.pretext_logits(features.unbind(dim=1)).numpy()
