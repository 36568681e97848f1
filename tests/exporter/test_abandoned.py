"""A query whose client hangs up is interrupted, so that it keeps no other query from its turn."""

import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from optwrap_exporter.http.query.limiter import AT_ONCE
from optwrap_exporter.store import queries

from tests.exporter.running import Job, Served
from tests.polling import wait_until

ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


@pytest.fixture
def endless(site: Served, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Queries of steps that never end by themselves. Returns how many run."""
    site.send(Job().report())
    running: list[int] = []
    lock = threading.Lock()
    whole = queries.steps

    def steps(db: Any, *args: Any, points: int, **given: Any) -> Any:
        if points != 1234:
            return whole(db, *args, points=points, **given)
        with lock:
            running.append(1)
        try:
            return db.execute(ENDLESS).fetchone()
        finally:
            with lock:
                running.pop()

    monkeypatch.setattr(queries, "steps", steps)
    return lambda: len(running)


def asking(site: Served, path: str) -> socket.socket:
    """The connection of a client that has sent a GET."""
    host, port = site.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return connection


def test_a_running_query_ends_when_its_client_hangs_up(site: Served, endless: Callable[[], int]) -> None:
    """All turns are taken by such queries: without an end no other query would ever be answered."""
    clients = [asking(site, "/v1/runs/lm/steps?points=1234") for _ in range(AT_ONCE)]
    wait_until(lambda: endless() == AT_ONCE)
    for client in clients:
        client.close()
    wait_until(lambda: endless() == 0)
    assert site.get("/v1/runs/lm/steps")["total"] == 0
    assert site.get("/-/healthy") is not None, "the store is not ill because of it"


def test_a_query_whose_client_waits_is_not_interrupted(site: Served, endless: Callable[[], int]) -> None:
    client, other = (asking(site, "/v1/runs/lm/steps?points=1234") for _ in range(2))
    wait_until(lambda: endless() == 2)
    other.close()
    wait_until(lambda: endless() == 1)
    assert site.get("/v1/runs/lm/steps")["total"] == 0
    assert endless() == 1
    client.close()
    wait_until(lambda: endless() == 0)
