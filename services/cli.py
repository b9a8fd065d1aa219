"""The `preceptor` command. Ray and torch are imported by what needs them only, so --help is fast.

preceptor serve             teachers and gateway, on a cluster of its own or on RAY_ADDRESS's
preceptor stop              ends both on RAY_ADDRESS's cluster
preceptor teacher ...       list, import, ensemble, verify, promote, rollback, evict, bench
preceptor ledger ...        list, verify
preceptor eval              fine-tuning, probe, retrieval or pretext accuracy of a student
preceptor predict           what a student says about video files
preceptor export            a student as a .pth or ONNX file
preceptor verify            trains random steps of a run again and compares bits
preceptor paper             the paper's experiments, and their tables
preceptor export-metrics    state metrics for Prometheus
preceptor demo-data         the built-in data set
"""

from __future__ import annotations

import os
import sys
from typing import Literal

from tyro.extras import SubcommandApp

from data.errors import DataError

BAD_INPUT = 2
BROKEN_PIPE = 141  # as shells say it: 128 + SIGPIPE
PROG = "preceptor"


def serve(
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    max_replicas: int = 0,
    cpus: float = 1.0,
    gpus: float = 0.0,
    memory_mb: int = 2048,
) -> None:
    """Serve the library's teachers to training runs and, over HTTP, to other programs.

    Starts a Ray cluster of its own and runs until Ctrl-C; with RAY_ADDRESS set it deploys there and returns.
    PRECEPTOR_TOKEN is what callers over HTTP must show, PRECEPTOR_OPERATOR_TOKEN what they need to change teachers.

    Example: preceptor serve --replicas 1 --max-replicas 3

    Args:
        host: address of the HTTP gateway; any but this machine's loopback needs one of the tokens.
        port: of the HTTP gateway.
        replicas: of the teachers; the least there are when their number adapts.
        max_replicas: most replicas that Serve may add while questions queue up; 0 keeps their number fixed.
        cpus: of each replica.
        gpus: of each replica.
        memory_mb: MiB that each replica may use for loaded teachers.
    """
    from services.operate import ServeOptions, serve_until_stopped

    serve_until_stopped(ServeOptions(host, port, replicas, max_replicas, cpus, gpus, memory_mb))


def stop() -> None:
    """End gateway and teachers on the cluster that RAY_ADDRESS names, whoever uses them.

    Example: RAY_AUTH_MODE=token RAY_ADDRESS=127.0.0.1:6379 preceptor stop
    """
    from services.operate import stop_serving

    stop_serving()


def export_metrics(host: str = "127.0.0.1", port: int = 9109, public: bool = False) -> None:
    """Export aliases, versions, runs and stores under PRECEPTOR_HOME for Prometheus.

    Example: preceptor export-metrics --port 9109

    Args:
        host: address to listen on.
        port: 0 takes a free one and prints it.
        public: let whoever reaches the host read them, without a token; any host but loopback needs this.
    """
    from services.exporter import main as export

    export(host, port, public=public)


def demo_data(size: Literal["demo", "full", "tiny", "demo2", "full2", "tiny2"] = "demo") -> None:
    """Draw a built-in data set and ingest it into a clip store under PRECEPTOR_HOME.

    Example: preceptor demo-data --size tiny

    Args:
        size: demo is for laptops, full is what the bundled teachers learned from, tiny is for tests; demo2, full2 and
            tiny2 are the second set, in HMDB51's layout, to carry students over to.
    """
    from data.demo_store import main as make

    make(size)


def _reader_has_enough() -> bool:
    """Whether nobody reads standard output any more, as in `preceptor ... | head`; it goes nowhere then."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit says so again
        return True
    return False


def main() -> int:
    """Runs the command: 0, 1 when a check found something wrong, or 2 with one sentence for wrong input."""
    # Imported late for speed, early for what may be raised below.
    from services.cli_eval import evaluate
    from services.cli_export import export
    from services.cli_paper import paper
    from services.cli_predict import predict
    from services.cli_teacher import ledger_app, teacher_app
    from services.cli_verify import verify
    from teacher_server.errors import TeacherError
    from trainer.config import ConfigError
    from trainer.errors import TrainingError

    app = SubcommandApp()
    app.command(serve)
    app.command(stop)
    app.command(teacher_app(), name="teacher", help="Teachers in the library and in the running service.")
    app.command(ledger_app(), name="ledger", help="Recorded answers.")
    app.command(name="eval")(evaluate)
    app.command(predict)
    app.command(export)
    app.command(verify)
    app.command(paper)
    app.command(export_metrics)
    app.command(demo_data)
    try:
        code = app.cli(
            prog=PROG, description="Teachers as a service for video students. Training: python trainer/run.py"
        )
        sys.stdout.flush()
    except BrokenPipeError as error:
        if not _reader_has_enough():
            print(f"error: {error}", file=sys.stderr)
            return BAD_INPUT
        return BROKEN_PIPE
    except (DataError, TeacherError, ConfigError, TrainingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
