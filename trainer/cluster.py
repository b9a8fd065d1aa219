"""The Ray cluster that a run uses: the one that RAY_ADDRESS or the job names, else a private one.

A private cluster belongs to this process: it is started with what the run needs and gone when the run ends. It never
joins a cluster that happens to run on the machine.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import ray

from data.atomic import write_atomic
from data.home import home
from trainer.children import ROOT
from trainer.config import ConfigError, RunConfig

_OBJECT_STORE_BYTES = 512 * 2**20
_PRIVATE_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # fit() returns two of these after the training function
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process more, and one machine is not taken away in part
}


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
        with contextlib.nullcontext() if address else _announced():
            yield Cluster(private=not address, node_id=ray.get_runtime_context().get_node_id())
    finally:
        ray.shutdown()


def check_free(purpose: str, flag: str, **needed: float) -> None:
    """Raises ConfigError when so many CPUs or GPUs are not free: waiting for them would have no end. flag: the one that
    says how many are needed."""
    free, total = ray.available_resources(), ray.cluster_resources()
    for name, count in needed.items():
        if free.get(name, 0.0) < count:
            raise ConfigError(
                f"{purpose} needs {count:g} free {name}s, the cluster has {free.get(name, 0.0):g} of "
                f"{total.get(name, 0.0):g}: wait for other jobs, choose a smaller {flag}, or add nodes"
            )


def _join(address: str) -> None:
    try:
        ray.init(address=address, namespace="preceptor", log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"no Ray cluster at RAY_ADDRESS={address}: {reason}") from None


def _start_private(config: RunConfig) -> None:
    # Ray's own default, token authentication, is what we want: no warning that it is on.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    for name, value in _PRIVATE_SETTINGS.items():
        os.environ.setdefault(name, value)
    replicas = max(config.teacher_replicas, config.teacher_max_replicas) if config.may_deploy else 0
    wanted = config.num_workers * config.threads + replicas * config.teacher_cpus
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


@contextlib.contextmanager
def _announced() -> Iterator[None]:
    """Tells Prometheus where this cluster's metrics are, by a file in $PRECEPTOR_HOME/scrape that lives as long.

    Ray itself writes such a file (prom_metrics_service_discovery.json), but only where its dashboard runs. The format
    is Prometheus's: https://prometheus.io/docs/prometheus/latest/configuration/configuration/#file_sd_config
    """
    targets = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes() if node["Alive"]]
    path = home() / "scrape" / f"{ray.get_runtime_context().get_session_name()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps([{"targets": targets, "labels": {"job": "ray"}}]).encode())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _inherited_path() -> list[str]:
    return [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
