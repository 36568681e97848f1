"""What a run keeps of the attempts that its processes have left: a sum for each, then one for all of them. Pure.

A process leaves an attempt when it keeps none of its incarnations one by one any more (`compaction`). Its part then
joins the sum of the attempt, which has the largest process field by field. The last OPEN attempts stay open; older ones
that no process is in are closed: their sums become one. So what a run keeps does not grow with the number of launches.

A process that comes to a closed attempt is counted as if it were another one. If a process comes back to an open one
that it has left, the attempt counts the larger part. No launcher does either.
"""

import dataclasses
from collections.abc import Mapping, Set
from typing import Any, Final, NamedTuple

from optwrap_exporter.ledger import ranges
from optwrap_exporter.ledger.ranges import Ranges
from optwrap_exporter.ledger.state.compaction import IncarnationSum
from optwrap_exporter.ledger.state.counters import NOTHING, Counts, Replica
from optwrap_exporter.ledger.state.parts import (
    ParameterRecords,
    StepSpan,
    counts_from_durable,
    counts_to_durable,
    joined_spans,
    larger_records,
    summed_records,
)
from optwrap_exporter.wire.vocabulary import AttemptState

OPEN: Final = 16
"""Attempts that no process is in, but a late one may still come to."""
SHOWN: Final = 100
"""Closed attempts that are still listed one by one."""
WORST_FIRST: Final[tuple[AttemptState, ...]] = ("failed", "stopped", "running", "starting", "lost", "finished")
"""The state of an attempt is the first of these that a process of it has."""


class Launch(NamedTuple):
    """When processes reported in an attempt, by the exporter's clock, and its state."""

    attempt: str
    since: float
    until: float
    state: AttemptState
    reason: str | None = None
    """Why it ended, by a process in that state."""
    start_step: int | None = None
    """The earliest step at which a process of it began; None if that is not known."""

    def joined(self, other: "Launch") -> "Launch":
        """The same attempt with other processes."""
        worst = min(self, other, key=lambda one: (WORST_FIRST.index(one.state), one.reason is None, one.reason or ""))
        steps = [one.start_step for one in (self, other) if one.start_step is not None]
        return worst._replace(
            attempt=self.attempt,
            since=min(self.since, other.since),
            until=max(self.until, other.until),
            start_step=min(steps, default=None),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class AttemptSum:
    """What the processes that have left an attempt did in it; or the sum over all closed attempts."""

    launch: Launch
    share: Counts = NOTHING
    """Of the largest process, field by field."""
    covered: Ranges = ()
    """The steps that any of them took."""
    parameter_records: Mapping[str, ParameterRecords] = dataclasses.field(default_factory=dict)
    """By parameter, of the process with the most values."""
    replica_spans: Mapping[Replica, StepSpan] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, one: IncarnationSum) -> "AttemptSum":
        """The part of one process."""
        state = one.state if one.ended else "lost"
        launch = Launch(one.attempt, one.first_report, one.last_report, state, one.reason, one.began_at)
        return cls(launch, one.share, one.covered, one.parameter_records, one.replica_spans)

    def joined(self, other: "AttemptSum") -> "AttemptSum":
        """The same attempt with the part of one process more. The order does not matter."""
        return AttemptSum(
            self.launch.joined(other.launch),
            self.share.maximum(other.share),
            _covered(self, other),
            larger_records(self.parameter_records, other.parameter_records),
            joined_spans(self.replica_spans, other.replica_spans),
        )

    def plus(self, other: "AttemptSum") -> "AttemptSum":
        """The sum with another attempt."""
        return AttemptSum(
            self.launch.joined(other.launch),
            self.share.plus(other.share),
            _covered(self, other),
            summed_records(self.parameter_records, other.parameter_records),
            joined_spans(self.replica_spans, other.replica_spans),
        )

    def durable(self) -> dict[str, Any]:
        """The state as JSON types."""
        return {
            "launch": self.launch,
            "share": counts_to_durable(self.share) | {"parameters": self.share.parameters},
            "covered": self.covered,
            "parameter_records": self.parameter_records,
            "replica_spans": [[*replica, *span] for replica, span in self.replica_spans.items()],
        }

    @classmethod
    def from_durable(cls, written: Mapping[str, Any]) -> "AttemptSum":
        """The state that `durable` wrote."""
        return cls(
            Launch(*written["launch"]),
            counts_from_durable(written["share"], written["share"]["parameters"]),
            tuple((first, last) for first, last in written["covered"]),
            {path: ParameterRecords(*found) for path, found in written["parameter_records"].items()},
            {Replica(*row[:3]): StepSpan(*row[3:]) for row in written["replica_spans"]},
        )


def _covered(one: AttemptSum, other: AttemptSum) -> Ranges:
    covered = ranges.union([*one.covered, *other.covered])
    while len(covered) > ranges.MOST:
        covered = ranges.joined(covered)
    return covered


@dataclasses.dataclass(frozen=True, slots=True)
class Past:
    """The attempts of a run that processes have left."""

    open: Mapping[str, AttemptSum] = dataclasses.field(default_factory=dict)
    """Attempts that some processes have left, and others may not."""
    closed: tuple[AttemptSum, ...] = ()
    """The sum over the closed attempts; empty if there is none."""
    attempts: int = 0
    """How many are closed."""
    own: int = 0
    """How many of them have a process of their own, because its launch is unknown (`ProcessState.own_attempts`)."""
    launches: tuple[Launch, ...] = ()
    """The last SHOWN of them."""

    @property
    def sums(self) -> tuple[AttemptSum, ...]:
        """The sums of the open attempts, and that of the closed ones."""
        return (*self.closed, *self.open.values())

    def joined(self, left: IncarnationSum) -> "Past":
        """With an attempt that a process has left."""
        here, known = AttemptSum.of(left), self.open.get(left.attempt)
        if known is not None:
            here = known.joined(here)
        elif left.own_attempt:  # no other process is in it
            return dataclasses.replace(self._with_closed(here), own=self.own + 1)
        return dataclasses.replace(self, open={**self.open, left.attempt: here})

    def closed_but(self, attempts: Set[str]) -> "Past":
        """With the open attempts closed, but for the last OPEN ones and those that a process is in."""
        over = [name for name in self.open if name not in attempts][: max(0, len(self.open) - OPEN)]
        past = dataclasses.replace(self, open={name: one for name, one in self.open.items() if name not in over})
        for name in over:
            past = past._with_closed(self.open[name])
        return past

    def _with_closed(self, one: AttemptSum) -> "Past":
        return dataclasses.replace(
            self,
            closed=(self.closed[0].plus(one) if self.closed else one,),
            attempts=self.attempts + 1,
            launches=(*self.launches, one.launch)[-SHOWN:],
        )

    def durable(self) -> dict[str, Any]:
        """The state as JSON types."""
        return {
            "open": [one.durable() for one in self.open.values()],
            "closed": [one.durable() for one in self.closed],
            "attempts": self.attempts,
            "own": self.own,
            "launches": self.launches,
        }

    @classmethod
    def from_durable(cls, written: Mapping[str, Any]) -> "Past":
        """The state that `durable` wrote."""
        sums = [AttemptSum.from_durable(one) for one in written["open"]]
        return cls(
            {one.launch.attempt: one for one in sums},
            tuple(AttemptSum.from_durable(one) for one in written["closed"]),
            written["attempts"],
            written["own"],
            tuple(Launch(*one) for one in written["launches"]),
        )


NO_PAST: Final = Past()
