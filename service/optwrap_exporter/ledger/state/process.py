"""A process as an immutable value.

Values that are costly to derive are cached in the state. `durable` and `from_durable` are what the store writes and
reads, so that a restarted exporter restores its ledger without reading step records.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from statistics import median
from typing import Any, Final

from optwrap_exporter.ledger.evolve import evolved, plain
from optwrap_exporter.ledger.state import compaction
from optwrap_exporter.ledger.state.compaction import (
    EMPTY_SUM,
    KEPT,
    LATE_SECONDS,
    NOTHING_COMPACTED,
    RECENT,
    REMEMBERED,
    Compacted,
    Compaction,
    IncarnationSum,
)
from optwrap_exporter.ledger.state.conditions import (
    NO_CONDITIONS,
    Conditions,
    Conflict,
    Party,
    Peak,
    Seen,
    TimedStep,
)
from optwrap_exporter.ledger.state.counters import NOTHING, Counts, sum_of
from optwrap_exporter.ledger.state.incarnation import IncarnationState, Position
from optwrap_exporter.ledger.state.lost import NOTHING_LOST, Lost
from optwrap_exporter.ledger.state.pace import Part, Recent
from optwrap_exporter.ledger.state.parts import ParameterRecords, fields_of, summed_records
from optwrap_exporter.wire.requests import Gauges, Report, Source
from optwrap_exporter.wire.vocabulary import own_attempt

LEAST_STALE_AFTER: Final = 10.0
"""Seconds: no process is stale sooner."""
LEAST_STALLED_AFTER: Final = 300.0
"""Seconds: no process is stalled sooner."""
_LATELY: Final = 3
"""A step came lately if the last one is not longer ago than so many take, beyond the time for reports."""
LEAST_STARVED_AFTER: Final = 100
"""Steps: no process is starved sooner."""


@dataclasses.dataclass(frozen=True)  # without slots: derived values are cached
class ProcessState:
    """One process of a run: its incarnations, and the state of the current one. Times by the exporter's clock."""

    process: int
    incarnations: Mapping[str, IncarnationState]
    """Those that may still report (see `compaction`). By id, in their order."""
    current: str
    """The id of the current incarnation. The process shows its gauges and its health."""
    interval: float
    """Seconds to the next report: what the last one announced, or what its answer asked for if that is longer."""
    source: Source
    gauges: Gauges
    last_report: float
    """When the current incarnation last reported, late reports excluded."""
    gradient_norm: Seen | None = None
    """The last finite gradient norm."""
    update_norm: Seen | None = None
    """The last finite norm of an applied update."""
    scalars: Mapping[str, Seen] = dataclasses.field(default_factory=dict)
    """The last finite value of each scalar, at most MOST_SCALARS: those that were reported last."""
    bad_scalars: Mapping[str, Seen] = dataclasses.field(default_factory=dict)
    """The last value of each scalar whose last value is NaN or infinite, as many."""
    last_step: float | None = None
    """When a report last brought a step."""
    last_gradient_step: float | None = None
    """When a report last brought a gradient step."""
    last_record: TimedStep | None = None
    """The current incarnation's last step record."""
    durations: tuple[float, ...] = ()
    """Seconds per step in the last reports that brought steps, by the client's clock."""
    recent: Recent = ()
    """The last steps, and how many of them were skipped."""
    lost: Lost = NOTHING_LOST
    """Steps that brought nothing, and the time they took."""
    own_attempts: int = 0
    """In how many attempts the process was whose launch is unknown. Such an attempt has no other process."""
    peaks: tuple[Peak, ...] = ()
    """The longest streaks of the last minutes, each shorter than the one before it."""
    gradient_step_at: int | None = None
    """The state's step number at its last gradient step, or where the current incarnation began."""
    conditions: Conditions = NO_CONDITIONS
    sums: Mapping[str, IncarnationSum] = dataclasses.field(default_factory=dict)
    """The sum of the incarnations that are no longer kept one by one, by attempt that has others that are."""
    compacted_ids: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """By id of a compacted incarnation, its attempt. The last REMEMBERED ones, the newest last."""
    earlier: IncarnationSum = EMPTY_SUM
    """The sum over the attempts that the process has left. What only the run shows of them is in `RunState.past`."""

    @cached_property
    def incarnation(self) -> IncarnationState:
        """The current incarnation."""
        return self.incarnations[self.current]

    @property
    def stale_after(self) -> float:
        """Seconds without a report after which the process is stale."""
        return max(3 * self.interval, LEAST_STALE_AFTER)

    @property
    def moved(self) -> float:
        """When the process last took a step or started."""
        return max(self.last_step or 0.0, self.incarnation.first_report)

    @property
    def stalled_after(self) -> float:
        """Seconds without a step after which the process is stalled."""
        return max(LEAST_STALLED_AFTER, 10 * median(self.durations)) if self.durations else LEAST_STALLED_AFTER

    @property
    def seconds_per_step(self) -> float | None:
        """The median of the last reports; None if it is not known."""
        return median(self.durations) if self.durations else None

    def steps_per_second(self, now: float, listening: float) -> float | None:
        """How fast it takes steps; None if that is not known, or if no step came lately or can be heard."""
        pace, last = self.seconds_per_step, self.incarnation.rose.arrived
        ended = self.incarnation.ended or not self.incarnation.share.steps
        if not pace or ended or math.isinf(listening) or now > last + self.stale_after + _LATELY * pace:
            return None
        return 1 / pace

    @property
    def starved_after(self) -> int:
        """Steps without a gradient step after which the process is starved."""
        return max(LEAST_STARVED_AFTER, 10 * (self.gauges.every_k or 1))

    @property
    def steps_without_gradient_step(self) -> int:
        """Steps since the last gradient step."""
        return 0 if self.gradient_step_at is None else self.incarnation.totals.steps - self.gradient_step_at

    @cached_property
    def shares(self) -> Mapping[str, Counts]:
        """By attempt that the process has not left, the sum over its incarnations."""
        found = {attempt: one.share for attempt, one in self.sums.items()}
        for state in self.incarnations.values():
            found[state.attempt] = found.get(state.attempt, NOTHING).plus(state.share)
        return found

    @cached_property
    def total(self) -> Counts:
        """The totals of this process: the sum over its incarnations."""
        return sum_of([self.earlier.share, *self.shares.values()])

    @cached_property
    def parameter_records(self) -> Mapping[str, Mapping[str, ParameterRecords]]:
        """By attempt that the process has not left, and parameter, the step records summed up."""
        found: dict[str, Mapping[str, ParameterRecords]] = {}
        for state in self.parts:
            found[state.attempt] = summed_records(found.get(state.attempt, {}), state.parameter_records)
        return found

    @property
    def parts(self) -> Iterator[IncarnationSum | IncarnationState]:
        """What its attempts are the sum of, but for those it has left: sums first, then incarnations in order."""
        yield from self.sums.values()
        yield from self.incarnations.values()

    def times_taken_before(self, incarnation: IncarnationState, step: int) -> int:
        """How often earlier incarnations of the same attempt took the step. It is another step after a rollback.

        Compacted ones count as if they had taken every step up to their last one.
        """
        early = self.sums.get(incarnation.attempt)
        taken = early.with_counters if early is not None and step <= early.last_step else 0
        return taken + sum(
            state.attempt == incarnation.attempt
            and state.order < incarnation.order
            and state.start_step < step <= state.totals.steps
            for state in self.incarnations.values()
        )

    def before(self, incarnation: IncarnationState) -> IncarnationState | None:
        """The last incarnation before this one that had counters."""
        earlier = [
            state for state in self.incarnations.values() if state.order < incarnation.order and state.has_counters
        ]
        return earlier[-1] if earlier else None

    def compact(self, new: str, now: float) -> tuple["ProcessState", Compaction]:
        """Compact incarnations that can hardly report any more, the one that has been silent for longest first.

        Args:
          new: the id of an incarnation that is new, and is kept.
          now: the exporter's clock.
        """
        kept, sums, compacted = dict(self.incarnations), dict(self.sums), []
        while (chosen := self._over(kept, new, now)) is not None:
            del kept[chosen.incarnation]
            sums[chosen.attempt] = compaction.add(sums.get(chosen.attempt), chosen)
            compacted.append(Compacted(chosen, sums[chosen.attempt]))
        if not compacted:
            return self, NOTHING_COMPACTED
        staying = {state.attempt for state in kept.values()}
        left = tuple(one for attempt, one in sums.items() if attempt not in staying)
        ids = {**self.compacted_ids, **{one.incarnation.incarnation: one.incarnation.attempt for one in compacted}}
        forgotten = tuple(ids)[:-REMEMBERED]
        after = dataclasses.replace(
            self,
            incarnations=kept,
            sums={attempt: one for attempt, one in sums.items() if attempt in staying},
            compacted_ids={name: ids[name] for name in tuple(ids)[-REMEMBERED:]},
            earlier=compaction.summed(self.earlier, left),
        )
        return after, Compaction(tuple(compacted), left, forgotten)

    def _over(self, kept: Mapping[str, IncarnationState], new: str, now: float) -> IncarnationState | None:
        """The incarnation to compact next; None if the others are kept."""
        candidates = [state for state in kept.values() if state.incarnation not in {new, self.current}]
        chosen = min(candidates, key=lambda state: (state.last_report, state.order), default=None)
        if chosen is None or len(kept) > KEPT:
            return chosen
        return chosen if len(kept) > RECENT and chosen.last_report <= now - LATE_SECONDS else None

    def with_incarnation(self, incarnation: IncarnationState, **changes: Any) -> "ProcessState":
        """The process with one incarnation added or replaced, and with other fields changed."""
        known = incarnation.incarnation in self.incarnations
        both = {**self.incarnations, incarnation.incarnation: incarnation}
        return evolved(self, incarnations=both if known else in_order(both.values()), **changes)

    def durable(self) -> dict[str, Any]:
        """The state in types that pydantic writes as JSON, without its incarnations, which are stored as rows."""
        fields = self.__dict__
        gauges = {name: value for name, value in vars(self.gauges).items() if value is not None}
        found = {name: fields[name] for name in _DURABLE} | {"source": vars(self.source), "gauges": gauges}
        for name in ("gradient_norm", "update_norm", "last_record", "lost"):
            found[name] = plain(fields[name])
        return found

    @classmethod
    def from_durable(
        cls,
        process: int,
        written: Mapping[str, Any],
        incarnations: Iterable[IncarnationState],
        sums: Iterable[IncarnationSum] = (),
        compacted_ids: Mapping[str, str] | None = None,
    ) -> "ProcessState":
        """Rebuild from what `durable` wrote, and from what is stored elsewhere. `sums` holds `earlier` too."""
        by_attempt = {one.attempt: one for one in sums}
        conditions = dict(written["conditions"])
        if conditions["conflict"] is not None:
            since, last, older, newer = conditions["conflict"]
            conditions["conflict"] = Conflict(since, last, Party(*older), Party(*newer))
        last_record = written["last_record"]

        def seen(found: Any) -> Seen | None:
            # JSON has names for values that are not finite.
            return None if found is None else Seen(float(found[0]), *found[1:])

        return cls(
            process=process,
            incarnations=in_order(incarnations),
            earlier=by_attempt.pop(EMPTY_SUM.attempt, EMPTY_SUM),
            sums=by_attempt,
            compacted_ids=compacted_ids or {},
            **dict(written)
            | {
                "source": Source.model_validate(written["source"]),
                "gauges": Gauges.model_validate(written["gauges"]),
                "gradient_norm": seen(written["gradient_norm"]),
                "update_norm": seen(written["update_norm"]),
                "scalars": {name: Seen(*found) for name, found in written["scalars"].items()},
                "bad_scalars": {name: seen(found) for name, found in written["bad_scalars"].items()},
                "durations": tuple(written["durations"]),
                "recent": tuple(Part(*part) for part in written["recent"]),
                "lost": Lost.from_durable(written["lost"]),
                "peaks": tuple(Peak(*peak) for peak in written["peaks"]),
                "last_record": None if last_record is None else TimedStep(*last_record),
                "conditions": Conditions(**conditions),
            },
        )


_DURABLE: Final = fields_of(
    ProcessState, "process", "incarnations", "sums", "compacted_ids", "earlier", "source", "gauges"
)


def in_order(incarnations: Iterable[IncarnationState]) -> dict[str, IncarnationState]:
    """Incarnations by id, in their order."""
    return {state.incarnation: state for state in sorted(incarnations, key=lambda state: state.order)}


def position_of(process: ProcessState | None, report: Report) -> Position:
    """The place of a new incarnation: after the last one that sent its first report before this report."""
    own = report.attempt == own_attempt(report.incarnation)
    if process is None:
        return Position(0.0, 0, own)
    known = list(process.incarnations.values())
    total = process.sums.get(report.attempt)
    own |= any(state.attempt == report.attempt and state.own_attempt for state in process.parts)
    generation = sum(state.attempt == report.attempt and state.has_counters for state in known)
    generation += total.with_counters if total is not None else 0
    at = max((i + 1 for i, state in enumerate(known) if state.first_sent_at <= report.sent_at), default=0)
    if at == len(known):
        return Position(known[-1].order + 1, generation, own)
    before = known[at - 1].order if at else known[at].order - 2
    return Position((before + known[at].order) / 2, generation, own)
