"""Runs schedules one after the other: `python -m tests.e2e.chaos --seeds 20 [--first 0] [--keep]`."""

import argparse
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.deploy.prometheus import running
from tests.e2e.chaos.findings import check
from tests.e2e.chaos.schedule import Schedule, draw
from tests.e2e.chaos.storm import Storm


def weather(schedule: Schedule, directory: Path) -> Storm:
    """Run one schedule from its first launch to the last check.

    Args:
      schedule: what happens.
      directory: an empty one.

    Raises:
      AssertionError: a number differs from the truth.
    """
    storm = Storm(schedule, directory)
    try:
        (directory / "prometheus").mkdir()
        with running(directory / "prometheus", [storm.exporter.url]) as prometheus:
            storm.run(lambda: prometheus.wait_until(f'optwrap_steps_total{{run="{storm.run_name}"}} == 0'))
            check(storm, prometheus)
    finally:
        storm.close()
    return storm


def main() -> int:
    """0 if every seed held."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--keep", action="store_true", help="keep the directory of a seed that failed")
    given = parser.parse_args()
    failed = []
    began = time.monotonic()
    for seed in range(given.first, given.first + given.seeds):
        start = time.monotonic()
        directory = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-"))
        try:
            storm = weather(draw(seed), directory)
        except Exception as error:
            failed.append(seed)
            traceback.print_exc()
            print(draw(seed), file=sys.stderr)
            outcome = f"FAILED: {str(error).splitlines()[0] if str(error) else error!r}"
        else:
            fates = sum(n for fate, n in storm.network.fates.items() if fate != "passed")
            outcome = (
                f"held: {len(storm.stretches)} stretches, {len(storm.network.deliveries)} reports delivered, "
                f"{fates} hindered, {storm.exporter.starts} exporters"
            )
        if not (given.keep and failed and failed[-1] == seed):
            shutil.rmtree(directory, ignore_errors=True)
        print(f"seed {seed}: {time.monotonic() - start:.0f} s, {outcome}", flush=True)
    taken = time.monotonic() - began
    print(f"{given.seeds - len(failed)} of {given.seeds} seeds held, {taken:.0f} s; failed: {failed or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
