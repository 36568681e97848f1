"""Events: what a report, or time alone, brings that somebody should hear of. Pure.

Each has a key that is the same whenever it is derived again, so that no crash and no repetition can store it twice.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Final

from optwrap_exporter.ledger.incarnation import IncarnationState, Streak
from optwrap_exporter.wire.requests import Offender, ReplicaRecord, Report
from optwrap_exporter.wire.vocabulary import EventKind, Outcome, to_json_number

MOST_NAMED: Final = 20
"""Parameters that one event names; all of them are in the offenders' records."""

OF_STEPS: Final[frozenset[EventKind]] = frozenset({"skipped", "accepted_not_finite", "streak_started", "streak_ended"})
"""Kinds that every process of an attempt reports alike; a run's list takes each from the first that tells it."""

REASONS: Final[dict[Outcome, str]] = {
    "skipped_not_finite": "not_finite",
    "skipped_large": "large",
    "skipped_other": "other",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Occurrence:
    """An event before it is stored."""

    process: int
    kind: EventKind
    time: float
    step: int | None
    attempt: str
    detail: dict[str, Any]
    key: str
    """Unique within the run; its parts are parted by what no incarnation may have in its name."""


def of_records(report: Report) -> Iterator[Occurrence]:
    """Steps that were skipped, or accepted though not finite: one event each, whenever the report comes."""
    columns = report.steps
    if all(outcome in {"applied", "accumulated"} for outcome in columns.outcome):
        return
    offenders, replicas = by_step(report.offenders), {record.step: record for record in report.replicas}
    for step, time, outcome, finite, norm, mini_step in zip(
        columns.step, columns.time, columns.outcome, columns.finite, columns.norm, columns.mini_step, strict=True
    ):
        reason = REASONS.get(outcome)
        if reason is None and outcome != "accepted_not_finite":
            continue
        detail: dict[str, Any] = {"norm": to_json_number(norm), "finite": finite}
        if reason is not None:
            detail["reason"] = reason
        if mini_step is not None:
            detail["mini_step"] = mini_step
        kind: EventKind = "skipped" if reason is not None else "accepted_not_finite"
        yield Occurrence(
            process=report.process,
            kind=kind,
            time=time,
            step=step,
            attempt=report.attempt,
            detail=detail | named(offenders.get(step, [])) | brought(replicas.get(step)),
            key=f"{kind}/{report.process}/{report.incarnation}/{step}",
        )


def by_step(offenders: Iterable[Offender]) -> dict[int, list[Offender]]:
    """Offenders of each step, in the tree's order."""
    found: dict[int, list[Offender]] = {}
    for offender in offenders:
        found.setdefault(offender.step, []).append(offender)
    return found


def named(offenders: list[Offender]) -> dict[str, Any]:
    """What an event says of the parameters of its step: the first in the tree's order, the largest, and how many."""
    if not offenders:
        return {}
    return {
        "parameters": [{"parameter": o.parameter, "not_finite": o.not_finite} for o in offenders[:MOST_NAMED]],
        "parameter_count": len(offenders),
        "first": offenders[0].parameter,
        "largest": max(offenders, key=lambda o: o.not_finite).parameter,
    }


def brought(record: ReplicaRecord | None) -> dict[str, Any]:
    """What an event says of the replicas of its step: the first that was not finite, where it is, how many of how many.

    What is not known is left out.
    """
    return {} if record is None else {"replica": record.model_dump(exclude={"step"}, exclude_none=True)}


@dataclasses.dataclass(frozen=True, slots=True)
class Streaks:
    """What a report says of streaks of steps not finite."""

    open: Streak
    """The one that is open at its end."""
    longest: int
    """The longest it saw."""
    occurrences: list[Occurrence]


def of_streaks(report: Report, before: Streak) -> Streaks:
    """Streaks that began or ended in a report that continues its incarnation.

    The records say it. Steps missing between two of them break a streak: a client short of room drops the records of
    good steps first. But where the records reach the totals, the gauge says how far back the last streak goes.

    Args:
      report: the report. Its records may lag behind its totals.
      before: the streak that was open before it.
    """
    found: list[Occurrence] = []
    first, last, at, longest = before.first, before.last, before.at, 0
    columns, gauge = report.steps, report.gauges.not_finite_streak
    if not len(columns):
        return Streaks(before, before.length, found)
    end = max(columns.step)
    # The first step of the streak in which the report ends, where the gauge can tell.
    gauged = end - gauge + 1 if gauge and end == report.totals.steps else None
    offenders, replicas = by_step(report.offenders), {record.step: record for record in report.replicas}

    def occurred(kind: EventKind, time: float, step: int, detail: dict[str, Any], begun: int) -> None:
        key = f"{kind}/{report.process}/{report.incarnation}/{begun}"
        found.append(Occurrence(report.process, kind, time, step, report.attempt, detail, key))

    for step, time, finite in sorted(zip(columns.step, columns.time, columns.finite, strict=True)):
        if at is not None and step <= at:
            continue
        missing = at is not None and step > at + 1 and (gauged is None or first is None or first < gauged)
        if first is not None and last is not None and (finite or missing):
            detail = {"length": last - first + 1, "first_step": first, "last_step": last}
            occurred("streak_ended", time, last + 1, detail, first)
            first = last = None
        if not finite:
            if first is None:
                first = step if gauged is None or step < gauged else max(gauged, (at or 0) + 1)
                detail = named(offenders.get(step, [])) | brought(replicas.get(step))
                occurred("streak_started", time, first, detail, first)
            last = step
            longest = max(longest, last - first + 1)
        at = step
    return Streaks(Streak(first, last, at), longest, found)


def of_start(report: Report, before: IncarnationState | None, known: bool, now: float) -> Occurrence | None:
    """`started`: the first that is heard of a process, unless another exporter knew it already.

    Args:
      report: the report.
      before: its incarnation as known so far; None where this is the first report of it.
      known: whether the process is known.
      now: the exporter's clock.
    """
    if known or before is not None or report.oldest_held > 1:
        return None
    detail = {"host": report.source.host, "process_count": report.source.process_count}
    key = f"started/{report.process}/{report.incarnation}"
    return Occurrence(report.process, "started", now, None, report.attempt, detail, key)


def of_resumption(report: Report, previous: IncarnationState | None, now: float) -> Occurrence | None:
    """`resumed`: an incarnation takes up at some step where an earlier one was before it, or at one that nobody reported.

    Args:
      report: the first report of the incarnation that knows where the counters stand.
      previous: the incarnation before it.
      now: the exporter's clock.
    """
    to = report.at_start.steps
    if previous is None and (to == 0 or report.oldest_held > 1):
        return None
    detail = {"from": previous.totals.steps if previous else None, "to": to}
    key = f"resumed/{report.process}/{report.incarnation}"
    return Occurrence(report.process, "resumed", now, to, report.attempt, detail, key)


def of_end(
    process: int, incarnation: IncarnationState, before: IncarnationState | None, now: float
) -> Occurrence | None:
    """`finished` or `failed`: the incarnation says so for the first time."""
    if not incarnation.ended or (before is not None and before.state == incarnation.state):
        return None
    kind: EventKind = "finished" if incarnation.state == "finished" else "failed"
    detail = {"steps": incarnation.totals.steps}
    return Occurrence(
        process, kind, now, None, incarnation.attempt, detail, f"{kind}/{process}/{incarnation.incarnation}"
    )


def of_conflict(process: int, older: IncarnationState, newer: IncarnationState, now: float) -> Occurrence:
    """`conflict`: two lives report under one name at the same time."""
    detail = {
        name: {"attempt": incarnation.attempt, "host": incarnation.host}
        for name, incarnation in (("older", older), ("newer", newer))
    }
    key = f"conflict/{process}/{older.incarnation}/{newer.incarnation}"
    return Occurrence(process, "conflict", now, None, newer.attempt, detail, key)


def of_divergence(report: Report, step: int, outcomes: dict[int, Outcome], steps: int, now: float) -> Occurrence:
    """`diverged`: processes of one attempt say something else of the same step; the first such step of a report.

    Args:
      report: the report that disagrees.
      step: the first step of it that does.
      outcomes: by process, what they say of that step.
      steps: how many steps of the report are disagreed about.
      now: the exporter's clock.
    """
    detail = {"outcomes": {str(process): outcome for process, outcome in outcomes.items()}, "steps": steps}
    key = f"diverged/{report.process}/{report.incarnation}/{step}"
    return Occurrence(report.process, "diverged", now, step, report.attempt, detail, key)


def of_time(
    process: int, kind: EventKind, incarnation: IncarnationState, since: float, detail: dict[str, Any]
) -> Occurrence:
    """`stale`, `stalled`, `starved`: since when the process has been so is what tells one from the next."""
    key = f"{kind}/{process}/{incarnation.incarnation}/{since:.3f}"
    step = incarnation.totals.steps or None
    return Occurrence(process, kind, since, step, incarnation.attempt, detail, key)
