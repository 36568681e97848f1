"""HTTP to the exporter over TCP and over a Unix socket, and what happens if a server misbehaves."""

import itertools
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from optwrap._monitor.sending.transport import Answer, HttpTransport, TransportError
from optwrap._monitor.settings import resolve
from tests.optwrap.monitoring import Reply, StubExporter

BODY = b'{"incarnation":"e","seq":1,"oldest_held":1}'


@pytest.fixture(params=["tcp", "unix"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """Path of the server's Unix socket; None for TCP."""
    return tmp_path / "ingest.sock" if request.param == "unix" else None


@pytest.fixture
def stub(path: Path | None) -> Iterator[StubExporter]:
    server = StubExporter(path)
    yield server
    server.close()


@pytest.fixture
def transport(stub: StubExporter) -> Iterator[HttpTransport]:
    made = to(stub.endpoint, connect_timeout=2.0, answer_timeout=0.5)
    yield made
    made.close()


def to(endpoint: str, token_file: str | None = None, **limits: float) -> HttpTransport:
    settings = resolve({}, run="r", endpoint=endpoint)
    assert settings is not None
    return HttpTransport(settings.endpoint, token_file, **limits)


def test_a_report_arrives_and_its_answer_comes_back(stub: StubExporter, transport: HttpTransport) -> None:
    """Path, content type and body are those of the wire; without a token there is no Authorization header."""
    assert transport.post(BODY) == Answer(200, b'{"acknowledged": 1}')
    ((path, headers, body),) = stub.requests
    assert (path, headers["Content-Type"], body) == ("/v1/reports", "application/json", BODY)
    assert "Authorization" not in headers
    assert headers["Host"].partition(":")[0] in ("127.0.0.1", "localhost")


def test_one_connection_serves_many_reports(stub: StubExporter, transport: HttpTransport) -> None:
    """A new connection every second would be a cost to every job."""
    for _ in range(5):
        transport.post(BODY)
    assert stub.connections == 1


def test_a_connection_that_was_closed_is_opened_again(stub: StubExporter, transport: HttpTransport) -> None:
    """Servers close idle connections; that is no failure."""
    transport.post(BODY)
    stub.break_connections()
    assert transport.post(BODY).status == 200
    assert stub.connections == 2


def test_a_restarted_exporter_is_reached_again(path: Path | None) -> None:
    """While it is away there is a TransportError; the next report opens a new connection."""
    first = StubExporter(path)
    transport = to(first.endpoint)
    transport.post(BODY)
    port = 0 if path else first.port
    first.close()
    if path:
        path.unlink()
    with pytest.raises(TransportError):
        transport.post(BODY)
    second = StubExporter(path, port)
    try:
        assert transport.post(BODY).status == 200
    finally:
        transport.close()
        second.close()


def test_a_server_that_does_not_answer_times_out(stub: StubExporter, transport: HttpTransport) -> None:
    """After answer_timeout, or earlier if the caller's deadline is earlier."""
    released = threading.Event()
    stub.answer = lambda *_: (released.wait(20), None)[1]
    for within in (None, 0.05):
        with pytest.raises(TransportError, match="timed out"):
            transport.post(BODY, within=within)
    released.set()


def test_a_server_that_sends_its_answer_byte_by_byte_times_out(stub: StubExporter, transport: HttpTransport) -> None:
    """The timeout is for the whole answer."""
    gone = threading.Event()

    def drip(_: bytes, connection: socket.socket) -> None:
        try:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not gone.wait(0.02):
                connection.sendall(b" ")
        except OSError:
            gone.set()

    stub.answer = drip
    with pytest.raises(TransportError, match="timed out"):
        transport.post(BODY)
    gone.set()


def test_nothing_is_sent_after_the_deadline(stub: StubExporter, transport: HttpTransport) -> None:
    with pytest.raises(TransportError, match="timed out"):
        transport.post(BODY, within=0.0)
    assert not stub.requests


@pytest.mark.parametrize(
    "reply",
    [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", b"HTTP/1.1 \xff\r\n\r\n"],
    ids=["nothing", "no HTTP", "half an answer", "no status"],
)
def test_a_truncated_or_invalid_answer_is_a_transport_error(
    stub: StubExporter, transport: HttpTransport, reply: bytes
) -> None:
    """The next report is sent over a new connection."""
    ok, first = stub.answer, itertools.count()

    def answer(body: bytes, connection: socket.socket) -> Reply | None:
        if next(first):
            return ok(body, connection)
        connection.sendall(reply)
        return None

    stub.answer = answer
    with pytest.raises(TransportError):
        transport.post(BODY)
    assert transport.post(BODY).status == 200


def test_an_endless_answer_is_not_read_to_its_end(stub: StubExporter, transport: HttpTransport) -> None:
    """It must not fill the memory of the training."""
    stub.answer = lambda *_: (200, {}, b" " * (9 * 2**20))
    with pytest.raises(TransportError, match="more than"):
        HttpTransport(transport._endpoint, answer_timeout=20.0).post(BODY)


def test_a_refused_connection_or_missing_socket_is_a_transport_error(path: Path | None) -> None:
    stub = StubExporter(path)
    endpoint = stub.endpoint
    stub.close()
    if path:
        path.unlink()
    with pytest.raises(TransportError, match=r"refused|No such file"):
        to(endpoint).post(BODY)


@pytest.mark.parametrize("status", [301, 307, 400, 401, 404, 409, 413, 415, 422, 429, 500, 503])
def test_every_status_is_an_answer(stub: StubExporter, transport: HttpTransport, status: int) -> None:
    """Redirects, too: they are not followed."""
    stub.answer = lambda *_: (status, {"Location": "http://127.0.0.1:9/elsewhere", "Retry-After": "3"}, b"no")
    assert transport.post(BODY) == Answer(status, b"no", 3.0)
    assert len(stub.requests) == 1


@pytest.mark.parametrize(("header", "seconds"), [("0", 0.0), ("120", 120.0), ("-1", None), ("soon", None), ("", None)])
def test_retry_after_is_read_in_seconds(
    stub: StubExporter, transport: HttpTransport, header: str, seconds: float | None
) -> None:
    """Anything else is ignored."""
    stub.answer = lambda *_: (503, {"Retry-After": header}, b"")
    assert transport.post(BODY).retry_after == seconds


def test_no_proxy_is_taken_from_the_environment(
    stub: StubExporter, transport: HttpTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster's proxy cannot reach our loopback."""
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    assert transport.post(BODY).status == 200
    assert stub.connections == 1


def test_a_token_is_sent_and_read_again_for_every_report(stub: StubExporter, tmp_path: Path) -> None:
    """A rotated token needs no restart; while the file is missing the last token is sent."""
    file = tmp_path / "token"
    file.write_text("first\n")
    transport = to(stub.endpoint, str(file))
    transport.post(BODY)
    file.write_text("second\n")
    transport.post(BODY)
    file.unlink()
    transport.post(BODY)
    transport.close()
    sent = [headers["Authorization"] for _, headers, _ in stub.requests]
    assert sent == ["Bearer first", "Bearer second", "Bearer second"]


def test_a_path_in_the_endpoint_is_put_before_the_routes(tmp_path: Path) -> None:
    """For an exporter behind a proxy that serves other things, too."""
    del tmp_path
    stub = StubExporter()
    transport = to(f"{stub.endpoint}/optwrap/")
    transport.post(BODY)
    transport.close()
    stub.close()
    assert stub.requests[0][0] == "/optwrap/v1/reports"


def test_abandoning_a_connection_does_not_close_that_of_the_parent(stub: StubExporter) -> None:
    """A forked child closes its own copy of the descriptor."""
    transport = to(stub.endpoint)
    transport.post(BODY)
    connection = transport._connection
    assert connection is not None
    parents = socket.socket(fileno=socket.dup(connection.opened.fileno()))
    transport.abandon()
    parents.sendall(b"POST /v1/reports HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY))
    parents.settimeout(20)
    assert parents.recv(1024).startswith(b"HTTP/1.1 200")
    parents.close()
    assert transport.post(BODY).status == 200
    transport.close()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            b'{"detail": [{"field": "run", "value": "a b", "allowed": "a name"}, '
            b'{"field": "seq", "value": 0, "allowed": "from 1"}]}',
            "422 run: got a b, allowed: a name; seq: got 0, allowed: from 1",
        ),
        (b"<html>\n<p>no</p>", "422 <html> <p>no</p>"),
        (b'{"detail": "no"}', '422 {"detail": "no"}'),
        (b"[1]", "422 [1]"),
        (b"\xff\xfe", "422 \ufffd\ufffd"),
        (b"", "422"),
    ],
    ids=["details", "html", "text", "list", "no text", "nothing"],
)
def test_the_message_of_an_answer_is_one_line(body: bytes, message: str) -> None:
    """For JSON details, other text and invalid bytes."""
    assert Answer(422, body).message == message


def test_close_may_be_called_at_any_time(stub: StubExporter, transport: HttpTransport) -> None:
    """Twice, and before anything was sent; the next report opens a new connection."""
    for end in (transport.close, transport.close, transport.abandon):
        end()
        assert transport.post(BODY).status == 200
        end()
        end()
    assert stub.connections == 3


def test_the_connect_timeout_holds_if_nobody_accepts() -> None:
    """A listener with a full queue neither accepts nor refuses a connection."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(8)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        assert select.select([], waiting, [], 20)[1], "none is connected, so the queue is not full"
        with pytest.raises(TransportError, match="timed out"):
            to(f"http://127.0.0.1:{full.getsockname()[1]}", connect_timeout=0.2, answer_timeout=0.2).post(BODY)
        for each in waiting:
            each.close()
