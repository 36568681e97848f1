"""The OpenTelemetry Collector's configuration, without a Collector: its wiring, and what is Prometheus' own in it."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.places import DEPLOY, PROMETHEUS, load

COLLECTOR: dict[str, Any] = load(DEPLOY / "otel" / "collector.yaml")
SCRAPING: dict[str, Any] = COLLECTOR["receivers"]["prometheus"]["config"]


def test_every_component_is_in_a_pipeline_and_every_pipeline_has_its_components() -> None:
    for kind in ("receivers", "processors", "exporters"):
        used = {name for pipeline in COLLECTOR["service"]["pipelines"].values() for name in pipeline[kind]}
        assert used == set(COLLECTOR[kind])


def test_the_limit_of_memory_is_the_first_processor() -> None:
    assert COLLECTOR["service"]["pipelines"]["metrics"]["processors"][0] == "memory_limiter"


@pytest.mark.programs("promtool")
def test_prometheus_accepts_what_the_receiver_is_given(tmp_path: Path) -> None:
    """The receiver uses Prometheus' own code for it, after `$$` became `$`."""
    assert "$" not in yaml.safe_dump(SCRAPING)
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(SCRAPING))
    checked = subprocess.run(["promtool", "check", "config", file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_it_scrapes_as_prometheus_does() -> None:
    (scrape,) = SCRAPING["scrape_configs"]
    prometheus = load(PROMETHEUS / "prometheus.yml")
    assert scrape["job_name"] == prometheus["scrape_configs"][0]["job_name"]
    assert scrape["scrape_interval"] == prometheus["global"]["scrape_interval"]
    assert scrape["scrape_timeout"] == prometheus["global"]["scrape_timeout"]
