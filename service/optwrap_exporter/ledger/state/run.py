"""A run as an immutable value."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Final

from optwrap_exporter.ledger.evolve import evolved
from optwrap_exporter.ledger.state.compaction import IncarnationSum
from optwrap_exporter.ledger.state.counters import NOTHING, Counts, Replica, sum_of
from optwrap_exporter.ledger.state.incarnation import IncarnationState
from optwrap_exporter.ledger.state.incident import IncidentRecord
from optwrap_exporter.ledger.state.past import NO_PAST, Past
from optwrap_exporter.ledger.state.process import ProcessState
from optwrap_exporter.wire.vocabulary import IncidentKind

_LONGEST_STALE_AFTER: Final = 3 * 3600.0
"""Seconds: no process is stale later, because an interval is an hour at most."""


@dataclasses.dataclass(frozen=True)  # without slots: `total` is cached
class RunState:
    """One run."""

    run: str
    processes: Mapping[int, ProcessState]
    labels: tuple[str, ...] = ()
    """The first ten parameters that were non-finite. Each keeps its own metric label."""
    replica_labels: tuple[Replica, ...] = ()
    """The first ten replicas that were non-finite. Each keeps its own metric labels."""
    last_reports: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """By attempt whose launch is known, when a current incarnation of it last reported in order; old ones are left out.
    With it a report need not look at every other process."""
    past: Past = NO_PAST
    """What processes have left."""
    incidents: tuple[IncidentRecord, ...] = ()
    """The live ones: those that are open, and the acknowledged ones whose cause still holds. By id."""
    past_incidents: tuple[IncidentRecord, ...] = ()
    """The last ones that are over. The store has all of them."""
    archived: bool = False
    """Whether somebody hid it."""

    @property
    def incidents_open(self) -> dict[IncidentKind, int]:
        """The number of open incidents by kind; kinds without any are left out."""
        return dict(Counter(one.kind for one in self.incidents if one.state == "open"))

    @property
    def attempts_total(self) -> int:
        """The number of launches so far.

        Of the processes whose launch is unknown the one with the most attempts counts.
        """
        known = set(self.past.open)
        for process in self.processes.values():
            known |= {part.attempt for part in process.parts if not part.own_attempt}
        own = max((process.own_attempts for process in self.processes.values()), default=0)
        return len(known) + self.past.attempts - self.past.own + own

    @cached_property
    def total(self) -> Counts:
        """The totals of this run: the sum over its attempts of the largest process in each, field by field."""
        largest = {attempt: one.share for attempt, one in self.past.open.items()}
        for process in self.processes.values():
            for attempt, share in process.shares.items():
                largest[attempt] = largest.get(attempt, NOTHING).maximum(share)
        return sum_of([*(one.share for one in self.past.closed), *largest.values()])

    def past_with(self, process: ProcessState, left: Iterable[IncarnationSum]) -> Past:
        """`past` once a process has left attempts. `process` is its state after that."""
        past = self.past
        for one in left:
            past = past.joined(one)
        if past.open.keys() == self.past.open.keys():
            return past
        others = (one for one in self.processes.values() if one.process != process.process)  # once for an attempt
        return past.closed_but({part.attempt for one in (process, *others) for part in one.parts})

    def with_process(self, process: ProcessState, **changes: Any) -> "RunState":
        """The run with one process added or replaced, and with other fields changed."""
        processes = {**self.processes, process.process: process}
        last_reports = _with_report(self.last_reports, process.incarnation)
        return evolved(self, processes=processes, last_reports=last_reports, **changes)

    def with_not_stored(self, process: int, incarnation: str, records: int) -> "RunState":
        """The run with more step records of an incarnation counted as not stored."""
        state = self.processes[process]
        if (before := state.incarnations.get(incarnation)) is not None:
            after = evolved(before, not_stored=before.not_stored + records)
            return self.with_process(state.with_incarnation(after))
        sum_ = state.sums.get(state.compacted_ids.get(incarnation, ""), state.earlier)
        sum_ = dataclasses.replace(sum_, not_stored=sum_.not_stored + records)
        if sum_.attempt:
            return self.with_process(evolved(state, sums={**state.sums, sum_.attempt: sum_}))
        return self.with_process(evolved(state, earlier=sum_))


def last_reports_of(processes: Iterable[ProcessState]) -> Mapping[str, float]:
    """`RunState.last_reports` of these processes."""
    found: Mapping[str, float] = {}
    for process in processes:
        found = _with_report(found, process.incarnation)
    return found


def _with_report(before: Mapping[str, float], current: IncarnationState) -> Mapping[str, float]:
    last = before.get(current.attempt)
    if current.own_attempt or (last is not None and last >= current.latest_arrival):
        return before
    if last is None:
        newest = max(before.values(), default=0.0)
        before = {attempt: at for attempt, at in before.items() if at > newest - _LONGEST_STALE_AFTER}
    return {**before, current.attempt: current.latest_arrival}
