"""The whole path: a training job, its exporter, and a real Prometheus that scrapes it while faults are skipped."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.demo.settings import STOP_AFTER
from tests.conftest import RunningExporter
from tests.deploy.prometheus import Prometheus, running

pytestmark = [pytest.mark.programs("prometheus", "promtool"), pytest.mark.timeout(240)]
REPOSITORY = Path(__file__).parents[2]
PROCESS = '{run="demo",process="0"}'


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningExporter, Prometheus, dict[str, Any]]]:
    """The demo's job, watched from before its first step to after its last; and the JSON it ended in."""
    directory = tmp_path_factory.mktemp("watched")
    exporter = RunningExporter(directory / "data")
    (directory / "prometheus").mkdir()
    try:
        with running(directory / "prometheus", [exporter.url]) as prometheus:
            prometheus.wait_until('up{job="optwrap"} == 1')  # Prometheus takes up new targets every five seconds
            demo = subprocess.run(
                [sys.executable, "-m", "examples.demo", "--quick", "--no-baseline", "--endpoint", exporter.url],
                cwd=REPOSITORY,
                capture_output=True,
                text=True,
                timeout=200,
                check=False,
            )
            assert demo.returncode == 0, demo.stderr
            answer = json.loads(demo.stdout.splitlines()[-1])
            # Scraped once more after the job's last report.
            prometheus.wait_until(f"optwrap_steps_total{PROCESS} == {answer['totals']['steps']}")
            prometheus.wait_until('optwrap_process_health{run="demo",health="finished"} == 1')
            yield exporter, prometheus, answer
    finally:
        exporter.stop()


def test_counters_in_prometheus_end_equal_to_the_demos_json(
    watched: tuple[RunningExporter, Prometheus, dict[str, Any]],
) -> None:
    _, prometheus, answer = watched

    def counters(name: str, label: str) -> dict[str, float]:
        return {labels[label]: value for labels, value in prometheus.instant(f"{name}{PROCESS}")}

    totals = answer["totals"]
    assert counters("optwrap_steps_total", "run") == {"demo": totals["steps"]}
    assert counters("optwrap_gradient_steps_total", "run") == {"demo": totals["gradient_steps"]}
    assert counters("optwrap_skipped_steps_total", "reason") == totals["skipped"]
    assert counters("optwrap_not_finite_steps_total", "run") == {"demo": totals["not_finite_steps"]}
    assert counters("optwrap_accepted_not_finite_steps_total", "run") == {"demo": totals["accepted_not_finite"]}
    bad = {p["parameter"]: p["steps"] for p in answer["parameters"]}
    assert bad, "the demo's faults hit parameters"
    found = counters("optwrap_parameter_not_finite_steps_total", "parameter")
    assert {path: steps for path, steps in found.items() if steps} == bad
    assert set(counters("optwrap_client_dropped_total", "kind").values()) == {0}
    # The longest streak of the last minutes is the one that stopped the training. The state has been rolled back.
    assert counters("optwrap_not_finite_streak_peak", "run") == {"demo": STOP_AFTER}
    assert answer["gauges"]["not_finite_streak_peak"] < STOP_AFTER


def test_no_counter_ever_falls_and_increase_sees_every_skip(
    watched: tuple[RunningExporter, Prometheus, dict[str, Any]],
) -> None:
    """The series begin at zero with the hello, so that increase() misses nothing of the first faults."""
    _, prometheus, answer = watched
    for name in ("optwrap_steps_total", "optwrap_gradient_steps_total", "optwrap_skipped_steps_total"):
        assert {value for _, value in prometheus.instant(f"resets({name}{PROCESS}[1h])")} == {0}
    first = prometheus.instant(f"min_over_time(optwrap_skipped_steps_total{PROCESS}[1h])")
    assert {value for _, value in first} == {0}
    skipped = f"optwrap_skipped_steps_total{PROCESS}[1h]"
    grown = prometheus.instant(f"max_over_time({skipped}) - min_over_time({skipped})")
    assert {labels["reason"]: value for labels, value in grown} == answer["totals"]["skipped"]


def test_promtool_has_no_complaint_about_the_scrape(
    watched: tuple[RunningExporter, Prometheus, dict[str, Any]],
) -> None:
    exporter, _, _ = watched
    scraped = httpx.get(f"{exporter.url}/metrics", trust_env=False).content
    checked = subprocess.run(["promtool", "check", "metrics"], input=scraped, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
