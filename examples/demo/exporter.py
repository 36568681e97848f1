"""Runs an exporter in a process of its own beside the training, and queries it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httpx

from examples.demo.errors import DemoError

_START_LIMIT: Final = 30.0
"""Seconds that it may take to start."""
_STOP_LIMIT: Final = 10.0
"""Seconds that it may take to stop before it is killed."""


class Exporter:
    """An exporter that runs during the `with` block.

    Args:
      listen: `host:port` on loopback; port 0 takes a free one.
      data_dir: its data directory.

    Raises:
      DemoError: on entering, if it cannot run; the message is one line.
    """

    endpoint: str
    """Its address, `http://host:port`; set on entering."""

    def __init__(self, listen: str, data_dir: Path) -> None:
        self._listen = listen
        self._data_dir = data_dir

    def __enter__(self) -> Self:
        # These variables are meant for a permanent exporter of this machine, not for this one.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OPTWRAP_EXPORTER_")}
        self._log = tempfile.TemporaryFile()  # closed in __exit__
        # In a session of its own it does not get Ctrl-C: the training stops it after its last report.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "optwrap_exporter", "--listen", self._listen, "--data-dir", str(self._data_dir)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            self.endpoint = self._wait_until_ready()
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
        finally:  # also after a second Ctrl-C
            self._process.kill()
            self._process.wait()
            self._log.close()

    def _wait_until_ready(self) -> str:
        deadline = time.monotonic() + _START_LIMIT
        while time.monotonic() < deadline:
            ended = self._process.poll() is not None
            output = self._output()
            if found := re.search(r"listening on (http://[^\s,]+)", output):
                return found[1]
            if ended:
                # Its last line names --listen and --data-dir, which are the demo's options, too.
                lines = [line.strip() for line in output.splitlines() if line.strip()]
                raise DemoError(f"the exporter did not start: {lines[-1] if lines else 'it wrote nothing'}")
            time.sleep(0.05)
        raise DemoError(f"the exporter was not ready within {_START_LIMIT:.0f} s")

    def _output(self) -> str:
        # Without seeking: the exporter writes at the same file offset.
        return os.pread(self._log.fileno(), 1 << 20, 0).decode(errors="replace")


@contextlib.contextmanager
def running(listen: str, data_dir: Path | None, endpoint: str | None) -> Iterator[str]:
    """The address of the exporter to use: a running one, or one that runs during the block.

    Args:
      listen: `host:port` on loopback for the exporter to start.
      data_dir: its data directory; None for one that is deleted with it.
      endpoint: the running exporter; None to start one.

    Raises:
      DemoError: it cannot run; the message is one line.
    """
    with contextlib.ExitStack() as stack:
        if endpoint is None:
            directory = data_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="optwrap-demo-")))
            endpoint = stack.enter_context(Exporter(listen, directory)).endpoint
        yield endpoint


def say_where(endpoint: str) -> None:
    """Print the address of the page, if it has one."""
    if endpoint.startswith("http"):
        print(f"The page: {endpoint}/", flush=True)


def hold(endpoint: str) -> None:
    """Keep the exporter up until Ctrl-C."""
    print(f"The page stays at {endpoint}/ until Ctrl-C.", file=sys.stderr, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


def client(endpoint: str) -> httpx.Client:
    """A client for the exporter at `endpoint`, `http://host:port` or `unix:///path`; proxies are ignored."""
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
