"""Admission: a report is refused before its body is read, cheaply, and its client can go on with the connection."""

import asyncio
import contextlib
import hashlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
import uvicorn
from optwrap_exporter.http.middleware import HEADERS
from optwrap_exporter.http.serving import connection_timeout
from optwrap_exporter.http.serving.connection_timeout import Connection
from optwrap_exporter.http.serving.connections import Connections
from optwrap_exporter.ingest.ingest import digest_of
from optwrap_exporter.wire.consistency import parse_report
from prometheus_client.parser import text_string_to_metric_families
from uvicorn.server import ServerState

from tests.exporter.running import Job, Served
from tests.polling import wait_until

HEAD = b"POST /v1/reports HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def dial(site: Served) -> socket.socket:
    host, port = site.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def answer(connection: socket.socket) -> tuple[http.client.HTTPResponse, bytes]:
    """One answer, read whole."""
    found = http.client.HTTPResponse(connection, method="POST")
    found.begin()
    return found, found.read()


def request(report: dict[str, Any]) -> bytes:
    body = json.dumps(report).encode()
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body


def busy(site: Served) -> int:
    """Reports that were counted as refused."""
    return sum(
        int(sample.value)
        for family in text_string_to_metric_families(site.scrape())
        for sample in family.samples
        if sample.labels.get("outcome") == "busy"
    )


@pytest.fixture
def full(site: Served) -> Iterator[Served]:
    """An exporter in which as many reports wait as may."""
    site.ingest._most = 0
    yield site
    site.ingest._most = 256


def test_a_report_is_refused_before_its_body_arrives(full: Served) -> None:
    with dial(full) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        said, body = answer(connection)
    assert said.status == 429
    assert 1 <= int(said.headers["retry-after"]) <= 5
    assert json.loads(body)["detail"][0]["field"] == "request"
    assert {name: said.headers[name] for name in HEADERS} == HEADERS
    assert said.headers["cache-control"] == "no-store"
    assert busy(full) == 1


@pytest.mark.parametrize("size", [10, 300_000, 4_000_000])
def test_the_connection_of_a_refused_report_stays_usable(full: Served, size: int) -> None:
    """The body that the client had begun to send is thrown away, however long it is."""
    with dial(full) as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % size)
        connection.sendall(b"x" * size)
        assert answer(connection)[0].status == 429
        full.ingest._most = 256
        connection.sendall(request(Job().report()))
        said, body = answer(connection)
    assert said.status == 200
    assert json.loads(body)["acknowledged"] == 1


def test_a_client_that_waits_for_100_continue_is_refused_and_its_connection_closed(full: Served) -> None:
    """It does not send its body then, so the next request would be taken for it."""
    with dial(full) as connection:
        connection.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 1000\r\n\r\n")
        said, _ = answer(connection)
        assert (said.status, said.headers["connection"]) == (429, "close")
        assert connection.recv(1) == b""


def test_a_report_after_100_continue_is_stored(site: Served) -> None:
    whole = request(Job().report())
    head, _, body = whole.partition(b"\r\n\r\n")
    with dial(site) as connection:
        connection.sendall(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert answer(connection)[0].status == 200


def test_refusals_in_a_pipeline_are_answered_in_order(full: Served) -> None:
    other = b"GET /-/ready HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with dial(full) as connection:
        connection.sendall(request(Job().report()) + request(Job().report()) + other + request(Job().report()))
        said = b""
        while said.count(b"HTTP/1.1 ") < 4:
            said += connection.recv(65_536)
    assert [part[:3] for part in said.split(b"HTTP/1.1 ")[1:]] == [b"429", b"429", b"200", b"429"]
    assert busy(full) == 3


def test_other_requests_are_served_while_reports_are_refused(full: Served) -> None:
    assert full.client.get("/v1/reports").status_code == 405
    assert full.get("/v1/runs")["items"] == []


def test_a_refused_connection_is_limited_like_any_other(full: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that never sends the rest of its body does not keep the connection."""
    monkeypatch.setattr(connection_timeout, "HEAD_SECONDS", 0.5)
    with dial(full) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n" + b"x")
        assert answer(connection)[0].status == 429
        assert connection.recv(1) == b""


class _Transport(asyncio.Transport):
    """Counts the bytes that are written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = 0

    def write(self, data: Any) -> None:
        self.written += len(data)

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass


def test_a_refusal_costs_next_to_nothing(full: Served) -> None:
    """In the connection, without the system calls; it takes about a hundredth of the bound."""
    state: dict[str, Any] = {}

    async def refuse(count: int) -> float:
        async with contextlib.AsyncExitStack() as stack:
            app = cast(Any, full_app(full))
            state.update(await stack.enter_async_context(app.router.lifespan_context(app)))
            config = uvicorn.Config(app, log_config=None)
            connection = Connection(
                config=config, server_state=ServerState(), app_state=state, connections=Connections(1)
            )
            transport = _Transport()
            connection.connection_made(transport)
            data = request(Job().report())
            began = time.process_time()
            for _ in range(count):
                connection.data_received(data)
            seconds = time.process_time() - began
            assert transport.written > 100 * count
            connection.connection_lost(None)
        return seconds / count

    assert asyncio.run(refuse(1000)) < 2e-3


def full_app(site: Served) -> object:
    """Another app over the same parts."""
    from optwrap_exporter.http.app import create_app
    from optwrap_exporter.http.hub import Hub
    from optwrap_exporter.settings import Settings, parse_address

    settings = Settings((parse_address("127.0.0.1:0"),), site.store._path.parent)
    hub = Hub(site.ingest.subscribe, site.store, site.ledger)
    return create_app(settings, store=site.store, ledger=site.ledger, ingest=site.ingest, hub=hub, clock=site.clock)


def test_a_report_whose_client_hung_up_while_it_waited_is_dropped(site: Served) -> None:
    blocked, release = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        release.wait(30)

    site.ingest._jobs.put(block)
    assert blocked.wait(30)
    with dial(site) as connection:
        connection.sendall(request(Job(run="gone").report()))
        wait_until(lambda: site.ingest.waiting)
    site.get("/v1/runs")  # the event loop has seen the end of the connection before it takes a new one
    release.set()
    site.send(Job(run="here").report())
    assert [run["run"] for run in site.get("/v1/runs")["items"]] == ["here"]


def test_the_digest_is_that_of_the_canonical_form_whatever_the_form(site: Served) -> None:
    """So a proxy that formats JSON anew makes no conflicts."""
    job = Job()
    job.step()
    report = parse_report(json.dumps(job.report()))
    canonical = report.model_dump_json().encode()
    assert digest_of(report) == hashlib.blake2b(canonical, digest_size=16).digest()
    headers = {"content-type": "application/json"}
    texts = [canonical, json.dumps(json.loads(canonical), indent=2).encode()]
    texts.append(json.dumps(dict(reversed(json.loads(canonical).items()))).encode())
    for text in texts:
        assert site.client.post("/v1/reports", content=text, headers=headers).status_code == 200
    assert site.store.revision() == 1
