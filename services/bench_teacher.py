"""How fast a teacher answers: questions with random pixels, a few in flight, for some seconds."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from teacher_server.card import Card
from teacher_server.clients.retry import Asker, Question
from teacher_server.contract import TeacherClient
from teacher_server.library import TeacherEntry
from teacher_server.protocol import TeacherId, TeacherQuery, new_request_id


@dataclass(frozen=True)
class Speed:
    """clips were answered in `seconds`; latencies_ms: of each question, from sending it to having its reply."""

    clips: int
    seconds: float
    latencies_ms: tuple[float, ...]

    @property
    def clips_per_s(self) -> float:
        """Clips answered per second."""
        return self.clips / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """Milliseconds within which so many percent of the questions were answered."""
        return float(np.percentile(self.latencies_ms, percent))


def bench_query(teacher: TeacherId, card: Card, views: int) -> TeacherQuery:
    """A question of about `views` clips of random pixels in the size of the teacher's training, whole items only."""
    items = max(1, round(views / card.views_per_item))
    shape = (items * card.views_per_item, card.clip_len, card.crop, card.crop, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return TeacherQuery(
        request_id=new_request_id(),
        teacher=teacher,
        temperature=1.0,
        views_per_item=card.views_per_item,
        run="bench",
        pixels=pixels,
    )


def measure(
    client: TeacherClient,
    entry: TeacherEntry,
    *,
    views: int,
    seconds: float,
    in_flight: int,
    clock: Callable[[], float] = time.monotonic,
    tick: Callable[[float], None] = lambda _: None,
) -> Speed:
    """Asks for so many seconds, `in_flight` questions at a time; the first, which may load the teacher, is not counted.

    tick: called with the seconds since the start. Raises TeacherUnavailable when nobody answers.
    """
    query = bench_query(entry.teacher, entry.card, views)
    asker = Asker(client, num_classes=len(entry.card.classes))
    asker.ask(query, digest=entry.digest)
    latencies: list[float] = []
    waiting: deque[tuple[float, Question]] = deque()  # since when, and what
    began = clock()
    while True:
        asked_for = clock() - began
        while asked_for < seconds and len(waiting) < in_flight:
            waiting.append((clock(), asker.start(query, digest=entry.digest)))
        if not waiting:
            break
        sent, oldest = waiting.popleft()
        asker.finish(oldest)
        latencies.append(1000 * (clock() - sent))
        tick(min(seconds, clock() - began))
    return Speed(len(latencies) * query.num_clips, clock() - began, tuple(latencies))
