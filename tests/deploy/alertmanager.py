"""A real Alertmanager for tests: the repository's own configuration, in a hurry, whose receivers are this process."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.deploy.places import DEPLOY, load
from tests.deploy.programs import free_address, serving


class Told(NamedTuple):
    """One alert of one notification."""

    receiver: str
    status: str
    labels: dict[str, str]
    annotations: dict[str, str]


class Alertmanager:
    """A running one at `address` (host and port), and what it has told."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.told: list[Told] = []
        self._waiting: list[Told] = []
        self._changed = threading.Condition()

    def arrive(self, notification: dict[str, Any]) -> None:
        """Takes what a webhook was sent."""
        alerts = [
            Told(notification["receiver"], alert["status"], alert["labels"], dict(alert["annotations"]))
            for alert in notification["alerts"]
        ]
        with self._changed:
            self.told += alerts
            self._waiting += alerts
            self._changed.notify_all()

    def wait_for(self, what: str, wanted: Callable[[Told], bool], limit: float = 60) -> Told:
        """The first alert told that is wanted and has not been waited for before."""
        with self._changed:
            there = self._changed.wait_for(lambda: any(map(wanted, self._waiting)), limit)
            assert there, f"not told within {limit} s: {what}; told: {self.told}"
            found = next(filter(wanted, self._waiting))
            self._waiting.remove(found)
            return found


def configuration(webhook: str) -> dict[str, Any]:
    """The repository's alertmanager.yml with no patience, and a webhook for each of its receivers."""
    config: dict[str, Any] = load(DEPLOY / "alertmanager" / "alertmanager.yml")
    config["route"] |= {"group_wait": "100ms", "group_interval": "500ms"}
    for receiver in config["receivers"]:
        receiver["webhook_configs"] = [{"url": webhook, "send_resolved": True}]
    return config


@contextmanager
def running(directory: Path) -> Iterator[Alertmanager]:
    """An Alertmanager on a free port for the block's time.

    Args:
      directory: an empty one, for its configuration, data and log.
    """
    alertmanager = Alertmanager(free_address())

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            alertmanager.arrive(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            del format, args  # standard error is for what is wrong

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
