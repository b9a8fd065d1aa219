"""The metrics of replicas and roster, through `ray.util.metrics`: Ray exports them to Prometheus with the node's own.

preceptor_teacher_requests_total   {teacher, outcome}   outcome: ok, or the class of the error
preceptor_teacher_replies_total    {teacher}            teacher is name@version
preceptor_teacher_clips_total                           clips in forward passes; exact, where a histogram's sum is
                                                        not: Ray hands on its buckets only
preceptor_teacher_batch_clips      histogram            clips that shared a forward pass
preceptor_teacher_forward_seconds  histogram
preceptor_teacher_queue_seconds    histogram            waiting for the forward pass, without rendering
preceptor_teacher_queued_clips     gauge                accepted and not answered yet
preceptor_teacher_shared_total                          questions answered without a forward pass of their own
preceptor_teacher_resident_bytes   {teacher}, gauge     weights in memory; 0 after an evict
preceptor_roster_promotions_total  {outcome}            outcome: ok, or the class of the error; rollbacks too
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

from teacher_server.batching.batcher import BatchRecord

_SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
_CLIPS = [1.0, 3.0, 6.0, 12.0, 24.0, 48.0, 96.0, 192.0, 384.0]


class ReplicaMetrics:
    """Made once per replica process."""

    def __init__(self) -> None:
        self._requests = Counter(
            "preceptor_teacher_requests_total", "Questions by outcome.", tag_keys=("teacher", "outcome")
        )
        self._replies = Counter("preceptor_teacher_replies_total", "Answers by version.", tag_keys=("teacher",))
        self._clips = Counter("preceptor_teacher_clips_total", "Clips in forward passes.")
        self._batch_clips = Histogram("preceptor_teacher_batch_clips", "Clips in a forward pass.", boundaries=_CLIPS)
        self._forward = Histogram("preceptor_teacher_forward_seconds", "A forward pass.", boundaries=_SECONDS)
        self._queue = Histogram("preceptor_teacher_queue_seconds", "Waiting for it.", boundaries=_SECONDS)
        self._queued_clips = Gauge("preceptor_teacher_queued_clips", "Clips accepted and not answered yet.")
        self._shared = Counter("preceptor_teacher_shared_total", "Questions answered with an answer made for another.")
        self._resident = Gauge("preceptor_teacher_resident_bytes", "Weights in memory.", tag_keys=("teacher",))

    def request(self, teacher: str, outcome: str, queued_clips: int) -> None:
        """A question ended, one way or the other; so many clips wait now."""
        self._queued_clips.set(queued_clips)
        self._requests.inc(1, tags={"teacher": teacher, "outcome": outcome})
        if outcome == "ok":
            self._replies.inc(1, tags={"teacher": teacher})

    def waited(self, seconds: float) -> None:
        """How long an answered question waited."""
        self._queue.observe(seconds)

    def batch(self, record: BatchRecord) -> None:
        """A forward pass ended."""
        self._clips.inc(record.clips)
        self._batch_clips.observe(record.clips)
        self._forward.observe(record.forward_s)

    def shared(self) -> None:
        """A question was answered without a forward pass of its own."""
        self._shared.inc(1)

    def resident(self, teacher: str, num_bytes: int) -> None:
        """A teacher was loaded, or evicted (0)."""
        self._resident.set(num_bytes, tags={"teacher": teacher})


class RosterMetrics:
    """Made once in the roster's process."""

    def __init__(self) -> None:
        self._promotions = Counter(
            "preceptor_roster_promotions_total", "Promotions and rollbacks by outcome.", tag_keys=("outcome",)
        )

    def promotion(self, outcome: str) -> None:
        """A promotion or rollback ended."""
        self._promotions.inc(1, tags={"outcome": outcome})
