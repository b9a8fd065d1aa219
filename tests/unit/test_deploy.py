"""What deploy/ promises: files parse, name things that exist, and agree with the code and the lock."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.exporter import Folders, StateCollector
from trainer.config import RunConfig, load_recipe

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "preceptor.json").read_text())
LIVE_METRICS = ("trainer/metrics.py", "teacher_server/serve/metrics.py", "services/serving.py")


def read_yaml(path: str) -> Any:
    return yaml.safe_load((DEPLOY / path).read_text())


def requirements() -> dict[str, str]:
    """Names as in the lock -> versions."""
    lines = (REPOSITORY / "requirements.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def live_metrics() -> dict[str, str]:
    """Name -> Counter, Gauge or Histogram, as the sources construct them."""
    pattern = re.compile(r'(Counter|Gauge|Histogram)\(\s*"(preceptor_\w+)"')
    found = [match for source in LIVE_METRICS for match in pattern.findall((REPOSITORY / source).read_text())]
    return {name: kind for kind, name in found}


def series(live: dict[str, str], state: set[str]) -> set[str]:
    """The names under which Prometheus stores them."""
    names = set(state)
    for name, kind in live.items():
        suffixes = ("_bucket", "_sum", "_count") if kind == "Histogram" else ("",)
        names |= {f"ray_{name}{suffix}" for suffix in suffixes}
    return names


def state_metrics(tmp_path: Path) -> set[str]:
    folders = Folders(tmp_path / "teachers", tmp_path / "runs", tmp_path / "stores")
    return {family.name for family in StateCollector(folders).collect()}


def expressions() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]


# ---- recipes


@pytest.mark.parametrize("recipe", sorted((DEPLOY / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_parses_and_changes_exactly_the_fields_that_it_names(recipe: Path) -> None:
    fields = tomllib.loads(recipe.read_text())
    assert load_recipe(recipe).to_json() == RunConfig().to_json() | fields


# ---- dashboard and Prometheus


def test_the_dashboard_queries_exactly_the_metrics_that_the_code_defines(tmp_path: Path) -> None:
    live, state = live_metrics(), state_metrics(tmp_path)
    used = {name for expr in expressions() for name in re.findall(r"\b(?:ray_)?preceptor_\w+", expr)}
    assert used <= series(live, state)
    shown = {re.sub(r"_(bucket|sum|count)$", "", name.removeprefix("ray_")) for name in used}
    assert shown == set(live) | state  # nothing is measured that nobody can see


def test_every_panel_has_queries_its_own_id_and_the_chosen_data_source() -> None:
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in panels:
        assert panel["targets"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "run"}


def test_no_two_panels_of_the_dashboard_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        box = panel["gridPos"]
        cells = {(x, y) for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])}
        assert not cells & taken, panel["title"]
        assert box["x"] + box["w"] <= 24
        taken |= cells


def test_grafana_is_provisioned_with_a_data_source_and_the_dashboards_folder() -> None:
    (source,) = read_yaml("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["type"] == "prometheus"
    (provider,) = read_yaml("grafana/provisioning/dashboards/preceptor.yaml")["providers"]
    assert provider["options"]["path"] == "$PRECEPTOR_DASHBOARDS"


def test_prometheus_scrapes_ray_through_files_and_the_exporter_at_its_default_address() -> None:
    jobs = {job["job_name"]: job for job in read_yaml("prometheus.yml")["scrape_configs"]}
    (discovery,) = jobs["ray"]["file_sd_configs"]
    assert discovery["files"] == ["/tmp/ray/prom_metrics_service_discovery.json", "../var/scrape/*.json"]
    (static,) = jobs["preceptor"]["static_configs"]
    assert static["targets"] == ["127.0.0.1:9109"]
    source = (REPOSITORY / "services" / "exporter.py").read_text()
    assert 'def main(host: str = "127.0.0.1", port: int = 9109,' in source


def test_promtool_accepts_the_scrape_configuration() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    checked = subprocess.run(
        [promtool, "check", "config", str(DEPLOY / "prometheus.yml")], capture_output=True, text=True, timeout=60
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


# ---- Serve


def test_the_serve_config_is_valid_local_and_names_our_builders() -> None:
    from ray.serve.schema import ServeDeploySchema

    from services import serving
    from teacher_server.clients.serve import APP_NAME

    config = ServeDeploySchema.model_validate(read_yaml("serve.yaml"))
    assert config.http_options.host == "127.0.0.1"
    paths = {application.name: application.import_path for application in config.applications}
    assert paths == {APP_NAME: "services.serving:teachers", serving.GATEWAY_APP: "services.serving:gateway"}
    assert {a.name: a.route_prefix for a in config.applications} == {APP_NAME: None, serving.GATEWAY_APP: "/"}


def test_ray_and_the_serve_config_agree_on_how_builders_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._common.utils import import_attr
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as build

    monkeypatch.setenv("PRECEPTOR_HOME", "/preceptor")
    monkeypatch.delenv("PRECEPTOR_TOKEN", raising=False)
    for application in read_yaml("serve.yaml")["applications"]:
        build(import_attr(application["import_path"]), application["args"])


# ---- runtime environment


def test_the_runtime_environment_pins_all_dependencies_but_ray_as_the_lock_does() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    needed = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]} - {"ray"}  # type: ignore[index]
    pinned = dict(line.split("==") for line in read_yaml("runtime-env.yaml")["pip"])
    assert set(pinned) == needed
    locked = {name.lower().replace("_", "-"): version for name, version in requirements().items()}
    assert pinned == {name: locked[name.lower().replace("_", "-")] for name in pinned}


def test_the_runtime_environment_is_valid_and_never_leaves_out_the_data_package() -> None:
    from ray.runtime_env import RuntimeEnv

    content = read_yaml("runtime-env.yaml")
    environment = RuntimeEnv(**content)
    assert environment.env_vars()["PRECEPTOR_HOME"].startswith("/")
    assert "data" not in content["excludes"]


# ---- Kubernetes


def pods(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pod specs of head and workers."""
    spec = manifest["spec"]
    cluster = spec["rayClusterSpec"] if manifest["kind"] == "RayJob" else spec["rayClusterConfig"]
    yield cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["template"]["spec"]


@pytest.mark.parametrize("name", ["rayjob", "rayservice"])
def test_every_pod_has_the_shared_home_at_the_same_place(name: str) -> None:
    manifest = read_yaml(f"kuberay/{name}.yaml")
    assert manifest["apiVersion"] == "ray.io/v1"
    for pod in pods(manifest):
        (container,) = pod["containers"]
        environment = {entry["name"]: entry.get("value") for entry in container["env"]}
        (mount,) = container["volumeMounts"]
        (volume,) = pod["volumes"]
        assert environment["PRECEPTOR_HOME"] == mount["mountPath"] == "/preceptor"
        assert volume["name"] == mount["name"]
        assert volume["persistentVolumeClaim"]["claimName"] == "preceptor-home"
        assert container["image"] in (DEPLOY / "README.md").read_text()


@pytest.mark.parametrize("name", ["rayjob", "rayservice"])
def test_the_manifests_run_the_locked_ray_with_token_authentication(name: str) -> None:
    spec = read_yaml(f"kuberay/{name}.yaml")["spec"]
    cluster = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    assert cluster["rayVersion"] == requirements()["ray"]
    assert cluster["authOptions"] == {"mode": "token"}


def test_the_ray_service_serves_the_apps_of_the_serve_config_behind_a_token() -> None:
    from ray.serve.schema import ServeDeploySchema

    manifest = read_yaml("kuberay/rayservice.yaml")
    config = ServeDeploySchema.model_validate(yaml.safe_load(manifest["spec"]["serveConfigV2"]))
    local = ServeDeploySchema.model_validate(read_yaml("serve.yaml"))
    assert [(a.name, a.import_path, a.route_prefix) for a in config.applications] == [
        (a.name, a.import_path, a.route_prefix) for a in local.applications
    ]
    assert config.http_options.host == "0.0.0.0"
    for pod in pods(manifest):
        tokens = [entry for entry in pod["containers"][0]["env"] if entry["name"] == "PRECEPTOR_TOKEN"]
        assert [entry["valueFrom"]["secretKeyRef"]["name"] for entry in tokens] == ["preceptor-token"]


def test_the_ray_job_runs_the_training_command_with_flags_that_exist() -> None:
    from trainer.command import parse

    manifest = read_yaml("kuberay/rayjob.yaml")
    python, script, *flags = manifest["spec"]["entrypoint"].split()
    assert (python, script) == ("python", "/opt/preceptor/trainer/run.py")
    assert parse(flags).config.num_workers == 2
    stop = yaml.safe_load(manifest["spec"]["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]
    assert float(stop) > 8  # trainer.launch gives its workers 8 s to save
