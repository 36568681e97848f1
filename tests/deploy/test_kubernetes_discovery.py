"""The scrape configuration finds exporters in whatever pods they are, by Prometheus' own relabelling.

Debian's Prometheus has no Kubernetes discovery. So its targets are those that the discovery makes of the rendered pods.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.kube import KUBERNETES, Object, containers, one, pod, rendered
from tests.deploy.places import load
from tests.programs import located


def discovered(name: str, template: Object, phase: str = "Running") -> Iterator[dict[str, Any]]:
    """The target groups of a pod: one target for each port of each container, or one for a container without ports."""
    for each in containers(template):
        for port in each.get("ports", [{}]):
            number = port.get("containerPort")
            labels = {
                "namespace": "training",
                "pod_name": name,
                "pod_phase": phase,
                "pod_node_name": "node-7",
                "pod_container_name": each["name"],
                "pod_container_port_name": port.get("name", ""),
            }
            address = "10.1.2.3" + (f":{number}" if number else "")
            yield {
                "targets": [address],
                "labels": {f"__meta_kubernetes_{label}": value for label, value in labels.items()},
            }


@pytest.mark.programs("kubectl", "promtool")
def test_the_scrape_configuration_finds_sidecars_and_the_shared_exporter_and_nothing_else(tmp_path: Path) -> None:
    """And no pod that has ended."""
    sidecar = pod(one(rendered("sidecar"), "Job"))
    shared = pod(one(rendered("shared"), "StatefulSet"))
    other = {"spec": {"containers": [{"name": "optwrap-exporter", "ports": [{"name": "http", "containerPort": 80}]}]}}
    config = load(KUBERNETES / "prometheus-scrape.yaml")
    (scrape,) = config["scrape_configs"]
    assert scrape.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    scrape["static_configs"] = [
        *discovered("lm-x7k2p", sidecar),
        *discovered("optwrap-exporter-0", shared),
        *discovered("shop", other),
        *discovered("ended", sidecar, "Succeeded"),
        *discovered("failed", sidecar, "Failed"),
    ]
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    command = [located("promtool"), "check", "service-discovery", "--timeout=1s", str(file), "optwrap"]
    checked = subprocess.run([word for word in command if word], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    found = [target["labels"] for target in json.loads(checked.stdout) if target.get("labels")]
    seen = [{label: text for label, text in target.items() if not label.startswith("__")} for target in found]
    labels = {"job": "optwrap", "namespace": "training", "node": "node-7", "instance": "10.1.2.3:10425"}
    assert sorted(seen, key=lambda target: target["pod"]) == [
        {**labels, "pod": name} for name in ("lm-x7k2p", "optwrap-exporter-0")
    ]
