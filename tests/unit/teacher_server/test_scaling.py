"""The number of replicas from the clips that wait, through the very calls that Ray Serve makes."""

from __future__ import annotations

from typing import Any

import pytest
from ray.serve.config import AutoscalingContext

from teacher_server.errors import BadQuery
from teacher_server.serve.app import DeployOptions, teacher_deployment
from teacher_server.serve.scaling import ScaleByQueuedClips, replicas_for


def context(queued_clips: list[float] | None, *, target: int = 2) -> AutoscalingContext:
    """Between 1 and 4 replicas, `target` at present; what each of them has reported."""
    reported = None if queued_clips is None else {"queued_clips": dict(enumerate(queued_clips))}
    values: dict[str, Any] = dict.fromkeys(
        ("deployment_id", "deployment_name", "app_name", "last_scale_up_time", "last_scale_down_time")
    )
    return AutoscalingContext(
        **values,
        current_num_replicas=target,
        target_num_replicas=target,
        running_replicas=[],
        total_num_requests=1000,
        total_queued_requests=0,
        aggregated_metrics=lambda: reported,
        raw_metrics=None,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
        policy_state={},
        current_time=None,
        config=None,
    )


@pytest.mark.parametrize(
    ("queued_clips", "wanted"), [(0, 1), (1, 1), (100, 1), (100.5, 2), (300, 3), (400, 4), (9000, 4)]
)
def test_each_replica_has_the_target_waiting_within_the_bounds(queued_clips: float, wanted: int) -> None:
    assert replicas_for(queued_clips, 100, 1, 4) == wanted


@pytest.mark.parametrize(("reported", "wanted"), [([250.0, 20.0], 3), ([0.0, 0.0, 0.0], 1), ([99.0], 1)])
def test_what_all_replicas_report_is_added_up(reported: list[float], wanted: int) -> None:
    assert ScaleByQueuedClips(100)(context(reported)) == (wanted, {})


@pytest.mark.parametrize("reported", [None, []])
def test_without_a_report_the_number_stays(reported: list[float] | None) -> None:
    assert ScaleByQueuedClips(100)(context(reported, target=3)) == (3, {})


def test_serve_gets_the_policy_that_the_options_ask_for() -> None:
    config = teacher_deployment(DeployOptions(2, max_replicas=5, target_queued_clips=50))._deployment_config
    scaling = config.autoscaling_config
    assert (scaling.min_replicas, scaling.initial_replicas, scaling.max_replicas) == (2, 2, 5)
    policy = scaling.policy.get_policy()(**scaling.policy.policy_kwargs)  # as Serve's controller makes it
    assert policy(context([120.0, 0.0]))[0] == 3


def test_without_a_maximum_the_number_is_fixed() -> None:
    config = teacher_deployment(DeployOptions(3))._deployment_config
    assert (config.num_replicas, config.autoscaling_config) == (3, None)


@pytest.mark.parametrize(
    "wrong", [{"num_replicas": 3, "max_replicas": 2}, {"target_queued_clips": 0}, {"memory_budget_mb": 0}]
)
def test_options_that_cannot_be_met_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(BadQuery):
        DeployOptions(**wrong)
