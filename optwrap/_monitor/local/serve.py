"""Starts an exporter beside the training program: one argument for a notebook or a laptop."""

import atexit
import contextlib
import http.client
import importlib.util
import ipaddress
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, Final

from optwrap._monitor.log import log
from optwrap._monitor.settings import Endpoint

_EXPORTER: Final = "optwrap_exporter"
_STARTS_WITHIN: Final = 30.0
"""Seconds for which a new exporter may take to listen. On an idle machine it takes one or two."""
_ENDS_WITHIN: Final = 5.0
"""Seconds for which an exporter may take to end, before it is killed."""


def serve(endpoint: Endpoint) -> bool:
    """Start an exporter at this endpoint, unless one listens there already; it ends with this process.

    It keeps its data where `optwrap-exporter` does by default. If it cannot be started, that is one line in the log.

    Args:
      endpoint: an address of this machine, over TCP.

    Returns:
      Whether an exporter listens at the endpoint.
    """
    try:
        problem = _start(endpoint)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    if problem is not None:
        log.warning("optwrap: serve=True started no exporter at %s: %s; training goes on", endpoint.text, problem)
    return problem is None


def _start(endpoint: Endpoint) -> str | None:
    """Start it; returns why not."""
    if not _is_local(endpoint):
        return "it starts one at an address of this machine only, such as http://127.0.0.1:10425"
    if _is_ready(endpoint):
        return None
    if importlib.util.find_spec(_EXPORTER) is None:
        return "the exporter is not installed: pip install optwrap-exporter"
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    with tempfile.TemporaryFile() as stderr:
        child = subprocess.Popen(
            # -P: the script's folder has modules whose names others may have, too.
            [
                *(sys.executable, "-P", str(Path(__file__).with_name("child.py")), str(os.getpid())),
                *("--listen", f"{host}:{endpoint.port}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={"OPTWRAP_EXPORTER_LOG_LEVEL": "warning", **os.environ},
            start_new_session=True,  # Ctrl-C is for the training program, whose last report is still to come
        )
        atexit.register(_end, child, os.getpid())
        until = time.monotonic() + _STARTS_WITHIN
        while not _is_ready(endpoint):
            if child.poll() is not None:
                # Another process may have been faster.
                return None if _is_ready(endpoint) else _last_line(stderr) or f"it ended with status {child.returncode}"
            if time.monotonic() > until:
                _end(child, os.getpid())
                return f"it did not listen within {_STARTS_WITHIN:g} s"
            time.sleep(0.05)
    return None


def _is_local(endpoint: Endpoint) -> bool:
    if endpoint.socket_path is not None or endpoint.secure:
        return False
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(endpoint.host).is_loopback
    return endpoint.host.lower() == "localhost"


def _is_ready(endpoint: Endpoint) -> bool:
    """Whether an exporter listens there. It may listen, and end because its store is not usable."""
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=2)
    try:
        connection.request("GET", f"{endpoint.prefix}/-/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _last_line(stderr: IO[bytes]) -> str:
    stderr.seek(0)
    lines = stderr.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else ""


def _end(child: "subprocess.Popen[Any]", owner: int) -> None:
    # A forked child of this process inherits its exit handlers, but not the exporter.
    if os.getpid() != owner or child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(_ENDS_WITHIN)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
