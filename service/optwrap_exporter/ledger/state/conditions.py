"""The conditions of a process, and what they are judged by: small values, each with its times."""

import dataclasses
from typing import Final, NamedTuple


class Party(NamedTuple):
    """One of the two incarnations of a conflict."""

    incarnation: str
    attempt: str
    host: str


class Conflict(NamedTuple):
    """Two incarnations that report under one name at the same time. Times by the exporter's clock."""

    since: float
    last: float
    """When it was last seen."""
    older: Party
    newer: Party

    def ends(self, stale_after: float) -> float:
        """When it is over, unless it is seen again. `stale_after` is that of the process."""
        return self.last + stale_after

    def holds(self, now: float, stale_after: float) -> bool:
        """Whether it is not over yet."""
        return now < self.ends(stale_after)


@dataclasses.dataclass(frozen=True, slots=True)
class Conditions:
    """Since when each condition of a process holds, by the exporter's clock; None if it does not hold.

    `health.advance` is the only place that sets them.
    """

    ended: float | None = None
    stale: float | None = None
    stalled: float | None = None
    starved: float | None = None
    skipping: float | None = None
    conflict: Conflict | None = None
    cleared: float = 0.0
    """When the last of these conditions ended."""


NO_CONDITIONS: Final = Conditions()


class TimedStep(NamedTuple):
    """A step and the client's time of its record."""

    step: int
    time: float


class Seen(NamedTuple):
    """A value of one step."""

    value: float
    step: int
    time: float
    """When the report with it arrived, by the exporter's clock."""


class Peak(NamedTuple):
    """The longest streak that a report saw."""

    time: float
    """When the report arrived, by the exporter's clock."""
    length: int
