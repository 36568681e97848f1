"""The Kubernetes manifests, rendered and validated strictly, and what they promise, checked without a cluster."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import optwrap_exporter
import pytest
import yaml
from optwrap_exporter.cli.main import main

from examples.demo.options import parse
from tests.conftest import RunningExporter
from tests.deploy.kube import (
    BASES,
    EXPORTER,
    KUBERNETES,
    PORT,
    TOKEN,
    Object,
    Unknown,
    container,
    containers,
    copied,
    environment,
    kustomize,
    one,
    options,
    pod,
    pods_of,
    rendered,
    settings,
    validate,
)
from tests.deploy.places import PROMETHEUS, load
from tests.exporter.running import Job

pytestmark = pytest.mark.programs("kubectl")


@pytest.mark.parametrize("base", BASES)
def test_base_renders_to_valid_objects(base: str) -> None:
    for manifest in rendered(base):
        validate(manifest)


FREE = {"labels", "matchLabels", "annotations", "data", "requests", "limits", "nodeSelector"}
"""The objects with these names take any fields."""


def nested(value: Any) -> list[dict[str, Any]]:
    """The objects in a manifest, at any depth, which take only the fields that they know."""
    if isinstance(value, list):
        return [found for item in value for found in nested(item)]
    if not isinstance(value, dict):
        return []
    free = FREE | ({"selector"} if "ports" in value else set())  # a Service's
    return [value, *(found for name, item in value.items() if name not in free for found in nested(item))]


@pytest.mark.parametrize("base", BASES)
def test_a_misspelt_field_is_refused_anywhere(base: str) -> None:
    """Else the validation above would say little. About fifteen places of each object are tried."""
    for manifest in rendered(base):
        places = nested(manifest)
        for index in range(0, len(places), 1 + len(places) // 15):
            changed = copy.deepcopy(manifest)
            nested(changed)[index]["misspelt"] = "x"
            with pytest.raises(Unknown, match="misspelt"):
                validate(changed)


def test_bases_name_the_image_of_this_version() -> None:
    images = {
        each["image"] for base in BASES for made in rendered(base) for p in pods_of(made) for each in containers(p)
    }
    assert f"{EXPORTER}:{optwrap_exporter.__version__}" in images
    assert {image.partition(":")[0] for image in images} == {
        EXPORTER,
        "optwrap-demo-trainer",
        "registry.example.com/lm-trainer",
    }
    assert all(":" in image for image in images)


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Stand-ins for what is mounted."""
    (tmp_path / "token").mkdir()
    (tmp_path / "token" / "token").write_text(TOKEN)
    return {"/etc/optwrap": tmp_path / "token", "/run/optwrap": tmp_path / "run", "/var/lib/optwrap": tmp_path / "data"}


@pytest.mark.parametrize("base", ["sidecar", "shared"])
def test_exporter_of_a_base_has_minimal_privileges_and_writes_to_volumes_only(base: str) -> None:
    template = pod(next(made for made in rendered(base) if pods_of(made)))
    exporter = container(template, EXPORTER)
    security = template["spec"]["securityContext"] | exporter["securityContext"]
    assert (security["runAsNonRoot"], security["runAsUser"], security["runAsGroup"]) == (True, 10425, 10425)
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert template["spec"]["automountServiceAccountToken"] is False
    mounted = {mount["mountPath"]: mount["name"] for mount in exporter["volumeMounts"]}
    assert {"/var/lib/optwrap", "/tmp"} <= set(mounted)
    (made,) = (made for made in rendered(base) if pods_of(made))
    claims = made["spec"].get("volumeClaimTemplates", [])
    volumes = {volume["name"] for volume in template["spec"]["volumes"]} | {c["metadata"]["name"] for c in claims}
    assert set(mounted.values()) <= volumes


def test_the_sidecars_options_are_the_exporters(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this host only, open to any user over the socket, closed to reports over TCP."""
    template = pod(one(rendered("sidecar"), "Job"))
    arguments, variables = options(container(template, EXPORTER), template, places)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = settings(arguments, variables)
    assert (found.scope, found.token, found.ingest_socket_mode) == ("host", None, 0o666)
    assert found.ingest_socket == places["/run/optwrap"] / "ingest.sock"
    assert found.data_dir == places["/var/lib/optwrap"]
    assert (found.any_ip, found.closed) == (True, found.listen)


def test_the_shared_exporters_options_are_the_exporters(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a whole job, with the token of the Secret, and a store smaller than its volume."""
    made = one(rendered("shared"), "StatefulSet")
    template = pod(made)
    arguments, variables = options(container(template, EXPORTER), template, places)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = settings(arguments, variables)
    assert (found.scope, found.token, found.ingest_socket) == ("job", TOKEN, None)
    assert found.closed == ()
    (claim,) = made["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "10Gi"
    assert found.retention_bytes <= 0.8 * 10 * 2**30
    secret = one(rendered("shared"), "Secret")
    assert list(secret["data"]) == ["token"]
    (volume,) = (each for each in template["spec"]["volumes"] if "secret" in each)
    assert volume["secret"]["secretName"] == secret["metadata"]["name"]


def test_the_shared_exporter_can_be_had_without_its_secret() -> None:
    """For those who keep secrets elsewhere. It is the same otherwise, and needs no file."""
    without = kustomize(KUBERNETES / "shared" / "exporter")
    assert list(without) == [made for made in rendered("shared") if made["kind"] != "Secret"]


def test_the_shared_exporter_answers_trainers_probes_and_prometheus(
    start_exporter: Callable[..., RunningExporter], places: dict[str, Path]
) -> None:
    """Run with the manifest's own arguments, and asked by the names of its Service."""
    template = pod(one(rendered("shared"), "StatefulSet"))
    exporter = container(template, EXPORTER)
    arguments, _ = options(exporter, template, places)
    running = start_exporter(*arguments)
    service = one(rendered("shared"), "Service")["metadata"]["name"]
    for host in (service, f"{service}.training", f"{service}.training.svc", f"{service}.training.svc.cluster.local"):
        answer = httpx.get(f"{running.url}/metrics", headers={"Host": f"{host}:10425"}, trust_env=False)
        assert answer.status_code == 200, host
    assert httpx.get(f"{running.url}/metrics", headers={"Host": "other"}, trust_env=False).status_code == 421
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        route = exporter[probe]["httpGet"]
        assert httpx.get(f"{running.url}{route['path']}", trust_env=False).status_code == 200
        assert route["port"] == PORT
    report = Job("lm", clock=lambda: 1.7e9).report()
    headers = {"Host": f"{service}:10425"}
    refused = httpx.post(f"{running.url}/v1/reports", json=report, headers=headers, trust_env=False)
    assert refused.status_code == 401
    headers["Authorization"] = f"Bearer {TOKEN}"
    taken = httpx.post(f"{running.url}/v1/reports", json=report, headers=headers, trust_env=False)
    assert taken.status_code == 200, taken.text


def test_drain_fits_into_the_pods_grace_period() -> None:
    """It waits for at least two scrapes, and the exporter has time to stop afterwards."""
    template = pod(one(rendered("sidecar"), "Job"))
    exporter = container(template, EXPORTER)
    assert exporter["restartPolicy"] == "Always"
    assert exporter in template["spec"]["initContainers"]
    program, command, *arguments = exporter["lifecycle"]["preStop"]["exec"]["command"]
    assert (program, command) == ("optwrap-exporter", "drain")
    given = main.commands[command].make_context(command, list(arguments)).params
    assert given["url"] == f"http://127.0.0.1:{exporter['ports'][0]['containerPort']}"
    interval = load(PROMETHEUS / "prometheus.yml")["global"]["scrape_interval"]
    assert 2 * int(interval.removesuffix("s")) < given["timeout"]
    assert given["timeout"] < template["spec"]["terminationGracePeriodSeconds"] - 10


def test_the_demo_trainer_reports_to_the_sidecar() -> None:
    template = pod(one(rendered("sidecar"), "Job"))
    trainer = container(template, "trainer")
    variables = environment(trainer, template, {"metadata.labels['batch.kubernetes.io/job-name']": "lm"})
    parsed = parse(
        [
            text.replace("$(OPTWRAP_ENDPOINT)", variables["OPTWRAP_ENDPOINT"]).replace("$(OPTWRAP_RUN)", "lm")
            for text in trainer["args"]
        ]
    )
    assert (parsed.endpoint, parsed.run) == ("unix:///run/optwrap/ingest.sock", "lm")


FOREIGN: Object = yaml.safe_load("""
apiVersion: batch/v1
kind: Job
metadata: {name: theirs}
spec:
  template:
    spec:
      restartPolicy: OnFailure
      terminationGracePeriodSeconds: 5
      securityContext: {runAsUser: 0}
      initContainers: [{name: fetch, image: fetch}]
      containers:
        - name: main
          image: train:1
          securityContext: {runAsUser: 4711}
          env: [{name: OPTWRAP_RUN, value: theirs}, {name: OPTWRAP_ENDPOINT, value: "off"}]
          volumeMounts: [{name: data, mountPath: /data}]
        - {name: other, image: train:1}
      volumes: [{name: data, emptyDir: {}}]
""")


def test_component_gives_anyones_job_the_sidecar_and_changes_nothing_else(tmp_path: Path) -> None:
    """Two containers, one of them root, with variables, volumes and an init container of their own."""
    copied(tmp_path)
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "job.yaml").write_text(yaml.safe_dump(FOREIGN))
    kustomization = {"resources": ["job.yaml"], "components": ["../kubernetes/sidecar/component"]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    (made,) = kustomize(folder)
    validate(made)
    spec, before = made["spec"]["template"]["spec"], FOREIGN["spec"]["template"]["spec"]
    # The sidecar comes first, so it is there before their own init containers, and as in the example.
    example = pod(one(rendered("sidecar"), "Job"))
    assert spec["initContainers"] == [container(example, EXPORTER), *before["initContainers"]]
    added = [volume for volume in spec["volumes"] if volume not in before["volumes"]]
    assert added == [volume for volume in example["spec"]["volumes"] if volume["name"].startswith("optwrap-")]
    assert spec["terminationGracePeriodSeconds"] == 120
    for was, now in zip(before["containers"], spec["containers"], strict=True):
        assert now["volumeMounts"][len(was.get("volumeMounts", [])) :] == [
            {"name": "optwrap-socket", "mountPath": "/run/optwrap"}
        ]
        variables = {each["name"]: each["value"] for each in now["env"]}
        assert variables["OPTWRAP_ENDPOINT"] == "unix:///run/optwrap/ingest.sock"
        assert {k: v for k, v in now.items() if k not in {"env", "volumeMounts"}} == {
            k: v for k, v in was.items() if k not in {"env", "volumeMounts"}
        }
    assert spec["restartPolicy"] == before["restartPolicy"]
    assert spec["securityContext"] == before["securityContext"]
