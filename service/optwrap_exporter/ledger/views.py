"""What the API and /metrics show of a run: pure functions of its state and the time."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from optwrap_exporter.ledger import health, ranges
from optwrap_exporter.ledger.apply_report import PEAK_SECONDS
from optwrap_exporter.ledger.counters import Counts, Replica
from optwrap_exporter.ledger.health import HealthSince
from optwrap_exporter.ledger.parts import ParameterRecords, StepSpan
from optwrap_exporter.ledger.run import ProcessState, RunState
from optwrap_exporter.wire.answers import (
    AttemptRow,
    DroppedTotals,
    ParameterRow,
    ProcessRow,
    ReplicaRow,
    RunDetail,
    RunSummary,
)
from optwrap_exporter.wire.requests import Gauges, Source
from optwrap_exporter.wire.vocabulary import AttemptState, Health

OTHER: Final = "other"
"""The metric label that sums up all parameters without a label of their own. Replicas use it too."""
OTHER_REPLICAS: Final = Replica(None, None, None)
"""Stands for all replicas without labels of their own."""


@dataclasses.dataclass(frozen=True, slots=True)
class ProcessView:
    """What a scrape needs of one process. Times by the exporter's clock."""

    run: str
    process: int
    incarnation: str
    attempt: str
    health: Health
    since: float
    """When that health began."""
    totals: Counts
    """Counted over all attempts; never falls."""
    state: Counts
    """The counters of the optimizer's state now; falls after a rollback."""
    parameters: Mapping[str, int]
    """Steps by metric label: OTHER, then the first ten parameters of the run. A path "other" is added to OTHER."""
    replicas: Mapping[Replica, int]
    """Steps by replica: OTHER_REPLICAS, then the first ten replicas of the run."""
    dropped: DroppedTotals
    gauges: Gauges
    gradient_norm: float | None
    """The last finite gradient norm."""
    streak_peak: int
    """The longest streak of the last 5 minutes."""
    last_report: float
    last_step: float | None
    """None until this exporter has received a step."""
    last_gradient_step: float | None
    source: Source


def view(run: RunState, process: ProcessState, now: float, listening: float) -> ProcessView:
    """What a scrape needs of one process."""
    current = health.of_process(process, now, listening)
    total = process.total
    parameters = {OTHER: 0} | {label: total.parameters.get(label, 0) for label in run.labels}
    # Named counts may be older than the sum, or the sum older than they, if reports arrive out of order.
    parameters[OTHER] += max(total.parameter_steps, sum(total.parameters.values())) - sum(parameters.values())
    replicas = {OTHER_REPLICAS: 0} | {label: total.replicas.get(label, 0) for label in run.replica_labels}
    replicas[OTHER_REPLICAS] += sum(total.replicas.values()) - sum(replicas.values())
    peaks = [peak.length for peak in process.peaks if peak.time > now - PEAK_SECONDS]
    return ProcessView(
        run=run.run,
        process=process.process,
        incarnation=process.current,
        attempt=process.incarnation.attempt,
        health=current.health,
        since=current.since,
        totals=total,
        state=process.incarnation.totals,
        parameters=parameters,
        replicas=replicas,
        dropped=_dropped([process]),
        gauges=process.gauges,
        gradient_norm=process.gradient_norm,
        streak_peak=max([*peaks, process.gauges.not_finite_streak or 0]),
        last_report=process.last_report,
        last_step=process.last_step,
        last_gradient_step=process.last_gradient_step,
        source=process.source,
    )


def chosen(runs: Iterable[RunState], most: int) -> list[RunState]:
    """At most so many runs: first those that report, from the oldest on, then the others, from the last heard on.

    So new names, which anybody who may report can make up, never displace a run that reports.
    """
    found = list(runs)
    if len(found) <= most:
        return found

    def key(run: RunState) -> tuple[bool, float]:
        live = any(one.conditions.ended is None and one.conditions.stale is None for one in run.processes.values())
        return (False, _first_report(run)) if live else (True, -max(p.last_report for p in run.processes.values()))

    return sorted(found, key=key)[:most]


def summary(run: RunState, now: float, listening: float) -> RunSummary:
    """The run in the list of runs."""
    current = health.of_run(run, now, listening)
    members = health.relevant(run, now)
    return RunSummary(
        run=run.run,
        health=current.health,
        since=current.since,
        first_report=_first_report(run),
        last_report=max(process.last_report for process in run.processes.values()),
        totals=run.total.totals(),
        process_count=health.process_count(members),
        processes=len(members),
    )


class ShownRow(NamedTuple):
    """The values from which a process row was made."""

    process: ProcessState
    current: HealthSince


Shown = dict[int, ShownRow]
"""By process, the row that was shown last."""


def detail(
    run: RunState, now: float, listening: float, most_parameters: int | None = None, shown: Shown | None = None
) -> RunDetail:
    """Everything about the run.

    Args:
      run: the run.
      now: the exporter's clock.
      listening: when this exporter began to accept reports.
      most_parameters: how many of the worst parameters to include; None includes all.
      shown: the process rows that the caller was shown last. If given, only other rows are included, and `shown` is
        updated.
    """
    brief = summary(run, now, listening)
    leading = lead(run, now)
    return RunDetail(
        run=run.run,
        health=brief.health,
        since=brief.since,
        first_report=brief.first_report,
        last_report=brief.last_report,
        totals=brief.totals,
        state_totals=leading.incarnation.totals.totals(),
        unseen=unseen(run, leading),
        gauges=leading.gauges,
        parameters=parameters(run)[:most_parameters],
        replicas=replicas(run),
        dropped=_dropped(run.processes.values()),
        attempts=_attempts(run, now, listening),
        processes=list(_rows(run, now, listening, {} if shown is None else shown)),
    )


def lead(run: RunState, now: float) -> ProcessState:
    """The process whose gauges and steps the run shows: the lowest one that still reports.

    A process that went silent or ended long before the others is left out.
    """
    members = health.relevant(run, now)
    last = max(process.last_report for process in members)
    return next(process for process in members if process.last_report + process.stale_after > last)


def unseen(run: RunState, leading: ProcessState) -> int:
    """Steps of the optimizer's state that no incarnation covers."""
    taken = leading.incarnation.totals.steps
    steps: list[tuple[int, int]] = []
    for process in run.processes.values():
        steps += [(state.baseline.steps + 1, state.totals.steps) for state in process.incarnations.values()]
        steps += [one for folded in process.folded.values() for one in folded.covered]
    covered = ranges.union(steps)
    return taken - ranges.count(covered, 1, taken)


def parameters(run: RunState) -> list[ParameterRow]:
    """Parameters that were non-finite, worst first."""
    steps = run.total.parameters
    records = _parameter_records(run)
    rows = [
        ParameterRow(
            parameter=path,
            steps=steps.get(path, 0),
            values=of.values if (of := records.get(path)) else 0,
            first_step=of.first_step if of else None,
            last_step=of.last_step if of else None,
        )
        for path in {**steps, **records}
    ]
    return sorted(rows, key=worst_first)


def worst_first(row: ParameterRow) -> tuple[int, int, str]:
    """The sort key of parameters: by steps, then values, then path."""
    return (-row.steps, -row.values, row.parameter)


def replicas(run: RunState) -> list[ReplicaRow]:
    """Replicas that were the first non-finite one, worst first."""
    spans: dict[Replica, StepSpan] = {}
    for process in run.processes.values():
        for part in process.parts:
            for replica, span in part.replica_spans.items():
                spans[replica] = spans[replica].joined(span) if replica in spans else span
    rows = [
        ReplicaRow(
            replica=replica.number,
            process=replica.process,
            device=replica.device,
            steps=steps,
            first_step=spans[replica].first if replica in spans else None,
            last_step=spans[replica].last if replica in spans else None,
        )
        for replica, steps in run.total.replicas.items()
    ]
    return sorted(rows, key=_worst_replica_first)


def _worst_replica_first(row: ReplicaRow) -> tuple[int, float, float, str]:
    """The sort key of replicas: by steps, then by number, process and device, so that no two rows are equal."""
    number = math.inf if row.replica is None else row.replica
    process = math.inf if row.process is None else row.process
    return (-row.steps, number, process, row.device or "")


def _parameter_records(run: RunState) -> dict[str, ParameterRecords]:
    """Step records by parameter, summed over attempts.

    All processes of an attempt see the same values, so only the process with the most values counts.
    """
    largest: dict[tuple[str, str], ParameterRecords] = {}
    for _, process in sorted(run.processes.items()):
        for key, found in process.parameter_records.items():
            if key not in largest or largest[key].values < found.values:
                largest[key] = found
    summed: dict[str, ParameterRecords] = {}
    for (_, path), found in largest.items():
        summed[path] = summed[path].plus(found) if path in summed else found
    return summed


def _first_report(run: RunState) -> float:
    return min(part.first_report for process in run.processes.values() for part in process.parts)


def _dropped(processes: Iterable[ProcessState]) -> DroppedTotals:
    parts = [part for process in processes for part in process.parts]
    return DroppedTotals(
        steps=sum(part.dropped.steps for part in parts),
        bad_steps=sum(part.dropped.bad_steps for part in parts),
        not_stored=sum(part.not_stored for part in parts),
    )


def _rows(run: RunState, now: float, listening: float, shown: Shown) -> Iterator[ProcessRow]:
    """The rows that differ from `shown`. States are immutable, so an unchanged state means an unchanged row."""
    for index, process in sorted(run.processes.items()):
        current = health.of_process(process, now, listening)
        before = shown.get(index)
        if before is not None and before.process is process and before.current == current:
            continue
        shown[index] = ShownRow(process, current)
        yield ProcessRow(
            process=index,
            host=process.source.host,
            health=current.health,
            since=current.since,
            last_report=process.last_report,
            totals=process.total.totals(),
            gauges=process.gauges,
        )


def _attempts(run: RunState, now: float, listening: float) -> list[AttemptRow]:
    """Every launch of the run, by its first report."""
    since: dict[str, float] = {}
    until: dict[str, float] = {}
    states: dict[str, set[AttemptState]] = {}
    for process in run.processes.values():
        silent = health.stale_since(process, now, listening) is not None
        last: dict[str, AttemptState] = {}
        for state in process.parts:
            since[state.attempt] = min(since.get(state.attempt, state.first_report), state.first_report)
            until[state.attempt] = max(until.get(state.attempt, 0.0), state.last_report)
            lost = not state.ended and (silent or state is not process.incarnation)
            last[state.attempt] = "lost" if lost else state.state
        for attempt, found in last.items():
            states.setdefault(attempt, set()).add(found)
    worst: tuple[AttemptState, ...] = ("failed", "running", "starting", "lost", "finished")
    return [
        AttemptRow(
            attempt=attempt,
            since=since[attempt],
            until=until[attempt],
            state=next(state for state in worst if state in states[attempt]),
        )
        for attempt in sorted(since, key=lambda name: (since[name], name))
    ]
