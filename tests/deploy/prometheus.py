"""A real Prometheus for tests, with the repository's configuration, free ports and short intervals."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import yaml

from tests.deploy.places import PROMETHEUS, load
from tests.deploy.programs import free_address, serving
from tests.polling import wait_until

SCRAPE_INTERVAL: Final = 1.0
RATE_INTERVAL: Final = "6s"
"""Replaces $__rate_interval. It is longer than Grafana's minimum of four scrapes, for a busy machine."""


class Prometheus:
    """A running Prometheus at `url`.

    Args:
      url: its address.
      targets: the file in which it finds the exporters, if it has one.
    """

    def __init__(self, url: str, targets: Path | None = None) -> None:
        self.url = url
        self._targets = targets
        self.client = httpx.Client(base_url=url, trust_env=False, timeout=30)

    def scrape(self, *exporters: str) -> None:
        """Let it scrape the exporters at these URLs, and no others."""
        assert self._targets is not None
        write_targets(self._targets, exporters)

    def get(self, path: str, **query: Any) -> Any:
        """The `data` of an answer of the API."""
        answer = self.client.get(f"/api/v1/{path}", params=query)
        assert answer.status_code == 200, f"{query}: {answer.text}"
        return answer.json()["data"]

    def instant(self, expr: str, at: float | None = None) -> list[tuple[dict[str, str], float]]:
        """The labels and value of each series, at a time or now."""
        when = {} if at is None else {"time": at}
        return [(row["metric"], float(row["value"][1])) for row in self.get("query", query=expr, **when)["result"]]

    def range(self, expr: str, start: float, end: float) -> list[tuple[dict[str, str], list[float]]]:
        """The labels and values of each series, once a second."""
        data = self.get("query_range", query=expr, start=start, end=end, step=1)
        return [(row["metric"], [float(value) for _, value in row["values"]]) for row in data["result"]]

    def wait_until(self, expr: str, limit: float = 60) -> list[tuple[dict[str, str], float]]:
        """Wait until the expression has a result, and return it."""
        return wait_until(lambda: self.instant(expr), limit, pause=0.2, problem=lambda: expr)


def write_targets(file: Path, exporters: Iterable[str]) -> None:
    """Write the exporters' addresses for Prometheus' file_sd, at once as an exporter announces itself."""
    complete = file.with_suffix(".new")
    complete.write_text(json.dumps([{"targets": [urlsplit(exporter).netloc for exporter in exporters]}]))
    complete.replace(file)


def configuration(targets: Path, url: str, alertmanager: str | None = None) -> dict[str, Any]:
    """The repository's prometheus.yml for exporters that a file lists, scraped once a second.

    Args:
      targets: the file.
      url: URL of the Prometheus itself.
      alertmanager: host and port of the Alertmanager, or None.
    """
    config: dict[str, Any] = load(PROMETHEUS / "prometheus.yml")
    interval = f"{int(SCRAPE_INTERVAL * 1000)}ms"
    config["global"] |= {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval}
    config["rule_files"] = [str(PROMETHEUS / pattern) for pattern in config["rule_files"]]
    if alertmanager is None:
        del config["alerting"]
    else:
        config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [alertmanager]}]}]
    found = {
        "optwrap": {"file_sd_configs": [{"files": [str(targets)]}]},
        "prometheus": {"static_configs": [{"targets": [urlsplit(url).netloc]}]},
    }
    config["scrape_configs"] = [
        {name: value for name, value in scrape.items() if name != "static_configs"} | found[scrape["job_name"]]
        for scrape in config["scrape_configs"]
        if scrape["job_name"] in found
    ]
    assert len(config["scrape_configs"]) == len(found)
    return config


def rules_without_delays(directory: Path) -> str:
    """Write the repository's rules with all delays cut to a second, and return a pattern that matches the files.

    Args:
      directory: the directory for the files.
    """
    for file in sorted((PROMETHEUS / "rules").glob("*.yml")):
        rules = load(file)
        for group in rules["groups"]:
            for rule in group["rules"]:
                rule |= {name: "1s" for name in ("for", "keep_firing_for") if rule.get(name, "0s") != "0s"}
        (directory / file.name).write_text(yaml.safe_dump(rules))
    return str(directory / "*.yml")


@contextmanager
def discovering(directory: Path, intervals: dict[str, float]) -> Iterator[Prometheus]:
    """Run a Prometheus on a free port that scrapes the exporters that announce themselves.

    Args:
      directory: an empty directory for its configuration, data and log.
      intervals: seconds between scrapes, by the folder that has the files for them.
    """
    config = {
        "scrape_configs": [
            {
                "job_name": f"every {seconds:g} s",
                "scrape_interval": f"{int(seconds * 1000)}ms",
                "scrape_timeout": f"{int(min(seconds, 10) * 1000)}ms",
                "file_sd_configs": [{"files": [f"{folder}/*.json"]}],
            }
            for folder, seconds in intervals.items()
        ]
    }
    with _running(directory, free_address(), config) as prometheus:
        yield prometheus


@contextmanager
def running(directory: Path, exporters: list[str], alertmanager: str | None = None) -> Iterator[Prometheus]:
    """Run a Prometheus on a free port that scrapes these exporters.

    Args:
      directory: an empty directory for its configuration, data and log.
      exporters: URLs of the exporters. `Prometheus.scrape` changes them.
      alertmanager: host and port of an Alertmanager; with it, rules have no delay longer than a second.
    """
    address = free_address()
    targets = directory / "targets.json"
    write_targets(targets, exporters)
    config = configuration(targets, f"http://{address}", alertmanager)
    if alertmanager is not None:
        (directory / "rules").mkdir()
        config["rule_files"] = [rules_without_delays(directory / "rules")]
    with _running(directory, address, config, targets) as prometheus:
        yield prometheus


@contextmanager
def _running(
    directory: Path, address: str, config: dict[str, Any], targets: Path | None = None
) -> Iterator[Prometheus]:
    file = directory / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    command = [
        "prometheus",
        f"--config.file={file}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address={address}",
        f"--web.external-url=http://{address}",
        f"--web.console.templates={PROMETHEUS / 'consoles'}",
    ]
    with serving(command, f"http://{address}", directory / "log"):
        prometheus = Prometheus(f"http://{address}", targets)
        yield prometheus
        prometheus.client.close()
