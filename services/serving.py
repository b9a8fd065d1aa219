"""The gateway on Ray Serve, and the builders that deploy/serve.yaml names.

    deploy_gateway()      `preceptor serve`: from a driver, beside the teacher app that the roster deployed
    gateway, teachers     builders for `serve deploy deploy/serve.yaml` and for KubeRay's RayService

At run time only the roster deploys teacher apps. A config file cannot go through it, so `teachers` builds the very
deployment that the roster would; the roster then finds an app without leases, which is an operator's, and adopts it.
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, ValidationError
from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.util.metrics import Counter, Histogram

from data.home import stores_folder, teachers_folder
from services.addresses import HttpAddress, check_running_address
from services.asking import GatewayOptions
from services.gateway import create_app
from teacher_server.clients.serve import APP_NAME, ServeTeacherClient, one_line
from teacher_server.errors import BadQuery, TeacherUnavailable
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId
from teacher_server.serve.app import DeployOptions, teacher_deployment
from teacher_server.serve.deployment import TeacherService
from trainer.config import ConfigError

GATEWAY_APP = "preceptor-gateway"
_ANSWER_WITHIN_S = 5.0
_Model = TypeVar("_Model", bound="_Arguments")
_SECONDS = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0]


class GatewayMetrics:
    """preceptor_gateway_requests_total {route, status} and preceptor_gateway_seconds {route}. Once per replica."""

    def __init__(self) -> None:
        self._requests = Counter(
            "preceptor_gateway_requests_total", "HTTP requests by route and status.", tag_keys=("route", "status")
        )
        self._seconds = Histogram(
            "preceptor_gateway_seconds", "An HTTP request, body included.", boundaries=_SECONDS, tag_keys=("route",)
        )

    def __call__(self, route: str, status: int, seconds: float) -> None:
        """One request ended."""
        self._requests.inc(1, tags={"route": route, "status": str(status)})
        self._seconds.observe(seconds, tags={"route": route})


@serve.ingress()
class Gateway:
    """What Serve runs. The app is made in the replica, so that nothing of it is pickled."""

    def __init__(self, library_root: str, stores_root: str, options: GatewayOptions) -> None:
        check_exposure(options)
        self._library_root = Path(library_root)
        self._stores_root = Path(stores_root)
        self._options = options

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(
            ServeTeacherClient(),
            TeacherLibrary(self._library_root),
            TeacherService(self._library_root.resolve()),  # looks for the roster at the first call
            stores_root=self._stores_root,
            check_teachers=check_teachers,
            record=GatewayMetrics(),
            options=self._options,
        )


def check_exposure(options: GatewayOptions) -> None:
    """A config file may name any address, and Ray's own default is every one. Raises ConfigError when others than this
    machine reach Serve and there is no token."""
    check_running_address(running_address(), has_token=options.has_token)


def check_teachers() -> frozenset[TeacherId]:
    """What a teacher replica of this cluster has loaded, as it says. Raises TeacherUnavailable."""
    try:
        state = serve.get_app_handle(APP_NAME).describe.remote().result(timeout_s=_ANSWER_WITHIN_S)
    except (RayError, RayServeException, TimeoutError, CancelledError) as error:
        raise TeacherUnavailable("service", _ANSWER_WITHIN_S, one_line(error)) from None
    return frozenset(TeacherId.parse(teacher) for teacher in state.teachers)


def gateway_application(library_root: Path, stores_root: Path, options: GatewayOptions, num_replicas: int = 1) -> Any:
    """The gateway as a Serve application. It needs no CPU of its own: it waits for teachers."""
    decorate = serve.deployment(
        name="Gateway",
        num_replicas=num_replicas,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=256,  # far above max_in_flight: the app itself refuses, typed and at once
        health_check_period_s=2,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=10,
        max_constructor_retry_count=3,
        max_surge_percent=100,
        logging_config={"enable_access_log": False},
    )
    return decorate(Gateway).bind(str(library_root), str(stores_root), options)


def start_http(host: str, port: int) -> HttpAddress:
    """Starts Serve with its HTTP proxy on this node; a Serve that runs already is left as it is, whatever it listens
    on, and this is what is returned.

    Raises ConfigError when that one has no HTTP, which cannot be changed while it runs.
    """
    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
    if not serve.status().proxies:
        raise ConfigError(
            "Serve runs without HTTP on this cluster, because a training run started it: wait until the runs have "
            "ended and `serve shutdown` it, or use another cluster; `preceptor serve` comes before the runs"
        )
    return running_address()


def running_address() -> HttpAddress:
    """Where the running Serve listens."""
    found = _get_global_client().http_config  # Ray has no public way to read it
    return HttpAddress(str(found.host), found.port)


def deploy_gateway(library_root: Path, options: GatewayOptions, stores_root: Path | None = None) -> None:
    """Deploys the gateway, or replaces it, and waits until it runs. Other apps are left alone.

    stores_root: the folder of the stores that callers may name; default the one of this home.
    """
    stores = stores_root if stores_root is not None else stores_folder()
    application = gateway_application(library_root, stores, options)
    target = serve.RunTarget(application, name=GATEWAY_APP, route_prefix="/")
    serve.run_many([target])


def delete_gateway() -> None:
    """Ends the gateway; nothing happens when there is none."""
    if GATEWAY_APP in serve.status().applications:
        serve.delete(GATEWAY_APP)


class _Arguments(BaseModel):
    """`args` of an application in a Serve config. library: default $PRECEPTOR_HOME/teachers."""

    model_config = ConfigDict(extra="forbid")

    library: Path | None = None

    def library_root(self) -> Path:
        return self.library if self.library is not None else teachers_folder()


class _GatewayArguments(_Arguments):
    """stores: default $PRECEPTOR_HOME/stores."""

    num_replicas: int = 1
    stores: Path | None = None


class _TeachersArguments(_Arguments):
    """As DeployOptions."""

    num_replicas: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    max_replicas: int = 0
    target_queued_clips: int = DeployOptions.target_queued_clips
    memory_budget_mb: int = DeployOptions.memory_budget_mb


def gateway(args: dict[str, Any]) -> Any:
    """Builder of the app `preceptor-gateway`."""
    arguments = _parsed(_GatewayArguments, args)
    options = GatewayOptions.from_environment()
    stores = arguments.stores if arguments.stores is not None else stores_folder()
    return gateway_application(arguments.library_root(), stores, options, arguments.num_replicas)


def teachers(args: dict[str, Any]) -> Any:
    """Builder of the app `preceptor-teachers`: the deployment that the roster makes."""
    arguments = _parsed(_TeachersArguments, args)
    options = DeployOptions(**arguments.model_dump(exclude={"library"}))
    return teacher_deployment(options).bind(str(arguments.library_root()), options)


def _parsed(model: type[_Model], args: dict[str, Any]) -> _Model:
    try:
        return model.model_validate(args)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadQuery(f"args of the Serve config, {where}: {first['msg']}") from None
