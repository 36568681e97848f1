"""The commands that ask an exporter can reach it through a proxy with TLS."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from optwrap_exporter.cli import main as cli

from tests.certificates import Certificate, certificate
from tests.exporter.running import Job, Served

pytestmark = pytest.mark.programs("openssl")


@pytest.fixture
def own(tmp_path: Path) -> Certificate:
    return certificate(tmp_path / "made", "IP:127.0.0.1")


@pytest.fixture
def url(site: Served, own: Certificate) -> Iterator[str]:
    """Of a proxy with TLS before the exporter."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = httpx.get(site.url + self.path, trust_env=False)
            self.send_response(answer.status_code)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        server.socket = own.context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_commands_trust_the_ca_file(
    site: Served, url: str, own: Certificate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site.send(Job("lm", clock=site.clock).report())
    assert cli.run(["status", url]) == 2
    assert "certificate verify failed" in capsys.readouterr().err
    assert cli.run(["status", url, "--ca-file", str(own.file)]) == 0
    assert "lm" in capsys.readouterr().out
    monkeypatch.setenv("OPTWRAP_CA_FILE", str(own.file))
    assert cli.run(["drain", url, "--timeout", "0.01"]) == 1
    assert "still reporting: lm" in capsys.readouterr().err


@pytest.mark.parametrize(("content", "why"), [(None, "No such file"), ("text", "no certificate in PEM")])
def test_a_ca_file_without_a_certificate_is_a_usage_error(
    content: str | None, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    assert cli.run(["status", "https://127.0.0.1:1", "--ca-file", str(file)]) == 2
    said = capsys.readouterr().err
    assert why in said
    assert str(file) in said
