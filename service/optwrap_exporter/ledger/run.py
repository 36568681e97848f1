"""A process and a run as immutable values.

Values that are costly to derive are cached in the state. `durable` and `from_durable` are what the store writes and
reads, so that a restarted exporter restores its ledger without reading step records.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from statistics import median
from typing import Any, Final, NamedTuple

from optwrap_exporter.ledger.counters import NOTHING, Counts, Replica, sum_of
from optwrap_exporter.ledger.evolve import evolved
from optwrap_exporter.ledger.incarnation import IncarnationState, ParameterRecords, Position, fields_of
from optwrap_exporter.wire.requests import Gauges, Report, Source

LEAST_STALE_AFTER: Final = 10.0
"""Seconds: no process is stale sooner."""
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
    """By id, in their order."""
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

    @property
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
        found: dict[str, Counts] = {}
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
        for state in self.incarnations.values():
            for path, records in state.parameter_records.items():
                key = (state.attempt, path)
                found[key] = found[key].plus(records) if key in found else records
        return found

    def names_own_attempt(self, incarnation: IncarnationState) -> bool:
        """Whether the attempt is named after an incarnation of this process, because its launch is unknown."""
        return incarnation.attempt in self.incarnations

    def times_taken_before(self, incarnation: IncarnationState, step: int) -> int:
        """How often earlier incarnations of the same attempt took the step. It is another step after a rollback."""
        return sum(
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
        cls, process: int, written: Mapping[str, Any], incarnations: Iterable[IncarnationState]
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


_DURABLE: Final = fields_of(ProcessState, "process", "incarnations")


def in_order(incarnations: Iterable[IncarnationState]) -> dict[str, IncarnationState]:
    """Incarnations by id, in their order."""
    return {state.incarnation: state for state in sorted(incarnations, key=lambda state: state.order)}


def position_of(process: ProcessState | None, report: Report) -> Position:
    """The place of a new incarnation: after the last one that sent its first report before this report."""
    if process is None:
        return Position(0.0, 0)
    known = list(process.incarnations.values())
    generation = sum(state.attempt == report.attempt and state.has_counters for state in known)
    at = max((i + 1 for i, state in enumerate(known) if state.first_sent_at <= report.sent_at), default=0)
    if at == len(known):
        return Position(known[-1].order + 1, generation)
    before = known[at - 1].order if at else known[at].order - 2
    return Position((before + known[at].order) / 2, generation)


@dataclasses.dataclass(frozen=True)  # without slots: `total` is cached
class RunState:
    """One run."""

    run: str
    processes: Mapping[int, ProcessState]
    labels: tuple[str, ...] = ()
    """The first ten parameters that were non-finite. Each keeps its own metric label."""
    replica_labels: tuple[Replica, ...] = ()
    """The first ten replicas that were non-finite. Each keeps its own metric labels."""

    @cached_property
    def total(self) -> Counts:
        """The totals of this run: the sum over its attempts of the largest process in each, field by field."""
        largest: dict[str, Counts] = {}
        for process in self.processes.values():
            for attempt, share in process.shares.items():
                largest[attempt] = largest.get(attempt, NOTHING).maximum(share)
        return sum_of(largest.values())

    @cached_property
    def attempts(self) -> Mapping[str, int]:
        """By attempt, the number of processes whose current incarnation belongs to it."""
        return Counter(process.incarnation.attempt for process in self.processes.values())

    def with_process(self, process: ProcessState, **changes: Any) -> "RunState":
        """The run with one process added or replaced, and with other fields changed.

        It carries `attempts` over, because a run may have thousands of processes.
        """
        known = self.processes.get(process.process)
        before, after = known.incarnation.attempt if known is not None else None, process.incarnation.attempt
        attempts = self.attempts
        if before != after:
            attempts = Counter(attempts)
            attempts[after] += 1
            if before is not None:
                attempts[before] -= 1
            attempts = +attempts
        processes = {**self.processes, process.process: process}
        return evolved(self, processes=processes, attempts=attempts, **changes)

    def with_not_stored(self, process: int, incarnation: str, records: int) -> "RunState":
        """The run with more step records of an incarnation counted as not stored."""
        state = self.processes[process]
        before = state.incarnations[incarnation]
        after = evolved(before, not_stored=before.not_stored + records)
        return self.with_process(state.with_incarnation(after))
