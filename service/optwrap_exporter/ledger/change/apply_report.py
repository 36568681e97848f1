"""How a report, or time alone, changes a process. Pure: states and a report in, new states and events out.

    merge the report into its incarnation        incarnation.merge_report
    follow it in the process, if it is current   _follow
    advance the conditions                       health.advance
    count the steps that are lost                lost
    derive the events from before and after      events.derive_events

A process shows the gauges and the health of its *current* incarnation. A new incarnation becomes current, unless its
client sent its first report before the current incarnation began: then its reports are late. A late report adds
totals and step records. It changes neither gauges nor health.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from optwrap_exporter.ledger.change import health
from optwrap_exporter.ledger.change.conflict import rival_of
from optwrap_exporter.ledger.change.events import NewEvent, derive_events
from optwrap_exporter.ledger.change.health import Change
from optwrap_exporter.ledger.evolve import evolved
from optwrap_exporter.ledger.state import lost, streaks
from optwrap_exporter.ledger.state.conditions import Peak, Seen
from optwrap_exporter.ledger.state.counters import NOTHING, Counts
from optwrap_exporter.ledger.state.incarnation import IncarnationState, continues, merge_report
from optwrap_exporter.ledger.state.lost import NOTHING_LOST, Lost
from optwrap_exporter.ledger.state.pace import pace, recent
from optwrap_exporter.ledger.state.process import ProcessState, position_of
from optwrap_exporter.ledger.state.run import RunState
from optwrap_exporter.ledger.state.streaks import NO_STREAK, StreakChanges
from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.vocabulary import GRADIENT_STEPS, MOST_SCALARS

PEAK_SECONDS: Final = 300.0
"""Seconds for which a streak counts towards the peak that is shown."""


class Applied(NamedTuple):
    """A process after a report or after some time, and the new events."""

    process: ProcessState
    events: list[NewEvent]


class Merged(NamedTuple):
    """The incarnation of a report with the report merged into it."""

    incarnation: IncarnationState
    followed: StreakChanges | None
    """The streaks in the report; None if it is not in order."""


def merge(process: ProcessState | None, report: Report, now: float, age: float) -> Merged:
    """Merge a report that is not stored yet into its incarnation."""
    before = process.incarnations.get(report.incarnation) if process is not None else None
    streak = before.streak if before is not None else NO_STREAK
    followed = streaks.follow(streak, report) if continues(before, report) else None
    position = position_of(process, report) if before is None else None
    return Merged(merge_report(before, report, position, followed, now=now, age=age), followed)


def apply_report(
    run: RunState,
    merged: Merged,
    report: Report,
    *,
    asked: float,
    now: float,
    listening: float,
) -> Applied:
    """Apply a report that is not stored yet.

    Args:
      run: the run before the report.
      merged: the report's incarnation with the report merged into it, from `merge`.
      report: the report.
      asked: the interval that the answer asks for, if it is longer than the report's.
      now: the exporter's clock.
      listening: when this exporter began to accept reports.
    """
    before = run.processes.get(report.process)
    known = before.incarnations.get(report.incarnation) if before is not None else None
    incarnation, followed = merged
    gained: Counts | None = None
    taken = lost.count_skipped_and_redone(before.lost if before is not None else NOTHING_LOST, known, incarnation)
    if followed is not None and (
        before is None or _becomes_current(before, incarnation, known, report, now=now, listening=listening)
    ):
        gained = incarnation.share.minus(known.share if known is not None else NOTHING)
        after = _follow(
            before,
            incarnation,
            known,
            report,
            gained=gained,
            longest=followed.longest,
            interval=max(report.interval, asked),
            taken=taken,
            now=now,
        )
    else:
        assert before is not None
        after = before.with_incarnation(incarnation, lost=taken)
    if known is None and _in_new_own_attempt(before, incarnation):
        after = evolved(after, own_attempts=after.own_attempts + 1)
    rival = rival_of(run, after, incarnation, now) if followed is not None else None
    change = Change(incarnation if followed is not None else None, rival, gained)
    after = health.advance(run, before, after, change, now=now, listening=listening)
    after = _with_lost(before, after, gained, report)
    return Applied(after, derive_events(before, after, report, now=now, followed=followed))


def pass_time(run: RunState, process: ProcessState, now: float, listening: float) -> Applied:
    """Advance a process that has not reported: it may be stale or stalled by now."""
    after = health.advance(run, process, process, None, now=now, listening=listening)
    return Applied(after, derive_events(process, after, None, now=now))


def _in_new_own_attempt(before: ProcessState | None, new: IncarnationState) -> bool:
    """Whether a new incarnation begins an attempt whose launch is unknown."""
    return new.own_attempt and (before is None or all(part.attempt != new.attempt for part in before.parts))


def _becomes_current(
    process: ProcessState,
    incarnation: IncarnationState,
    known: IncarnationState | None,
    report: Report,
    *,
    now: float,
    listening: float,
) -> bool:
    """Whether the report's incarnation is the current one from now on."""
    current = process.incarnation
    if incarnation.incarnation == current.incarnation:
        return True
    if known is None:
        return report.sent_at >= current.first_sent_at
    # This incarnation becomes current only if the current one has ended or is stale, and this one still reports: it
    # sent this report after the last report of the current one. If its clock is behind, its heartbeats show it.
    gone = current.ended or health.stale_since(process, now, listening) is not None
    return gone and not incarnation.ended and (report.sent_at > current.latest_sent_at or incarnation.alive)


def _follow(
    before: ProcessState | None,
    incarnation: IncarnationState,
    known: IncarnationState | None,
    report: Report,
    *,
    gained: Counts,
    longest: int,
    interval: float,
    taken: Lost,
    now: float,
) -> ProcessState:
    """The process after a report of its current incarnation. Its conditions are not advanced yet."""
    process = before or ProcessState(
        process=report.process,
        incarnations={},
        current=report.incarnation,
        interval=interval,
        source=report.source,
        gauges=report.gauges,
        last_report=now,
    )
    gauges = report.gauges
    entered = known is None or process.current != report.incarnation
    last_record, durations = pace(None if entered else process.last_record, process.durations, report)
    anchor = process.gradient_step_at
    if entered:  # reports that were received while another incarnation was current may have had gradient steps
        anchor = known.totals.steps if known is not None and known.share.gradient_steps else None
    return process.with_incarnation(
        incarnation,
        current=incarnation.incarnation,
        interval=interval,
        source=report.source,
        gauges=gauges,
        last_report=now,
        gradient_norm=_last_finite(process.gradient_norm, gauges.gradient_norm, report, report.steps.norm, now),
        update_norm=_last_finite(process.update_norm, gauges.update_norm, report, report.steps.update_norm or (), now),
        scalars=_last_scalars(process.scalars, report, now),
        bad_scalars=_bad_scalars(process.bad_scalars, report, now),
        last_step=now if gained.steps else process.last_step,
        last_gradient_step=now if gained.gradient_steps else process.last_gradient_step,
        last_record=last_record,
        durations=durations,
        recent=recent(process.recent, gained),
        peaks=_peaks(process.peaks, max(report.gauges.not_finite_streak or 0, longest), now),
        gradient_step_at=_gradient_step_at(anchor, incarnation, gained, report),
        lost=taken,
    )


def _last_finite(
    before: Seen | None, gauge: float | None, report: Report, column: Sequence[float | None], now: float
) -> Seen | None:
    """The last finite value: the gauge, else the last in the column, else the one before."""
    if gauge is not None and math.isfinite(gauge):
        step = report.totals.steps
        return before if before is not None and before[:2] == (gauge, step) else Seen(gauge, step, now)
    if not column:
        return before
    for step, value in zip(reversed(report.steps.step), reversed(column), strict=True):
        if value is not None and math.isfinite(value):
            return Seen(value, step, now)
    return before


def _last_scalars(before: Mapping[str, Seen], report: Report, now: float) -> Mapping[str, Seen]:
    """The last finite value of each scalar. If there are too many names, those in the report are kept."""
    columns = report.steps.scalars
    if not columns:
        return before
    fresh = {name: _last_finite(before.get(name), None, report, column, now) for name, column in columns.items()}
    found = {name: value for name, value in fresh.items() if value is not None}
    return _newest({**found, **{name: value for name, value in before.items() if name not in found}})


def _bad_scalars(before: Mapping[str, Seen], report: Report, now: float) -> Mapping[str, Seen]:
    """The last value of each scalar whose last value is NaN or infinite."""
    held, fresh = dict(before), {}
    for name, column in (report.steps.scalars or {}).items():
        for step, value in zip(reversed(report.steps.step), reversed(column), strict=True):
            if value is None:
                continue
            held.pop(name, None)
            if not math.isfinite(value):
                fresh[name] = Seen(value, step, now)
            break
    return _newest({**fresh, **held})


def _newest(scalars: Mapping[str, Seen]) -> Mapping[str, Seen]:
    """The first MOST_SCALARS of them."""
    return dict(list(scalars.items())[:MOST_SCALARS])


def _with_lost(before: ProcessState | None, after: ProcessState, gained: Counts | None, report: Report) -> ProcessState:
    """The process with the steps that the report says are lost. `after` has its conditions, and the steps taken."""
    old = before.lost if before is not None else NOTHING_LOST
    new = after.lost
    if gained is not None:
        new = lost.count_starved(
            new,
            gained,
            entered=before is None or before.current != after.current,
            without_gradient_step=after.steps_without_gradient_step,
            starved=after.conditions.starved is not None,
        )
    if lost.more_lost(old, new):
        known = before.incarnations.get(report.incarnation) if before is not None else None
        seconds_per_step = _seconds_per_step(after, known, after.incarnations[report.incarnation], report)
        new = lost.with_seconds(old, new, seconds_per_step)
    return after if new is after.lost else evolved(after, lost=new)


def _seconds_per_step(
    process: ProcessState, known: IncarnationState | None, incarnation: IncarnationState, report: Report
) -> float:
    """Of the steps in a report: the process's own, else the time since the report before; 0.0 if nothing tells."""
    if (found := process.seconds_per_step) is not None or known is None:
        return found or 0.0
    steps = incarnation.totals.steps - known.totals.steps
    return max(0.0, report.sent_at - known.latest_sent_at) / steps if steps else 0.0


def _gradient_step_at(before: int | None, incarnation: IncarnationState, gained: Counts, report: Report) -> int | None:
    """The state's step number at its last gradient step: the latest that the report allows."""
    totals, columns = report.totals, report.steps
    if totals.steps == 0:
        return before
    if not gained.gradient_steps:
        return incarnation.baseline.steps if before is None else before
    if gained.gradient_steps == gained.steps:  # the usual case
        return totals.steps
    first_new = totals.steps - gained.steps + 1
    taken = zip(columns.step, columns.outcome, strict=True)
    recorded = [step for step, outcome in taken if outcome in GRADIENT_STEPS and step >= first_new]
    if len(recorded) == gained.gradient_steps:
        return recorded[-1]
    # Some gradient steps have no record: the last step without a record may be one.
    unrecorded = totals.steps
    for step in reversed(columns.step):
        if step < unrecorded:
            break
        unrecorded -= 1
    return max([unrecorded, *recorded[-1:]])


def _peaks(peaks: tuple[Peak, ...], length: int, now: float) -> tuple[Peak, ...]:
    kept = tuple(peak for peak in peaks if peak.time > now - PEAK_SECONDS and peak.length > length)
    return (*kept, Peak(now, length)) if length else kept
