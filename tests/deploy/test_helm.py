"""The chart renders what the kustomize bases have, and its values do what they say."""

import copy
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import optwrap_exporter
import pytest
import yaml

from tests.deploy.kube import EXPORTER, TOKEN, Object, container, one, options, pod, rendered, settings, validate
from tests.deploy.places import ALERTS, DEPLOY, load
from tests.programs import located

pytestmark = pytest.mark.programs("helm", "kubectl")

CHART: Final = DEPLOY / "helm" / "optwrap-exporter"
OPERATOR: Final[dict[str, Any]] = {name: {"enabled": True} for name in ("podMonitor", "prometheusRule", "dashboards")}
OWN_LABELS: Final = {"app.kubernetes.io/managed-by", "helm.sh/chart"}


def helm(*arguments: object) -> str:
    program = located("helm")
    assert program is not None
    ran = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def template(chart: Path = CHART, release: str = EXPORTER, **values: Any) -> tuple[Object, ...]:
    """The objects of a release with these values, all of them valid."""
    given = {"token": {"value": TOKEN}} | values
    arguments = [f"--set-json={name}={json.dumps(value)}" for name, value in given.items()]
    made = tuple(yaml.safe_load_all(helm("template", release, chart, "--namespace=training", *arguments)))
    for manifest in made:
        validate(manifest)
    return made


def bare(objects: Iterable[Object]) -> dict[tuple[str, str], Object]:
    """The objects by kind and name, without what Helm adds to labels."""
    found = {(made["kind"], made["metadata"]["name"]): copy.deepcopy(made) for made in objects}
    for made in found.values():
        labels = made["metadata"].get("labels", {})
        made["metadata"]["labels"] = {name: text for name, text in labels.items() if name not in OWN_LABELS}
    return found


def test_chart_has_the_objects_of_the_shared_base() -> None:
    assert bare(template()) == bare(rendered("shared"))


def test_chart_has_the_objects_for_the_operator_on_demand() -> None:
    """What the operator reads, by the name of the release, and the dashboards."""
    made = {key: each for key, each in bare(template(**OPERATOR)).items() if key not in bare(rendered("shared"))}
    wanted = bare(rendered("operator"))
    assert {kind for kind, _ in made} == {kind for kind, _ in wanted}
    for kind in ("PodMonitor", "PrometheusRule"):
        assert one(tuple(made.values()), kind)["spec"] == one(tuple(wanted.values()), kind)["spec"]
    for key in (key for key in wanted if key[0] == "ConfigMap"):
        assert made[key]["data"] == wanted[key]["data"]
        assert wanted[key]["metadata"]["labels"].items() <= made[key]["metadata"]["labels"].items()
        assert wanted[key]["metadata"]["annotations"] == made[key]["metadata"]["annotations"]


def test_a_packed_chart_has_the_rules_and_the_dashboards(tmp_path: Path) -> None:
    """In the repository they are links to the files of Prometheus and Grafana."""
    helm("package", CHART, "--destination", tmp_path)
    (packed,) = tmp_path.glob("*.tgz")
    assert packed.name == f"optwrap-exporter-{load(CHART / 'Chart.yaml')['version']}.tgz"
    assert template(packed, **OPERATOR) == template(**OPERATOR)


def test_version_is_that_of_the_exporter() -> None:
    chart = load(CHART / "Chart.yaml")
    assert chart["version"] == chart["appVersion"] == optwrap_exporter.__version__


def test_values_reach_the_exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = template(
        release="watch",
        allowedHosts=["optwrap.example.com"],
        extraArgs=["--grafana-url=https://grafana.example.com", "--retention-days=7"],
        storage={"retentionBytes": "40GiB", "size": "50Gi", "className": "fast"},
        image={"repository": "registry.example.com/optwrap-exporter", "tag": "1.2.3"},
        tolerations=[{"operator": "Exists"}],
    )
    stateful = one(made, "StatefulSet")
    exporter = container(pod(stateful), EXPORTER)
    (tmp_path / "token").write_text(TOKEN)
    arguments, variables = options(exporter, pod(stateful), {"/etc/optwrap": tmp_path})
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = settings(arguments, variables)
    assert {"watch", "watch.training.svc", "optwrap.example.com"} <= found.hosts
    assert (found.grafana_url, found.retention_days) == ("https://grafana.example.com", 7)
    assert found.retention_bytes == 40 * 2**30
    assert exporter["image"] == "registry.example.com/optwrap-exporter:1.2.3"
    (claim,) = stateful["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["storageClassName"] == "fast"
    assert claim["spec"]["resources"]["requests"]["storage"] == "50Gi"
    assert pod(stateful)["spec"]["tolerations"] == [{"operator": "Exists"}]


def test_values_choose_the_secret_and_who_may_connect() -> None:
    made = template(token={"existingSecret": "ours"}, networkPolicy={"nodeCIDRs": ["10.128.0.0/20"]})
    assert "Secret" not in {each["kind"] for each in made}
    assert pod(one(made, "StatefulSet"))["spec"]["volumes"][0]["secret"]["secretName"] == "ours"
    (rule,) = one(made, "NetworkPolicy")["spec"]["ingress"]
    assert {"ipBlock": {"cidr": "10.128.0.0/20"}} in rule["from"]
    assert "NetworkPolicy" not in {each["kind"] for each in template(networkPolicy={"enabled": False})}
    first, second = (one(template(token={}), "Secret")["data"]["token"] for _ in range(2))
    assert first != second  # random, where none is given and no cluster has one


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("podMonitr.enabled=true", "'podMonitr' not allowed"),
        ('storage.sise="1Gi"', "'sise' not allowed"),
        ("networkPolicy.clients=[]", "networkPolicy/clients"),
    ],
)
def test_a_value_that_the_chart_does_not_know_is_refused(wrong: str, named: str) -> None:
    with pytest.raises(AssertionError, match=named):
        helm("template", EXPORTER, CHART, f"--set-json={wrong}")


def test_alerts_link_to_the_given_addresses() -> None:
    made = template(
        prometheusRule={
            "enabled": True,
            "runbooksURL": "https://wiki.example.com/optwrap",
            "grafanaURL": "https://grafana.example.com",
            "labels": {"release": "kube-prometheus-stack"},
        }
    )
    found = one(made, "PrometheusRule")
    assert found["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    alerts = [rule for group in found["spec"]["groups"] for rule in group["rules"] if "alert" in rule]
    assert len(alerts) == len(ALERTS)
    for alert in alerts:
        assert alert["annotations"]["runbook_url"] == f"https://wiki.example.com/optwrap#{alert['alert']}"
        assert alert["annotations"]["dashboard_url"].startswith("https://grafana.example.com/d/")
