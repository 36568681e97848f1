"""The commands and snippets of docs/guides/kubernetes.md fit the manifests, and work as far as they need no cluster."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from optwrap_exporter.cli.main import main

from tests.deploy.kube import EXPORTER, Object, container, copied, kustomize, one, pods, rendered, validate
from tests.deploy.places import ROOT
from tests.deploy.test_docs import blocks
from tests.programs import located

GUIDE: Final = ROOT / "docs" / "guides" / "kubernetes.md"
OVERLAY, TRAINER, JOBS, RAY = (yaml.safe_load(text) for text in blocks(GUIDE, "yaml"))
COMMANDS: Final = [
    line for text in blocks(GUIDE, "console") for line in re.sub(r"(?<!')\n(?=    )", " ", text).splitlines()
]
pytestmark = pytest.mark.programs("kubectl", "helm")


def rendered_here(kustomization: Object, folder: Path) -> tuple[Object, ...]:
    """The objects of a kustomization of the guide, beside a copy of the repository's, and its own `job.yaml`."""
    copied(folder)
    text = yaml.safe_dump(kustomization).replace("optwrap/deploy/", "../")
    (folder / "mine").mkdir()
    (folder / "mine" / "kustomization.yaml").write_text(text)
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "lm"}}
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "mine", "image": "mine:1"}]}}
    (folder / "mine" / "job.yaml").write_text(yaml.safe_dump(job | {"spec": {"template": template}}))
    return kustomize(folder / "mine")


def test_kustomization_of_the_guide_lets_the_nodes_in_and_names_the_image(tmp_path: Path) -> None:
    made = rendered_here(OVERLAY, tmp_path)
    (rule,) = one(made, "NetworkPolicy")["spec"]["ingress"]
    (before,) = one(rendered("shared"), "NetworkPolicy")["spec"]["ingress"]
    assert rule["from"] == [*before["from"], {"ipBlock": {"cidr": "10.128.0.0/20"}}]
    (template,) = pods(one(made, "StatefulSet"))
    image = container(one(rendered("shared"), "StatefulSet")["spec"]["template"], EXPORTER)["image"]
    assert container(template, EXPORTER)["image"] == f"registry.example.com/{image}"
    for manifest in made:
        assert manifest["metadata"]["namespace"] == "training"


def test_component_of_the_guide_gives_a_job_the_exporter(tmp_path: Path) -> None:
    (made,) = rendered_here(JOBS, tmp_path)
    validate(made)
    (template,) = pods(made)
    assert container(template, EXPORTER)["image"].startswith("registry.example.com/optwrap-exporter:")
    assert container(template, "mine")["env"] == [
        {"name": "OPTWRAP_ENDPOINT", "value": "unix:///run/optwrap/ingest.sock"}
    ]


def reports_to_the_shared_exporter(template: Object, name: str) -> None:
    """As the trainers of a JobSet do."""
    (example,) = pods(one(rendered("jobset/gpu"), "JobSet"))
    validate({"apiVersion": "v1", "kind": "Pod", **template, "metadata": template["metadata"] | {"name": "lm-0"}})
    wanted = container(example, "trainer")
    found = container(template, name)

    def named(items: list[Any], names: set[str]) -> list[Any]:
        return [item for item in items if item["name"] in names]

    both = {"OPTWRAP_ENDPOINT", "OPTWRAP_TOKEN_FILE"}
    assert named(found["env"], both) == named(wanted["env"], both)
    assert found["volumeMounts"] == named(wanted["volumeMounts"], {"optwrap-token"})
    assert template["spec"]["volumes"] == named(example["spec"]["volumes"], {"optwrap-token"})
    assert template["metadata"]["labels"] == example["metadata"]["labels"]


def test_pod_of_the_guide_reports_like_the_jobsets() -> None:
    reports_to_the_shared_exporter(TRAINER, "trainer")


def test_ray_job_reports_like_the_jobsets_and_names_its_run() -> None:
    (workers,) = RAY["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    reports_to_the_shared_exporter(workers["template"], "ray-worker")
    assert yaml.safe_load(RAY["spec"]["runtimeEnvYAML"]) == {"env_vars": {"OPTWRAP_RUN": RAY["metadata"]["name"]}}


def test_commands_name_what_is_there() -> None:
    """Bases, objects, the chart, and options of kubectl's subcommands, of helm, and of the exporter."""
    applied = [word for line in COMMANDS for word in line.split() if word.startswith("deploy/kubernetes/")]
    assert {"shared", "jobset/tpu", "jobset/gpu", "operator", "gmp"} <= {
        name.removeprefix("deploy/kubernetes/") for name in applied
    }
    assert [name for name in applied if not (ROOT / name).parent.exists()] == []
    objects = {
        f"{made['kind'].lower()}/{made['metadata']['name']}"
        for base in ("shared", "operator")
        for made in rendered(base)
    }
    named = re.findall(r"\b(?:service|statefulset|podmonitor|prometheusrule)/[\w-]+", "\n".join(COMMANDS))
    assert len(named) >= 5
    assert set(named) <= objects
    (status,) = (line.split(" -- ")[1] for line in COMMANDS if " exec optwrap-exporter-0 " in line)
    called, command, *arguments = shlex.split(status)
    assert called == "optwrap-exporter"
    main.commands[command].make_context(command, arguments)
    (install,) = (shlex.split(line) for line in COMMANDS if line.startswith("helm install"))
    program = located("helm")
    assert program is not None
    made = subprocess.run([program, "template", *install[2:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert "registry.example.com/optwrap-exporter:" in made.stdout


def test_sed_command_changes_all_links_of_alerts() -> None:
    (command,) = (text for text in blocks(GUIDE, "console") if "| sed " in text)
    kubectl = located("kubectl")
    script = command.rpartition("|")[0].replace("kubectl", str(kubectl), 1)
    ran = subprocess.run(["sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    rule = one(tuple(yaml.safe_load_all(ran.stdout)), "PrometheusRule")
    alerts = [each for group in rule["spec"]["groups"] for each in group["rules"] if "alert" in each]
    assert alerts
    for alert in alerts:
        assert alert["annotations"]["runbook_url"].startswith("https://wiki.example.com/optwrap#")
        assert alert["annotations"]["dashboard_url"].startswith("https://grafana.example.com/d/")
