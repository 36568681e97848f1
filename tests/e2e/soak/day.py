"""A simulated day of a job: `python -m tests.e2e.soak.day --hours 24 --processes 64`.

The exporter runs in this process, with the real store, ledger, ingest and HTTP server, and a clock that the soak
turns. The reports go straight to the ingest; /metrics and the page's queries go over HTTP. The job is restarted from
checkpoints, has steps with non-finite gradients, and old data is deleted. Every simulated hour is one line: memory,
database, speed. At the end the totals must be the truth, and the memory must have stayed flat after the first hour.
"""

import argparse
import concurrent.futures
import dataclasses
import gc
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.exporter.running import Served, served
from tests.exporter.trainer import State, Trainer, TurnedClock

RUN: Final = "soak"
INTERVAL: Final = 5.0
"""Simulated seconds between two reports of a process."""
STEPS: Final = 10
"""Steps in a report."""
PATHS: Final = tuple(f"decoder/layer_{i}/mlp/w" for i in range(24))
BAD: Final = 0.002
"""The share of steps that have non-finite gradients."""
FLAT: Final = 1.10
"""The most that memory may grow after the first hour, as a ratio."""


@dataclasses.dataclass(frozen=True)
class Hour:
    """What one line shows."""

    number: int
    rss: int
    """Resident bytes of this process."""
    database: int
    """Bytes of the database file and its WAL."""
    reports: int
    seconds: float
    """CPU seconds that the hour took."""

    def __str__(self) -> str:
        return (
            f"hour {self.number:3}: RSS {self.rss / 2**20:6.1f} MiB, database {self.database / 2**20:7.1f} MiB, "
            f"{self.reports} reports, {self.seconds / max(1, self.reports) * 1e6:.0f} us CPU a report"
        )


class Soak:
    """A job of several processes, each of which has every step, as in data-parallel training.

    Args:
      exporter: where it reports to.
      processes: how many.
      restart_every: simulated seconds between two attempts.
      seed: of everything that is drawn.
    """

    def __init__(self, exporter: Served, processes: int, restart_every: float, seed: int = 0) -> None:
        self.exporter = exporter
        self.attempts = 0
        self.truth: Counter[str] = Counter()
        """Steps of the run by outcome: of each attempt those that a process took."""
        self.reports = 0
        self._draw = random.Random(seed)
        self._restart_every = restart_every
        self._processes = processes
        self._checkpoint = State()
        self._trainers: list[Trainer] = []
        self._age = 0.0
        self._launch()

    def _launch(self) -> None:
        self.attempts += 1
        self._age = 0.0
        self._trainers = [
            Trainer(
                self.exporter.clock,
                run=RUN,
                process=index,
                incarnation=f"{self.attempts}-{index}",
                attempt=f"attempt-{self.attempts}",
                interval=INTERVAL,
                process_count=self._processes,
                state=self._checkpoint.copy(),
            )
            for index in range(self._processes)
        ]
        self._send(state="starting")

    def tick(self) -> None:
        """One interval: all processes take the same steps and report; sometimes the job is launched anew."""
        self._age += INTERVAL
        for _ in range(STEPS):
            bad = self._draw.random() < BAD
            path = self._draw.choice(PATHS)
            for trainer in self._trainers:
                if bad:
                    trainer.bad(**{path: 3})
                else:
                    trainer.step(norm=1.0 + self._draw.random())
            self.truth["skipped_not_finite" if bad else "applied"] += 1
        ends = self._age >= self._restart_every
        self._send(state=self._draw.choice(("finished", "failed")) if ends else "running")
        if ends:
            self._checkpoint = self._trainers[0].state.copy()
            self._launch()

    def _send(self, state: str) -> None:
        """Deliver one report of every process, in some order, one of twenty twice."""
        reports = [trainer.report(state) for trainer in self._trainers]
        for trainer, report in zip(self._trainers, reports, strict=True):
            assert report.process == trainer.process
        reports += self._draw.sample(reports, max(1, len(reports) // 20))
        self._draw.shuffle(reports)
        for start in range(0, len(reports), 64):
            offered = [self.exporter.ingest.offer(report) for report in reports[start : start + 64]]
            concurrent.futures.wait(offered)
            for future in offered:
                future.result()
        self.reports += len(reports)

    def look(self) -> None:
        """What Prometheus and one open page ask for."""
        assert f'optwrap_steps_total{{process="0",run="{RUN}"}}' in self.exporter.scrape()
        self.exporter.get(f"/v1/runs/{RUN}")
        self.exporter.get(f"/v1/runs/{RUN}/steps")
        self.exporter.get(f"/v1/runs/{RUN}/events")

    def check(self) -> None:
        """Exit if a total is not the truth."""
        outcomes = self.exporter.get(f"/v1/runs/{RUN}")["totals"]["outcomes"]
        told = {outcome: number for outcome, number in outcomes.items() if number}
        if told != {outcome: number for outcome, number in self.truth.items() if number}:
            sys.exit(f"the exporter says {told}, the truth is {dict(self.truth)}")


def resident_bytes() -> int:
    """The resident set of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def soak(
    directory: Path,
    *,
    hours: float,
    processes: int,
    restart_minutes: float = 47,
    retention_hours: float = 6,
    retention_bytes: int = 256 << 20,
    say: Callable[[str], Any] = print,
) -> list[Hour]:
    """Run the soak. Returns its hours.

    Args:
      directory: an empty one, for the database.
      hours: simulated.
      processes: of the job.
      restart_minutes: simulated minutes between two attempts.
      retention_hours: how long the exporter keeps records.
      retention_bytes: how large its database may be.
      say: is given one line for each hour.

    Raises:
      SystemExit: a total is not the truth.
    """
    lines: list[Hour] = []
    clock = TurnedClock()
    with served(directory, clock, retention_days=retention_hours / 24, retention_bytes=retention_bytes) as exporter:
        job = Soak(exporter, processes, restart_minutes * 60)
        ticks = round(hours * 3600 / INTERVAL)
        hourly = min(ticks, round(3600 / INTERVAL))
        before, cpu = 0, time.process_time()
        for tick in range(1, ticks + 1):
            clock.advance(INTERVAL)
            job.tick()
            exporter.ingest.tick()
            if tick % 12 == 0:
                job.look()
            if tick % hourly == 0:
                size = sum(path.stat().st_size for path in directory.iterdir())
                now = time.process_time()
                lines.append(Hour(tick // hourly, resident_bytes(), size, job.reports - before, now - cpu))
                before, cpu = job.reports, now
                say(str(lines[-1]))
        job.check()
        say(
            f"{job.attempts} attempts, {job.reports} reports, {sum(job.truth.values())} steps: all totals are the truth"
        )
    return lines


def growth(hours: list[Hour]) -> float:
    """The largest resident set after the first hour, of that at the end of the first hour."""
    return max(hour.rss for hour in hours) / hours[0].rss


def main() -> int:
    """0 if the totals were right and memory stayed flat."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.soak.day", description="A simulated day of a job.")
    parser.add_argument("--hours", type=float, default=24, help="simulated hours")
    parser.add_argument("--processes", type=int, default=64)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        hours = soak(Path(directory), hours=given.hours, processes=given.processes)
    grown = growth(hours)
    print(f"memory after the first hour: at most {grown:.3f} of it (allowed: {FLAT})")
    return int(grown > FLAT)


if __name__ == "__main__":
    sys.exit(main())
