"""`Monitor(serve=True)`: an exporter that ends with the program, and never hurts it."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import optwrap
from optwrap._monitor.local import serve
from optwrap._monitor.settings import Endpoint
from tests.polling import wait_until

PROGRAM = textwrap.dedent("""
    import sys
    import jax, jax.numpy as jnp, optax, optwrap

    monitor = optwrap.Monitor("served", sys.argv[1], 0, interval=0.05, serve=True)
    again = optwrap.Monitor("served-too", sys.argv[1], 0, interval=0.05, serve=True)
    tx = optwrap.instrument(optax.sgd(0.1), monitor)
    params = {"w": jnp.ones(2)}
    state = tx.init(params)
    for _ in range(3):
        _, state = tx.update(params, state, params)
        monitor.observe(optwrap.reading(state))
    assert monitor.flush(60)
    print(monitor._repr_html_(), flush=True)
    sys.stdin.readline()
""")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """A program that serves its exporter and has taken three steps; its URL; and what it printed."""
    url = f"http://127.0.0.1:{free_port()}"
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "OPTWRAP_EXPORTER_DATA_DIR": str(tmp_path / "data")},
    )
    assert program.stdout is not None
    printed = [program.stdout.readline() for _ in range(3)]
    yield program, url, printed
    if program.poll() is None:
        program.kill()
    program.communicate()
    wait_until(lambda: not answers(url))


def test_it_prints_the_link_and_ends_with_the_program(served: Any) -> None:
    """With one exporter for two Monitors. It ends after the last report; what it stored stays."""
    program, url, printed = served
    assert printed[:2] == [f"optwrap: {url}/?run=served\n", f"optwrap: {url}/?run=served-too\n"]
    assert f'<a href="{url}/"' in printed[2]
    assert "<td>served</td><td>3</td><td>applied</td>" in printed[2]
    answer = httpx.get(f"{url}/v1/runs/served", trust_env=False).json()
    assert (answer["totals"]["steps"], answer["health"]) == (3, "ok")
    program.communicate("\n", timeout=60)
    assert program.returncode == 0
    assert not answers(url)


def test_it_ends_when_the_program_is_killed(served: Any) -> None:
    program, url, _ = served
    assert answers(url)
    os.kill(program.pid, signal.SIGKILL)
    program.wait(60)
    wait_until(lambda: not answers(url))


@pytest.mark.parametrize(
    ("endpoint", "why"),
    [
        (Endpoint("http://192.0.2.1:10425", "192.0.2.1", 10425), "an address of this machine only"),
        (Endpoint("unix:///x", socket_path="/x"), "an address of this machine only"),
    ],
)
def test_an_exporter_that_cannot_be_started_is_one_line(
    caplog: pytest.LogCaptureFixture, endpoint: Endpoint, why: str
) -> None:
    assert not serve.serve(endpoint)
    (line,) = [record.getMessage() for record in caplog.records]
    assert why in line


def test_an_exporter_that_is_not_installed_is_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program goes on without."""
    monkeypatch.setattr(serve, "_EXPORTER", "optwrap_exporter_missing")
    with optwrap.Monitor("r", f"http://127.0.0.1:{free_port()}", 0, serve=True) as monitor:
        assert "none yet" in monitor._repr_html_()
    assert "pip install optwrap-exporter" in caplog.records[0].getMessage()


def test_an_exporter_that_fails_to_start_is_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With its own last words."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("OPTWRAP_EXPORTER_DATA_DIR", str(tmp_path / "file" / "data"))
    port = free_port()
    assert not serve.serve(Endpoint(f"http://127.0.0.1:{port}", "127.0.0.1", port))
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(tmp_path / "file") in line
    assert "training goes on" in line


def test_an_off_monitor_starts_nothing_and_shows_that() -> None:
    assert "off" in optwrap.Monitor(endpoint="off", serve=True)._repr_html_()
