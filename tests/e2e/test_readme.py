"""Every code block in the README is run, as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.conftest import RunningExporter

REPOSITORY = Path(__file__).parents[2]


class Block(NamedTuple):
    language: str
    code: str

    @property
    def first_line(self) -> str:
        return self.code.splitlines()[0]


BLOCKS = [Block(*m) for m in re.findall(r"^```(\w*)\n(.*?)^```$", (REPOSITORY / "README.md").read_text(), re.M | re.S)]
COMMANDS = [line for block in BLOCKS if block.language == "console" for line in block.code.splitlines()]


def test_every_block_is_python_or_a_command_that_a_test_here_knows() -> None:
    assert {block.language for block in BLOCKS} == {"python", "console"}
    assert COMMANDS == [
        "make demo",
        "python3 -m venv ~/optwrap-env && . ~/optwrap-env/bin/activate",
        "pip install . ./service",
        "optwrap-exporter --data-dir ./optwrap-data",
        "optwrap-exporter status http://127.0.0.1:10425",
        "curl -s http://127.0.0.1:10425/metrics",
        "curl -s http://127.0.0.1:10425/v1/runs/my-run",
    ]


def shell(command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a newcomer's shell would, with this environment's programs first on the path."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # Not what `make test ARGS=...` hands to a make inside it: its arguments, nor its level, at which a make announces
    # its directories on stdout, after the demo's last line.
    # PIP_BUILD_CONSTRAINT, which the Makefile sets, does not go with a build without isolation.
    outer = ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS", "PIP_BUILD_CONSTRAINT")
    inherited = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(
        command,
        shell=True,
        cwd=cwd,
        env=inherited | {"PATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_the_python_block_without_a_monitor_leaves_out_one_window_of_three(tmp_path: Path) -> None:
    (block,) = (b for b in BLOCKS if b.language == "python" and "Monitor(" not in b.code)
    script = tmp_path / "train.py"
    script.write_text(block.code)
    ran = shell(f"{sys.executable} {script}", tmp_path)
    assert (ran.returncode, ran.stdout) == (0, "3 windows, skipped: 1\n"), ran.stderr


@pytest.mark.parametrize(
    ("run", "expected"),
    [("my-run", {"applied": 99, "skipped_not_finite": 1}), ("my-other-run", {"applied": 24, "skipped_not_finite": 1})],
)
def test_the_python_blocks_report_what_they_did(
    run: str, expected: dict[str, int], exporter: RunningExporter, tmp_path: Path
) -> None:
    (block,) = (b for b in BLOCKS if b.language == "python" and f'run="{run}"' in b.code)
    script = tmp_path / "train.py"
    script.write_text(block.code)
    ran = shell(f"{sys.executable} {script}", tmp_path, OPTWRAP_ENDPOINT=exporter.url)
    assert ran.returncode == 0, ran.stderr
    answer = httpx.get(f"{exporter.url}/v1/runs/{run}").json()
    assert answer["health"] == "finished"
    assert answer["totals"]["steps"] == 100
    outcomes = answer["totals"]["outcomes"]
    assert {k: outcomes[k] for k in expected} == expected
    assert [p["parameter"] for p in answer["parameters"]] == ["w"]
    # The commands that ask, asked of this exporter.
    for command in COMMANDS[4:]:
        asked = shell(command.replace("http://127.0.0.1:10425", exporter.url), tmp_path)
        assert run in asked.stdout or run not in command, asked


def guide(run: str) -> str:
    """The example of docs/guides/monitor.md that reports this run."""
    text = (REPOSITORY / "docs" / "guides" / "monitor.md").read_text()
    code: str
    (code,) = (code for code in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) if run in code)
    return str(code)


def test_the_example_of_the_loss_reports_it_with_each_step(exporter: RunningExporter, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(guide("with-a-loss"))
    ran = shell(f"{sys.executable} {script}", tmp_path, OPTWRAP_ENDPOINT=exporter.url)
    assert ran.returncode == 0, ran.stderr
    columns = httpx.get(f"{exporter.url}/v1/runs/with-a-loss/steps").json()["columns"]
    assert columns["step"] == list(range(1, 101))
    loss = columns["scalars"]["loss"]
    assert loss[0] == 9.0
    assert loss[-1] < loss[0]
    assert columns["scalars"]["learning_rate"][:1] == [0.01]
    assert all(norm > 0 for norm in columns["update_norm"])


def test_the_example_of_the_replicas_names_the_one_that_brought_it(exporter: RunningExporter, tmp_path: Path) -> None:
    code = guide("eight-replicas")
    script = tmp_path / "train.py"
    script.write_text(code)
    ran = shell(f"{sys.executable} {script}", tmp_path, OPTWRAP_ENDPOINT=exporter.url)
    assert ran.returncode == 0, ran.stderr
    run = f"{exporter.url}/v1/runs/eight-replicas"
    (event,) = httpx.get(f"{run}/events?kind=skipped").json()["items"]
    named = {"replica": 5, "process": 0, "device": "cpu:5"}
    assert (event["step"], event["detail"]["replica"]) == (11, {**named, "count": 1, "of": 8})
    assert httpx.get(run).json()["replicas"] == [{**named, "steps": 1, "first_step": 11, "last_step": 11}]


def test_the_exporters_command_starts_one(tmp_path: Path) -> None:
    """As it stands, but for the port, which somebody may have."""
    environment = {**os.environ, "OPTWRAP_EXPORTER_LISTEN": "127.0.0.1:0"}
    (command,) = (c for c in COMMANDS if c.startswith("optwrap-exporter --data-dir"))
    program, *arguments = command.split()
    process = subprocess.Popen(
        [Path(sys.executable).with_name(program), *arguments],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert "listening on http://127.0.0.1:" in said, said
        assert any((tmp_path / "optwrap-data").iterdir())
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_make_demo_sets_up_and_ends_in_json(tmp_path: Path) -> None:
    # In the environment that these tests run in, which need not be the default one.
    command = f"make demo VENV={os.path.relpath(sys.prefix, REPOSITORY)}"
    ran = shell(command, REPOSITORY, ARGS=f"--quick --listen 127.0.0.1:0 --data-dir {tmp_path}")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1].startswith('{"run":')


def test_pip_takes_both_distributions(tmp_path: Path) -> None:
    """Dependencies are left out: that they suffice is test_isolation's to show."""
    ran = shell(
        "pip install . ./service",
        REPOSITORY,
        PIP_TARGET=str(tmp_path),
        PIP_NO_DEPS="1",
        PIP_NO_BUILD_ISOLATION="0",  # pip's own spelling of "without build isolation"
        PIP_NO_INDEX="1",
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "optwrap").is_dir()
    assert (tmp_path / "optwrap_exporter" / "page" / "vendor" / "uPlot.esm.js").is_file()


def test_the_pictures_and_pages_it_links_to_are_there() -> None:
    text = (REPOSITORY / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert links
    for link in links:
        assert (REPOSITORY / link).exists(), link
