"""Every snippet of docs/guides/cookbook.md works with a real exporter."""

import contextlib
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from optwrap_exporter.http.api_page import curl_line

from tests.conftest import RunningExporter
from tests.exporter.running import Job

COOKBOOK = (Path(__file__).parents[2] / "docs" / "guides" / "cookbook.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", COOKBOOK, re.MULTILINE | re.DOTALL)


COMMANDS = [line for text in blocks("console") for line in text.splitlines() if not line.startswith("EXPORTER=")]


@pytest.fixture
def filled(exporter: RunningExporter) -> RunningExporter:
    """The runs that the snippets name, with bad steps of a parameter and a replica."""
    now = time.time() - 60
    clock = lambda: now  # noqa: E731 - a clock is a function
    for run in ("lm-7b", "old-run"):
        job = Job(run=run, clock=clock, incarnation=f"of-{run}")
        for number in range(40):
            now += 1
            if number % 10 == 3:
                replica = {"replica": 1, "process": 0, "device": "tpu:1", "count": 1, "of": 4}
                job.step("skipped_not_finite", "NaN", replica, decoder__layer_3__mlp__w=5)
            else:
                job.step("applied", 0.5)
        answer = httpx.post(f"{exporter.url}/v1/reports", json=job.report(), trust_env=False)
        assert answer.status_code == 200, answer.text
    return exporter


def test_the_cookbook_has_snippets() -> None:
    assert len(COMMANDS) >= 12
    assert len(blocks("python")) >= 8


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_every_command_works(filled: RunningExporter) -> None:
    environment = {
        **os.environ,
        "EXPORTER": filled.url,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    for command in COMMANDS:
        line = re.sub(r"^curl ", "curl --silent --show-error --fail-with-body --noproxy '*' ", command)
        line = line.replace("optwrap-exporter ", f"{sys.executable} -m optwrap_exporter ")
        done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        if "Accept: text/csv" in command:
            assert "," in done.stdout.splitlines()[0]
            assert len(done.stdout.splitlines()) > 1, command
        elif command.startswith("curl -X"):
            assert done.stdout == ""
        elif command.startswith("curl"):
            answer = json.loads(done.stdout)
            empty = "health=" in command or "kind=failed" in command
            assert answer.get("items", answer.get("lines")) or empty, (command, answer)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_every_curl_line_of_the_api_page_works(filled: RunningExporter) -> None:
    document = httpx.get(f"{filled.url}/openapi.json", trust_env=False).json()
    lines = [
        curl_line("GET", path, operations["get"], filled.url)
        for path, operations in document["paths"].items()
        if "get" in operations and path != "/v1/stream"
    ]
    assert any("?by=outcome&bucket=1h&since=-86400" in line for line in lines)
    for line in lines:
        command = line.replace("curl ", "curl --silent --show-error --fail-with-body --noproxy '*' ", 1)
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    page = httpx.get(f"{filled.url}/docs", trust_env=False).text
    for method, path in (("POST", "/v1/reports"), ("DELETE", "/v1/runs/{run}")):
        operation = document["paths"][path][method.lower()]
        assert html.escape(curl_line(method, path, operation, filled.url)) in page


def test_every_python_snippet_works(filled: RunningExporter) -> None:
    """They are one program, in the order of the page."""
    names: dict[str, Any] = {"EXPORTER": filled.url}
    said: list[str] = []
    for text in blocks("python"):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(text, "cookbook.md", "exec"), names)
        said.append(out.getvalue())
    names["exporter"].close()
    everything = "".join(said)
    assert "lm-7b skipping" in everything or "lm-7b ok" in everything
    assert "skipped_not_finite 4 0.1" in everything
    assert re.search(r"decoder/layer_3/mlp/w \S+Z 4 4", everything)
    assert "{'lm-7b', 'old-run'}" in everything or "{'old-run', 'lm-7b'}" in everything
    assert "\n8\n" in everything
    assert "40 40" in everything
    assert "'field': 'outcomes'" in everything
