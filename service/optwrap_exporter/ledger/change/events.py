"""Derives the events of a report, or of time alone, from the states before and after it. Pure.

An event that is derived again has the same key. So neither a crash nor a repeated report stores it twice.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final, cast

from optwrap_exporter.ledger.state.conditions import Conditions
from optwrap_exporter.ledger.state.incarnation import IncarnationState
from optwrap_exporter.ledger.state.incident import IncidentRecord
from optwrap_exporter.ledger.state.process import ProcessState
from optwrap_exporter.ledger.state.streaks import StreakChanges, StreakEnded, StreakStarted
from optwrap_exporter.wire.requests import Offender, ReplicaRecord, Report
from optwrap_exporter.wire.vocabulary import GOOD_OUTCOMES, SKIP_REASONS, EventKind, to_json_number

MOST_NAMED: Final = 20
"""The most parameters that one event names. The stored offenders are those that the client named."""

OF_STEPS: Final[frozenset[EventKind]] = frozenset(
    {"skipped", "accepted_not_finite", "streak_started", "streak_ended", "rebased"}
)
"""Kinds of events that every process of an attempt reports. A run lists only the first report of each event."""

_WITHIN_A_STEP: Final[dict[EventKind, int]] = {"streak_ended": 0, "streak_started": 1}
"""The order of the events of one step; all other kinds come last."""


@dataclasses.dataclass(frozen=True, slots=True)
class NewEvent:
    """An event that is not stored yet."""

    process: int
    kind: EventKind
    time: float
    step: int | None
    attempt: str
    detail: dict[str, Any]
    key: str
    """Unique within the run. `/` separates its parts, because no incarnation may have one in its id."""


def derive_events(
    before: ProcessState | None,
    after: ProcessState,
    report: Report | None,
    *,
    now: float,
    followed: StreakChanges | None = None,
) -> list[NewEvent]:
    """The events between two states of a process.

    Args:
      before: the process before the report; None if this is its first report.
      after: the process after it.
      report: the report; None if only time has passed.
      now: the exporter's clock.
      followed: the streaks in the report; None if it is not in order.
    """
    old = before.conditions if before is not None else Conditions()
    if report is None:
        return [*_of_conditions(old, after, now)]
    incarnation = after.incarnations[report.incarnation]
    known = before.incarnations.get(report.incarnation) if before is not None else None
    return [
        *_started(before, report, now),
        *_resumed(known, after, incarnation, report, now),
        *_of_steps(followed, report),
        *_rebased(before, after, report, now),
        *_diagnosed(report, now),
        *_of_conditions(old, after, now),
        *_ended(known, incarnation, report, now),
        *_conflict(old, after, now),
    ]


def _started(before: ProcessState | None, report: Report, now: float) -> Iterator[NewEvent]:
    """`started`: the first report of a process. Not if earlier reports were received by a store that is lost."""
    if before is not None or report.oldest_held > 1:
        return
    detail = {"host": report.source.host, "process_count": report.source.process_count}
    key = f"started/{report.process}/{report.incarnation}"
    yield NewEvent(report.process, "started", now, None, report.attempt, detail, key)


def _resumed(
    known: IncarnationState | None, after: ProcessState, incarnation: IncarnationState, report: Report, now: float
) -> Iterator[NewEvent]:
    """`resumed`: an incarnation continues after another one, or from steps that were never reported."""
    if not incarnation.has_counters or (known is not None and known.has_counters):
        return
    previous, to = after.before(incarnation), report.at_start.steps
    if previous is None and (to == 0 or report.oldest_held > 1):
        return
    detail = {"from": previous.totals.steps if previous else None, "to": to}
    key = f"resumed/{report.process}/{report.incarnation}"
    yield NewEvent(report.process, "resumed", now, to, report.attempt, detail, key)


def _of_steps(followed: StreakChanges | None, report: Report) -> list[NewEvent]:
    """The events of step records and streaks, by step. A late report makes events of records only."""
    changes = followed.changes if followed is not None else ()
    if not changes and GOOD_OUTCOMES.issuperset(report.steps.outcome):  # the usual case
        return []
    bad = _Details(report)
    found = [*_of_records(report, bad), *_of_streaks(changes, report, bad)]
    return sorted(found, key=lambda event: (event.step or 0, _WITHIN_A_STEP.get(event.kind, len(_WITHIN_A_STEP))))


def _of_records(report: Report, bad: "_Details") -> Iterator[NewEvent]:
    """`skipped` and `accepted_not_finite`: one event for each such step."""
    columns = report.steps
    for step, time, outcome, finite, norm, mini_step in zip(
        columns.step, columns.time, columns.outcome, columns.finite, columns.norm, columns.mini_step, strict=True
    ):
        if outcome in GOOD_OUTCOMES:
            continue
        detail: dict[str, Any] = {"norm": to_json_number(norm), "finite": finite}
        kind: EventKind = "accepted_not_finite"
        if outcome in SKIP_REASONS:
            kind = "skipped"
            detail["reason"] = SKIP_REASONS[outcome]
        if mini_step is not None:
            detail["mini_step"] = mini_step
        detail |= bad.of(step)
        key = f"{kind}/{report.process}/{report.incarnation}/{step}"
        yield NewEvent(report.process, kind, time, step, report.attempt, detail, key)


def _of_streaks(changes: Iterable[StreakStarted | StreakEnded], report: Report, bad: "_Details") -> Iterator[NewEvent]:
    """`streak_started` and `streak_ended`."""
    for change in changes:
        if isinstance(change, StreakStarted):
            kind: EventKind = "streak_started"
            step = change.first
            detail = bad.of(change.recorded)
        else:
            kind = "streak_ended"
            step = change.last + 1
            length = change.last - change.first + 1
            detail = {"length": length, "first_step": change.first, "last_step": change.last}
        key = f"{kind}/{report.process}/{report.incarnation}/{change.first}"
        yield NewEvent(report.process, kind, change.time, step, report.attempt, detail, key)


def _rebased(before: ProcessState | None, after: ProcessState, report: Report, now: float) -> Iterator[NewEvent]:
    """`rebased`: skip_spikes took the norms that it had skipped as the new level, since the process's last report.

    The report counts rebases but does not say at which step they were, so the event has the report's last step. The
    last report may be that of another incarnation: the first one after a rollback may have a rebase already.
    """
    if before is None or after.current != report.incarnation:
        return
    old, new = before.gauges.guard_rebases, after.gauges.guard_rebases
    if old is None or new is None or new <= old:
        return
    detail = {"rebases": new, "limit": after.gauges.gradient_norm_limit}
    key = f"rebased/{report.process}/{report.incarnation}/{new}"
    yield NewEvent(report.process, "rebased", now, report.totals.steps or None, report.attempt, detail, key)


def _diagnosed(report: Report, now: float) -> Iterator[NewEvent]:
    """`diagnosed`: the training found out why a step went bad. The same diagnosis again is the same event."""
    for one in report.diagnoses:
        detail = {"cause": one.cause} | ({} if one.remedy is None else {"remedy": one.remedy})
        digest = hashlib.sha256(one.cause.encode()).hexdigest()[:16]
        key = f"diagnosed/{report.process}/{report.incarnation}/{one.step}/{digest}"
        yield NewEvent(report.process, "diagnosed", now, one.step, report.attempt, detail, key)


def _of_conditions(old: Conditions, after: ProcessState, now: float) -> Iterator[NewEvent]:
    """`stale`, `stalled` and `starved`: the condition is new, or began again. Durations are as of the event's time."""
    new, incarnation = after.conditions, after.incarnation
    conditions: tuple[tuple[EventKind, float | None, float | None], ...] = (
        ("stale", old.stale, new.stale),
        ("stalled", old.stalled, new.stalled),
        ("starved", old.starved, new.starved),
    )
    for kind, before, since in conditions:
        if since is None or since == before:
            continue
        detail: dict[str, Any]
        if kind == "stale":
            detail = {"silent_seconds": round(now - since, 1), "last_report": _text(since)}
        elif kind == "stalled":
            detail = {"seconds_without_step": round(now - since, 1), "last_step": _text(since)}
        else:
            detail = {"steps": after.steps_without_gradient_step}
        key = f"{kind}/{after.process}/{incarnation.incarnation}/{since:.3f}"
        step = incarnation.totals.steps or None
        yield NewEvent(after.process, kind, now, step, incarnation.attempt, detail, key)


def _text(time: float) -> str:
    """A time as a person reads it: RFC 3339 in UTC, in whole seconds."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _ended(
    known: IncarnationState | None, incarnation: IncarnationState, report: Report, now: float
) -> Iterator[NewEvent]:
    """`finished`, `failed` or `stopped`: the incarnation reported its end."""
    if not incarnation.ended or (known is not None and known.state == incarnation.state):
        return
    kind = cast(EventKind, incarnation.state)  # every state that ends an incarnation has an event of its name
    detail: dict[str, Any] = {"steps": incarnation.totals.steps}
    if incarnation.reason is not None:
        detail["reason"] = incarnation.reason
    if incarnation.last_clean_step is not None:
        detail["last_clean_step"] = incarnation.last_clean_step
    key = f"{kind}/{report.process}/{incarnation.incarnation}"
    yield NewEvent(report.process, kind, now, None, incarnation.attempt, detail, key)


def _conflict(old: Conditions, after: ProcessState, now: float) -> Iterator[NewEvent]:
    """`conflict`: two incarnations began to report under one name at the same time."""
    conflict = after.conditions.conflict
    if conflict is None or (old.conflict is not None and old.conflict.since == conflict.since):
        return
    parties = {"older": conflict.older, "newer": conflict.newer}
    detail = {name: {"attempt": party.attempt, "host": party.host} for name, party in parties.items()}
    key = f"conflict/{after.process}/{conflict.older.incarnation}/{conflict.newer.incarnation}/{conflict.since:.3f}"
    yield NewEvent(after.process, "conflict", now, None, conflict.newer.attempt, detail, key)


def diverged(incident: IncidentRecord, report: Report, now: float) -> NewEvent:
    """`diverged`: processes of one attempt disagree about a step. One event for each incident."""
    detail = {
        "processes": [first for first, last in incident.processes for first in range(first, last + 1)][:MOST_NAMED],
        "host": incident.host,
        "device": incident.device,
        "incident": incident.id,
        **{name: value for name, value in incident.figures.items() if name != "step"},
    }
    key = f"diverged/{incident.id}"
    process = int(incident.figures["process"])
    return NewEvent(process, "diverged", now, incident.first_step, report.attempt, detail, key)


class _Details:
    """What a report says about the parameters and replicas of its bad steps, as in the detail of an event."""

    def __init__(self, report: Report) -> None:
        self._offenders: dict[int, list[Offender]] = {}
        for offender in report.offenders:
            self._offenders.setdefault(offender.step, []).append(offender)
        self._unnamed = {one.step: one.parameters for one in report.unnamed}
        self._replicas = {record.step: record for record in report.replicas}
        self._found: dict[int, dict[str, Any]] = {}

    def of(self, step: int) -> dict[str, Any]:
        """The first non-finite parameters, else the largest shares of the norm; and the first non-finite replica."""
        if (found := self._found.get(step)) is None:  # a step may both be skipped and start a streak
            found = _parameters(self._offenders.get(step, []), self._unnamed.get(step, 0))
            self._found[step] = found = found | _replica(self._replicas.get(step))
        return found


def _parameters(of_step: list[Offender], unnamed: int) -> dict[str, Any]:
    offenders = [one for one in of_step if one.not_finite is not None]
    if not offenders:
        shares = [{"parameter": o.parameter, "norm_share": o.norm_share} for o in of_step[:MOST_NAMED]]
        return ({"norm_shares": shares} if shares else {}) | (
            {"parameters": [], "parameter_count": unnamed} if unnamed else {}
        )
    return {
        "parameters": [{"parameter": o.parameter, "not_finite": o.not_finite} for o in offenders[:MOST_NAMED]],
        "parameter_count": len(offenders) + unnamed,
        "first": offenders[0].parameter,
        "largest": max(offenders, key=lambda o: o.not_finite or 0).parameter,
    }


def _replica(record: ReplicaRecord | None) -> dict[str, Any]:
    """The first non-finite replica in an event's detail, without what is unknown."""
    return {} if record is None else {"replica": record.model_dump(exclude={"step"}, exclude_none=True)}
