"""What `preceptor serve` and `stop` do."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass

from data.home import teachers_folder
from services.addresses import HttpAddress, check_address, check_port_is_free, check_running_address
from services.asking import GatewayOptions
from trainer.config import ConfigError, RunConfig

_POLL_S = 0.5


@dataclass(frozen=True)
class ServeOptions:
    """What `preceptor serve` is told. cpus, gpus, memory_mb: of each replica. max_replicas: 0 for a fixed number."""

    host: str
    port: int
    replicas: int
    max_replicas: int
    cpus: float
    gpus: float
    memory_mb: int


def serve_until_stopped(options: ServeOptions) -> None:
    """Deploys teachers, as an operator, and the gateway. On a private cluster it returns after SIGINT or SIGTERM.

    Raises ConfigError for an address that must not or cannot be used, TeacherError when teachers cannot be deployed.
    """
    gateway = GatewayOptions.from_environment()
    check_address(options.host, has_token=gateway.has_token)
    if not os.environ.get("RAY_ADDRESS"):
        check_port_is_free(options.host, options.port)
    config = RunConfig(  # room for a worker as well
        teacher_replicas=options.replicas,
        teacher_max_replicas=options.max_replicas,
        teacher_cpus=options.cpus,
        teacher_gpus=options.gpus,
        teacher_memory_mb=options.memory_mb,
    )
    from trainer.cluster import connected

    with connected(config) as cluster:
        address = deploy(options, gateway)
        print(f"gateway  {address.url}/v1/teachers  (ready: /readyz)", flush=True)
        print("swap     preceptor teacher promote NAME VERSION  (what there is: preceptor teacher list)", flush=True)
        if not cluster.private:
            print("it runs on the cluster until `preceptor stop`", flush=True)
            return
        import ray

        cluster_address = ray.get_runtime_context().gcs_address
        print(f"cluster  RAY_AUTH_MODE=token RAY_ADDRESS={cluster_address} python trainer/run.py", flush=True)
        print("Ctrl-C ends it", flush=True)
        wait_for_signal()
        print("ending", flush=True)


def stop_serving() -> None:
    """Deletes gateway and teachers. Raises ConfigError without RAY_ADDRESS: a private cluster ends by Ctrl-C."""
    if not os.environ.get("RAY_ADDRESS"):
        raise ConfigError("RAY_ADDRESS is not set: name the cluster, or press Ctrl-C where `preceptor serve` runs")
    from trainer.cluster import connected

    with connected(RunConfig()):
        from services.serving import delete_gateway
        from teacher_server.serve.deployment import TeacherService

        delete_gateway()
        TeacherService.connect(teachers_folder()).delete()


def wait_for_signal() -> None:
    """Returns after SIGINT or SIGTERM. Ray replaces handlers when it starts, so these come after it."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    while not stopped.wait(_POLL_S):
        pass


def deploy(options: ServeOptions, gateway: GatewayOptions) -> HttpAddress:
    """Deploys teachers and gateway on the cluster that this process is connected to; where Serve listens.

    HTTP first: Serve takes its options from whoever starts it, and the roster starts it without. Raises ConfigError,
    with everything left as it was, for a Serve that other machines reach when there is no token.
    """
    from services.serving import deploy_gateway, start_http
    from teacher_server.serve.deployment import DeployOptions, TeacherService

    address = start_http(options.host, options.port)
    check_running_address(address, has_token=gateway.has_token)
    adopted = TeacherService.connect(teachers_folder()).deploy(
        DeployOptions(
            num_replicas=options.replicas,
            num_cpus=options.cpus,
            num_gpus=options.gpus,
            max_replicas=options.max_replicas,
            memory_budget_mb=options.memory_mb,
        )
    )
    deploy_gateway(teachers_folder(), gateway)
    if adopted:
        print("teachers were served here already: they go on as they are, whatever --replicas, --cpus, --gpus and")
        print("--memory-mb say (`preceptor stop` ends them for every run)", flush=True)
    return address
