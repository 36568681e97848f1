"""Jobs that give up in their last steps, each with an exporter that is drained and then stopped, as seen by Prometheus.

python -m tests.deploy.drained --intervals 5,15,30,60 --jobs 10
"""

import argparse
import dataclasses
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import httpx

from tests.conftest import RunningExporter
from tests.deploy import prometheus
from tests.exporter.running import Job

RUN: Final = "gives-up"
SECONDS: Final = 90
"""The timeout of the drain."""
COUNTS: Final = {
    "optwrap_steps_total": 12,
    "optwrap_accepted_not_finite_steps_total": 3,
    "optwrap_skipped_steps_total": 2,
}
"""What Prometheus must have in the end."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """A job that has ended, and whose exporter has stopped."""

    interval: float
    """Seconds between scrapes."""
    target: str
    """Host and port of its exporter."""
    drained: subprocess.CompletedProcess[str]
    seconds: float
    """How long the drain took."""
    seen: dict[str, float]
    """What Prometheus has, as COUNTS."""
    state: str
    """The last health of the run that Prometheus has."""


def job(url: str, interval: float, folder: Path, name: str, *, wait: float) -> Ended:
    """Run one job to its end.

    Args:
      url: of a Prometheus that scrapes what announces itself in the folder.
      interval: seconds between scrapes.
      folder: where its exporter announces itself.
      name: tells the jobs of a folder apart.
      wait: seconds from a scrape to the end of the job.
    """
    found = prometheus.Prometheus(url)  # threads do not share a client
    exporter = RunningExporter(folder.parent / f"{folder.name}-{name}", "--announce", str(folder / f"{name}.json"))
    try:
        target = exporter.url.removeprefix("http://")
        trainer = Job(RUN, clock=time.time)

        def send(state: str = "running") -> None:
            answer = httpx.post(f"{exporter.url}/v1/reports", json=trainer.report(state), trust_env=False)
            assert answer.status_code == 200, answer.text

        for _ in range(7):
            trainer.step()
        send()
        found.wait_until(f'optwrap_steps_total{{instance="{target}"}} == 7', 3 * interval + 60)
        time.sleep(wait)
        for outcome in 2 * ["skipped_not_finite"] + 3 * ["accepted_not_finite"]:
            trainer.step(outcome, "NaN", w=1)
        send("failed")
        began = time.monotonic()
        drained = subprocess.run(
            [sys.executable, "-m", "optwrap_exporter", "drain", exporter.url, "--timeout", str(SECONDS)],
            capture_output=True,
            text=True,
            check=False,
        )
        took = time.monotonic() - began
    finally:
        exporter.stop()

    def last(metric: str) -> list[tuple[dict[str, str], float]]:
        # The series has ended with its target.
        return found.instant(f'last_over_time({metric}{{instance="{target}"}}[10m])')

    seen = {metric: sum(value for _, value in last(metric)) for metric in COUNTS}
    states = [labels["health"] for labels, value in last("optwrap_run_health") if value == 1]
    return Ended(interval, target, drained, took, seen, ",".join(states))


def jobs(directory: Path, intervals: Iterable[float], count: int, *, at_once: int = 4) -> list[Ended]:
    """Run this many jobs for each interval, and return what Prometheus saw of them."""
    folders = {directory / f"every-{interval:g}": interval for interval in intervals}
    place = directory / "prometheus"
    for folder in (*folders, place):
        folder.mkdir()
    draw = random.Random(0)
    with (
        prometheus.discovering(place, {str(folder): interval for folder, interval in folders.items()}) as found,
        ThreadPoolExecutor(at_once) as pool,
    ):
        waiting = [
            pool.submit(job, found.url, interval, folder, f"job-{index}", wait=draw.uniform(0, interval))
            for index in range(count)
            for folder, interval in folders.items()
        ]
        return [one.result() for one in waiting]


def main() -> None:
    """Print a table: for each interval how many jobs were seen with all counts, and how long the drains took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--intervals", default="5,15,30,60", help="seconds between scrapes, separated by commas")
    parser.add_argument("--jobs", type=int, default=10, help="how many for each interval")
    parser.add_argument("--at-once", type=int, default=10, help="how many exporters at once")
    given = parser.parse_args()
    intervals = [float(text) for text in given.intervals.split(",")]
    with tempfile.TemporaryDirectory() as directory:
        ended = jobs(Path(directory), intervals, given.jobs, at_once=given.at_once)
    print("scrape interval, s | jobs | seen with all counts | longest drain, s")
    for interval in intervals:
        those = [one for one in ended if one.interval == interval]
        complete = sum(one.seen == COUNTS for one in those)
        print(f"{interval:g} | {len(those)} | {complete} | {max(one.seconds for one in those):.1f}")
    sys.exit(any(one.seen != COUNTS for one in ended))


if __name__ == "__main__":
    main()
