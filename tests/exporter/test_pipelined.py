"""Requests that are sent without waiting for answers take bounded memory, and none is answered for another."""

import contextlib
import socket
from pathlib import Path
from urllib.parse import urlsplit

from optwrap_exporter.http.serving.connection_timeout import MOST_PIPELINED

from tests.exporter.fuzz.victim import victim

GET = b"GET /v1/runs HTTP/1.1\r\nHost: localhost\r\n\r\n"
MOST_BYTES = 30 << 20
"""Without a limit 40 connections with 6,000 requests each take some 400 MB."""


def dial(url: str) -> socket.socket:
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    return socket.create_connection((address.hostname, address.port), timeout=10)


def answers(connection: socket.socket, most: int) -> tuple[int, bool]:
    """How many answers of 200 came, up to `most`, and whether the connection was closed before."""
    received = b""
    while received.count(b"HTTP/1.1 200") < most:
        try:
            part = connection.recv(1 << 16)
        except ConnectionError:
            part = b""
        if not part:
            return received.count(b"HTTP/1.1 200"), True
        received += part
    return most, False


def test_a_flood_of_pipelined_requests_is_cut_off(tmp_path: Path) -> None:
    """A few are answered in order, on a connection that stays; many close it."""
    with victim(tmp_path / "data") as target:
        with dial(target.exporter.url) as few:
            few.sendall(GET * MOST_PIPELINED)
            assert answers(few, MOST_PIPELINED) == (MOST_PIPELINED, False)
        before = target.memory("VmRSS")
        many = [dial(target.exporter.url) for _ in range(40)]
        for connection in many:
            connection.settimeout(1)
            with contextlib.suppress(OSError):  # it is closed, or no longer read
                connection.sendall(GET * 6000)
        for connection in many:
            with connection:
                connection.settimeout(10)
                number, closed = answers(connection, MOST_PIPELINED + 2)
                assert closed, f"{number} answers"
        assert target.client.get("/-/healthy").status_code == 200
        assert target.memory("VmHWM") - before < MOST_BYTES
