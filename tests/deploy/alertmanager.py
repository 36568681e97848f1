"""A real Alertmanager for tests, with the repository's configuration. It notifies this process, without delays."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.deploy.places import DEPLOY, load
from tests.deploy.programs import free_address, serving


class Notified(NamedTuple):
    """One alert of one notification."""

    receiver: str
    status: str
    labels: dict[str, str]
    annotations: dict[str, str]
    at: float
    """When it arrived."""


class Alertmanager:
    """A running Alertmanager at `address` (host and port), and the alerts it has notified."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.notified: list[Notified] = []
        self.messages: list[list[Notified]] = []
        """The alerts of each notification."""
        self._waiting: list[Notified] = []
        self._changed = threading.Condition()

    def arrive(self, notification: dict[str, Any]) -> None:
        """Record the alerts of a webhook's notification."""
        receiver, now = notification["receiver"], time.time()
        alerts = [
            Notified(receiver, alert["status"], alert["labels"], dict(alert["annotations"]), now)
            for alert in notification["alerts"]
        ]
        with self._changed:
            self.notified += alerts
            self.messages.append(alerts)
            self._waiting += alerts
            self._changed.notify_all()

    def wait_for(self, what: str, wanted: Callable[[Notified], bool], limit: float = 60) -> Notified:
        """Wait for an alert that is wanted, and return it. Each alert is returned once."""
        with self._changed:
            found = self._changed.wait_for(lambda: any(map(wanted, self._waiting)), limit)
            assert found, f"not notified within {limit} s: {what}; notified: {self.notified}"
            alert = next(filter(wanted, self._waiting))
            self._waiting.remove(alert)
            return alert


def configuration(webhook: str) -> dict[str, Any]:
    """The repository's alertmanager.yml with short delays, and a webhook for each receiver."""
    config: dict[str, Any] = load(DEPLOY / "alertmanager" / "alertmanager.yml")
    for route in (config["route"], *config["route"]["routes"]):
        route |= {"group_wait": "100ms", "group_interval": "500ms"}
    for receiver in config["receivers"]:
        receiver["webhook_configs"] = [{"url": webhook, "send_resolved": True}]
    return config


@contextmanager
def running(directory: Path) -> Iterator[Alertmanager]:
    """Run an Alertmanager on a free port.

    Args:
      directory: an empty directory for its configuration, data and log.
    """
    alertmanager = Alertmanager(free_address())

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            alertmanager.arrive(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            del format, args  # no access log on standard error

    server = HTTPServer(("127.0.0.1", 0), Webhook)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        file = directory / "alertmanager.yml"
        file.write_text(yaml.safe_dump(configuration(f"http://127.0.0.1:{server.server_port}/")))
        command = [
            "prometheus-alertmanager",
            f"--config.file={file}",
            f"--storage.path={directory / 'data'}",
            f"--web.listen-address={alertmanager.address}",
            "--cluster.listen-address=",
        ]
        with serving(command, f"http://{alertmanager.address}", directory / "log"):
            yield alertmanager
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
