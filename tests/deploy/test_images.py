"""Images and compose file, checked without a container engine."""

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from optwrap_exporter.cli.main import main

from examples.demo.options import parse
from tests.conftest import RunningExporter
from tests.deploy.dockerfile import Instruction, environment, health_check, sources, stages
from tests.deploy.places import DASHBOARDS, DEPLOY, PROMETHEUS, ROOT, load
from tests.exporter.running import Job

IMAGES = {"exporter": ROOT / "Dockerfile", "trainer": DEPLOY / "trainer.Dockerfile"}
COMPOSE: dict[str, Any] = load(DEPLOY / "compose.yaml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
USER = "10425"


def last(name: str) -> list[Instruction]:
    return stages(IMAGES[name])[-1]


def of(name: str, instruction: str) -> list[str]:
    return [found.text for found in last(name) if found.name == instruction]


@pytest.mark.parametrize("name", IMAGES)
def test_hadolint_finds_nothing(name: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    linted = subprocess.run([hadolint, IMAGES[name]], capture_output=True, text=True, check=False)
    assert (linted.returncode, linted.stdout) == (0, "")
    assert "hadolint ignore" not in IMAGES[name].read_text("utf-8")


@pytest.mark.parametrize("name", IMAGES)
def test_image_runs_as_an_unprivileged_user_on_a_pinned_base(name: str) -> None:
    assert of(name, "USER") == [f"{USER}:{USER}"]
    assert f"--uid {USER}" in " ".join(of(name, "RUN"))
    argument = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", IMAGES[name].read_text("utf-8"), re.MULTILINE)
    assert argument is not None
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", argument[1])
    assert {stage[0].text.split()[0] for stage in stages(IMAGES[name])} == {"${PYTHON_IMAGE}"}


@pytest.mark.parametrize(
    ("name", "wheel", "more"), [("exporter", "optwrap_exporter", []), ("trainer", "optwrap", ["rich", "httpx"])]
)
def test_image_has_the_wheel_of_its_version_and_nothing_is_compiled(name: str, wheel: str, more: list[str]) -> None:
    """The last stage runs no installer. It copies an environment into which only the wheel was installed."""
    assert all("pip" not in run and "npm" not in run for run in of(name, "RUN"))
    assert of(name, "COPY")[0] == "--from=build /opt/optwrap /opt/optwrap"
    (build,) = [stage for stage in stages(IMAGES[name]) if stage[0].text.endswith(" AS build")]
    (run,) = [instruction.text for instruction in build if instruction.name == "RUN"]
    words = shlex.split(run)
    assert words[words.index("--only-binary") + 1] == ":all:"
    assert words[words.index("--constraint") + 1] == "constraints.txt"
    assert words[words.index("dist/offline") + 1 :] == [f"dist/{wheel}-${{VERSION}}-py3-none-any.whl", *more]


@pytest.mark.parametrize("name", IMAGES)
def test_build_context_has_the_copied_files(name: str) -> None:
    """`make dist` makes dist/; all else is in the repository."""
    admitted = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    assert set(sources(stages(IMAGES[name]))) <= admitted
    assert [source for source in admitted if not (ROOT / source).exists()] in ([], ["dist"])


def test_guide_names_arguments_secrets_and_targets_that_exist() -> None:
    guide = (ROOT / "docs" / "guides" / "images.md").read_text("utf-8")
    dockerfile = IMAGES["exporter"].read_text("utf-8")
    arguments = set(re.findall(r"--build-arg (\w+)=", guide))
    assert arguments == set(re.findall(r"^ARG (\w+)", dockerfile, re.MULTILINE)) - {"VERSION"}
    assert set(re.findall(r"--secret id=([\w.]+)", guide)) == set(re.findall(r"type=secret,id=([\w.]+)", dockerfile))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)", guide)) <= targets


def test_image_and_compose_set_known_options() -> None:
    """The exporter ignores unknown environment variables, so a wrong name would have no effect."""
    known = {
        (name if isinstance(name, str) else name[0])
        for option in main.params
        if isinstance(option, click.Option)
        for name in [option.envvar or f"OPTWRAP_EXPORTER_{str(option.name).upper()}"]
    }
    image = {name for name in environment(last("exporter")) if name.startswith("OPTWRAP_")}
    compose = set(SERVICES["exporter"]["environment"])
    assert image == {"OPTWRAP_EXPORTER_LISTEN", "OPTWRAP_EXPORTER_DATA_DIR", "OPTWRAP_EXPORTER_INGEST_SOCKET"}
    assert image | compose <= known


def test_health_check_fails_when_the_exporter_is_down(exporter: RunningExporter) -> None:
    python, *arguments = health_check(last("exporter"))
    assert python == "python"
    port = exporter.url.rpartition(":")[2]
    checked = [argument.replace("'127.0.0.1', 10425", f"'127.0.0.1', {port}") for argument in arguments]
    assert checked != arguments

    def check() -> int:
        behind = {"http_proxy": "http://127.0.0.1:9"}  # it does not ask the proxy
        return subprocess.run([sys.executable, *checked], env=behind, capture_output=True, check=False).returncode

    assert check() == 0
    exporter.stop()
    assert check() == 1


def test_exporter_works_with_the_options_of_compose(
    start_exporter: Callable[..., RunningExporter], tmp_path: Path
) -> None:
    """It accepts a report over the socket, and a scrape with the service's name as host, but with no other name."""
    (name,) = load(PROMETHEUS / "prometheus.yml")["scrape_configs"][0]["static_configs"][0]["targets"]
    socket = tmp_path / "ingest.sock"
    allowed = SERVICES["exporter"]["environment"]["OPTWRAP_EXPORTER_ALLOWED_HOST"]
    running = start_exporter("--ingest-socket", str(socket), "--allowed-host", allowed)
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket))) as client:
        assert client.post("http://localhost/v1/reports", json=Job("lm", clock=time.time).report()).status_code == 200
    scraped = httpx.get(f"{running.url}/metrics", headers={"Host": name}, trust_env=False)
    assert scraped.status_code == 200
    assert re.search(r'^optwrap_steps_total\{[^}]*run="lm"[^}]*\} 0\.0$', scraped.text, re.MULTILINE)
    assert httpx.get(f"{running.url}/metrics", headers={"Host": "other:10425"}, trust_env=False).status_code == 421


def test_compose_file_follows_the_specification() -> None:
    program = Path(sys.executable).with_name("check-jsonschema")
    checked = subprocess.run(
        [program, "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_service_has_a_pinned_image_and_loopback_ports(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"])
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"trainer"}))
def test_service_has_a_health_check(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"]


def test_compose_repeats_the_health_check_of_the_image() -> None:
    """An image in OCI's format has none, as podman and buildah make them."""
    (text,) = of("exporter", "HEALTHCHECK")
    options = dict(re.findall(r"--([a-z-]+)=(\S+)", text.partition(" CMD ")[0]))
    repeated = dict(SERVICES["exporter"]["healthcheck"])
    assert repeated.pop("test") == ["CMD", *health_check(last("exporter"))]
    assert {key.replace("_", "-"): str(value) for key, value in repeated.items()} == options


def test_services_wait_for_each_other_and_volumes_are_declared() -> None:
    waits = {
        (name, other): wait["condition"]
        for name, service in SERVICES.items()
        for other, wait in service.get("depends_on", {}).items()
    }
    assert set(waits.values()) == {"service_healthy"}
    assert {("trainer", "exporter"), ("prometheus", "exporter"), ("grafana", "prometheus")} <= set(waits)
    mounts = [volume.split(":") for service in SERVICES.values() for volume in service.get("volumes", [])]
    assert {mount[0] for mount in mounts if not mount[0].startswith(".")} == set(COMPOSE["volumes"])
    for mount in mounts:
        if mount[0].startswith("."):
            assert (DEPLOY / mount[0]).exists(), mount[0]
            assert mount[2] == "ro"


def test_trainer_and_exporter_share_the_socket_and_the_user() -> None:
    path = Path(environment(last("exporter"))["OPTWRAP_EXPORTER_INGEST_SOCKET"])
    for name in ("exporter", "trainer"):
        assert f"ingest:{path.parent}" in SERVICES[name]["volumes"]
    assert parse(SERVICES["trainer"]["command"]).endpoint == f"unix://{path}"


@pytest.mark.parametrize("name", ["exporter", "trainer"])
def test_container_has_minimal_privileges(name: str) -> None:
    assert SERVICES[name]["read_only"] is True
    assert SERVICES[name]["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in SERVICES[name]["security_opt"]


def test_grafana_finds_prometheus_and_the_dashboards_in_compose() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = load(provisioning / "datasources" / "prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == load(PROMETHEUS / "prometheus.yml")["global"]["scrape_interval"]
    (provider,) = load(provisioning / "dashboards" / "optwrap.yml")["providers"]
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert home.name in {path.name for path in DASHBOARDS}


def test_prometheus_finds_its_files_in_compose() -> None:
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["prometheus"]["volumes"])
    command = dict(option.split("=", 1) for option in SERVICES["prometheus"]["command"])
    assert mounts["./prometheus/prometheus.yml"] == command["--config.file"]
    assert mounts["./prometheus/consoles"] == command["--web.console.templates"]
    assert Path(mounts["./prometheus/rules"]) == Path(command["--config.file"]).parent / "rules"
    (alertmanager,) = load(PROMETHEUS / "prometheus.yml")["alerting"]["alertmanagers"]
    assert alertmanager["static_configs"] == [{"targets": ["alertmanager:9093"]}]
