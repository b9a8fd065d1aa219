"""The teacher as the training loop sees it: bound by the roster in blocks of steps, asked ahead, checked.

put(step) -> binding of the step's block -> TeacherQuery -> Prefetcher -> get() -> logits of exactly that version
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data.views import VIEWS_PER_TUPLE, ViewBatch
from teacher_server.card import PRETEXT_CLASSES
from teacher_server.contract import TeacherClient
from teacher_server.protocol import Binding, TeacherQuery, new_request_id
from teacher_server.retry import Asker, Prefetcher, RetryPolicy
from teacher_server.roster import BLOCK_STEPS
from trainer.config import RunConfig
from trainer.loader import TeacherAnswer

InputKind = Literal["views", "pixels"]


class BoundTeacher:
    """A TeacherSignal over any client. `bind`: block of steps -> the version that the roster bound it to."""

    def __init__(
        self,
        client: TeacherClient,
        bind: Callable[[int], Binding],
        *,
        config: RunConfig,
        run_id: str,
        store_path: Path,
        input_kind: InputKind,
    ) -> None:
        self._client = client
        self._bind = bind
        self._config = config
        self._run_id = run_id
        self._store_path = str(store_path)
        self._input_kind = input_kind
        policy = RetryPolicy(attempt_timeout_s=config.teacher_timeout_s, budget_s=config.teacher_budget_s)
        asker = Asker(client, num_classes=len(PRETEXT_CLASSES), policy=policy, rng=random.Random(run_id))
        self._prefetcher = Prefetcher(asker, config.prefetch)
        self._current: Binding | None = None
        self._bindings: deque[Binding] = deque()

    def put(self, step: int, views: ViewBatch, pixels: NDArray[np.uint8]) -> None:
        """Asks about a step's tuples. The roster is asked once a block, ahead of the step that needs it."""
        block = step // BLOCK_STEPS
        if self._current is None or self._current.block != block:
            self._current = self._bind(block)
        binding = self._current
        self._bindings.append(binding)
        query = TeacherQuery(
            request_id=new_request_id(),
            teacher=binding.teacher,
            temperature=self._config.temperature,
            views_per_item=VIEWS_PER_TUPLE,
            run=self._run_id,
            views=views.to_bytes() if self._input_kind == "views" else None,
            store=self._store_path if self._input_kind == "views" else None,
            pixels=pixels if self._input_kind == "pixels" else None,
            timeout_s=self._config.teacher_timeout_s,
        )
        self._prefetcher.put(query, digest=binding.digest)

    def get(self) -> TeacherAnswer:
        """The answer to the oldest open question; see retry.Prefetcher.get for what it raises."""
        reply = self._prefetcher.get()
        return TeacherAnswer(reply.logits.astype(np.float32, copy=False), self._bindings.popleft())

    def close(self) -> None:
        """Cancels what is in flight and closes the client."""
        self._prefetcher.close()
        self._client.close()
