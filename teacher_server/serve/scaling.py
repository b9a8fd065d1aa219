"""How many replicas the teachers need, by the clips that wait. Pure; Serve runs it in its controller.

Serve's own policy counts requests, but one request may hold 3 clips or 2,000. Each replica reports its queued clips
(`record_autoscaling_stats`), Serve averages them over its look-back period, and delays and bounds what is decided here.
Serve pickles this module by value, so it imports nothing of the project.
"""

from __future__ import annotations

import math
from typing import Any

QUEUED_CLIPS = "queued_clips"


def replicas_for(queued_clips: float, target_queued_clips: int, lowest: int, highest: int) -> int:
    """So many that each has at most `target_queued_clips` waiting, within the bounds."""
    return min(max(math.ceil(queued_clips / target_queued_clips), lowest), highest)


class ScaleByQueuedClips:
    """Serve makes one for the deployment and calls it again and again."""

    def __init__(self, target_queued_clips: int) -> None:
        self._target_queued_clips = target_queued_clips

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The number of replicas wanted, and no state. context: ray.serve.config.AutoscalingContext.

        As long as no replica has reported, the number stays what it is.
        """
        queued_clips = (context.aggregated_metrics or {}).get(QUEUED_CLIPS)
        if not queued_clips:
            return context.target_num_replicas, {}
        wanted = replicas_for(
            sum(queued_clips.values()),
            self._target_queued_clips,
            context.capacity_adjusted_min_replicas,
            context.capacity_adjusted_max_replicas,
        )
        return wanted, {}
