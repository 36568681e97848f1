"""What a report, the time, or a person does to the incidents of a run. Pure."""

from typing import Final

from optwrap_exporter.ledger import ranges
from optwrap_exporter.ledger.change import health
from optwrap_exporter.ledger.change.divergence import Divergence
from optwrap_exporter.ledger.evolve import evolved
from optwrap_exporter.ledger.incidents import conditions, steps
from optwrap_exporter.ledger.incidents.changes import ChangedIncidents, IncidentChanges
from optwrap_exporter.ledger.incidents.divergence import add_divergence
from optwrap_exporter.ledger.incidents.steps import QUIET_SECONDS
from optwrap_exporter.ledger.state.incarnation import IncarnationState
from optwrap_exporter.ledger.state.incident import LATCHED, OF_BAD_STEPS, IncidentRecord
from optwrap_exporter.ledger.state.process import ProcessState
from optwrap_exporter.ledger.state.run import RunState
from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.vocabulary import all_good

RECENT_SECONDS: Final = 60.0
"""Seconds after the last report of a run in which time may end conditions that only other processes bear on."""


def of_report(
    run: RunState,
    process: ProcessState,
    report: Report,
    known: IncarnationState | None,
    *,
    in_order: bool,
    divergence: Divergence | None,
    now: float,
    next_id: int,
) -> ChangedIncidents | None:
    """Apply a report to the incidents.

    Args:
      run: the run after the report, with the incidents before it.
      process: the report's process after it.
      report: the report.
      known: the report's incarnation before it; None if it is new.
      in_order: whether the report is in order.
      divergence: what the comparison with other processes found.
      now: the exporter's clock.
      next_id: the id of the next new incident.

    Returns:
      None if nothing changes, as is usual.
    """
    incarnation = process.incarnations[report.incarnation]
    start = known.totals if known is not None else incarnation.baseline
    applied_before = start.outcomes.accepted_not_finite
    rise = incarnation.totals.outcomes.accepted_not_finite - applied_before
    bad = not all_good(report.steps.outcome, report.steps.finite)
    if not (bad or rise or run.incidents or divergence is not None or conditions.any_holds(process)):
        return None
    changes = IncidentChanges(run.incidents, run.past_incidents, now, next_id, lambda: run.attempts_total)
    current = process.current == report.incarnation
    if current and incarnation.has_counters and (known is None or not known.has_counters):
        _end_by_start(changes, incarnation)
    if bad:
        newer = process.incarnation if process.incarnation.order > incarnation.order else None
        resumed = newer if newer is not None and newer.has_counters else None
        steps.add_bad_steps(changes, report, incarnation, applied_before=applied_before, resumed=resumed)
    if rise and in_order and current:
        recorded = zip(report.steps.step, report.steps.outcome, strict=True)
        if rise > sum(step > start.steps and outcome == "accepted_not_finite" for step, outcome in recorded):
            steps.add_unrecorded(changes, report, incarnation, steps_before=start.steps, applied_before=applied_before)
    if in_order:
        steps.end_after_good_steps(changes, incarnation)
        _take_clean_step(changes, process, incarnation)
    if conditions.any_holds(process) or any(one.kind in conditions.OF_CONDITIONS for one in run.incidents):
        conditions.follow_conditions(changes, process)
    if divergence is not None:
        add_divergence(changes, run, incarnation, divergence)
    return changes.result()


def _end_by_start(changes: IncidentChanges, started: IncarnationState) -> None:
    """A process takes steps again after a start or a rollback.

    Bad steps and divergence are over if it began at a step before them. Skipped steps are over in any case.
    """
    for one in list(changes.live(OF_BAD_STEPS | LATCHED)):
        if (one.attempt, one.generation) == (started.attempt, started.generation) or started.first_report < one.opened:
            continue
        clean = one.last_clean_step
        back = clean is not None and started.start_step <= clean
        if back:
            changes.end(one, rolled_back=True)
        elif one.kind == "skipped" or one.state == "acknowledged":
            changes.end(one)


def _take_clean_step(changes: IncidentChanges, process: ProcessState, incarnation: IncarnationState) -> None:
    """A run that stopped names the step to roll back to. It may be earlier than what the records say."""
    clean = incarnation.last_clean_step
    if clean is None:
        return
    for one in list(changes.live(["gave_up"])):
        if ranges.contains(one.processes, process.process) and one.attempt == incarnation.attempt:
            changes.put(one, last_clean_step=clean if one.last_clean_step is None else min(clean, one.last_clean_step))


def of_time(run: RunState, now: float, next_id: int) -> ChangedIncidents:
    """Apply what time has brought: processes that went silent, conditions that ended, steps without trouble."""
    changes = IncidentChanges(run.incidents, run.past_incidents, now, next_id)
    members = health.relevant(run, now)
    for process in members:
        if conditions.any_holds(process):
            conditions.follow_conditions(changes, process)
    conditions.end_conditions(changes, members)
    streaks = frozenset(
        process.process
        for process in members
        if process.gauges.not_finite_streak and process.conditions.ended is None and process.conditions.stale is None
    )
    steps.end_after_quiet(changes, streaks)
    return changes.result()


def time_may_change(run: RunState, now: float) -> bool:
    """Whether time alone may have changed the incidents of a run. Cheap, for every run and second."""
    if any(one.lasts and one.kind in OF_BAD_STEPS and now > one.updated + QUIET_SECONDS for one in run.incidents):
        return True
    recent = any(process.last_report > now - RECENT_SECONDS for process in run.processes.values())
    if not run.incidents:
        return recent and any(conditions.any_holds(process) for process in run.processes.values())
    return recent and any(one.kind in conditions.OF_CONDITIONS for one in run.incidents)


def acknowledged(one: IncidentRecord, now: float) -> IncidentRecord:
    """The incident, acknowledged. It stays as it is if it was before."""
    if one.state == "acknowledged":
        return one
    closed = one.closed if one.lasts or one.closed is not None else now
    return evolved(one, state="acknowledged", acknowledged=now, closed=closed)
