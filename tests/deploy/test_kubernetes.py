"""The Kubernetes manifests, checked without a cluster."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from examples.demo.options import parse
from tests.deploy.dockerfile import environment, stages
from tests.deploy.places import DEPLOY, PROMETHEUS, ROOT, load

SERVICES = load(DEPLOY / "compose.yaml")["services"]
POD = load(DEPLOY / "kubernetes" / "job.yaml")["spec"]["template"]["spec"]
CONTAINERS = {container["name"]: container for container in [*POD["initContainers"], *POD["containers"]]}


def test_trainer_and_exporter_share_the_socket_and_the_user() -> None:
    """Both mount the directory of the exporter's socket."""
    path = Path(environment(stages(ROOT / "Dockerfile")[-1])["OPTWRAP_EXPORTER_INGEST_SOCKET"])
    for name in ("exporter", "trainer"):
        assert {"name": "ingest", "mountPath": str(path.parent)} in CONTAINERS[name]["volumeMounts"]
    variables = {variable["name"]: variable.get("value", "lm") for variable in CONTAINERS["trainer"]["env"]}
    arguments = [
        re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], text) for text in CONTAINERS["trainer"]["args"]
    ]
    assert parse(arguments).endpoint == f"unix://{path}"
    assert parse(arguments).run == "lm"
    assert POD["securityContext"]["runAsUser"] == 10425


@pytest.mark.parametrize("name", ["exporter", "trainer"])
def test_container_has_minimal_privileges(name: str) -> None:
    security = CONTAINERS[name]["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}


def test_job_is_a_valid_kubernetes_manifest() -> None:
    """The validation is strict: an unknown field is an error."""
    manifest = load(DEPLOY / "kubernetes" / "job.yaml")
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    manifest["spec"]["template"]["spec"]["restartPolice"] = "Never"
    with pytest.raises(kubernetes_validate.ValidationError, match="restartPolice"):
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_exporter_of_the_pod_is_a_sidecar() -> None:
    exporter = CONTAINERS["exporter"]
    assert exporter in POD["initContainers"]
    assert exporter["restartPolicy"] == "Always"
    command = exporter["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:-1] == ["optwrap-exporter", "drain", "--timeout"]
    interval = load(PROMETHEUS / "prometheus.yml")["global"]["scrape_interval"]
    assert 2 * int(interval.removesuffix("s")) < int(command[-1]) < POD["terminationGracePeriodSeconds"] - 10


def test_kustomization_names_the_images_of_the_pod() -> None:
    kustomization = load(DEPLOY / "kubernetes" / "kustomization.yaml")
    assert [(DEPLOY / "kubernetes" / name).exists() for name in kustomization["resources"]] == [True]
    assert {image["name"] for image in kustomization["images"]} == {c["image"] for c in CONTAINERS.values()}
    assert {f"{image['name']}:{image['newTag']}" for image in kustomization["images"]} == {
        SERVICES[name]["image"] for name in ("exporter", "trainer")
    }


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl (no cluster)")
def test_kustomize_renders_a_valid_manifest() -> None:
    rendered = subprocess.run(
        ["kubectl", "kustomize", DEPLOY / "kubernetes"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HOME": "/"},
    )
    (manifest,) = yaml.safe_load_all(rendered.stdout)
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.programs("promtool")
def test_prometheus_accepts_the_scrape_configuration_of_kubernetes(tmp_path: Path) -> None:
    """Debian's Prometheus has no Kubernetes discovery, so only the rest of the configuration is checked."""
    config = load(DEPLOY / "kubernetes" / "prometheus-scrape.yaml")
    (scrape,) = config["scrape_configs"]
    assert scrape["job_name"] == "optwrap"
    assert scrape.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    checked = subprocess.run(["promtool", "check", "config", file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
