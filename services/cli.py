"""The `preceptor` command. Ray and torch are imported by what needs them only, so --help is fast.

preceptor serve             teachers and gateway, on a cluster of its own or on RAY_ADDRESS's
preceptor stop              ends both on RAY_ADDRESS's cluster
preceptor teacher list      what the library holds
preceptor export-metrics    state metrics for Prometheus
preceptor demo-data         the built-in data set
"""

from __future__ import annotations

import sys
from typing import Literal

from tyro.extras import SubcommandApp

from data.errors import DataError

BAD_INPUT = 2
PROG = "preceptor"


def serve(host: str = "127.0.0.1", port: int = 8000, replicas: int = 1, cpus: float = 1.0, gpus: float = 0.0) -> None:
    """Serve the library's teachers to training runs and, over HTTP, to other programs.

    Starts a Ray cluster of its own and runs until Ctrl-C; with RAY_ADDRESS set it deploys there and returns.

    Args:
        host: address of the HTTP gateway; any but this machine's loopback needs a token in PRECEPTOR_TOKEN.
        port: of the HTTP gateway.
        replicas: of the teachers.
        cpus: of each replica.
        gpus: of each replica.
    """
    from services.operate import serve_until_stopped

    serve_until_stopped(host=host, port=port, replicas=replicas, cpus=cpus, gpus=gpus)


def stop() -> None:
    """End gateway and teachers on the cluster that RAY_ADDRESS names, whoever uses them."""
    from services.operate import stop_serving

    stop_serving()


def teacher_list() -> None:
    """List the teachers of the library, their versions and digests."""
    from services.operate import print_teachers

    print_teachers()


def export_metrics(host: str = "127.0.0.1", port: int = 9109) -> None:
    """Export aliases, versions, runs and stores under PRECEPTOR_HOME for Prometheus.

    Args:
        host: address to listen on.
        port: 0 takes a free one and prints it.
    """
    from services.exporter import main as export

    export(host, port)


def demo_data(size: Literal["demo", "full", "tiny"] = "demo") -> None:
    """Draw the built-in data set and ingest it into a clip store under PRECEPTOR_HOME.

    Args:
        size: demo is for laptops, full is what the bundled teachers learned from, tiny is for tests.
    """
    from data.demo_store import main as make

    make(size)


def main() -> int:
    """Runs the command: 0, or 2 with one sentence for wrong input."""
    # Imported late for speed, early for what may be raised below.
    from teacher_server.errors import TeacherError
    from trainer.config import ConfigError

    app, teacher = SubcommandApp(), SubcommandApp()
    teacher.command(name="list")(teacher_list)
    app.command(serve)
    app.command(stop)
    app.command(teacher, name="teacher", help="Teachers in the library.")
    app.command(export_metrics)
    app.command(demo_data)
    try:
        app.cli(prog=PROG, description="Teachers as a service for video students. Training: python trainer/run.py")
    except (DataError, TeacherError, ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
