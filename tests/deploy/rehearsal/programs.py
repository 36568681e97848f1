"""The programs of the site: exporters, the agent, the central Prometheus with the shipped rules, and Alertmanager."""

import contextlib
import dataclasses
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

import httpx
import yaml

from tests.deploy import alertmanager as alertmanagers
from tests.deploy.alertmanager import Alertmanager
from tests.deploy.places import PROMETHEUS, load
from tests.deploy.programs import serving
from tests.deploy.prometheus import Prometheus
from tests.deploy.rehearsal.hosts import CENTRE, Host, python
from tests.polling import wait_until

NEEDED: Final = ("prometheus", "prometheus-alertmanager")
CLUSTER: Final = "rehearsal"
"""The label that the agent adds to all series."""
SCRAPE: Final = "1s"
"""The scrape interval, and that of the evaluation of rules."""
DISCOVERY: Final = 8_000
"""Milliseconds. Prometheus follows service discovery every 5 s, so an exporter that has ended is down until then."""

_UNITS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}


class Exporter:
    """An exporter on a host. It announces itself in the file `announced`, where the agent finds it.

    Args:
      host: where it runs.
      name: tells the exporters of a host apart.
      place: the directory for its data and log.
      announced: the file.
      *options: of its command line.
    """

    def __init__(self, host: Host, name: str, place: Path, announced: Path, *options: str) -> None:
        self.host = host
        self.announced = announced
        self.log = place / f"{name}.log"
        data = ("--data-dir", str(place / name), "--announce", str(announced))
        command = python("optwrap_exporter", "--listen", ":0", *data, *options)
        self._process = host.start(command, self.log)

    def wait(self) -> None:
        """Wait until it is ready."""

        def ready() -> bool:
            assert self._process.poll() is None, self.log.read_text()
            return self.announced.exists()

        wait_until(ready, problem=self.log.read_text)
        self.target = str(json.loads(self.announced.read_text())[0]["targets"][0])
        self.url = f"http://{self.target}"

    def get(self, path: str, **query: Any) -> Any:
        """The JSON of an answer, whose status has to be 200."""
        answer = httpx.get(f"{self.url}{path}", params=query, trust_env=False, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def drain(self, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Wait until Prometheus has the last counters, as a pod's preStop does."""
        command = python("optwrap_exporter", "drain", self.url, "--timeout", str(seconds))
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def stop(self) -> None:
        """End it as a scheduler does; if it has gone with its host, or was killed, nothing is left to do."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it without a chance to say anything. Its file stays."""
        self._process.kill()
        self._process.wait()

    def forget(self) -> None:
        """Remove the file, as service discovery does when the exporter is known to be gone."""
        self.announced.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Site:
    """What runs beside the job."""

    prometheus: Prometheus
    alertmanager: Alertmanager
    targets: Path
    """The directory in which exporters announce themselves."""
    delays: dict[str, float]
    """By alert the longest time in seconds that a rule waits before it fires or resolves."""

    @classmethod
    @contextlib.contextmanager
    def running(cls, directory: Path, host: Host, scale: float) -> Iterator[Self]:
        """Run the site.

        Args:
          directory: an empty directory.
          host: where the agent runs.
          scale: divides the durations of the rules.
        """
        for name in ("alertmanager", "central", "agent", "targets", "rules"):
            (directory / name).mkdir()
        delays = scaled_rules(directory / "rules", scale)
        with (
            alertmanagers.running(directory / "alertmanager") as alertmanager,
            _central(directory / "central", directory / "rules", alertmanager.address) as prometheus,
            _agent(directory / "agent", host, directory / "targets", prometheus.url),
        ):
            yield cls(prometheus, alertmanager, directory / "targets", delays)


def scaled_rules(directory: Path, scale: float) -> dict[str, float]:
    """Write the shipped rules with `for` and `keep_firing_for` divided by `scale`; returns the longer by alert.

    A `for` stays above the time that Prometheus takes to drop a target. Nothing else is changed: an expression over ten
    minutes still is one.
    """
    delays: dict[str, float] = {}
    for file in sorted((PROMETHEUS / "rules").glob("*.yml")):
        rules = load(file)
        for rule in (rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule):
            for name in ("for", "keep_firing_for"):
                shipped = _milliseconds(rule.get(name, "0s"))
                milliseconds = round(shipped / scale)
                if name == "for":
                    milliseconds = max(milliseconds, min(shipped, DISCOVERY))
                delays[rule["alert"]] = max(delays.get(rule["alert"], 0.0), milliseconds / 1000)
                rule[name] = f"{milliseconds}ms"
        (directory / file.name).write_text(yaml.safe_dump(rules))
    return delays


def _milliseconds(duration: str) -> int:
    parts = re.findall(r"(\d+)(ms|s|m|h)", duration)
    assert "".join(number + unit for number, unit in parts) == duration, duration
    return sum(int(number) * _UNITS[unit] for number, unit in parts)


@contextlib.contextmanager
def _central(directory: Path, rules: Path, alertmanager: str) -> Iterator[Prometheus]:
    """A Prometheus that scrapes nothing: it gets everything by remote_write, and evaluates the rules."""
    url = f"http://{CENTRE}:9090"
    config = {
        "global": {"evaluation_interval": SCRAPE},
        "rule_files": [str(rules / "*.yml")],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
    }
    with _prometheus(directory, config, url, "--storage.tsdb.path", "--web.enable-remote-write-receiver"):
        prometheus = Prometheus(url)
        yield prometheus
        prometheus.client.close()


@contextlib.contextmanager
def _agent(directory: Path, host: Host, targets: Path, central: str) -> Iterator[None]:
    """A Prometheus in agent mode, on a host: it scrapes what announces itself, and writes it to the central one."""
    config = {
        "global": {
            "scrape_interval": SCRAPE,
            "scrape_timeout": SCRAPE,
            "external_labels": {"cluster": CLUSTER},
        },
        "scrape_configs": [
            {
                "job_name": "optwrap",
                "file_sd_configs": [{"files": [f"{targets}/*.json"], "refresh_interval": "1s"}],
            }
        ],
        "remote_write": [
            {"url": f"{central}/api/v1/write", "queue_config": {"batch_send_deadline": "500ms", "max_shards": 2}}
        ],
    }
    url = f"http://{host.address}:9090"
    with _prometheus(directory, config, url, "--storage.agent.path", "--enable-feature=agent", host=host):
        yield


@contextlib.contextmanager
def _prometheus(
    directory: Path, config: dict[str, Any], url: str, storage: str, *options: str, host: Host | None = None
) -> Iterator[None]:
    file = directory / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    address = url.removeprefix("http://")
    command = [
        *("prometheus", f"--config.file={file}", f"{storage}={directory / 'data'}"),
        *(f"--web.listen-address={address}", *options),
    ]
    with serving(command if host is None else host.command(command), url, directory / "log"):
        yield
