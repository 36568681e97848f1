"""Connection timeouts: idle and half-sent requests are closed, running requests are not."""

import contextlib
import http.client
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from optwrap_exporter.http.routes import reports
from optwrap_exporter.http.serving import connection_timeout as connections
from optwrap_exporter.http.serving.connections import FEWEST_FILES

from tests.conftest import RunningExporter
from tests.exporter.running import Job, Served, served

REQUEST = b"GET /-/ready HTTP/1.1\r\nHost: localhost\r\n\r\n"


def dial(site: Served) -> socket.socket:
    host, port = site.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def answered(connection: socket.socket) -> int:
    """The status of one answer, read whole."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    answer.read()
    return answer.status


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Served]:
    """An exporter that has less patience."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    with served(tmp_path / "data") as running:
        yield running


@pytest.mark.parametrize(
    "said", [b"", REQUEST[:-2], b"GET", REQUEST + REQUEST[:20]], ids=["nothing", "half", "method", "one and a half"]
)
def test_a_connection_without_a_whole_request_is_closed(hurried: Served, said: bytes) -> None:
    with dial(hurried) as silent:
        silent.sendall(said)
        if REQUEST in said:
            assert answered(silent) == 200
            silent.sendall(b"1")  # GET /-/ready HTTP/1.1
        assert silent.recv(1) == b""


def test_a_request_that_comes_byte_by_byte_gets_no_more_time(hurried: Served) -> None:
    """Bytes that arrive do not extend the timeout."""
    with dial(hurried) as slow, contextlib.suppress(ConnectionError):
        slow.settimeout(0.05)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            slow.sendall(b"G")
            with contextlib.suppress(TimeoutError):
                if slow.recv(1) == b"":
                    break
        assert time.monotonic() < deadline


def test_an_unexpected_body_does_not_keep_a_connection_open(hurried: Served) -> None:
    """The answer is sent before the body has arrived."""
    with dial(hurried) as slow, contextlib.suppress(ConnectionError):
        slow.sendall(REQUEST[:-2] + b"Content-Length: 1000000\r\n\r\n")
        assert answered(slow) == 200
        slow.sendall(b"x")
        assert slow.recv(1) == b""


def test_a_running_request_has_no_timeout(site: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle keep-alive connection, a slow report body and a stream outlive the timeout."""
    # Longer than any of them takes to ask, on however busy a machine.
    monkeypatch.setattr(connections, "HEAD_SECONDS", 2.0)
    monkeypatch.setattr(reports, "BODY_SECONDS", 30.0)
    site.send(Job().report())
    with contextlib.ExitStack() as stack:
        idle = stack.enter_context(dial(site))
        idle.sendall(REQUEST)
        assert answered(idle) == 200
        streaming = stack.enter_context(dial(site))
        streaming.sendall(b"GET /v1/stream?run=lm HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" in streaming.recv(20)
        reporting = stack.enter_context(dial(site))
        reporting.sendall(b"POST /v1/reports HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        reporting.sendall(b"Content-Length: 2\r\n\r\n{")
        silent = stack.enter_context(dial(site))
        assert silent.recv(1) == b"", "as long as any of them has been let be"
        idle.sendall(REQUEST)
        assert answered(idle) == 200
        reporting.sendall(b"}")
        assert answered(reporting) == 422
        site.send(Job(seq=1).report())
        while b"event: report" not in streaming.recv(65_536):
            pass


def test_too_few_open_files_are_one_line_that_names_the_number(tmp_path: Path) -> None:
    """The hard limit, which the exporter cannot raise: it does not start, at 80 it does."""

    def limited(files: int) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "optwrap_exporter",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            str(tmp_path / "d"),
        ]
        return subprocess.Popen(
            ["sh", "-c", f'ulimit -n {files} && exec "$@"', "sh", *command], stderr=subprocess.PIPE, text=True
        )

    with limited(FEWEST_FILES - 1) as refused:
        assert refused.stderr is not None
        (line,) = refused.stderr.read().splitlines()
    assert refused.returncode == 2
    assert line.startswith("optwrap-exporter: this process may open 79 files (ulimit -n); allowed: at least 80, and")
    with limited(FEWEST_FILES) as started:
        assert started.stderr is not None
        try:
            line = started.stderr.readline()
            assert "listening on" in line
            url = line.split("listening on ")[1].split(",")[0]
            port = int(url.rpartition(":")[2])
            with contextlib.ExitStack() as stack:
                held = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(12)]
                for connection in held:
                    connection.sendall(REQUEST)
                assert [answered(connection) for connection in held] == [200] * 12
        finally:
            started.terminate()


def test_the_exporter_raises_the_limit_of_open_files(
    start_exporter: Callable[..., RunningExporter],
) -> None:
    """A large job has more processes than the usual limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard > 1000
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        exporter = start_exporter()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    port = int(exporter.url.rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30)) for _ in range(250)]
        for connection in held:
            connection.sendall(REQUEST)
        assert [answered(connection) for connection in held] == [200] * 250
