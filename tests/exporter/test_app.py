"""A whole exporter in its own process: its sockets, a crash and a restart."""

import json
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import RunningExporter
from tests.exporter.running import Job

Start = Callable[..., RunningExporter]


def over(path: Path) -> httpx.Client:
    """A client of the ingest socket."""
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://any.name")


def get(exporter: RunningExporter, path: str) -> Any:
    answer = httpx.get(f"{exporter.url}{path}", trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_socket_accepts_reports_when_tcp_does_not(start_exporter: Start, tmp_path: Path) -> None:
    path = tmp_path / "run" / "ingest.sock"
    exporter = start_exporter("--ingest-socket", str(path), listen="0.0.0.0:0")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "no reports over TCP" in exporter.log
    report = Job().report("starting")
    refused = httpx.post(f"{exporter.url}/v1/reports", json=report, trust_env=False)
    assert refused.status_code == 401
    assert get(exporter, "/v1/runs")["items"] == []
    with over(path) as client:
        assert client.post("/v1/reports", json=report).json() == {"acknowledged": 1, "interval": 1.0}
    assert [run["run"] for run in get(exporter, "/v1/runs")["items"]] == ["lm"]
    assert exporter.stop() == 0
    assert not path.exists()


def test_loopback_needs_no_token_where_another_address_does(start_exporter: Start, tmp_path: Path) -> None:
    """The address that a client connects to decides, not the client's own address."""
    (tmp_path / "token").write_text("hush\n")
    exporter = start_exporter("--listen", ":0", "--token-file", str(tmp_path / "token"))
    urls = re.findall(r"http://[^\s,]+", exporter.log)
    assert len(set(urls)) == 2, exporter.log
    said = [httpx.post(f"{url}/v1/reports", json=Job(url[-4:]).report(), trust_env=False).status_code for url in urls]
    assert said == [200, 401]
    assert "no reports over" not in exporter.log


def test_an_address_beyond_loopback_stays_closed_without_a_token(start_exporter: Start) -> None:
    exporter = start_exporter("--listen", ":0")
    loopback, every = re.findall(r"http://[^\s,]+", exporter.log)[:2]
    assert f"no reports over {every} (beyond" in exporter.log
    said = [
        httpx.post(f"{url}/v1/reports", json=Job("lm").report(), trust_env=False).status_code
        for url in (loopback, every)
    ]
    assert said == [200, 401]


def test_the_socket_needs_no_token(start_exporter: Start, tmp_path: Path) -> None:
    path = tmp_path / "s"
    (tmp_path / "token").write_text("hush\n")
    exporter = start_exporter("--ingest-socket", str(path), "--token-file", str(tmp_path / "token"))
    job = Job()
    with over(path) as client:
        assert client.post("/v1/reports", json=job.report()).status_code == 200
    url, report = f"{exporter.url}/v1/reports", job.report()
    assert httpx.post(url, json=report, trust_env=False).status_code == 401
    headers = {"authorization": "Bearer hush"}
    assert httpx.post(url, json=report, headers=headers, trust_env=False).json()["acknowledged"] == 2
    assert "hush" not in exporter.log


def test_acknowledged_reports_survive_kill_9_and_a_restart_reuses_the_socket(
    start_exporter: Start, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    exporter = start_exporter("--ingest-socket", str(path))
    job = Job()
    sent = []
    with over(path) as client:
        for _ in range(20):
            job.step()
            sent.append(job.report())
            assert client.post("/v1/reports", json=sent[-1]).json()["acknowledged"] == len(sent)
    exporter.kill9()
    assert path.exists()
    exporter.start()
    assert get(exporter, "/v1/runs/lm")["totals"]["steps"] == 20
    with over(path) as client:
        for report in sent:
            assert client.post("/v1/reports", json=report).status_code == 200
    assert get(exporter, "/v1/runs/lm")["totals"]["steps"] == 20
    assert get(exporter, "/v1/runs/lm/steps")["columns"]["step"] == list(range(1, 21))


def test_status_answers_over_the_socket(start_exporter: Start, tmp_path: Path) -> None:
    path = tmp_path / "s"
    exporter = start_exporter("--ingest-socket", str(path))
    with over(path) as client:
        client.post("/v1/reports", json=Job().report("starting"))
    command = [sys.executable, "-m", "optwrap_exporter", "status", f"unix://{path}", "--run", "lm", "--json"]
    said = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    assert json.loads(said)["run"] == get(exporter, "/v1/runs/lm")["run"] == "lm"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80"])
def test_a_rebound_host_name_is_refused(exporter: RunningExporter, host: str) -> None:
    headers = {"host": host}
    for path in ("/", "/metrics", "/v1/runs", "/openapi.json", "/page/"):
        assert httpx.get(f"{exporter.url}{path}", headers=headers, trust_env=False).status_code == 421
    answer = httpx.post(f"{exporter.url}/v1/reports", json=Job().report(), headers=headers, trust_env=False)
    assert answer.status_code == 421
    assert get(exporter, "/v1/runs")["items"] == []


def test_no_answer_has_a_server_header(exporter: RunningExporter) -> None:
    answer = httpx.get(f"{exporter.url}/-/healthy", trust_env=False)
    assert "server" not in answer.headers
    assert "uvicorn" not in str(answer.headers)


def test_a_healthy_exporter_logs_nothing(exporter: RunningExporter) -> None:
    job = Job()
    for path in ("/", "/metrics", "/v1/runs", "/nope"):
        httpx.get(f"{exporter.url}{path}", trust_env=False)
    for _ in range(3):
        httpx.post(f"{exporter.url}/v1/reports", json=job.report(), trust_env=False)
    exporter.stop()
    assert exporter.log.count("\n") == 1
