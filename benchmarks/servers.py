"""What the benchmarks of the exporter start, and what they read of it: processor seconds, memory, answers."""

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import yaml

PROMETHEUS: Final = Path(__file__).parents[1] / "deploy" / "prometheus"
"""The shipped configuration."""
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Server:
    """A running program that answers HTTP on loopback."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.process = process
        self.port = port

    def cpu_seconds(self) -> float:
        """Processor seconds of all its threads so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def megabytes(self) -> float:
        """Resident memory now."""
        return self._status("VmRSS")

    def most_megabytes(self) -> float:
        """The most resident memory since it began."""
        return self._status("VmHWM")

    def _status(self, name: str) -> float:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1]) / 1000

    def get(self, path: str, headers: dict[str, str] | None = None, **query: str) -> bytes:
        """The body of an answer, as it was sent."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("GET", path + ("?" + urlencode(query) if query else ""), headers=headers or {})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"GET {path} answered {answer.status}: {body[:500]!r}")
        return body

    def json(self, path: str, **query: str) -> Any:
        """The JSON of an answer."""
        return json.loads(self.get(path, None, **query))


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def _running(command: Sequence[str], port: int, ready: str) -> Iterator[Server]:
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, text=True)
        server = Server(process, port)
        try:
            for _ in range(300):
                with contextlib.suppress(OSError, RuntimeError):
                    server.get(ready)
                    break
                if process.poll() is not None:
                    log.seek(0)
                    sys.exit(f"{command[0]} did not start: {log.read()}")
                time.sleep(0.1)
            yield server
        finally:
            process.terminate()
            process.wait(60)


@contextlib.contextmanager
def exporter() -> Iterator[Server]:
    """An exporter with its store in a temporary directory."""
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "optwrap_exporter", "--listen", f"127.0.0.1:{port}"]
        with _running([*command, "--data-dir", f"{directory}/data"], port, "/-/ready") as server:
            yield server


@contextlib.contextmanager
def prometheus(program: str, target: int) -> Iterator[Server]:
    """Prometheus with the shipped configuration and rules, but with only the exporter at port `target` to scrape."""
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        settings = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))
        del settings["alerting"]
        settings["rule_files"] = [str(PROMETHEUS / "rules" / "*.yml")]
        settings["scrape_configs"] = [one for one in settings["scrape_configs"] if one["job_name"] == "optwrap"]
        settings["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{target}"]}]
        Path(directory, "prometheus.yml").write_text(yaml.safe_dump(settings), "utf-8")
        command = [
            program,
            f"--config.file={directory}/prometheus.yml",
            f"--storage.tsdb.path={directory}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with _running(command, port, "/-/ready") as server:
            yield server


@contextlib.contextmanager
def pushgateway(program: str) -> Iterator[Server]:
    """A pushgateway without its consistency check, which costs 0.1 s of processor time for each push."""
    port = free_port()
    command = [program, f"--web.listen-address=127.0.0.1:{port}", "--push.disable-consistency-check"]
    with _running(command, port, "/-/ready") as server:
        yield server
