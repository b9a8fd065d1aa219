"""The Ray cluster that a run uses: the one that RAY_ADDRESS or the job names, else a private one.

A private cluster belongs to this process: it is started with what the run needs and gone when the run ends. It never
joins a cluster that happens to run on the machine.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ray

from trainer.config import ConfigError, RunConfig

ROOT = Path(__file__).resolve().parent.parent
_OBJECT_STORE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Cluster:
    """private: started and stopped by this process. node_id: where this process runs."""

    private: bool
    node_id: str


@contextlib.contextmanager
def connected(config: RunConfig) -> Iterator[Cluster]:
    """A connection to the cluster for the time of a run."""
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _join(address)
    else:
        _start_private(config)
    try:
        yield Cluster(private=not address, node_id=ray.get_runtime_context().get_node_id())
    finally:
        ray.shutdown()


def check_cpus(needed: float, purpose: str) -> None:
    """Raises ConfigError when so many CPUs are not free: waiting for them would have no end."""
    free = ray.available_resources().get("CPU", 0.0)
    if free < needed:
        total = ray.cluster_resources().get("CPU", 0.0)
        raise ConfigError(
            f"{purpose} needs {needed:g} free CPUs, the cluster has {free:g} of {total:g}: "
            "wait for other jobs, choose a smaller --num-workers, or add nodes"
        )


def _join(address: str) -> None:
    try:
        ray.init(address=address, namespace="preceptor", log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"no Ray cluster at RAY_ADDRESS={address}: {reason}") from None


def _start_private(config: RunConfig) -> None:
    wanted = config.num_workers * config.threads + config.teacher_replicas * config.teacher_cpus
    ray.init(
        address="local",
        namespace="preceptor",
        num_cpus=max(math.ceil(wanted), os.cpu_count() or 1),
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.WARNING,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join([str(ROOT), *_inherited_path()])}},
    )


def _inherited_path() -> list[str]:
    return [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]


def quiet() -> None:
    """Fewer lines from Ray about itself; before `import ray` has an effect on child processes."""
    for name, value in (
        ("RAY_USAGE_STATS_ENABLED", "0"),
        ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"),
        ("RAY_TRAIN_ENABLE_STATE_TRACKING", "0"),
    ):
        os.environ.setdefault(name, value)
    logging.getLogger("ray").setLevel(logging.WARNING)
    sys.stdout.flush()
