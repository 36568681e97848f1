"""Compacts old incarnations: what a process with thousands of starts keeps of the early ones. Pure.

    an incarnation of its own    one of the last RECENT, or of the last KEPT if it reported within LATE_SECONDS
    in the sum of its attempt    while the process keeps another incarnation of the attempt one by one
    in the sum of the process    once it does not: the process has left the attempt (`past`)

All totals stay exact. Of a compacted incarnation the id is remembered, REMEMBERED of them: a late report of it is
acknowledged and changes nothing, because what it adds to the sum cannot be known.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from optwrap_exporter.ledger import ranges
from optwrap_exporter.ledger.ranges import Ranges
from optwrap_exporter.ledger.state.counters import NOTHING, Counts, Replica
from optwrap_exporter.ledger.state.incarnation import IncarnationState
from optwrap_exporter.ledger.state.parts import (
    NONE_DROPPED,
    DroppedRecords,
    ParameterRecords,
    ParameterState,
    StepSpan,
    counts_from_durable,
    counts_to_durable,
    fields_of,
    joined_spans,
    summed_records,
)
from optwrap_exporter.wire.vocabulary import ENDED, State

KEPT: Final = 16
"""The most incarnations of a process that are kept one by one. A Monitor reports for two or three of them at most."""
RECENT: Final = 4
"""Incarnations of a process that are kept one by one however long they have been silent."""
LATE_SECONDS: Final = 3600.0
"""Seconds: the others are kept one by one for so long after their last report. No interval is longer."""
REMEMBERED: Final = 32
"""Compacted incarnations whose ids are remembered. A later report of an older one counts from where it begins."""


@dataclasses.dataclass(frozen=True)
class IncarnationSum:
    """The sum of old incarnations of one process: of one attempt, or of all the attempts that it has left."""

    attempt: str
    """Empty if it is the sum of those that it has left."""
    own_attempt: bool
    first_report: float
    last_report: float
    aged_at: float
    order: float
    """The order of the last one."""
    state: State
    """The state of the last one."""
    reason: str | None = None
    """Why the last one ended, if it says so."""
    began_at: int | None = None
    """The step at which the first one began; None if no report of it had counters."""
    with_counters: int = 0
    """How many of them had counters."""
    last_step: int = 0
    """The last step that any of them took."""
    covered: Ranges = ()
    """The steps that they took."""
    share: Counts = NOTHING
    dropped: DroppedRecords = NONE_DROPPED
    not_stored: int = 0
    parameter_records: Mapping[str, ParameterRecords] = dataclasses.field(default_factory=dict)
    replica_spans: Mapping[Replica, StepSpan] = dataclasses.field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether the last one reported its end."""
        return self.state in ENDED

    def parameter(self, path: str) -> ParameterState:
        """The row of one parameter."""
        return ParameterState(path, self.share.parameters.get(path, 0), 0, self.parameter_records.get(path))

    def durable(self) -> dict[str, Any]:
        """The state as JSON types, without its parameters and `not_stored`, which are stored elsewhere."""
        return (
            {name: getattr(self, name) for name in _PLAIN}
            | {"share": counts_to_durable(self.share)}
            | {"replica_spans": [[*replica, *span] for replica, span in self.replica_spans.items()]}
        )

    @classmethod
    def from_durable(
        cls, written: Mapping[str, Any], parameters: Iterable[ParameterState], not_stored: int
    ) -> "IncarnationSum":
        """The state that `durable` wrote, with what was stored elsewhere."""
        rows = list(parameters)
        return cls(
            **dict(written)
            | {
                "covered": tuple((first, last) for first, last in written["covered"]),
                "share": counts_from_durable(
                    written["share"], {row.parameter: row.totals for row in rows if row.totals}
                ),
                "dropped": DroppedRecords(*written["dropped"]),
                "not_stored": not_stored,
                "parameter_records": {row.parameter: row.records for row in rows if row.records},
                "replica_spans": {Replica(*row[:3]): StepSpan(*row[3:]) for row in written["replica_spans"]},
            }
        )


_PLAIN: Final = fields_of(IncarnationSum, "share", "not_stored", "parameter_records", "replica_spans")


EMPTY_SUM: Final = IncarnationSum("", False, 0.0, 0.0, 0.0, 0.0, "starting")
"""The sum of no attempts."""


@dataclasses.dataclass(frozen=True, slots=True)
class Compacted:
    """One incarnation that was compacted, and the sum with it."""

    incarnation: IncarnationState
    total: IncarnationSum


class Compaction(NamedTuple):
    """What a process has compacted because of one report."""

    compacted: tuple[Compacted, ...] = ()
    left: tuple[IncarnationSum, ...] = ()
    """The sums of the attempts that it has left. They are in `ProcessState.earlier` now, and in `RunState.past`."""
    forgotten: tuple[str, ...] = ()
    """Ids of incarnations that are no longer remembered."""


NOTHING_COMPACTED: Final = Compaction()


def add(before: IncarnationSum | None, one: IncarnationState) -> IncarnationSum:
    """The sum with one incarnation more."""
    old = before or IncarnationSum(
        one.attempt, one.own_attempt, one.first_report, one.last_report, one.aged_at, one.order, one.state
    )
    last = one.order >= old.order
    covered = ranges.union([*old.covered, (one.baseline.steps + 1, one.totals.steps)])
    return IncarnationSum(
        attempt=old.attempt,
        own_attempt=old.own_attempt or one.own_attempt,
        first_report=min(old.first_report, one.first_report),
        last_report=max(old.last_report, one.last_report),
        aged_at=max(old.aged_at, one.aged_at),
        order=max(old.order, one.order),
        state=one.state if last else old.state,
        reason=one.reason if last else old.reason,
        began_at=one.began_at if old.began_at is None else old.began_at,
        with_counters=old.with_counters + one.has_counters,
        last_step=max(old.last_step, one.totals.steps),
        covered=covered if len(covered) <= ranges.MOST else ranges.joined(covered),
        share=old.share.plus(one.share),
        dropped=DroppedRecords(*(a + b for a, b in zip(old.dropped, one.dropped, strict=True))),
        not_stored=old.not_stored + one.not_stored,
        parameter_records=summed_records(old.parameter_records, one.parameter_records),
        replica_spans=joined_spans(old.replica_spans, one.replica_spans),
    )


def summed(earlier: IncarnationSum, left: Iterable[IncarnationSum]) -> IncarnationSum:
    """The sum over attempts that a process has left, with some more. It has only what a process shows of them."""
    for one in left:
        earlier = dataclasses.replace(
            earlier,
            share=earlier.share.plus(one.share),
            dropped=DroppedRecords(*(a + b for a, b in zip(earlier.dropped, one.dropped, strict=True))),
            not_stored=earlier.not_stored + one.not_stored,
        )
    return earlier
