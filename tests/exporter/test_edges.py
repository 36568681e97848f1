"""HTTP from hostile clients: ambiguous requests, too many connections and streams, and what is logged of them."""

import contextlib
import http.client
import logging
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from optwrap_exporter.http import hub
from optwrap_exporter.http.serving.connections import (
    BACKLOG,
    FEWEST_CONNECTIONS,
    MOST_CONNECTIONS,
    RESERVED_FILES,
    Connections,
    connection_limit,
)
from optwrap_exporter.http.serving.log_limit import SECONDS, LogLimit

from tests.conftest import RunningExporter
from tests.exporter.running import Job, Served
from tests.exporter.test_connections import REQUEST, answered
from tests.polling import wait_until

POST = b"POST /v1/reports HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HIDDEN = b"DELETE /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
"""A second request, which a proxy before the exporter may have taken for the body of the first."""
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"

AMBIGUOUS: dict[str, bytes] = {
    "a length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
    "the same length twice": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "a list of lengths": POST + b"Content-Length: 2, 2\r\n\r\n{}",
    "a signed length": POST + b"Content-Length: +2\r\n\r\n{}",
    "a hexadecimal length": POST + b"Content-Length: 0x2\r\n\r\n{}",
    "an empty length": POST + b"Content-Length: \r\n\r\n{}",
    "an enormous length": POST + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    "another coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks inside another coding": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a coding after a control character": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded header": POST + b"X-A: b\r\n c\r\nContent-Length: 2\r\n\r\n{}",
    "a folded length": POST + b"Content-Length:\r\n 2\r\n\r\n{}",
    "lines that end in LF": (POST + b"Content-Length: 2\r\n\r\n").replace(b"\r\n", b"\n") + b"{}",
    "one line that ends in LF": POST + b"X: y\nContent-Length: 2\r\n\r\n{}",
    "one line that ends in CR": POST + b"X: y\rContent-Length: 2\r\n\r\n{}",
    "a null character": POST + b"X: y\0z\r\nContent-Length: 2\r\n\r\n{}",
    "chunks that end in LF": CHUNKED + b"\r\n2\n{}\n0\n\n",
    "a chunk's size that is none": CHUNKED + b"\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a chunk's size that overflows": CHUNKED + b"\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    "a negative chunk": CHUNKED + b"\r\n-2\r\n{}\r\n0\r\n\r\n",
    "a chunk without its end": CHUNKED + b"\r\n2\r\n{}X0\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no HTTP": bytes(range(256)),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a tunnel": b"CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


def dial(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def everything(connection: socket.socket) -> bytes:
    """All that the server sends until it closes the connection."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            found += part
    return found


@pytest.mark.parametrize("request_", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_an_ambiguous_request_is_refused_and_its_connection_closed(shared: Served, request_: bytes) -> None:
    """What follows it is never taken for a request."""
    with dial(shared.url) as connection:
        connection.sendall(request_ + HIDDEN)
        said = everything(connection)
    assert said.startswith(b"HTTP/1.1 400 ")
    assert said.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("hosts", [["localhost", "evil.example"], ["evil.example", "localhost"], []])
def test_two_host_headers_or_none_are_refused(shared: Served, hosts: list[str]) -> None:
    """A proxy may have looked at the other one."""
    head = "".join(f"Host: {host}\r\n" for host in hosts)
    with dial(shared.url) as connection:
        connection.sendall(f"GET /-/ready HTTP/1.1\r\n{head}\r\n".encode())
        assert answered(connection) == 421


def test_a_body_that_is_all_around_it_is_cut_off(shared: Served) -> None:
    """Extensions of chunks have no end, and no limit of their own."""
    with dial(shared.url) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(CHUNKED + b"\r\n")
        for _ in range(1000):
            connection.sendall(b"1;" + b"x" * 60_000 + b"\r\n \r\n")
        pytest.fail("60 MB of chunk extensions were read")
    assert shared.client.get("/-/ready").status_code == 200


def test_what_is_no_http_is_logged_once_a_minute(exporter: RunningExporter) -> None:
    """However often it comes, and whatever it is."""
    for request_ in [*AMBIGUOUS.values()] * 10:
        with dial(exporter.url) as connection:
            connection.sendall(request_ + HIDDEN)
            assert everything(connection).startswith(b"HTTP/1.1 400 ")
    for _ in range(50):
        httpx.get(f"{exporter.url}/-/ready", headers={"connection": "upgrade", "upgrade": "websocket"})
    lines = exporter.log.splitlines()
    assert 2 <= len(lines) <= 5, lines


def test_a_log_limit_counts_what_it_leaves_out() -> None:
    """By message before formatting; other loggers are not limited."""
    now = [0.0]
    limit = LogLimit(("server",), clock=lambda: now[0])

    def logged(name: str, message: str, *args: object) -> str | None:
        record = logging.LogRecord(name, logging.WARNING, "", 0, message, args, None)
        return record.getMessage() if limit.filter(record) else None

    assert logged("server", "from %s", "a") == "from a"
    assert logged("server", "from %s", "b") is None
    assert logged("server", "to %s", "b") == "to b"
    assert [logged("other", "again") for _ in range(3)] == ["again"] * 3
    now[0] = SECONDS - 0.1
    assert logged("server", "from %s", "c") is None
    now[0] = SECONDS
    assert logged("server", "from %s", "d%") == "from d% (2 more of these were not logged)"
    assert logged("server", "from %s", "e") is None


def test_a_log_limit_keeps_few_kinds() -> None:
    limit = LogLimit(("server",))
    for n in range(10_000):
        limit.filter(logging.LogRecord("server", logging.WARNING, "", 0, f"{n}", (), None))
    assert len(limit._seen) <= 256


class Line:
    """A connection for Connections."""

    dropped = False

    def drop(self) -> None:
        self.dropped = True


def test_beyond_the_limit_the_longest_idle_connection_is_dropped() -> None:
    """A busy one never is, and one that has just been used comes last."""
    connections = Connections(3)
    first, second, third, fourth, fifth = lines = [Line() for _ in range(5)]
    assert all(connections.opened(line) for line in (first, second, third))
    connections.became_busy(first)
    connections.became_busy(second)
    connections.became_idle(second)
    assert connections.opened(fourth)
    assert [line.dropped for line in lines] == [False, False, True, False, False]
    connections.closed(third)
    connections.became_idle(first)
    assert connections.opened(fifth)
    assert [line.dropped for line in lines] == [False, True, True, False, False]
    assert len(connections) == 3


def test_if_every_connection_is_busy_there_is_no_room() -> None:
    """Until one of them is idle, or gone."""
    connections = Connections(2)
    lines = [Line() for _ in range(4)]
    for line in lines[:2]:
        assert connections.opened(line)
        connections.became_busy(line)
    assert not connections.opened(lines[2])
    connections.closed(lines[2])
    connections.closed(lines[0])
    assert connections.opened(lines[3])
    assert not any(line.dropped for line in lines)


@pytest.mark.parametrize(
    ("files", "most"),
    [
        (None, MOST_CONNECTIONS),
        (65_536, MOST_CONNECTIONS),
        (1024, 1024 - RESERVED_FILES - BACKLOG),
        (64, FEWEST_CONNECTIONS),
    ],
)
def test_the_limit_of_connections_leaves_files_for_the_rest(files: int | None, most: int) -> None:
    assert connection_limit(files) == most


def test_idle_connections_do_not_keep_a_client_out(start_exporter: Callable[..., RunningExporter]) -> None:
    """1,200 of them with 1,024 files: a report gets through at any time, and the log stays short."""
    exporter = start_exporter(files=1024)
    report = Job(run="through")
    with contextlib.ExitStack() as stack, httpx.Client(trust_env=False) as kept:
        for n in range(1200):
            idle = stack.enter_context(dial(exporter.url))
            if n % 3 == 0:
                idle.sendall(REQUEST[:20])
            if n % 100 == 0:
                report.step()
                answer = kept.post(f"{exporter.url}/v1/reports", json=report.report())
                assert answer.status_code == 200
                assert httpx.get(f"{exporter.url}/metrics").status_code == 200
        assert httpx.get(f"{exporter.url}/metrics").status_code == 200  # connections are taken in order, so all were
    assert "Traceback" not in exporter.log
    assert len(exporter.log) < 2000


def test_busy_connections_make_others_wait(start_exporter: Callable[..., RunningExporter]) -> None:
    """They are answered with 503, and get through once the busy ones are cut off: after 5 s without a body."""
    exporter = start_exporter(files=RESERVED_FILES + BACKLOG + FEWEST_CONNECTIONS)
    with contextlib.ExitStack() as stack:
        for _ in range(FEWEST_CONNECTIONS):
            busy = stack.enter_context(dial(exporter.url))
            busy.sendall(POST + b"Content-Length: 10\r\nExpect: 100-continue\r\n\r\n")
            assert busy.recv(100).startswith(b"HTTP/1.1 100")  # the exporter waits for the body
        with dial(exporter.url) as turned_away:
            answer = http.client.HTTPResponse(turned_away)
            answer.begin()
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
            assert b'"detail"' in answer.read()

        def gets_through() -> bool:
            with dial(exporter.url) as patient, contextlib.suppress(ConnectionError, http.client.HTTPException):
                patient.sendall(REQUEST)
                return answered(patient) == 200
            return False

        wait_until(gets_through, pause=0.2)


def test_one_address_cannot_take_all_streams(start_exporter: Callable[..., RunningExporter], tmp_path: Path) -> None:
    """Others, here over the Unix socket, still get theirs; and it can take no more than its share either."""
    path = tmp_path / "ingest.sock"
    exporter = start_exporter("--ingest-socket", str(path))
    ask = b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n"

    def over_socket() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(30)
        connection.connect(str(path))
        return connection

    for one in (lambda: dial(exporter.url), over_socket):
        with contextlib.ExitStack() as stack:
            statuses = []
            for _ in range(hub.MOST_STREAMS_OF_PEER + 1):
                connection = stack.enter_context(one())
                connection.sendall(ask)
                statuses.append(connection.recv(65_536)[9:12])
            assert statuses == [b"200"] * hub.MOST_STREAMS_OF_PEER + [b"503"]
            with dial(exporter.url) if one is over_socket else over_socket() as other:
                other.sendall(ask)
                assert other.recv(65_536)[9:12] == b"200"
