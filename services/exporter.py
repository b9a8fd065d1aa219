"""The state of an installation as Prometheus metrics: what lies on disk, read anew at every scrape.

python -m services.exporter [--host 127.0.0.1] [--port 9109] [--public]      http://127.0.0.1:9109/metrics

preceptor_alias_version      {alias}                 the version that an alias points to
preceptor_teacher_versions   {teacher}               versions in the library
preceptor_leases                                     runs whose claim on teachers has not run out
preceptor_run_steps          {run, student, teacher} steps done
preceptor_run_finished       {run}                   1 with a result, else 0
preceptor_run_pretext_acc    {run}                   of finished runs that were evaluated
preceptor_store_videos       {store}
preceptor_store_bytes        {store}                 size of all segments
preceptor_damaged            {kind}                  things of that kind that cannot be read
preceptor_read_seconds                               what this reading took

Prometheus scrapes it without a token, so an address that other machines reach wants --public. Runs and stores live in
files, not in a Ray cluster, so this is a process of its own. It needs no Ray.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from data.errors import DataError
from data.home import runs_folder, stores_folder, teachers_folder
from services.addresses import is_loopback
from services.state import StateReader
from trainer.config import ConfigError

_POLL_S = 1.0
KINDS = ("roster", "teacher", "run", "store")


@dataclass(frozen=True)
class Folders:
    """What is exported."""

    teachers: Path
    runs: Path
    stores: Path


class StateCollector(Collector):
    """Reads the folders whenever Prometheus asks. What is damaged is counted and never ends a scrape."""

    def __init__(self, folders: Folders) -> None:
        self._reader = StateReader(folders.teachers, folders.runs, folders.stores)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All metrics."""
        began = time.monotonic()
        damaged = dict.fromkeys(KINDS, 0)
        yield from self._library(damaged)
        yield from self._runs(damaged)
        yield from self._stores(damaged)
        family = GaugeMetricFamily("preceptor_damaged", "Things that cannot be read.", labels=["kind"])
        for kind, count in damaged.items():
            family.add_metric([kind], count)
        yield family
        yield GaugeMetricFamily("preceptor_read_seconds", "What this reading took.", value=time.monotonic() - began)

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing: otherwise registering would read everything once."""
        return []

    def _library(self, damaged: dict[str, int]) -> Iterator[GaugeMetricFamily]:
        roster = self._reader.roster()
        damaged["roster"] += roster is None
        aliases = GaugeMetricFamily("preceptor_alias_version", "The version of an alias.", labels=["alias"])
        for name, version in roster.aliases.items() if roster is not None else ():
            aliases.add_metric([name], version)
        yield aliases
        live = 0 if roster is None else sum(lease.expires_at > time.time() for lease in roster.leases.values())
        yield GaugeMetricFamily("preceptor_leases", "Runs with a live claim on teachers.", value=live)
        versions = GaugeMetricFamily("preceptor_teacher_versions", "Versions in the library.", labels=["teacher"])
        for name, good, bad in self._reader.teachers():
            damaged["teacher"] += bad
            versions.add_metric([name], good)
        yield versions

    def _runs(self, damaged: dict[str, int]) -> Iterator[GaugeMetricFamily]:
        steps = GaugeMetricFamily("preceptor_run_steps", "Steps done.", labels=["run", "student", "teacher"])
        finished = GaugeMetricFamily("preceptor_run_finished", "Whether there is a result.", labels=["run"])
        accuracy = GaugeMetricFamily("preceptor_run_pretext_acc", "Pretext accuracy at the end.", labels=["run"])
        for name, run in self._reader.runs():
            if run is None:
                damaged["run"] += 1
                continue
            steps.add_metric([name, run.student, run.teacher], run.steps)
            finished.add_metric([name], run.finished)
            if run.pretext_acc is not None:
                accuracy.add_metric([name], run.pretext_acc)
        yield from (steps, finished, accuracy)

    def _stores(self, damaged: dict[str, int]) -> Iterator[GaugeMetricFamily]:
        videos = GaugeMetricFamily("preceptor_store_videos", "Videos.", labels=["store"])
        sizes = GaugeMetricFamily("preceptor_store_bytes", "Size of all segments.", labels=["store"])
        for name, store in self._reader.stores():
            if store is None:
                damaged["store"] += 1
                continue
            videos.add_metric([name], store.num_videos)
            sizes.add_metric([name], store.num_bytes)
        yield from (videos, sizes)


def serve_metrics(folders: Folders, host: str, port: int) -> None:
    """Exports until SIGINT or SIGTERM. Raises OSError when the address cannot be used."""
    registry = CollectorRegistry()
    registry.register(StateCollector(folders))
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    server, thread = start_http_server(port, addr=host, registry=registry)
    print(f"metrics on http://{host}:{server.server_port}/metrics", flush=True)
    while not stop.wait(_POLL_S):
        pass
    server.shutdown()
    server.server_close()
    thread.join(timeout=_POLL_S)


def main(host: str = "127.0.0.1", port: int = 9109, *, public: bool = False) -> None:
    """Export aliases, versions, runs and stores under PRECEPTOR_HOME for Prometheus.

    Args:
        host: address to listen on. The metrics name runs, teachers and stores.
        port: 0 takes a free one and prints it.
        public: let whoever reaches the host read them, without a token; any host but loopback needs this.
    """
    check_public(host, public=public)
    serve_metrics(Folders(teachers_folder(), runs_folder(), stores_folder()), host, port)


def check_public(host: str, *, public: bool) -> None:
    """Raises ConfigError unless only this machine reaches the address, or that is what was asked for."""
    if not public and not is_loopback(host):
        raise ConfigError(
            f"--host {host} can be reached from other machines, and metrics are served without a token: repeat with "
            "--public if whoever reaches it may read the names of runs, teachers and stores, or use 127.0.0.1"
        )


if __name__ == "__main__":
    try:
        tyro.cli(main, prog="python -m services.exporter")
    except (DataError, ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
