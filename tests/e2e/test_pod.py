"""A pod of four processes of which one hangs: the exporter shows which one, and since when, while the run goes on."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import httpx
import pytest

import optwrap
from tests.conftest import RunningExporter
from tests.optwrap.monitoring import Training
from tests.polling import wait_until

CONTEXT = get_context("forkserver")
SILENT = 2
"""The process that hangs."""
INTERVALS = {"pod-1": 1.0, "pod-4": 4.0}
"""Seconds between reports, by run."""
STALE_AFTER = {"pod-1": 10.0, "pod-4": 12.0}
"""Three intervals, and at least 10 s: a process that reports every second may pause for a second or two."""


def train(connection: Connection, endpoint: str, process: int) -> None:
    """Run one process of both pods, until a message ends it."""
    training = Training()
    with contextlib.ExitStack() as stack:
        monitors = [
            stack.enter_context(optwrap.Monitor(run, endpoint, process, attempt="launch", interval=interval))
            for run, interval in INTERVALS.items()
        ]
        for monitor in monitors:
            monitor.describe(training.layout, stepping=True)
        while not connection.poll(0.1):
            training.step()
            for monitor in monitors:
                monitor.observe(training.words())


@pytest.fixture
def pod(exporter: RunningExporter) -> Iterator[list[Any]]:
    """The processes of the pod."""
    started = []
    for process in range(4):
        ours, theirs = CONTEXT.Pipe()
        child = CONTEXT.Process(target=train, args=(theirs, exporter.url, process), daemon=True)
        child.start()
        started.append((child, ours))
    yield [child for child, _ in started]
    for child, ours in started:
        with contextlib.suppress(OSError):
            ours.send("end")
        child.join(30)
        child.kill()


def test_a_process_that_hangs_is_stale_in_time_and_the_others_are_not(
    exporter: RunningExporter, pod: list[Any]
) -> None:
    client = httpx.Client(base_url=exporter.url, trust_env=False, timeout=30)

    def of(run: str) -> dict[str, Any]:
        answer = client.get(f"/v1/runs/{run}")
        return answer.json() if answer.status_code == 200 else {"processes": [], "totals": {"steps": 0}}

    def healths(run: str) -> list[str]:
        return [row["health"] for row in of(run)["processes"]]

    def told(run: str) -> list[int]:
        events = client.get(f"/v1/runs/{run}/events", params={"kind": "stale"}).json()["items"]
        return [event["process"] for event in events]

    def until(condition: Callable[[str], bool]) -> None:
        wait_until(
            lambda: all(condition(run) for run in INTERVALS),
            90,
            pause=0.1,
            problem=lambda: [of(run) for run in INTERVALS],
        )

    until(lambda run: healths(run) == ["ok"] * 4)
    os.kill(pod[SILENT].pid, signal.SIGSTOP)
    try:
        until(lambda run: healths(run)[SILENT] == "stale")
        before = {run: of(run)["totals"]["steps"] for run in INTERVALS}
        for run in INTERVALS:
            now = of(run)
            assert [row["health"] for row in now["processes"]] == ["ok", "ok", "stale", "ok"]
            assert now["health"] == "stale", "the health of its worst process"
            row = now["processes"][SILENT]
            assert row["since"] == row["last_report"]
            assert time.time() - row["last_report"] >= STALE_AFTER[run]
        until(lambda run: of(run)["totals"]["steps"] > before[run])
        # The event comes with time alone; the exporter checks once a second.
        until(lambda run: told(run) == [SILENT])
        scraped = client.get("/metrics").text
        for run in INTERVALS:
            silent = {
                process
                for process in range(4)
                if f'optwrap_process_health{{health="stale",process="{process}",run="{run}"}} 1.0' in scraped
            }
            assert silent == {SILENT}
    finally:
        os.kill(pod[SILENT].pid, signal.SIGCONT)
    until(lambda run: healths(run) == ["ok"] * 4)
    client.close()
