"""How fast a process takes steps, and how many of its last steps were skipped. Pure."""

from typing import Final, NamedTuple

from optwrap_exporter.ledger.state.conditions import TimedStep
from optwrap_exporter.ledger.state.counters import Counts
from optwrap_exporter.wire.requests import Report

_DURATIONS: Final = 31
"""Number of reports whose seconds per step are kept."""
RECENT_STEPS: Final = 1000
"""The number of last steps of which the skipped ones are counted."""
_PART: Final = 100
"""Reports are joined to parts of at least so many steps, so that a process keeps only a few."""


class Part(NamedTuple):
    """Some of the last steps: how many there are, and how many of them were skipped."""

    steps: int
    skipped: int


Recent = tuple[Part, ...]
"""The last steps in parts, the newest last."""


def pace(
    last: TimedStep | None, durations: tuple[float, ...], report: Report
) -> tuple[TimedStep | None, tuple[float, ...]]:
    """The last step record, and the seconds per step of the last reports, this one included."""
    columns = report.steps
    if not len(columns):
        return last, durations
    start = last or TimedStep(columns.step[0], columns.time[0])
    end = TimedStep(columns.step[-1], columns.time[-1])
    if end.step > start.step and end.time >= start.time:
        durations = (*durations, (end.time - start.time) / (end.step - start.step))[-_DURATIONS:]
    return end, durations


def recent(before: Recent, gained: Counts) -> Recent:
    """The last RECENT_STEPS steps, rounded up to whole parts, with those that a report added."""
    steps = gained.steps
    if not steps:
        return before
    skipped = gained.skipped
    if before and (last := before[-1]).steps < _PART:
        return (*before[:-1], Part(last.steps + steps, last.skipped + skipped))
    after = (*before, Part(steps, skipped))
    surplus = sum(part.steps for part in after) - RECENT_STEPS
    while surplus >= after[0].steps:
        surplus -= after[0].steps
        after = after[1:]
    return after
