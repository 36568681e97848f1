"""What Prometheus operators and Grafana read from the cluster is what the other files of deploy/ say."""

import copy

import pytest

from tests.deploy.kube import BASES, EXPORTER, KUBERNETES, PORT, containers, one, pods_of, rendered
from tests.deploy.places import DASHBOARDS, PROMETHEUS, load

pytestmark = pytest.mark.programs("kubectl")

RULES = [group for path in sorted((PROMETHEUS / "rules").glob("*.yml")) for group in load(path)["groups"]]


def test_operators_have_the_rules_of_prometheus() -> None:
    """Google's service knows no keep_firing_for."""
    assert one(rendered("operator"), "PrometheusRule")["spec"]["groups"] == RULES
    managed = copy.deepcopy(RULES)
    for group in managed:
        for rule in group["rules"]:
            rule.pop("keep_firing_for", None)
    assert managed != RULES
    assert one(rendered("gmp"), "Rules")["spec"]["groups"] == managed


def test_dashboards_are_config_maps_that_grafanas_sidecar_loads() -> None:
    maps = [made for made in rendered("operator") if made["kind"] == "ConfigMap"]
    assert {name: text for made in maps for name, text in made["data"].items()} == {
        path.name: path.read_text("utf-8") for path in DASHBOARDS
    }
    assert all(made["metadata"]["labels"] == {"grafana_dashboard": "1"} for made in maps)


def test_operators_scrape_the_port_that_exporters_have_as_the_job_of_the_alerts() -> None:
    exporters = [
        each
        for base in BASES
        for made in rendered(base)
        for template in pods_of(made)
        for each in containers(template)
        if each["image"].startswith(f"{EXPORTER}:")
    ]
    assert len(exporters) == 2
    assert [each["ports"] for each in exporters] == [[{"name": PORT, "containerPort": 10425}]] * 2
    (endpoint,) = one(rendered("operator"), "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == PORT
    assert {"targetLabel": "job", "replacement": "optwrap"} in endpoint["relabelings"]
    managed = one(rendered("gmp"), "PodMonitoring")
    assert [each["port"] for each in managed["spec"]["endpoints"]] == [PORT]
    assert managed["metadata"]["name"] == "optwrap"
    assert load(KUBERNETES / "prometheus-scrape.yaml")["scrape_configs"][0]["job_name"] == "optwrap"
