"""What the API and a scrape are told of a run: pure functions of its state, now."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from optwrap_exporter.ledger import health, ranges
from optwrap_exporter.ledger.counters import Counts, Replica
from optwrap_exporter.ledger.incarnation import Offences, Seen
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
"""The label of all parameters that have none of their own."""
NO_REPLICA: Final = Replica(None, None, None)
"""What stands for all replicas that have no label of their own."""


@dataclasses.dataclass(frozen=True, slots=True)
class ProcessView:
    """One process of one run, as of now: all that a scrape needs. Times by the exporter's clock."""

    run: str
    process: int
    incarnation: str
    attempt: str
    health: Health
    since: float
    """When that health began."""
    totals: Counts
    """Seen to run: monotonic."""
    state: Counts
    """What the optimizer's state says: absolute, may go back. `state.steps` is optwrap_state_steps."""
    parameters: Mapping[str, int]
    """Steps by metric label: the run's first ten parameters to go bad by their path, the sum of all others as "other".
    Only labels that exist; a path that happens to be "other" counts there."""
    replicas: Mapping[Replica, int]
    """Steps by replica: the run's first ten that brought what is not finite, the sum of all others as NO_REPLICA."""
    dropped: DroppedTotals
    gauges: Gauges
    gradient_norm: float | None
    """The last finite one."""
    streak_peak: int
    """The longest streak of the last 5 minutes."""
    last_report: float
    last_step: float | None
    """None before this exporter saw the first."""
    last_gradient_step: float | None
    source: Source


def view(run: RunState, process: ProcessState, now: float, listening: float) -> ProcessView:
    """What a scrape needs of one process."""
    condition, since = health.of_process(process, now, listening)
    total = process.total
    labelled = {label: total.parameters.get(label, 0) for label in run.labels}
    rest = sum(total.parameters.values()) - sum(labelled.values())
    if rest:
        labelled[OTHER] = labelled.get(OTHER, 0) + rest
    firsts = {label: total.replicas.get(label, 0) for label in run.replica_labels}
    if others := sum(total.replicas.values()) - sum(firsts.values()):
        firsts[NO_REPLICA] = others
    peaks = [peak for at, peak in process.peaks if at > now - health.PEAK]
    return ProcessView(
        run=run.run,
        process=process.process,
        incarnation=process.current,
        attempt=process.incarnation.attempt,
        health=condition,
        since=since,
        totals=total,
        state=process.incarnation.totals,
        parameters=labelled,
        replicas=firsts,
        dropped=_dropped([process]),
        gauges=process.gauges,
        gradient_norm=process.gradient_norm,
        streak_peak=max([*peaks, process.gauges.not_finite_streak or 0]),
        last_report=process.last_report,
        last_step=process.last_step,
        last_gradient_step=process.last_gradient_step,
        source=process.source,
    )


def summary(run: RunState, now: float, listening: float) -> RunSummary:
    """The run in the list of runs."""
    condition, since = health.of_run(run, now, listening)
    members = health.relevant(run, now)
    return RunSummary(
        run=run.run,
        health=condition,
        since=since,
        first_report=_first_report(run),
        last_report=max(process.last_report for process in run.processes.values()),
        totals=run.total.totals(),
        process_count=health.process_count(members),
        processes=len(members),
    )


Shown = dict[int, tuple[ProcessState, Health, float]]
"""By process, what its row was made of when somebody was told it last."""


def detail(
    run: RunState, now: float, listening: float, most_parameters: int | None = None, shown: Shown | None = None
) -> RunDetail:
    """The run, whole; with at most so many parameters.

    Where `shown` is given, of its processes only those of which it does not say the same; it is brought up to date.
    """
    brief = summary(run, now, listening)
    speaker = lead(run, now)
    return RunDetail(
        run=run.run,
        health=brief.health,
        since=brief.since,
        first_report=brief.first_report,
        last_report=brief.last_report,
        totals=brief.totals,
        state_totals=speaker.incarnation.totals.totals(),
        unseen=unseen(run, speaker),
        gauges=speaker.gauges,
        parameters=parameters(run)[:most_parameters],
        replicas=replicas(run),
        dropped=_dropped(run.processes.values()),
        attempts=_attempts(run, now, listening),
        processes=list(_rows(run, now, listening, {} if shown is None else shown)),
    )


def lead(run: RunState, now: float) -> ProcessState:
    """The process that speaks for the run where all say the same.

    Of those that are the run now the lowest that has not been silent, or gone, long before the others.
    """
    members = health.relevant(run, now)
    last = max(process.last_report for process in members)
    return next(process for process in members if process.last_report + health.silence(process.interval) > last)


def unseen(run: RunState, speaker: ProcessState) -> int:
    """Steps that the optimizer's state has taken and that no incarnation reported."""
    lived = speaker.incarnation.totals.steps
    incarnations = (state for process in run.processes.values() for state in process.incarnations.values())
    reported = ranges.union((state.baseline.steps + 1, state.totals.steps) for state in incarnations)
    return lived - ranges.count(reported, 1, lived)


def parameters(run: RunState) -> list[ParameterRow]:
    """Parameters that were not finite, worst first: by steps, then values, then path."""
    found = run.total.parameters
    offences = _offences(run)
    rows = [
        ParameterRow(
            parameter=path,
            steps=found.get(path, 0),
            values=of.values if (of := offences.get(path)) else 0,
            first_step=of.first_step if of else None,
            last_step=of.last_step if of else None,
        )
        for path in {**found, **offences}
    ]
    return sorted(rows, key=worst_first)


def replicas(run: RunState) -> list[ReplicaRow]:
    """Replicas that were the first whose own gradients were not finite, worst first: by steps, then by their number."""
    seen: dict[Replica, Seen] = {}
    for process in run.processes.values():
        for incarnation in process.incarnations.values():
            for replica, steps in incarnation.seen.items():
                seen[replica] = seen[replica].joined(steps) if replica in seen else steps
    rows = [
        ReplicaRow(
            replica=replica.number,
            process=replica.process,
            device=replica.device,
            steps=steps,
            first_step=seen[replica].first if replica in seen else None,
            last_step=seen[replica].last if replica in seen else None,
        )
        for replica, steps in run.total.replicas.items()
    ]
    none = 2**63
    return sorted(rows, key=lambda row: (-row.steps, none if row.replica is None else row.replica, row.device or ""))


def worst_first(row: ParameterRow) -> tuple[int, int, str]:
    """What to sort parameters by."""
    return (-row.steps, -row.values, row.parameter)


def _offences(run: RunState) -> dict[str, Offences]:
    """By parameter, over all attempts; of an attempt, whose processes see the same, from the lowest that saw most."""
    largest: dict[tuple[str, str], Offences] = {}
    for _, process in sorted(run.processes.items()):
        for key, found in process.offences.items():
            if key not in largest or largest[key].values < found.values:
                largest[key] = found
    summed: dict[str, Offences] = {}
    for (_, path), found in largest.items():
        summed[path] = summed[path].plus(found) if path in summed else found
    return summed


def _first_report(run: RunState) -> float:
    return min(state.first_report for process in run.processes.values() for state in process.incarnations.values())


def _dropped(processes: Iterable[ProcessState]) -> DroppedTotals:
    incarnations = [state for process in processes for state in process.incarnations.values()]
    return DroppedTotals(
        steps=sum(state.dropped[0] for state in incarnations),
        bad_steps=sum(state.dropped[1] for state in incarnations),
        not_stored=sum(state.not_stored for state in incarnations),
    )


def _rows(run: RunState, now: float, listening: float, shown: Shown) -> Iterator[ProcessRow]:
    """The rows that are not what `shown` says. A state is replaced, never changed: the same one gives the same row."""
    for index, process in sorted(run.processes.items()):
        condition, since = health.of_process(process, now, listening)
        before = shown.get(index)
        if before is not None and before[0] is process and before[1:] == (condition, since):
            continue
        shown[index] = (process, condition, since)
        yield ProcessRow(
            process=index,
            host=process.source.host,
            health=condition,
            since=since,
            last_report=process.last_report,
            totals=process.total.totals(),
            gauges=process.gauges,
        )


def _attempts(run: RunState, now: float, listening: float) -> list[AttemptRow]:
    """Every launch of the run, in the order in which they were heard of."""
    since: dict[str, float] = {}
    until: dict[str, float] = {}
    states: dict[str, set[AttemptState]] = {}
    for process in run.processes.values():
        silent = health.stale_since(process, now, listening) is not None
        last: dict[str, AttemptState] = {}
        for state in process.incarnations.values():
            since[state.attempt] = min(since.get(state.attempt, state.first_report), state.first_report)
            until[state.attempt] = max(until.get(state.attempt, 0.0), state.last_report)
            lost = not state.ended and (silent or state.incarnation != process.current)
            last[state.attempt] = "lost" if lost else state.state
        for attempt, said in last.items():
            states.setdefault(attempt, set()).add(said)
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
