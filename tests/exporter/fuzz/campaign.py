"""Sends mutated reports to a real exporter, and checks after each of them that nothing was harmed."""

import collections
import dataclasses
import random
import sys
import time
from pathlib import Path
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from tests.exporter.fuzz.mutations import bases, body_of
from tests.exporter.fuzz.victim import Victim, victim
from tests.exporter.trainer import Job

ALLOWED: Final = frozenset({200, 409, 413, 422, 429, 503})
"""The documented statuses that a client with a complete body can get."""
REFUSED_SECONDS: Final = 0.05
"""Processor time of a report that is refused with 413 or 422, on an idle machine."""
TAKEN_SECONDS: Final = 2.0
"""Processor time of any other report: it is valid, and may have 8,192 step records."""
MOST_BYTES: Final = 100 << 20
"""Additional memory of one report."""


@dataclasses.dataclass
class Findings:
    """What a campaign saw."""

    statuses: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    slowest: float = 0.0
    """Processor seconds of the most expensive report that was refused."""
    slowest_report: str = ""
    """Its number and its status."""
    largest: int = 0
    """Most additional bytes of one report."""
    wrong: list[str] = dataclasses.field(default_factory=list)
    """What went wrong, with the command that repeats it."""


def run(
    data_dir: Path,
    *,
    seed: int,
    first: int = 0,
    reports: int,
    check_every: int = 500,
    headroom: float = 1.0,
    show: bool = False,
) -> Findings:
    """Send reports number `first` and following.

    Args:
      data_dir: a new directory for the exporter's data.
      seed: with the number of a report, it determines the report.
      first: number of the first report.
      reports: how many.
      check_every: after so many reports, the untouched run and /metrics are checked.
      headroom: factor for the limits of processor time, for a machine that is busy.
      show: whether to print progress.
    """
    found, originals, began = Findings(), bases(), time.monotonic()
    with victim(data_dir) as exporter:
        before = _untouched(exporter)
        for number in range(first, first + reports):
            body = body_of(random.Random(f"{seed}/{number}"), originals)
            answer, cost = exporter.post(body)
            found.statuses[answer.status_code] += 1
            refused = answer.status_code in {413, 422}
            limit = headroom * (REFUSED_SECONDS if refused else TAKEN_SECONDS)
            if refused and cost.seconds > limit:
                _, cost = exporter.post(body)  # once more: a tick of the exporter's own may have fallen into it
            if refused and cost.seconds > found.slowest:
                found.slowest, found.slowest_report = cost.seconds, f"number {number}, {answer.status_code}"
            found.largest = max(found.largest, cost.bytes)
            wrong = [
                *([f"status {answer.status_code}"] if answer.status_code not in ALLOWED else []),
                *([f"{cost.seconds * 1000:.0f} ms of processor time"] if cost.seconds > limit else []),
                *([f"{cost.bytes >> 20} MiB of memory"] if cost.bytes > MOST_BYTES else []),
            ]
            if wrong:
                again = f"python -m tests.exporter.fuzz --seed {seed} --first {number} --reports 1"
                found.wrong.append(f"{', '.join(wrong)}: {again}: {body[:300]!r}")
            if number % check_every == check_every - 1:
                _check(exporter, before, found, number)
                if show:
                    print(f"{number + 1 - first} reports, {time.monotonic() - began:.0f} s", file=sys.stderr)
        _check(exporter, before, found, first + reports - 1)
        log = exporter.exporter.log
        if "Traceback" in log:
            found.wrong.append(f"a traceback in the log: {log[-2000:]}")
    return found


def _untouched(exporter: Victim) -> Any:
    """Report a run that no fuzzed report names; what is answered about it."""
    job = Job(run="untouched")
    job.step()
    job.step("skipped_not_finite", "NaN", w=1)
    assert exporter.client.post("/v1/reports", json=job.report("finished")).status_code == 200
    return _of_untouched(exporter)


def _of_untouched(exporter: Victim) -> Any:
    paths = ("", "/steps", "/events", "/parameters")
    return [exporter.client.get(f"/v1/runs/untouched{path}").json() for path in paths]


def _check(exporter: Victim, before: Any, found: Findings, number: int) -> None:
    if _of_untouched(exporter) != before:
        found.wrong.append(f"the untouched run had changed after report {number}")
    text = exporter.client.get("/metrics").text
    if not any(family.name == "optwrap_steps" for family in text_string_to_metric_families(text)):
        found.wrong.append(f"/metrics had no steps after report {number}")
