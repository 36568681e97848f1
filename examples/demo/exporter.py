"""The exporter beside the training: a process of its own, started, asked and stopped."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httpx

from examples.demo.errors import DemoError

_START_LIMIT: Final = 30.0
"""Seconds it may take until it says that it is ready."""
_STOP_LIMIT: Final = 10.0
"""Seconds it may take to stop before it is killed."""


class Exporter:
    """An exporter with an embedded store; it lives as long as the `with` block.

    Args:
      listen: `host:port` on loopback; port 0 takes a free one.
      data_dir: where it keeps its store.

    Raises:
      DemoError: on entering, where it cannot run; says why in one line.
    """

    def __init__(self, listen: str, data_dir: Path) -> None:
        self._listen = listen
        self._data_dir = data_dir

    def __enter__(self) -> Self:
        _make(self._data_dir)
        listen = _free(self._listen)
        self.endpoint = f"http://{listen}"
        """Where it answers."""
        # What the environment may tell the machine's real exporter is not meant for this one.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OPTWRAP_EXPORTER_")}
        self._log = tempfile.TemporaryFile()  # closed in __exit__
        # A session of its own: Ctrl-C reaches the training, which stops the exporter when its last report is through.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "optwrap_exporter", "--listen", listen, "--data-dir", str(self._data_dir)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_LIMIT)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also at a second Ctrl-C
            self._process.kill()
            self._process.wait()
            self._log.close()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_LIMIT
        with client(self.endpoint) as http:
            while time.monotonic() < deadline:
                if (code := self._process.poll()) is not None:
                    raise DemoError(f"the exporter ended with exit code {code}: {self._last_line()}")
                try:
                    if http.get("/-/ready").is_success:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(0.05)
        raise DemoError(f"the exporter was not ready within {_START_LIMIT:.0f} s: {self._last_line()}")

    def _last_line(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def client(endpoint: str) -> httpx.Client:
    """A client for the exporter at `endpoint`, `http://host:port` or `unix:///path`; proxies are not for it."""
    parts = urlsplit(endpoint)
    if parts.scheme == "unix":
        return httpx.Client(base_url="http://localhost", transport=httpx.HTTPTransport(uds=parts.path), timeout=5)
    return httpx.Client(base_url=endpoint, trust_env=False, timeout=5)


def answer(endpoint: str, run: str) -> dict[str, Any]:
    """The answer of GET /v1/runs/{run}.

    Raises:
      DemoError: the exporter cannot be reached, or knows no such run.
    """
    try:
        with client(endpoint) as http:
            response = http.get(f"/v1/runs/{run}")
            response.raise_for_status()
            found: dict[str, Any] = response.json()
            return found
    except (httpx.HTTPError, ValueError) as error:
        raise DemoError(
            f"no answer about run {run!r} from the exporter at {endpoint}: {error}".split("\n")[0]
        ) from error


def _make(data_dir: Path) -> None:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data_dir):
            pass
    except OSError as error:
        raise DemoError(f"--data-dir {data_dir}: cannot write there: {error.strerror}; name another one") from error


def _free(listen: str) -> str:
    """`listen` with a port that nobody has; otherwise another's exporter could be taken for ours."""
    host, _, port = listen.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            raise DemoError(
                f"--listen {listen}: {error.strerror}; name another port with --listen HOST:PORT (port 0 takes a free "
                "one), or a running exporter with --endpoint URL"
            ) from error
        return f"{host}:{probe.getsockname()[1]}"
