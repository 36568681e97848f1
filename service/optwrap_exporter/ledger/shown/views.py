"""What the API shows of a run: pure functions of its state and the time."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import BaseModel

from optwrap_exporter.ledger.change import health
from optwrap_exporter.ledger.change.health import HealthSince, Judged
from optwrap_exporter.ledger.incidents.summary import answer
from optwrap_exporter.ledger.shown import attempts, unseen
from optwrap_exporter.ledger.shown import summary as sentences
from optwrap_exporter.ledger.shown.figures import dropped
from optwrap_exporter.ledger.state.conditions import Seen
from optwrap_exporter.ledger.state.counters import Replica
from optwrap_exporter.ledger.state.incarnation import IncarnationState
from optwrap_exporter.ledger.state.incident import IncidentRecord
from optwrap_exporter.ledger.state.parts import ParameterRecords, StepSpan, joined_spans, larger_records, summed_records
from optwrap_exporter.ledger.state.process import ProcessState
from optwrap_exporter.ledger.state.run import RunState
from optwrap_exporter.wire.answers import (
    ANSWER_BYTES,
    Figure,
    LeftOutOfRun,
    ParameterRow,
    ProcessRow,
    ProcessTotals,
    ReplicaRow,
    RowFigure,
    RunDetail,
    RunSummary,
    SkippedRecently,
)
from optwrap_exporter.wire.incident import Incident
from optwrap_exporter.wire.vocabulary import HEALTHS, LOST_REASONS, OUTCOMES, Health, Scope


def chosen(runs: Iterable[RunState], most: int) -> list[RunState]:
    """At most so many runs: first those that report, from the oldest on, then the others, from the last heard on.

    So new names, which anybody who may report can make up, never displace a run that reports.
    """
    found = list(runs)
    if len(found) <= most:
        return found

    def key(run: RunState) -> tuple[bool, float]:
        live = any(one.conditions.ended is None and one.conditions.stale is None for one in run.processes.values())
        return (False, first_report(run)) if live else (True, -max(p.last_report for p in run.processes.values()))

    return sorted(found, key=key)[:most]


def summary(run: RunState, now: float, listening: float, scope: Scope) -> RunSummary:
    """The run in the list of runs."""
    members = health.judged(run, now, listening)
    return RunSummary(**_common(run, members, now, listening, scope), processes=len(members))


Verdict = tuple[Health, str]
"""The health of a run, and the sentence about it."""


def verdict(run: RunState, now: float, listening: float, scope: Scope) -> Verdict:
    """The verdict on the run, without the cost of its totals."""
    members = health.judged(run, now, listening)
    current = health.of_run(run, members, scope)
    return current.health, sentences.of_run(run, current, members, lead(run, now), now=now, scope=scope)


def _common(run: RunState, members: Sequence[Judged], now: float, listening: float, scope: Scope) -> dict[str, Any]:
    """The fields that RunSummary and RunDetail have in common."""
    leading = lead(run, now)
    current = health.of_run(run, members, scope)
    processes = [one.process for one in members]
    ended, latched = _ended(processes), health.cause(run, current.health)
    missing, expected = unseen.unseen(run, leading), health.process_count(processes)
    of = leading.incarnation
    lost_steps = [process.lost.steps for process in run.processes.values()]
    lost_seconds = [process.lost.seconds for process in run.processes.values()]
    return {
        "run": run.run,
        "health": current.health,
        "since": current.since,
        "summary": sentences.of_run(run, current, members, leading, now=now, scope=scope),
        "runbook": sentences.runbook(current.health, members),
        "reason": None if ended is None else ended.reason,
        "last_clean_step": None if (cause := latched or ended) is None else cause.last_clean_step,
        "first_report": first_report(run),
        "last_report": max(process.last_report for process in run.processes.values()),
        "totals": run.total.totals(),
        "unseen": missing.steps,
        "unseen_not_finite": missing.not_finite,
        "process_count": expected,
        "missing": max(0, expected - len(members)) if scope == "job" else None,
        "gauges": leading.gauges,
        "norm": _figure(sentences.norm_of(leading)),
        "update_norm": _figure(leading.update_norm),
        "scalars": {name: _figure(value) for name, value in {**leading.scalars, **leading.bad_scalars}.items()},
        "steps_per_second": leading.steps_per_second(now, listening),
        "last_step": of.totals.steps or None,
        "last_step_time": of.rose.arrived if of.share.steps else None,
        "skipped_recently": SkippedRecently(
            steps=sum(part.steps for part in leading.recent), skipped=sum(part.skipped for part in leading.recent)
        ),
        "lost_steps": {reason: max(one[reason] for one in lost_steps) for reason in LOST_REASONS},
        "lost_seconds": {reason: max(one[reason] for one in lost_seconds) for reason in LOST_REASONS},
        "attempts_total": run.attempts_total,
        "incidents_open": run.incidents_open,
        "acknowledged": health.acknowledged(run, current.health),
        "archived": run.archived,
    }


def _incidents(run: RunState) -> tuple[list[Incident], int]:
    """The incidents to show, and how many are left out."""
    # A process that is silent or has ended stops the others of its launch: its incident stands above theirs.
    causes = {one.attempt for one in run.incidents if one.state == "open" and one.kind in {"stale", "failed"}}

    def order(one: IncidentRecord) -> tuple[bool, bool, int]:
        return one.state != "open", one.kind == "stalled" and one.attempt in causes, -one.id

    found = sorted((*run.incidents, *run.past_incidents), key=order)
    shown, _ = fitting((answer(run.run, one) for one in found[:_MOST_INCIDENTS]), _INCIDENT_BYTES)
    return shown, len(found) - len(shown)


def _figure(seen: Seen | None) -> Figure | None:
    return None if seen is None else Figure(value=seen.value, step=seen.step, time=seen.time)


def _ended(members: Iterable[ProcessState]) -> IncarnationState | None:
    """The incarnation that says best why the run failed or stopped; None if no process did, or all run again."""
    found = [one.incarnation for one in members if one.incarnation.state in {"failed", "stopped"}]
    return min(found, key=lambda one: (one.state == "stopped", one.reason is None), default=None)


class ShownRow(NamedTuple):
    """The values from which a process row was made."""

    process: ProcessState
    current: HealthSince
    acknowledged: bool


Shown = dict[int, ShownRow]
"""By process, the row that was shown last."""


def detail(
    run: RunState,
    now: float,
    listening: float,
    scope: Scope,
    *,
    most_parameters: int | None = None,
    shown: Shown | None = None,
) -> RunDetail:
    """Everything about the run.

    Args:
      run: the run.
      now: the exporter's clock.
      listening: when this exporter began to accept reports.
      scope: what the exporter hears.
      most_parameters: how many of the worst parameters to include; None includes all that fit.
      shown: the process rows that the caller was shown last. If given, only other rows are included, and `shown` is
        updated.
    """
    leading = lead(run, now)
    named, launches = replicas(run), attempts.rows(run, now, listening)
    shown_replicas, room = fitting(named, _LIST_BYTES)
    shown_attempts, left = fitting(reversed(launches), _LIST_BYTES)
    room += left
    rows, waiting, left = _rows(run, now, listening, {} if shown is None else shown)
    incidents, older = _incidents(run)
    bad = parameters(run)
    shown_parameters, _ = fitting(bad[:most_parameters], room + left + _LIST_BYTES)
    return RunDetail(
        **_common(run, health.judged(run, now, listening), now, listening, scope),
        state_totals=leading.incarnation.totals.totals(),
        parameters=shown_parameters,
        replicas=shown_replicas,
        dropped=dropped(run.processes.values()),
        attempts=shown_attempts[::-1],
        processes=rows,
        incidents=incidents,
        left_out=LeftOutOfRun(
            parameters=len(bad) - len(shown_parameters),
            replicas=len(named) - len(shown_replicas),
            attempts=len(launches) - len(shown_attempts) + run.past.attempts - len(run.past.launches),
            processes=waiting,
            incidents=older,
        ),
    )


_LIST_BYTES: Final = 80_000
"""Bytes for the replicas, for the attempts, and for the parameters, which also get what the other lists leave."""
_MOST_INCIDENTS: Final = 20
_INCIDENT_BYTES: Final = 60_000
"""Bytes for the incidents: 20 of them fit."""
_PROCESS_BYTES: Final = ANSWER_BYTES - 3 * _LIST_BYTES - _INCIDENT_BYTES - 10_000
"""Bytes for the processes: 4,096 of them fit unless their hosts have very long names."""

Row = TypeVar("Row", bound=BaseModel)


def fitting(rows: Iterable[Row], room: int) -> tuple[list[Row], int]:
    """The first rows whose JSON fits into `room` bytes, and how many bytes are left."""
    found: list[Row] = []
    for row in rows:
        size = len(row.model_dump_json().encode()) + 1
        if size > room:
            break
        found.append(row)
        room -= size
    return found, room


def lead(run: RunState, now: float) -> ProcessState:
    """The process whose gauges and steps the run shows: the lowest one that still reports.

    A process that went silent or ended long before the others is left out.
    """
    members = health.relevant(run, now)
    last = max(process.last_report for process in members)
    return next(process for process in members if process.last_report + process.stale_after > last)


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
    spans: Mapping[Replica, StepSpan] = {}
    for part in (*run.past.sums, *(part for process in run.processes.values() for part in process.parts)):
        spans = joined_spans(spans, part.replica_spans)
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


def _parameter_records(run: RunState) -> Mapping[str, ParameterRecords]:
    """Step records by parameter, summed over attempts.

    All processes of an attempt see the same values, so only the process with the most values counts.
    """
    largest = {attempt: one.parameter_records for attempt, one in run.past.open.items()}
    for process in run.processes.values():
        for attempt, found in process.parameter_records.items():
            largest[attempt] = larger_records(largest.get(attempt, {}), found)
    summed: Mapping[str, ParameterRecords] = {}
    for found in (*(one.parameter_records for one in run.past.closed), *largest.values()):
        summed = summed_records(summed, found)
    return summed


def first_report(run: RunState) -> float:
    """When the run reported for the first time."""
    parts = (part.first_report for process in run.processes.values() for part in process.parts)
    return min([*(past.launch.since for past in run.past.sums), *parts])


def _rows(run: RunState, now: float, listening: float, shown: Shown) -> tuple[list[ProcessRow], int, int]:
    """The rows that differ from `shown`, how many of them do not fit, and how many bytes are left.

    States are immutable, so an unchanged state means an unchanged row.
    """
    changed: list[tuple[int, ShownRow]] = []
    for index, process in run.processes.items():
        current = health.of_process(run, process, now, listening)
        row = ShownRow(process, current, health.acknowledged(run, current.health, index))
        before = shown.get(index)
        if before is None or before.process is not row.process or before[1:] != row[1:]:
            changed.append((index, row))
    changed.sort(key=lambda one: (_urgency(one[1].current.health), one[0]))
    rows, left = fitting((_row(run, row) for _, row in changed), _PROCESS_BYTES)
    shown.update(changed[: len(rows)])
    return sorted(rows, key=lambda row: row.process), len(changed) - len(rows), left


def _urgency(of: Health) -> int:
    """The order in which processes are shown if not all fit."""
    return HEALTHS.index("ok" if of == "finished" else of)


def _row(run: RunState, row: ShownRow) -> ProcessRow:
    # There may be thousands of rows, so they are not validated.
    process, current, acknowledged = row
    total = process.total
    return ProcessRow.model_construct(
        process=process.process,
        host=process.source.host,
        health=current.health,
        since=current.since,
        summary=sentences.of_process(run, process, current),
        last_report=process.last_report,
        totals=ProcessTotals.model_construct(
            steps=total.steps,
            outcomes={name: n for name, n in zip(OUTCOMES, total.outcomes, strict=True) if n},
            not_finite_steps=total.not_finite_steps,
        ),
        gauges=process.gauges,
        norm=None if (norm := sentences.norm_of(process)) is None else RowFigure(**norm._asdict()),
        acknowledged=acknowledged,
    )
