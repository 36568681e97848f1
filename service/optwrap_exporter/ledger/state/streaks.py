"""Streaks of steps with non-finite gradients, followed over the reports of one incarnation."""

import dataclasses
from typing import Final, NamedTuple

from optwrap_exporter.wire.requests import Report


class Streak(NamedTuple):
    """The streak that is open after the last step record. `first` and `last` are None if none is open."""

    first: int | None = None
    """Its first step."""
    last: int | None = None
    """Its last step so far."""
    latest_record: int | None = None
    """The step number of the latest step record."""

    @property
    def length(self) -> int:
        """Steps in the open streak; 0 if none is open."""
        return 0 if self.first is None or self.last is None else self.last - self.first + 1


NO_STREAK: Final = Streak()
"""No streak is open, and no step record has been received."""


@dataclasses.dataclass(frozen=True, slots=True)
class StreakStarted:
    """A streak started."""

    time: float
    """The client's time of the first step record in the streak."""
    first: int
    recorded: int
    """The step of that record. Records before it may have been dropped."""


@dataclasses.dataclass(frozen=True, slots=True)
class StreakEnded:
    """A streak ended."""

    time: float
    """The client's time of the record that ended it."""
    first: int
    last: int


@dataclasses.dataclass(frozen=True, slots=True)
class StreakChanges:
    """What one report changes."""

    open: Streak
    """The streak that is open after the report."""
    longest: int
    """The longest streak that the report saw."""
    changes: tuple[StreakStarted | StreakEnded, ...]


def follow(before: Streak, report: Report) -> StreakChanges:
    """Follow the streaks through a report that continues its incarnation.

    The step records tell when a streak starts and ends. A gap between two records ends a streak, because a client that
    is short of room drops the records of good steps first. If the records reach up to the totals, the gauge
    `not_finite_streak` gives the start of the last streak, and the gap is ignored.

    Args:
      before: the streak that was open before the report.
      report: the report. Its step records may lag behind its totals.
    """
    columns, gauge = report.steps, report.gauges.not_finite_streak
    if not len(columns):
        return StreakChanges(before, before.length, ())
    first, last, latest = before
    if first is None and all(columns.finite):  # the usual case
        return StreakChanges(Streak(None, None, max(latest or 0, columns.step[-1])), 0, ())
    changes: list[StreakStarted | StreakEnded] = []
    longest = 0
    end = columns.step[-1]
    gauged = end - gauge + 1 if gauge and end == report.totals.steps else None
    for step, time, finite in zip(columns.step, columns.time, columns.finite, strict=True):
        if latest is not None and step <= latest:
            continue
        gap = latest is not None and step > latest + 1 and (gauged is None or first is None or first < gauged)
        if first is not None and last is not None and (finite or gap):
            changes.append(StreakEnded(time, first, last))
            first = last = None
        if not finite:
            if first is None:
                first = step if gauged is None or step < gauged else max(gauged, (latest or 0) + 1)
                changes.append(StreakStarted(time, first, step))
            last = step
            longest = max(longest, last - first + 1)
        latest = step
    return StreakChanges(Streak(first, last, latest), longest, tuple(changes))
