"""A student's live metrics, exported by Ray for Prometheus. Names are part of the dashboards in deploy/."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

_TAGS = ("run", "student", "teacher")
_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]


class StudentMetrics:
    """Takes the records of the run's log. Make it once per worker process, inside the cluster."""

    def __init__(self, run: str, student: str, teacher: str) -> None:
        tags = {"run": run, "student": student, "teacher": teacher}
        self._steps = Counter("preceptor_student_steps_total", "Optimisation steps done", tag_keys=_TAGS)
        self._clips = Counter("preceptor_student_clips_total", "Clips trained on", tag_keys=_TAGS)
        # Exact, for shares: of a histogram Ray hands on the buckets only, its sum is made up of their middles.
        self._seconds = Counter(
            "preceptor_student_seconds_total", "Seconds of the steps by phase", tag_keys=(*_TAGS, "phase")
        )
        self._phases = Histogram(
            "preceptor_student_phase_seconds",
            "Seconds of a step by phase: data, teacher_wait, compute",
            boundaries=_SECONDS,
            tag_keys=(*_TAGS, "phase"),
        )
        self._losses = Gauge("preceptor_student_loss", "Loss of the last step by term", tag_keys=(*_TAGS, "term"))
        self._accuracy = Gauge("preceptor_student_accuracy", "Accuracy by kind", tag_keys=(*_TAGS, "kind"))
        for metric in (self._steps, self._clips, self._seconds, self._phases, self._losses, self._accuracy):
            metric.set_default_tags(tags)

    def __call__(self, record: Mapping[str, Any]) -> None:
        """One record of metrics.jsonl."""
        if record["kind"] == "step":
            self._step(record)
        elif record["kind"] == "epoch":
            self._accuracy.set(record["val_pretext_acc"], {"kind": "validation"})
            if "test_pretext_acc" in record:
                self._accuracy.set(record["test_pretext_acc"], {"kind": "test"})

    def _step(self, record: Mapping[str, Any]) -> None:
        self._steps.inc(1)
        self._clips.inc(record["clips"])
        for phase in ("data", "teacher_wait", "compute"):
            seconds = record[f"{phase}_s"]
            self._phases.observe(max(0.0, seconds), {"phase": phase})
            if seconds > 0:  # a counter refuses 0
                self._seconds.inc(seconds, {"phase": phase})
        for term in ("loss", "pretext", "contrast", "distill", "hint", "ce", "extra"):
            if record[term] is not None:
                self._losses.set(record[term], {"term": "total" if term == "loss" else term})
        self._accuracy.set(record["pretext_acc"], {"kind": "training"})
        if record["agreement"] is not None:
            self._accuracy.set(record["agreement"], {"kind": "agreement"})
