"""What the ledger remembers of a process and of a run, as values. Nothing here is ever changed, only replaced.

What takes long to derive from a value is remembered in it. `durable` and `from_durable` are what the store writes with
every report, so that a ledger is back after a restart without reading a single step record.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from functools import cached_property, reduce
from typing import Any, Final

from optwrap_exporter.ledger.counters import Counts, Replica
from optwrap_exporter.ledger.incarnation import NOTHING, IncarnationState, Offences, plain
from optwrap_exporter.wire.requests import Gauges, Source


@dataclasses.dataclass(frozen=True)  # without slots: what is derived from it is remembered in it
class ProcessState:
    """One process of a run: its incarnations, and how the current one lives. Times by the exporter's clock."""

    process: int
    incarnations: Mapping[str, IncarnationState]
    """By id, in their order."""
    current: str
    """The incarnation that speaks for the process: health and gauges are its."""
    interval: float
    source: Source
    gauges: Gauges
    last_report: float
    """Of the current incarnation, late ones aside."""
    gradient_norm: float | None = None
    """The last finite one."""
    last_step: float | None = None
    last_gradient_step: float | None = None
    last_record: tuple[int, float] | None = None
    """Step number and time, by the client's clock, of the current incarnation's last step record."""
    durations: tuple[float, ...] = ()
    """Seconds per step of the last reports that brought steps, by the client's clock."""
    peaks: tuple[tuple[float, int], ...] = ()
    """When, and the longest streak then."""
    gradient_anchor: int | None = None
    """The state's step number at the current incarnation's last gradient step, or at its start."""
    cleared: float = 0.0
    """When the last thing that was wrong ended."""
    ended: float | None = None
    skipping: float | None = None
    starved: float | None = None
    gave_up: tuple[float, float] | None = None
    """Since when, and when last."""
    conflict: tuple[float, float] | None = None
    """Since when, and when last, it and another life under its name contradicted each other."""
    stale: float | None = None
    """Since when it is said to be; known even after a restart of the exporter."""
    stalled: float | None = None

    @property
    def incarnation(self) -> IncarnationState:
        """The current one."""
        return self.incarnations[self.current]

    @cached_property
    def total(self) -> Counts:
        """Everything counted of this process: the sum over its incarnations."""
        return sum_of(self.shares.values())

    @cached_property
    def shares(self) -> Mapping[str, Counts]:
        """By attempt, what its incarnations add."""
        found: dict[str, Counts] = {}
        for state in self.incarnations.values():
            found[state.attempt] = found.get(state.attempt, NOTHING).plus(state.share)
        return found

    @cached_property
    def offences(self) -> Mapping[tuple[str, str], Offences]:
        """By attempt and parameter, what its incarnations' records said."""
        found: dict[tuple[str, str], Offences] = {}
        for state in self.incarnations.values():
            for path, offences in state.offences.items():
                key = (state.attempt, path)
                found[key] = found[key].plus(offences) if key in found else offences
        return found

    def names_own_attempt(self, incarnation: IncarnationState) -> bool:
        """Whether an incarnation's attempt is called by one of this process's incarnations: nothing told it its launch, then."""
        return incarnation.attempt in self.incarnations

    def taken_before(self, incarnation: IncarnationState, step: int) -> int:
        """How often it had taken the step in the same attempt before that incarnation: after a rollback it is another one."""
        return sum(
            state.attempt == incarnation.attempt
            and state.order < incarnation.order
            and state.start_step < step <= state.totals.steps
            for state in self.incarnations.values()
        )

    def durable(self) -> dict[str, Any]:
        """What to write: JSON's types only. Its incarnations are written apart."""
        return {name: getattr(self, name) for name in _PLAIN} | {
            "source": self.source.model_dump(mode="json"),
            "gauges": self.gauges.model_dump(mode="json"),
        }

    @classmethod
    def from_durable(
        cls, process: int, written: Mapping[str, Any], incarnations: Iterable[IncarnationState]
    ) -> "ProcessState":
        """What was written."""

        def pair(name: str) -> Any:
            return written[name] and tuple(written[name])

        return cls(
            process=process,
            incarnations=ordered(incarnations),
            **dict(written)
            | {
                "source": Source.model_validate(written["source"]),
                "gauges": Gauges.model_validate(written["gauges"]),
                "durations": tuple(written["durations"]),
                "peaks": tuple((at, peak) for at, peak in written["peaks"]),
                "last_record": pair("last_record"),
                "gave_up": pair("gave_up"),
                "conflict": pair("conflict"),
            },
        )


_PLAIN: Final = plain(ProcessState, "process", "incarnations", "source", "gauges")


def ordered(incarnations: Iterable[IncarnationState]) -> dict[str, IncarnationState]:
    """By id, in their order."""
    return {state.incarnation: state for state in sorted(incarnations, key=lambda state: state.order)}


@dataclasses.dataclass(frozen=True)  # without slots, as ProcessState
class RunState:
    """One run."""

    run: str
    processes: Mapping[int, ProcessState]
    labels: tuple[str, ...] = ()
    """The first ten parameters to go bad, which keep a metric label of their own for the run's life."""
    replica_labels: tuple[Replica, ...] = ()
    """The same of replicas."""

    @cached_property
    def total(self) -> Counts:
        """Everything counted of this run: the sum over its attempts of the largest process in each, field by field."""
        largest: dict[str, Counts] = {}
        for process in self.processes.values():
            for attempt, share in process.shares.items():
                largest[attempt] = largest.get(attempt, NOTHING).maximum(share)
        return sum_of(largest.values())


def sum_of(counts: Iterable[Counts]) -> Counts:
    """The sum of several counts."""
    return reduce(Counts.plus, counts, NOTHING)
