"""How one report, or time, changes what is known. Pure: state and report in, new state and events out.

An incarnation is *current* when it speaks for its process. The one heard of last is, unless it began, by its own clock,
before the one that is: then it is an older one whose reports come late. Late reports raise their own incarnation's share and
bring their records; gauges and health are the current incarnation's alone.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Final

from optwrap_exporter.ledger import events, health, ranges
from optwrap_exporter.ledger.counters import Counts, Replica
from optwrap_exporter.ledger.events import Occurrence, Streaks
from optwrap_exporter.ledger.incarnation import NOTHING, Beat, IncarnationState, Offences, Seen, Streak
from optwrap_exporter.ledger.run import ProcessState, ordered
from optwrap_exporter.wire.requests import Offender, Report
from optwrap_exporter.wire.vocabulary import LARGEST

_SAMPLES: Final = 31
_RANKS: Final = {"streak_ended": 0, "streak_started": 1}


@dataclasses.dataclass(frozen=True, slots=True)
class Folded:
    """What a report makes of its process."""

    process: ProcessState
    incarnation: IncarnationState
    occurrences: list[Occurrence]


def fold(process: ProcessState | None, report: Report, now: float, listening: float) -> Folded:
    """Fold in one report that is not stored yet.

    Args:
      process: its process so far; None where this is the first that is heard of it.
      report: the report.
      now: the exporter's clock.
      listening: since when this exporter could have heard the process.
    """
    before = process.incarnations.get(report.incarnation) if process else None
    in_order = before is None or report.seq > before.highest
    streaks = events.of_streaks(report, before.streak if before else Streak()) if in_order else None
    incarnation = _incarnation(process, before, report, streaks, now=now)
    first: list[Occurrence | None] = [events.of_start(report, before, process is not None, now)]
    if incarnation.placed and not (before and before.placed):
        first.append(events.of_resumption(report, _previous(process, incarnation), now))
    middle = list(events.of_records(report))
    if streaks is not None:
        middle += streaks.occurrences
    # Of one step: what ended before it, what began with it, what it was.
    middle.sort(key=lambda occurrence: (occurrence.step or 0, _RANKS.get(occurrence.kind, len(_RANKS))))
    end: list[Occurrence | None] = [events.of_end(report.process, incarnation, before, now)]

    # Which incarnation is current is judged by the process as it was.
    if process is None or (
        in_order and _speaks(process, incarnation, before, report, gone=_gone(process, now, listening))
    ):
        after = _live(
            process or _started(incarnation, report, now), before, incarnation, report, now=now, streaks=streaks
        )
        if after.starved is not None and (process is None or after.starved != process.starved):
            detail = {"steps": report.totals.steps - (after.gradient_anchor or 0)}
            end.insert(0, events.of_time(report.process, "starved", incarnation, after.starved, detail))
        if process is not None and _ill(process, now, listening) and not _ill(after, now, listening):
            after = dataclasses.replace(after, cleared=now)
    else:
        after = dataclasses.replace(process, incarnations=_with(process.incarnations, incarnation, before))
    return Folded(after, incarnation, [occurrence for occurrence in (*first, *middle, *end) if occurrence is not None])


def pass_time(process: ProcessState, now: float, listening: float) -> tuple[ProcessState, list[Occurrence]]:
    """What time alone brings: the process goes silent, or stops moving."""
    found: list[Occurrence] = []
    incarnation = process.incarnation
    stale = health.stale_since(process, now, listening)
    if stale is not None and process.stale is None:
        process = dataclasses.replace(process, stale=stale)
        detail = {"last_report": process.last_report}
        found.append(events.of_time(process.process, "stale", incarnation, stale, detail))
    # One that says nothing at all cannot be said to stand still.
    stalled = health.stalled_since(process, now, listening) if process.stale is None else None
    if stalled is not None and process.stalled is None:
        process = dataclasses.replace(process, stalled=stalled)
        detail = {} if process.last_step is None else {"last_step": process.last_step}
        found.append(events.of_time(process.process, "stalled", incarnation, stalled, detail))
    return process, found


def _incarnation(
    process: ProcessState | None,
    before: IncarnationState | None,
    report: Report,
    streaks: Streaks | None,
    *,
    now: float,
) -> IncarnationState:
    """The report's incarnation with the report in it."""
    totals = Counts.of(report.totals)
    partial, baseline = _baseline(before, report, totals)
    dropped = (report.dropped.steps, report.dropped.bad_steps)
    offences = _offences(before.offences if before else {}, report.offenders)
    seen = _seen(before.seen if before else {}, report, totals)
    if before is None:
        order, generation = _place(process, report)
        return IncarnationState(
            incarnation=report.incarnation,
            attempt=report.attempt,
            order=order,
            generation=generation,
            first_report=now,
            last_report=now,
            began=report.sent_at,
            sent=report.sent_at,
            heard=now,
            beats=(Beat(now, report.totals.steps),),
            highest=report.seq,
            received=((report.seq, report.seq),),
            state=report.state,
            start_step=report.at_start.steps,
            totals=totals,
            baseline=baseline,
            partial=partial,
            dropped=dropped,
            host=report.source.host,
            streak=streaks.open if streaks else Streak(),
            placed=report.totals.steps > 0,
            offences=offences,
            seen=seen,
        )
    in_order = report.seq > before.highest
    beats = before.beats
    if in_order:
        apart, sent = now - before.heard, report.sent_at - before.sent
        beats = before.beaten(Beat(now, report.totals.steps), paced=sent > 0 and 0.5 * sent <= apart <= 2 * sent + 1)
    received = ranges.add(before.received, report.seq)
    if len(received) > ranges.MOST:  # what the client does not hold any more cannot come any more
        received = ranges.union([(1, report.oldest_held - 1), *received])
    return dataclasses.replace(
        before,
        last_report=now,
        began=min(before.began, report.sent_at),
        sent=report.sent_at if in_order else before.sent,
        heard=now if in_order else before.heard,
        beats=beats,
        highest=max(before.highest, report.seq),
        received=received,
        state=report.state if in_order else before.state,
        totals=before.totals.maximum(totals),
        baseline=baseline,
        partial=partial,
        dropped=(max(before.dropped[0], dropped[0]), max(before.dropped[1], dropped[1])),
        streak=streaks.open if streaks else before.streak,
        placed=before.placed or report.totals.steps > 0,
        offences=offences,
        seen=seen,
    )


def _baseline(before: IncarnationState | None, report: Report, totals: Counts) -> tuple[bool, Counts]:
    """Whether the incarnation is partial, and what its totals are counted from.

    Both depend on the set of reports received, not on their order.
    """
    if before is not None and not before.partial:
        return False, before.baseline
    if report.oldest_held == 1:
        return False, Counts.of(report.at_start)
    return True, totals if before is None else before.baseline.minimum(totals)


def _offences(before: Mapping[str, Offences], offenders: list[Offender]) -> Mapping[str, Offences]:
    if not offenders:
        return before
    found = dict(before)
    for offender in offenders:
        known = found.get(offender.parameter) or Offences(0, offender.step, offender.step)
        found[offender.parameter] = Offences(
            min(known.values + offender.not_finite, LARGEST),
            min(known.first_step, offender.step),
            max(known.last_step, offender.step),
        )
    return found


def _seen(before: Mapping[Replica, Seen], report: Report, totals: Counts) -> Mapping[Replica, Seen]:
    if not report.replicas:
        return before
    found = dict(before)
    for record in report.replicas:
        replica = Replica(record.replica, record.process, record.device)
        if replica in totals.replicas:
            here = Seen(record.step, record.step)
            found[replica] = found[replica].joined(here) if replica in found else here
    return found


def _place(process: ProcessState | None, report: Report) -> tuple[float, int]:
    """The order and the generation of an incarnation that is heard of for the first time."""
    if process is None:
        return 0.0, 0
    known = list(process.incarnations.values())
    # A hello that does not know yet where the counters stand may get an incarnation of its own, and need not arrive.
    generation = sum(state.attempt == report.attempt and state.placed for state in known)
    # After the last that began before it.
    at = max((i + 1 for i, state in enumerate(known) if state.began <= report.sent_at), default=0)
    if at == len(known):
        return known[-1].order + 1, generation
    return (known[at].order + (known[at - 1].order if at else known[at].order - 2)) / 2, generation


def _with(
    incarnations: Mapping[str, IncarnationState], incarnation: IncarnationState, before: IncarnationState | None
) -> dict[str, IncarnationState]:
    both = {**incarnations, incarnation.incarnation: incarnation}
    return both if before is not None else ordered(both.values())


def _previous(process: ProcessState | None, incarnation: IncarnationState) -> IncarnationState | None:
    """The last incarnation before it that lived, and did not only say hello."""
    incarnations = process.incarnations.values() if process else ()
    earlier = [state for state in incarnations if state.order < incarnation.order and state.placed]
    return earlier[-1] if earlier else None


def _speaks(
    process: ProcessState, incarnation: IncarnationState, before: IncarnationState | None, report: Report, *, gone: bool
) -> bool:
    """Whether the report's incarnation is the current one from now on; `gone`: the one that was has ended or is stale."""
    current = process.incarnation
    if incarnation.incarnation == current.incarnation:
        return True
    if before is None:
        return report.sent_at >= current.began
    # Once another has taken its place an incarnation gets it back only if that one is gone, and it is plainly alive itself:
    # it sent this after all that the other ever sent, or it keeps time (its clock may have been set back).
    alive = report.seq > before.highest and not incarnation.ended
    return gone and alive and (report.sent_at > current.sent or incarnation.alive)


def _gone(process: ProcessState, now: float, listening: float) -> bool:
    return process.incarnation.ended or health.stale_since(process, now, listening) is not None


def _ill(process: ProcessState, now: float, listening: float) -> bool:
    return health.of_process(process, now, listening)[0] != "ok"


def _started(incarnation: IncarnationState, report: Report, now: float) -> ProcessState:
    return ProcessState(
        process=report.process,
        incarnations={incarnation.incarnation: incarnation},
        current=incarnation.incarnation,
        interval=report.interval,
        source=report.source,
        gauges=report.gauges,
        last_report=now,
    )


def _live(
    process: ProcessState,
    before: IncarnationState | None,
    incarnation: IncarnationState,
    report: Report,
    *,
    now: float,
    streaks: Streaks | None,
) -> ProcessState:
    """The process after a report of its current incarnation, in order: gauges, clocks, and what health is judged by."""
    entered = process.current != incarnation.incarnation or before is None
    gained = incarnation.share.minus(before.share if before else NOTHING)
    gauges, columns = report.gauges, report.steps
    streak = gauges.not_finite_streak or 0
    last_record, durations = _pace(None if entered else process.last_record, process.durations, report)
    anchor = _anchor(None if entered else process.gradient_anchor, incarnation, gained, report)
    hungry = anchor is not None and report.totals.steps - anchor >= health.hunger(gauges)
    gave_up = process.gave_up
    if gained.accepted_not_finite:
        lasting = gave_up is not None and now < gave_up[1] + health.GAVE_UP
        gave_up = (gave_up[0] if lasting and gave_up else now, now)
    norms = [norm for norm in columns.norm if math.isfinite(norm)]
    norm = gauges.gradient_norm
    if norm is None or not math.isfinite(norm):
        norm = norms[-1] if norms else process.gradient_norm
    continued = process.skipping is not None and not entered and streak > gained.steps
    still = None if entered or gained.steps else process.stalled
    return dataclasses.replace(
        process,
        incarnations=_with(process.incarnations, incarnation, before),
        current=incarnation.incarnation,
        interval=report.interval,
        source=report.source,
        gauges=gauges,
        last_report=now,
        gradient_norm=norm,
        last_step=now if gained.steps else process.last_step,
        last_gradient_step=now if gained.gradient_steps else process.last_gradient_step,
        last_record=last_record,
        durations=durations,
        peaks=_peaks(process.peaks, max(streak, streaks.longest if streaks else 0), now),
        gradient_anchor=anchor,
        ended=(process.ended if not entered and process.ended is not None else now) if incarnation.ended else None,
        skipping=(process.skipping if continued else now) if streak else None,
        starved=(process.starved if not entered and process.starved is not None else now) if hungry else None,
        gave_up=gave_up,
        conflict=None if entered else process.conflict,
        stale=None,
        stalled=still,
    )


def _pace(
    last: tuple[int, float] | None, durations: tuple[float, ...], report: Report
) -> tuple[tuple[int, float] | None, tuple[float, ...]]:
    """The last step record, and the seconds per step with this report's steps in it."""
    columns = report.steps
    if not len(columns):
        return last, durations
    at = max(range(len(columns)), key=columns.step.__getitem__)
    start = last or min(zip(columns.step, columns.time, strict=True))
    step, time = columns.step[at], columns.time[at]
    if step > start[0] and time >= start[1]:
        durations = (*durations, (time - start[1]) / (step - start[0]))[-_SAMPLES:]
    return (step, time), durations


def _anchor(anchor: int | None, incarnation: IncarnationState, gained: Counts, report: Report) -> int | None:
    """The state's step number at the last gradient step, as late as it can have been."""
    if report.totals.steps == 0:
        return anchor
    if not gained.gradient_steps:
        return incarnation.baseline.steps if anchor is None else anchor
    columns = report.steps
    if len(columns) and max(columns.step) == report.totals.steps:
        reached = [
            step
            for step, outcome in zip(columns.step, columns.outcome, strict=True)
            if outcome in {"applied", "accepted_not_finite"}
        ]
        return max(reached, default=report.totals.steps)
    return report.totals.steps


def _peaks(peaks: tuple[tuple[float, int], ...], peak: int, now: float) -> tuple[tuple[float, int], ...]:
    """The longest streaks of the last minutes: when, and how long, each shorter than the one before it."""
    kept = tuple(entry for entry in peaks if entry[0] > now - health.PEAK and entry[1] > peak)
    return (*kept, (now, peak)) if peak else kept
