"""A real Prometheus for tests: the repository's own configuration, with this machine's ports and short intervals."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import yaml

from tests.deploy.places import PROMETHEUS, load

SCRAPE_INTERVAL: Final = 0.5
RATE_INTERVAL: Final = "4s"
"""In the place of $__rate_interval; longer than the four scrapes that Grafana takes at least, for a busy machine."""


class Prometheus:
    """A running Prometheus at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = httpx.Client(base_url=url, trust_env=False, timeout=30)

    def get(self, path: str, **query: Any) -> Any:
        """What the API answers under `data`."""
        answer = self.client.get(f"/api/v1/{path}", params=query)
        assert answer.status_code == 200, f"{query}: {answer.text}"
        return answer.json()["data"]

    def instant(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """The labels and value of each series, now."""
        return [(row["metric"], float(row["value"][1])) for row in self.get("query", query=expr)["result"]]

    def range(self, expr: str, start: float, end: float) -> list[tuple[dict[str, str], list[float]]]:
        """The labels and values of each series, once a second."""
        data = self.get("query_range", query=expr, start=start, end=end, step=1)
        return [(row["metric"], [float(value) for _, value in row["values"]]) for row in data["result"]]

    def wait_until(self, expr: str, limit: float = 60) -> list[tuple[dict[str, str], float]]:
        """What the expression gives as soon as it gives anything."""
        deadline = time.monotonic() + limit
        while not (found := self.instant(expr)):
            assert time.monotonic() < deadline, f"nothing within {limit} s: {expr}"
            time.sleep(0.2)
        return found


def configuration(exporters: list[str], url: str) -> dict[str, Any]:
    """The repository's prometheus.yml for exporters at these addresses, scraped twice a second.

    Args:
      exporters: their URLs.
      url: of the Prometheus itself.
    """
    config: dict[str, Any] = load(PROMETHEUS / "prometheus.yml")
    interval = f"{int(SCRAPE_INTERVAL * 1000)}ms"
    config["global"] |= {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval}
    config["rule_files"] = [str(PROMETHEUS / pattern) for pattern in config["rule_files"]]
    del config["alerting"]
    targets = {"optwrap": [urlsplit(exporter).netloc for exporter in exporters], "prometheus": [urlsplit(url).netloc]}
    config["scrape_configs"] = [scrape for scrape in config["scrape_configs"] if scrape["job_name"] in targets]
    for scrape in config["scrape_configs"]:
        scrape["static_configs"] = [{"targets": targets[scrape["job_name"]]}]
    assert len(config["scrape_configs"]) == len(targets)
    return config


@contextmanager
def running(directory: Path, exporters: list[str]) -> Iterator[Prometheus]:
    """A Prometheus on a free port that scrapes these exporters, for the block's time.

    Args:
      directory: an empty one, for its configuration, data and log.
      exporters: their URLs.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    file = directory / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration(exporters, f"http://{address}")))
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={file}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={address}",
                f"--web.external-url=http://{address}",
                f"--web.console.templates={PROMETHEUS / 'consoles'}",
            ],
            stdout=log,
            stderr=log,
            env=environment,
        )
    try:
        prometheus = Prometheus(f"http://{address}")
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < deadline, (directory / "log").read_text()
            try:
                if prometheus.client.get("/-/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        yield prometheus
        prometheus.client.close()
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
