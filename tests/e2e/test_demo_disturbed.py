"""The demo without its exporter, with one that is killed, and interrupted: nothing is lost or counted twice."""

import collections
import json
import re
import signal
import socket
from collections.abc import Callable

import httpx
import pytest

from examples.demo.settings import QUICK
from tests.conftest import RunningExporter
from tests.e2e.demos import (
    MANY,
    assert_is,
    assert_nobody_listens,
    demo,
    page_of,
    started,
    totals,
    truth,
    wait_for_line,
    wait_for_steps,
)

pytestmark = pytest.mark.timeout(240)


def test_killing_the_exporter_midway_loses_nothing_and_counts_nothing_twice(
    start_exporter: Callable[..., RunningExporter],
) -> None:
    """Each step's record and each event is there once, and the totals are those of an undisturbed run."""
    steps = 800
    exporter = start_exporter()
    with started("--endpoint", exporter.url, "--no-baseline", "--steps", str(steps)) as process:
        for before in (100, 400):
            wait_for_steps(exporter.url, before)
            exporter.kill9()
            wait_for_line(process.stderr, "cannot report run demo")
            # The training must not be over before the exporter is back, however slowly that starts.
            process.send_signal(signal.SIGSTOP)
            exporter.start()
            process.send_signal(signal.SIGCONT)
        output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    expected = truth(QUICK, steps)
    answer = json.loads(output.splitlines()[-1])
    assert_is(answer, expected)

    with httpx.Client(base_url=exporter.url, trust_env=False) as http:
        rows = sorted(expected.rows, key=lambda row: row.step)  # a step that was taken again after the one before it
        found = http.get("/v1/runs/demo/steps", params={"points": len(rows)}).json()
        columns = found["columns"]
        assert (found["total"], found["sampled"]) == (len(rows), False)
        assert columns["step"] == [row.step for row in rows]
        assert columns["outcome"] == [row.outcome for row in rows]
        assert columns["mini_step"] == [row.mini_step for row in rows]
        assert columns["finite"] == [row.parameter is None for row in rows]
        assert http.get("/v1/runs/demo").json()["totals"] == totals(rows)

        events = []
        cursor = None
        while True:
            page = http.get("/v1/runs/demo/events", params={"limit": 7} | ({"cursor": cursor} if cursor else {})).json()
            events += page["items"]
            if (cursor := page["cursor"]) is None:
                break
    assert len({event["id"] for event in events}) == len(events)
    skipped = [event["step"] for event in events if event["kind"] == "skipped"]
    assert sorted(skipped) == [row.step for row in rows if row.outcome.startswith("skipped")]
    kinds = collections.Counter(event["kind"] for event in events)
    assert kinds["streak_started"] == kinds["streak_ended"]
    assert (kinds["started"], kinds["finished"], kinds["resumed"]) == (1, 1, 1), "after the rollback it resumes"
    assert kinds["rebased"] == 1
    spike = next(event for event in events if event["kind"] == "skipped" and event["step"] == 32)
    assert spike["detail"]["norm_shares"][0]["parameter"] == "decoder/layer_1/probe/w"


@pytest.mark.thin(3)
@pytest.mark.parametrize("there", ["absent", "hanging"])
def test_a_job_without_an_exporter_trains_on_and_says_so_once(there: str) -> None:
    """Then the demo has no answer to show, and its exit code says so."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if there == "hanging":
            silent.listen()  # connections are taken by the kernel, and no one ever reads
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        ran = demo("--endpoint", endpoint, "--no-baseline", "--run", "alone")
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert "batch 80/80" in ran.stderr
    assert re.search(r"with optwrap +\d\.\d\d -> \d\.\d\d$", ran.stdout, re.MULTILINE)
    log, last = (line for line in ran.stderr.splitlines() if endpoint in line)
    assert log.startswith("optwrap: ")
    assert "run alone" in log
    assert last.startswith("demo: ")
    assert "'alone'" in last
    assert last == ran.stderr.splitlines()[-1]


def test_ctrl_c_stops_training_and_exporter_without_a_traceback() -> None:
    with started("--steps", str(MANY), "--listen", "127.0.0.1:0") as process:
        page = page_of(process)
        wait_for_steps(page.rstrip("/"), 1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in errors
        assert errors.splitlines()[-1] == "demo: interrupted"
    assert_nobody_listens(page)
