"""A process and a run as immutable values.

Values that are costly to derive are cached in the state. `durable` and `from_durable` are what the store writes and
reads, so that a restarted exporter restores its ledger without reading step records.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from statistics import median
from typing import Any, Final, NamedTuple

from optwrap_exporter.ledger import folding
from optwrap_exporter.ledger.counters import NOTHING, Counts, Replica, sum_of
from optwrap_exporter.ledger.evolve import evolved
from optwrap_exporter.ledger.folding import KEPT, Folded, Folding
from optwrap_exporter.ledger.incarnation import IncarnationState, Position
from optwrap_exporter.ledger.parts import ParameterRecords, fields_of
from optwrap_exporter.wire.requests import Gauges, Report, Source
from optwrap_exporter.wire.vocabulary import own_attempt

LEAST_STALE_AFTER: Final = 10.0
"""Seconds: no process is stale sooner."""
_LONGEST_STALE_AFTER: Final = 3 * 3600.0
"""Seconds: no process is stale later, because an interval is an hour at most."""
LEAST_STALLED_AFTER: Final = 300.0
"""Seconds: no process is stalled sooner."""
LEAST_STARVED_AFTER: Final = 100
"""Steps: no process is starved sooner."""


class Lasting(NamedTuple):
    """A condition that holds for some time after it was last seen. Times by the exporter's clock."""

    since: float
    last: float
    """When it was last seen."""


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
    gave_up: Lasting | None = None
    conflict: Conflict | None = None
    cleared: float = 0.0
    """When the last of these conditions ended."""


class TimedStep(NamedTuple):
    """A step and the client's time of its record."""

    step: int
    time: float


class Peak(NamedTuple):
    """The longest streak that a report saw."""

    time: float
    """When the report arrived, by the exporter's clock."""
    length: int


@dataclasses.dataclass(frozen=True)  # without slots: derived values are cached
class ProcessState:
    """One process of a run: its incarnations, and the state of the current one. Times by the exporter's clock."""

    process: int
    incarnations: Mapping[str, IncarnationState]
    """The last KEPT ones, and a few more while they report. By id, in their order."""
    current: str
    """The id of the current incarnation. The process shows its gauges and its health."""
    interval: float
    """Seconds to the next report: what the last one announced, or what its answer asked for if that is longer."""
    source: Source
    gauges: Gauges
    last_report: float
    """When the current incarnation last reported, late reports excluded."""
    gradient_norm: float | None = None
    """The last finite gradient norm."""
    update_norm: float | None = None
    """The last finite norm of an applied update."""
    scalars: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The last finite value of each scalar, at most MOST_SCALARS: those that were reported last."""
    last_step: float | None = None
    """When a report last brought a step."""
    last_gradient_step: float | None = None
    """When a report last brought a gradient step."""
    last_record: TimedStep | None = None
    """The current incarnation's last step record."""
    durations: tuple[float, ...] = ()
    """Seconds per step in the last reports that brought steps, by the client's clock."""
    peaks: tuple[Peak, ...] = ()
    """The longest streaks of the last minutes, each shorter than the one before it."""
    gradient_step_at: int | None = None
    """The state's step number at its last gradient step, or where the current incarnation began."""
    conditions: Conditions = Conditions()
    folded: Mapping[str, Folded] = dataclasses.field(default_factory=dict)
    """By attempt, the sum of its incarnations that are no longer kept one by one."""
    folded_ids: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """By id of a folded incarnation, its attempt."""

    @cached_property
    def incarnation(self) -> IncarnationState:
        """The current incarnation."""
        return self.incarnations[self.current]

    @property
    def stale_after(self) -> float:
        """Seconds without a report after which the process is stale."""
        return max(3 * self.interval, LEAST_STALE_AFTER)

    @property
    def stalled_after(self) -> float:
        """Seconds without a step after which the process is stalled."""
        return max(LEAST_STALLED_AFTER, 10 * median(self.durations)) if self.durations else LEAST_STALLED_AFTER

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
        """By attempt, the sum over its incarnations."""
        found = {attempt: folded.share for attempt, folded in self.folded.items()}
        for state in self.incarnations.values():
            found[state.attempt] = found.get(state.attempt, NOTHING).plus(state.share)
        return found

    @cached_property
    def total(self) -> Counts:
        """The totals of this process: the sum over its incarnations."""
        return sum_of(self.shares.values())

    @cached_property
    def parameter_records(self) -> Mapping[tuple[str, str], ParameterRecords]:
        """By attempt and parameter, the step records summed up."""
        found: dict[tuple[str, str], ParameterRecords] = {}
        for state in self.parts:
            for path, records in state.parameter_records.items():
                key = (state.attempt, path)
                found[key] = found[key].plus(records) if key in found else records
        return found

    @property
    def parts(self) -> Iterator[Folded | IncarnationState]:
        """What the process is the sum of: first the folded incarnations, then the others in their order."""
        yield from self.folded.values()
        yield from self.incarnations.values()

    def times_taken_before(self, incarnation: IncarnationState, step: int) -> int:
        """How often earlier incarnations of the same attempt took the step. It is another step after a rollback.

        Folded ones count as if they had taken every step up to their last one.
        """
        folded = self.folded.get(incarnation.attempt)
        early = folded.with_counters if folded is not None and step <= folded.last_step else 0
        return early + sum(
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

    def fold(self, new: str) -> tuple["ProcessState", Folding | None]:
        """Fold the incarnation that has been silent for longest, if there are too many.

        Args:
          new: the id of an incarnation that is new, and is kept.
        """
        if len(self.incarnations) <= KEPT:
            return self, None
        candidates = [state for state in self.incarnations.values() if state.incarnation not in {new, self.current}]
        chosen = min(candidates, key=lambda state: (state.last_report, state.order))
        folded = folding.add(self.folded.get(chosen.attempt), chosen)
        after = dataclasses.replace(
            self,
            incarnations={name: state for name, state in self.incarnations.items() if state is not chosen},
            folded={**self.folded, chosen.attempt: folded},
            folded_ids={**self.folded_ids, chosen.incarnation: chosen.attempt},
        )
        return after, Folding(chosen, folded)

    def with_incarnation(self, incarnation: IncarnationState) -> "ProcessState":
        """The process with one incarnation added or replaced."""
        known = incarnation.incarnation in self.incarnations
        both = {**self.incarnations, incarnation.incarnation: incarnation}
        return evolved(self, incarnations=both if known else in_order(both.values()))

    def durable(self) -> dict[str, Any]:
        """The state in types that pydantic writes as JSON, without its incarnations, which are stored as rows."""
        fields = self.__dict__
        return {name: fields[name] for name in _DURABLE}

    @classmethod
    def from_durable(
        cls,
        process: int,
        written: Mapping[str, Any],
        incarnations: Iterable[IncarnationState],
        folded: Iterable[Folded] = (),
        folded_ids: Mapping[str, str] | None = None,
    ) -> "ProcessState":
        """The state that `durable` wrote."""
        conditions = dict(written["conditions"])
        if conditions["gave_up"] is not None:
            conditions["gave_up"] = Lasting(*conditions["gave_up"])
        if conditions["conflict"] is not None:
            since, last, older, newer = conditions["conflict"]
            conditions["conflict"] = Conflict(since, last, Party(*older), Party(*newer))
        last_record = written["last_record"]
        return cls(
            process=process,
            incarnations=in_order(incarnations),
            folded={one.attempt: one for one in folded},
            folded_ids=folded_ids or {},
            **dict(written)
            | {
                "source": Source.model_validate(written["source"]),
                "gauges": Gauges.model_validate(written["gauges"]),
                "durations": tuple(written["durations"]),
                "peaks": tuple(Peak(*peak) for peak in written["peaks"]),
                "last_record": None if last_record is None else TimedStep(*last_record),
                "conditions": Conditions(**conditions),
            },
        )


_DURABLE: Final = fields_of(ProcessState, "process", "incarnations", "folded", "folded_ids")


def in_order(incarnations: Iterable[IncarnationState]) -> dict[str, IncarnationState]:
    """Incarnations by id, in their order."""
    return {state.incarnation: state for state in sorted(incarnations, key=lambda state: state.order)}


def position_of(process: ProcessState | None, report: Report) -> Position:
    """The place of a new incarnation: after the last one that sent its first report before this report."""
    own = report.attempt == own_attempt(report.incarnation)
    if process is None:
        return Position(0.0, 0, own)
    known = list(process.incarnations.values())
    folded = process.folded.get(report.attempt)
    own |= any(state.attempt == report.attempt and state.own_attempt for state in process.parts)
    generation = sum(state.attempt == report.attempt and state.has_counters for state in known)
    generation += folded.with_counters if folded is not None else 0
    at = max((i + 1 for i, state in enumerate(known) if state.first_sent_at <= report.sent_at), default=0)
    if at == len(known):
        return Position(known[-1].order + 1, generation, own)
    before = known[at - 1].order if at else known[at].order - 2
    return Position((before + known[at].order) / 2, generation, own)


@dataclasses.dataclass(frozen=True)  # without slots: `total` is cached
class RunState:
    """One run."""

    run: str
    processes: Mapping[int, ProcessState]
    labels: tuple[str, ...] = ()
    """The first ten parameters that were non-finite. Each keeps its own metric label."""
    replica_labels: tuple[Replica, ...] = ()
    """The first ten replicas that were non-finite. Each keeps its own metric labels."""
    heard: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """By attempt whose launch is known, when a current incarnation of it last reported in order; old ones are left out.
    With it a report need not look at every other process."""

    @cached_property
    def total(self) -> Counts:
        """The totals of this run: the sum over its attempts of the largest process in each, field by field."""
        largest: dict[str, Counts] = {}
        for process in self.processes.values():
            for attempt, share in process.shares.items():
                largest[attempt] = largest.get(attempt, NOTHING).maximum(share)
        return sum_of(largest.values())

    def with_process(self, process: ProcessState, **changes: Any) -> "RunState":
        """The run with one process added or replaced, and with other fields changed."""
        processes = {**self.processes, process.process: process}
        return evolved(self, processes=processes, heard=_heard(self.heard, process.incarnation), **changes)

    def with_not_stored(self, process: int, incarnation: str, records: int) -> "RunState":
        """The run with more step records of an incarnation counted as not stored."""
        state = self.processes[process]
        if (attempt := state.folded_ids.get(incarnation)) is not None:
            sum_ = state.folded[attempt]
            sum_ = dataclasses.replace(sum_, not_stored=sum_.not_stored + records)
            return self.with_process(dataclasses.replace(state, folded={**state.folded, attempt: sum_}))
        before = state.incarnations[incarnation]
        after = evolved(before, not_stored=before.not_stored + records)
        return self.with_process(state.with_incarnation(after))


def heard_from(processes: Iterable[ProcessState]) -> Mapping[str, float]:
    """`RunState.heard` of these processes."""
    found: Mapping[str, float] = {}
    for process in processes:
        found = _heard(found, process.incarnation)
    return found


def _heard(before: Mapping[str, float], current: IncarnationState) -> Mapping[str, float]:
    last = before.get(current.attempt)
    if current.own_attempt or (last is not None and last >= current.latest_arrival):
        return before
    if last is None:
        newest = max(before.values(), default=0.0)
        before = {attempt: at for attempt, at in before.items() if at > newest - _LONGEST_STALE_AFTER}
    return {**before, current.attempt: current.latest_arrival}
