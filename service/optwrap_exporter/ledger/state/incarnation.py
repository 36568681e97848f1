"""One incarnation of a process: its immutable state, and how a report is merged into it."""

import dataclasses
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Final, NamedTuple

from optwrap_exporter.ledger import ranges
from optwrap_exporter.ledger.evolve import evolved
from optwrap_exporter.ledger.ranges import Ranges
from optwrap_exporter.ledger.state.counters import MOST_NAMES, NOTHING, Counts, Replica
from optwrap_exporter.ledger.state.parts import (
    NONE_DROPPED,
    DroppedRecords,
    ParameterRecords,
    ParameterState,
    StepSpan,
    counts_from_durable,
    counts_to_durable,
    fields_of,
)
from optwrap_exporter.ledger.state.streaks import NO_STREAK, Streak, StreakChanges
from optwrap_exporter.wire.requests import Offender, Report
from optwrap_exporter.wire.vocabulary import ENDED, State

_ALIVE_AFTER: Final = 4
"""Heartbeats in a row after which an incarnation counts as alive."""


class Heartbeat(NamedTuple):
    """A report that arrived on time: at the same interval after the previous report at which it was sent."""

    time: float
    """When it arrived, by the exporter's clock."""
    steps: int
    """The steps in its totals."""


class Rise(NamedTuple):
    """The report that raised the steps in the totals last."""

    sent_at: float
    """By the client's clock."""
    arrived: float
    """By the exporter's clock."""


_NEVER: Final = Rise(0.0, 0.0)


@dataclasses.dataclass(frozen=True)  # without slots: `share` is cached
class IncarnationState:
    """One incarnation: one start of a process, or one rollback within it. "In order" means with a rising seq."""

    incarnation: str
    attempt: str
    order: float
    """Its position among the incarnations of its process, by `first_sent_at`."""
    generation: int
    """Number of earlier incarnations of the same process and attempt that had counters."""
    first_report: float
    """When the first report arrived, by the exporter's clock."""
    last_report: float
    """When the last report arrived, late ones included, by the exporter's clock."""
    first_sent_at: float
    """The earliest `sent_at`, by the client's clock."""
    latest_sent_at: float
    """`sent_at` of the report with the highest seq."""
    latest_arrival: float
    """When that report arrived, by the exporter's clock."""
    heartbeats: tuple[Heartbeat, ...]
    """The last heartbeats in a row. Reports of a backlog arrive too fast to be heartbeats."""
    highest_seq: int
    received: Ranges
    """Every seq that is stored."""
    state: State
    """The state in the report with the highest seq."""
    reason: str | None = None
    """Why it ended, if that report says so."""
    last_clean_step: int | None = None
    """The step to roll back to, if that report names one."""
    rose: Rise = _NEVER
    aged_at: float = 0.0
    """When the last report arrived, by the clock that data ages by (`Ledger.age`)."""
    own_attempt: bool = False
    """Whether the attempt is named after an incarnation of the process, because its launch is unknown."""
    start_step: int = 0
    """Steps that the optimizer's state had taken when the incarnation began."""
    totals: Counts = NOTHING
    """The largest totals received."""
    baseline: Counts = NOTHING
    """What `totals` are counted from: `at_start`, or for a partial incarnation the smallest totals received."""
    partial: bool = False
    """Whether every report received had an `oldest_held` above 1: the earlier ones went to a store that is lost."""
    dropped: DroppedRecords = NONE_DROPPED
    not_stored: int = 0
    """Step records that the store had no room for. The store keeps this number in a column of its own."""
    host: str = ""
    streak: Streak = NO_STREAK
    parameter_records: Mapping[str, ParameterRecords] = dataclasses.field(default_factory=dict)
    """By parameter, its step records summed up."""
    replica_spans: Mapping[Replica, StepSpan] = dataclasses.field(default_factory=dict)
    """By replica in the totals, the steps in which it was the first non-finite one, by the step records."""

    @cached_property
    def share(self) -> Counts:
        """What this incarnation adds to the totals of its process."""
        return self.totals.minus(self.baseline)

    @property
    def has_counters(self) -> bool:
        """Whether a report has carried counters. A hello has none."""
        return self.totals.steps > 0

    @property
    def began_at(self) -> int | None:
        """`start_step` once it is known: a hello comes before the optimizer's state is."""
        return self.start_step if self.has_counters else None

    @property
    def ended(self) -> bool:
        """Whether the process reported its end."""
        return self.state in ENDED

    @property
    def alive(self) -> bool:
        """Whether enough heartbeats in a row arrived to tell a live process from a backlog."""
        return len(self.heartbeats) == _ALIVE_AFTER

    @property
    def stepping(self) -> bool:
        """Whether steps were taken between the heartbeats."""
        return self.heartbeats[-1].steps > self.heartbeats[0].steps

    def parameter(self, path: str) -> ParameterState:
        """The row of one parameter."""
        return ParameterState(
            path,
            self.totals.parameters.get(path, 0),
            self.baseline.parameters.get(path, 0),
            self.parameter_records.get(path),
        )

    def changed_parameters(self, before: "IncarnationState | None") -> list[str]:
        """Parameters whose counts differ from those in `before`, in the tree's order if it is known."""
        old = before or _EMPTY
        paths: dict[str, None] = {}
        for mine, theirs in (
            (self.totals.parameters, old.totals.parameters),
            (self.baseline.parameters, old.baseline.parameters),
        ):
            if mine is not theirs and mine != theirs:
                paths.update((path, None) for path in mine if mine[path] != theirs.get(path, 0))
                paths.update((path, None) for path in theirs if path not in mine)
        if self.parameter_records is not old.parameter_records:
            records = self.parameter_records.items()
            paths.update((path, None) for path, found in records if old.parameter_records.get(path) != found)
        return list(paths)

    def durable(self) -> dict[str, Any]:
        """The state in types that pydantic writes as JSON, without parameters and `not_stored`, stored elsewhere."""
        fields = self.__dict__
        return (
            {name: fields[name] for name in _PLAIN}
            | {name: tuple(fields[name]) for name in ("rose", "dropped", "streak")}
            | {"heartbeats": [tuple(one) for one in self.heartbeats]}
            | {"totals": counts_to_durable(self.totals), "baseline": counts_to_durable(self.baseline)}
            | {"replica_spans": [[*replica, *span] for replica, span in self.replica_spans.items()]}
        )

    @classmethod
    def from_durable(
        cls, written: Mapping[str, Any], parameters: Iterable[ParameterState], not_stored: int
    ) -> "IncarnationState":
        """The state that `durable` wrote, with what was stored elsewhere."""
        rows = list(parameters)

        def counts(name: str) -> Counts:
            return counts_from_durable(written[name], {row.parameter: n for row in rows if (n := getattr(row, name))})

        return cls(
            **dict(written)
            | {
                "received": tuple((first, last) for first, last in written["received"]),
                "heartbeats": tuple(Heartbeat(*one) for one in written["heartbeats"]),
                "rose": Rise(*written["rose"]),
                "dropped": DroppedRecords(*written["dropped"]),
                "not_stored": not_stored,
                "totals": counts("totals"),
                "baseline": counts("baseline"),
                "streak": Streak(*written["streak"]),
                "parameter_records": {row.parameter: row.records for row in rows if row.records},
                "replica_spans": {Replica(*row[:3]): StepSpan(*row[3:]) for row in written["replica_spans"]},
            }
        )


_PLAIN: Final = fields_of(IncarnationState, "totals", "baseline", "parameter_records", "replica_spans", "not_stored")


def continues(before: IncarnationState | None, report: Report) -> bool:
    """Whether the report is in order: its seq is above all those received."""
    return before is None or report.seq > before.highest_seq


class Position(NamedTuple):
    """The place of a new incarnation among the incarnations of its process."""

    order: float
    generation: int
    own_attempt: bool


def merge_report(
    before: IncarnationState | None,
    report: Report,
    position: Position | None,
    followed: StreakChanges | None,
    *,
    now: float,
    age: float,
) -> IncarnationState:
    """The incarnation with a report merged into it. Pure.

    Args:
      before: the incarnation so far; None if this is its first report.
      report: a report that is not in it yet.
      position: the place of the incarnation in its process; None if it is not new.
      followed: the streaks in the report; None if it is not in order.
      now: the exporter's clock.
      age: the clock that data ages by.
    """
    old = before or _new(report, position or Position(0.0, 0, False), now)
    totals = Counts.of(report.totals)
    partial, baseline = _baseline(before, report, totals)
    received = ranges.add(old.received, report.seq)
    if len(received) > ranges.MOST:  # the client no longer sends a seq below oldest_held
        received = ranges.union([(1, report.oldest_held - 1), *received])
    latest: dict[str, Any] = {}
    if followed is not None:
        latest = {
            "latest_sent_at": report.sent_at,
            "latest_arrival": now,
            "heartbeats": _heartbeats(before, report, now),
            "highest_seq": report.seq,
            "state": report.state,
            "reason": report.reason,
            "last_clean_step": report.last_clean_step,
            "streak": followed.open,
        }
    return evolved(
        old,
        last_report=now,
        aged_at=age,
        rose=Rise(report.sent_at, now) if totals.steps > old.totals.steps else old.rose,
        first_sent_at=min(old.first_sent_at, report.sent_at),
        received=received,
        totals=old.totals.maximum(totals),
        baseline=baseline,
        partial=partial,
        dropped=DroppedRecords(
            max(old.dropped.steps, report.dropped.steps), max(old.dropped.bad_steps, report.dropped.bad_steps)
        ),
        parameter_records=_with_offenders(old.parameter_records, report.offenders),
        replica_spans=_with_replicas(old.replica_spans, report, totals),
        **latest,
    )


def _new(report: Report, position: Position, now: float) -> IncarnationState:
    """An incarnation before its first report is merged into it."""
    return IncarnationState(
        incarnation=report.incarnation,
        attempt=report.attempt,
        order=position.order,
        generation=position.generation,
        first_report=now,
        last_report=now,
        first_sent_at=report.sent_at,
        latest_sent_at=report.sent_at,
        latest_arrival=now,
        heartbeats=(),
        highest_seq=0,
        received=(),
        state=report.state,
        rose=Rise(report.sent_at, now),
        own_attempt=position.own_attempt,
        start_step=report.at_start.steps,
        host=report.source.host,
    )


def _baseline(before: IncarnationState | None, report: Report, totals: Counts) -> tuple[bool, Counts]:
    """`partial` and `baseline`. Both depend on the set of reports received, not on their order."""
    if before is not None and not before.partial:
        return False, before.baseline
    if report.oldest_held == 1:
        return False, Counts.of(report.at_start)
    return True, totals if before is None else before.baseline.minimum(totals)


def _heartbeats(before: IncarnationState | None, report: Report, now: float) -> tuple[Heartbeat, ...]:
    beat = Heartbeat(now, report.totals.steps)
    if before is None:
        return (beat,)
    arrived, sent = now - before.latest_arrival, report.sent_at - before.latest_sent_at
    on_time = sent > 0 and 0.5 * sent <= arrived <= 2 * sent + 1
    return (*before.heartbeats, beat)[-_ALIVE_AFTER:] if on_time else (beat,)


def _with_offenders(
    before: Mapping[str, ParameterRecords], offenders: list[Offender]
) -> Mapping[str, ParameterRecords]:
    if not offenders:
        return before
    found = dict(before)
    for one in offenders:
        if one.not_finite is None:
            continue
        if one.parameter in found or len(found) < MOST_NAMES:
            here = ParameterRecords(one.not_finite, one.step, one.step)
            found[one.parameter] = found[one.parameter].plus(here) if one.parameter in found else here
    return found


def _with_replicas(before: Mapping[Replica, StepSpan], report: Report, totals: Counts) -> Mapping[Replica, StepSpan]:
    if not report.replicas:
        return before
    found = dict(before)
    for record in report.replicas:
        replica = Replica(record.replica, record.process, record.device)
        if replica in totals.replicas:
            here = StepSpan(record.step, record.step)
            found[replica] = found[replica].joined(here) if replica in found else here
    return found


_EMPTY: Final = IncarnationState("", "", 0.0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, (), 0, (), "starting")
