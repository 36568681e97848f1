"""Real Monitors while the exporter is killed again and again: `python -m tests.e2e.soak.kills --minutes 10`.

Several processes observe steps with real Monitors. The exporter is a real process: it is killed (SIGKILL) at random
moments, stays away for a random time, and starts again on the same data. At the end every process's totals and the
number of stored step records must be those of the training, so no acknowledged report was lost and none was counted
twice. How long `observe` took is printed.
"""

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np

from tests.conftest import RunningExporter

RUN: Final = "kills"
WARM: Final = 50
"""Steps before the times of `observe` count."""


def train(endpoint: str, process: int, rate: float, stop: Any, told: Any) -> None:
    """Observe `rate` steps a second until `stop`, then flush, and put the truth on the queue `told`."""
    import optwrap  # in the child only: the parent needs no JAX
    from tests.optwrap.monitoring import Training

    training = Training(distinct=True)
    took: list[float] = []
    with optwrap.Monitor(run=RUN, endpoint=endpoint, process=process, interval=0.2) as monitor:
        monitor.describe(training.layout)
        due = time.monotonic()
        while not stop.is_set():
            if training.steps % 50 == 49:
                training.step("skipped_not_finite", {training.layout.parameters[0]: 1})
            else:
                training.step()
            words = np.asarray(training.words())
            before = time.perf_counter()
            monitor.observe(words)
            took.append(time.perf_counter() - before)
            due += 1 / rate
            time.sleep(max(0.0, due - time.monotonic()))
        delivered = monitor.flush(60)
    took = sorted(took[WARM:]) or [0.0]
    told.put(
        {
            "process": process,
            "steps": training.steps,
            "outcomes": training.outcomes,
            "delivered": delivered,
            "median_us": took[len(took) // 2] * 1e6,
            "worst_ms": took[-1] * 1e3,
        }
    )


def kills(
    directory: Path,
    *,
    minutes: float,
    processes: int,
    rate: float,
    pause: tuple[float, float] = (0.0, 8.0),
    away: tuple[float, float] = (0.0, 4.0),
    seed: int = 0,
    say: Callable[[str], Any] = print,
) -> int:
    """Run it. Returns how often the exporter was killed.

    Args:
      directory: an empty one.
      minutes: how long.
      processes: that train.
      rate: steps a second of each.
      pause: seconds for which the exporter runs, drawn from this range.
      away: seconds for which it is away.
      seed: of what is drawn.
      say: is given one line for each minute, and for the result.

    Raises:
      AssertionError: a number is not the truth.
    """
    draw = random.Random(seed)
    context = multiprocessing.get_context("spawn")
    stop, told = context.Event(), context.Queue()
    exporter = RunningExporter(directory / "data")
    children = [
        context.Process(target=train, args=(exporter.url, index, rate, stop, told)) for index in range(processes)
    ]
    killed = 0
    try:
        for child in children:
            child.start()
        began = time.monotonic()
        minute = 1
        while (elapsed := time.monotonic() - began) < minutes * 60:
            time.sleep(min(draw.uniform(*pause), max(0.0, minutes * 60 - elapsed)))
            exporter.kill9()
            killed += 1
            time.sleep(draw.uniform(*away))
            exporter.start()
            if elapsed >= 60 * minute:
                say(f"minute {minute}: killed {killed} times")
                minute += 1
        stop.set()
        truth = sorted((told.get(timeout=120) for _ in children), key=lambda one: int(one["process"]))
        for child in children:
            child.join()
        check(exporter.url, truth)
    finally:
        stop.set()
        for child in children:
            if child.pid is not None:
                child.join(90)
                child.kill()
        exporter.stop()
    median, worst = (max(one[name] for one in truth) for name in ("median_us", "worst_ms"))
    say(
        f"killed {killed} times, {sum(one['steps'] for one in truth)} steps of {processes} processes, all there once; "
        f"observe: median {median:.0f} us, worst {worst:.1f} ms"
    )
    return killed


def check(url: str, truth: list[dict[str, Any]]) -> None:
    """Compare what the exporter has with the truth of each process."""
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        for one in truth:
            assert one["delivered"], f"process {one['process']}: flush() says that not all was delivered"
            answer = client.get(f"/v1/runs/{RUN}/steps", params={"process": one["process"]})
            answer.raise_for_status()
            assert answer.json()["total"] == one["steps"], (
                f"process {one['process']}: {answer.json()['total']} step records of {one['steps']}"
            )
        run = client.get(f"/v1/runs/{RUN}").json()
    assert run["dropped"] == {"steps": 0, "bad_steps": 0, "not_stored": 0}, json.dumps(run["dropped"])
    for told in run["processes"]:
        outcomes = {name: number for name, number in told["totals"]["outcomes"].items() if number}
        wanted = {name: number for name, number in truth[told["process"]]["outcomes"].items() if number}
        assert outcomes == wanted, f"process {told['process']}: the exporter says {outcomes}, the truth is {wanted}"
    assert len(run["processes"]) == len(truth)


def main() -> int:
    """0 if every number was the truth."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.e2e.soak.kills", description="Real Monitors while the exporter is killed again and again."
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--rate", type=float, default=50, help="steps a second of each process")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        kills(Path(directory), minutes=given.minutes, processes=given.processes, rate=given.rate)
    return 0


if __name__ == "__main__":
    sys.exit(main())
