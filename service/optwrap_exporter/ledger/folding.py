"""Folds old incarnations: what a process with thousands of starts keeps of the early ones. Pure.

A process keeps its last KEPT incarnations. The older ones of one attempt become one sum, a `Folded`, so totals stay
exact: a run counts from each attempt its largest process. Only the ids of the folded incarnations are kept one by one.
A late report of one of them is acknowledged and changes nothing, because what it adds to the sum cannot be known.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Final

from optwrap_exporter.ledger import ranges
from optwrap_exporter.ledger.counters import NOTHING, Counts, Replica
from optwrap_exporter.ledger.incarnation import IncarnationState
from optwrap_exporter.ledger.parts import (
    NONE_DROPPED,
    DroppedRecords,
    ParameterRecords,
    ParameterState,
    StepSpan,
    counts_from_durable,
    counts_to_durable,
    fields_of,
)
from optwrap_exporter.ledger.ranges import Ranges
from optwrap_exporter.wire.vocabulary import ENDED, State

KEPT: Final = 16
"""Incarnations of a process that are kept one by one. A Monitor reports for two or three of them at most."""


@dataclasses.dataclass(frozen=True)
class Folded:
    """The sum of old incarnations of one process and one attempt."""

    attempt: str
    own_attempt: bool
    first_report: float
    last_report: float
    aged_at: float
    order: float
    """The order of the last one."""
    state: State
    """The state of the last one."""
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
    ) -> "Folded":
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


_PLAIN: Final = fields_of(Folded, "share", "not_stored", "parameter_records", "replica_spans")


@dataclasses.dataclass(frozen=True, slots=True)
class Folding:
    """One incarnation that was folded, and the sum with it."""

    incarnation: IncarnationState
    folded: Folded


def add(folded: Folded | None, one: IncarnationState) -> Folded:
    """The sum with one incarnation more."""
    old = folded or Folded(
        one.attempt, one.own_attempt, one.first_report, one.last_report, one.aged_at, one.order, one.state
    )
    last = one.order >= old.order
    records = dict(old.parameter_records)
    for path, found in one.parameter_records.items():
        records[path] = records[path].plus(found) if path in records else found
    spans = dict(old.replica_spans)
    for replica, span in one.replica_spans.items():
        spans[replica] = spans[replica].joined(span) if replica in spans else span
    covered = ranges.union([*old.covered, (one.baseline.steps + 1, one.totals.steps)])
    return Folded(
        attempt=old.attempt,
        own_attempt=old.own_attempt or one.own_attempt,
        first_report=min(old.first_report, one.first_report),
        last_report=max(old.last_report, one.last_report),
        aged_at=max(old.aged_at, one.aged_at),
        order=max(old.order, one.order),
        state=one.state if last else old.state,
        with_counters=old.with_counters + one.has_counters,
        last_step=max(old.last_step, one.totals.steps),
        covered=covered if len(covered) <= ranges.MOST else ranges.joined(covered),
        share=old.share.plus(one.share),
        dropped=DroppedRecords(*(a + b for a, b in zip(old.dropped, one.dropped, strict=True))),
        not_stored=old.not_stored + one.not_stored,
        parameter_records=records,
        replica_spans=spans,
    )
