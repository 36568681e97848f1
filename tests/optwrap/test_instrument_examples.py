"""The examples run with and without an exporter, and report what they did."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

REPOSITORY = Path(__file__).parents[2]


def run(example: str, endpoint: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{example}"],
        cwd=REPOSITORY,
        env={**os.environ, "OPTWRAP_ENDPOINT": endpoint, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


EXPECTED = {
    "reading_returned": ("reading-returned", "of which 3 were skipped", {"applied": 297, "skipped_not_finite": 3}),
    "host_callback": (
        "host-callback",
        "148 steps of the optimizer",
        {"accumulated": 149, "applied": 148, "skipped_not_finite": 3},
    ),
}


@pytest.mark.thin(3)
@pytest.mark.parametrize("example", EXPECTED)
def test_an_example_trains_without_an_exporter(example: str, tmp_path: Path) -> None:
    assert EXPECTED[example][1] in run(example, f"unix://{tmp_path}/nobody")


@pytest.mark.parametrize("example", EXPECTED)
def test_an_example_reports_what_it_did(example: str, start_exporter: Callable[..., Any]) -> None:
    exporter = start_exporter()
    name, says, expected = EXPECTED[example]
    assert says in run(example, exporter.url)
    answer = httpx.get(f"{exporter.url}/v1/runs/{name}", trust_env=False).json()
    assert {outcome: n for outcome, n in answer["totals"]["outcomes"].items() if n} == expected
    assert [row["steps"] for row in answer["parameters"]] == [3, 3, 3]
    assert {row["parameter"] for row in answer["parameters"]} == {"hidden/b", "hidden/w", "out/w"}


def test_weighted_epochs_end_with_a_step_each(start_exporter: Callable[..., Any]) -> None:
    """Windows of 4, 4 and 2 are three steps an epoch; the flushed one is no call of update."""
    exporter = start_exporter()
    printed = run("weighted_epochs", exporter.url)
    assert "6 epochs of 10 batches, 18 steps of the optimizer; loss 0." in printed
    answer = httpx.get(f"{exporter.url}/v1/runs/weighted-epochs", trust_env=False).json()
    assert {outcome: n for outcome, n in answer["totals"]["outcomes"].items() if n} == {
        "accumulated": 48,
        "applied": 12,
    }
    assert answer["health"] == "finished"
