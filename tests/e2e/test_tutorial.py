"""The tutorial's program does what the tutorial says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx

from tests.conftest import RunningExporter
from tests.e2e.environments import REPOSITORY

(PROGRAM,) = re.findall(
    r"^```python\n(.*?)^```$", (REPOSITORY / "docs" / "tutorials" / "first-run.md").read_text(), re.M | re.S
)


def train(program: str, exporter: RunningExporter, tmp_path: Path) -> str:
    """What the program prints."""
    script = tmp_path / "train.py"
    script.write_text(program.replace("time.sleep(0.02)", "time.sleep(0)"))
    ran = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "OPTWRAP_ENDPOINT": exporter.url, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_three_broken_batches_do_no_harm_and_are_seen(exporter: RunningExporter, tmp_path: Path) -> None:
    assert train(PROGRAM, exporter, tmp_path) == "slope 3.0, offset 1.0\n"
    run = httpx.get(f"{exporter.url}/v1/runs/first-run").json()
    assert run["health"] == "finished"
    assert run["totals"]["steps"] == 200
    assert run["totals"]["not_finite_steps"] == 3
    assert run["gauges"]["not_finite_streak_peak"] == 3
    parameters = {item["parameter"]: item["first_step"] for item in run["parameters"]}
    assert parameters == {"slope": 100, "offset": 100}


def test_with_a_limit_of_two_the_third_gets_through(exporter: RunningExporter, tmp_path: Path) -> None:
    broken = PROGRAM.replace("max_consecutive_errors=5", "max_consecutive_errors=2").replace("first-run", "first-run-2")
    assert train(broken, exporter, tmp_path) == "slope nan, offset nan\n"
    events = httpx.get(f"{exporter.url}/v1/runs/first-run-2/events", params={"kind": "accepted_not_finite"}).json()
    assert events["items"][-1]["step"] == 102
