"""Reports over https: the server's certificate is checked, and the limits are those of plain TCP."""

import dataclasses
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from optwrap._monitor.monitor import Monitor
from optwrap._monitor.sending.transport import HttpTransport, TransportError
from optwrap._monitor.settings import resolve
from optwrap._monitor.thread import Parts
from optwrap.replay import Client
from tests.certificates import Certificate, certificate
from tests.optwrap.monitoring import Reply, StubExporter, log_lines

pytestmark = pytest.mark.programs("openssl")
BODY = b'{"incarnation":"e","seq":1,"oldest_held":1}'


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("own") / "made", "IP:127.0.0.1")


@pytest.fixture
def stub(own: Certificate) -> Iterator[StubExporter]:
    server = StubExporter(tls=own.context)
    yield server
    server.close()


@pytest.fixture
def transport(stub: StubExporter, own: Certificate) -> Iterator[HttpTransport]:
    made = to(stub, own.file)
    yield made
    made.close()


def to(stub: StubExporter, ca_file: Path | None, answer_timeout: float = 5.0) -> HttpTransport:
    settings = resolve({}, run="r", endpoint=stub.endpoint, ca_file=ca_file)
    assert settings is not None
    return HttpTransport(settings.endpoint, connect_timeout=5.0, answer_timeout=answer_timeout)


def test_reports_share_one_connection(stub: StubExporter, transport: HttpTransport) -> None:
    for _ in range(3):
        assert transport.post(BODY).status == 200
    assert stub.connections == 1
    assert {body for _, _, body in stub.requests} == {BODY}


def test_a_large_report_arrives_whole(stub: StubExporter, transport: HttpTransport) -> None:
    body = BODY[:-1] + b',"x":"' + b"y" * 3_000_000 + b'"}'
    assert transport.post(body).status == 200
    assert [len(sent) for _, _, sent in stub.requests] == [len(body)]


def test_a_connection_that_was_closed_is_opened_again(stub: StubExporter, transport: HttpTransport) -> None:
    transport.post(BODY)
    stub.break_connections()
    assert transport.post(BODY).status == 200
    assert stub.connections == 2


def test_a_certificate_that_nobody_vouches_for_is_refused(stub: StubExporter) -> None:
    with pytest.raises(TransportError, match="certificate verify failed"):
        to(stub, None).post(BODY)
    assert stub.requests == []


def test_a_certificate_of_another_host_is_refused(tmp_path: Path) -> None:
    other = certificate(tmp_path / "other", "IP:192.0.2.1,DNS:exporter.example")
    stub = StubExporter(tls=other.context)
    with pytest.raises(TransportError, match="IP address mismatch"):
        to(stub, other.file).post(BODY)
    assert stub.requests == []
    stub.close()


def test_a_server_without_tls_gets_nothing(own: Certificate) -> None:
    stub = StubExporter()
    secure = resolve({}, run="r", endpoint=stub.endpoint.replace("http:", "https:"), ca_file=own.file)
    assert secure is not None
    with pytest.raises(TransportError):
        HttpTransport(secure.endpoint).post(BODY)
    assert stub.requests == []
    stub.close()


@pytest.mark.parametrize("drip", [False, True], ids=["no answer", "an answer byte by byte"])
def test_the_deadline_holds_and_meanwhile_is_called(stub: StubExporter, own: Certificate, drip: bool) -> None:
    calls: list[None] = []

    def slow(_: bytes, connection: object) -> Reply | None:
        for byte in b"HTTP/1.1 200 OK\r\n" * 4:
            if drip:
                connection.sendall(bytes([byte]))  # type: ignore[attr-defined]
            time.sleep(0.02)
        return None

    stub.answer = slow
    with pytest.raises(TransportError, match="timed out"):
        to(stub, own.file, answer_timeout=0.3).post(BODY, meanwhile=lambda: calls.append(None))
    assert calls or drip


def test_a_missing_ca_file_is_one_line_in_the_log_and_may_come_later(
    stub: StubExporter, own: Certificate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "ca.pem"
    with Monitor("r", stub.endpoint, 0, interval=0.05, _parts=Parts(environ={"OPTWRAP_CA_FILE": str(file)})) as monitor:
        assert not monitor.flush(0.3)
        (line,) = log_lines(caplog)
        assert f"cannot read the CA file {file}: No such file" in line
        file.write_bytes(own.file.read_bytes())
        assert monitor.flush(30)
    assert stub.requests


def test_replay_reads_over_https(stub: StubExporter, own: Certificate) -> None:
    settings = resolve({}, run="r", endpoint=stub.endpoint, ca_file=own.file)
    assert settings is not None
    assert Client(settings.endpoint, None, "r", 0)._get("/")[0] == 501, "the stub has no GET"
    with pytest.raises(ssl.SSLError):
        Client(dataclasses.replace(settings.endpoint, ca_file=None), None, "r", 0)._get("/")


def test_serve_starts_no_exporter_at_an_https_endpoint(
    stub: StubExporter, caplog: pytest.LogCaptureFixture, own: Certificate
) -> None:
    """The exporter itself has no TLS."""
    with Monitor("r", stub.endpoint, 0, serve=True, ca_file=own.file, _parts=Parts(environ={})):
        assert "started no exporter" in log_lines(caplog)[0]
