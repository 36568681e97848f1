"""The health of processes and runs. Pure; times are the exporter's.

`advance` is the only place that sets a condition. `of_process` and `of_run` read them: the first health of `HEALTHS`
that holds is the one shown.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple, cast

from optwrap_exporter.ledger import ranges
from optwrap_exporter.ledger.change import failures
from optwrap_exporter.ledger.evolve import evolved
from optwrap_exporter.ledger.state.conditions import Conditions, Conflict, Party
from optwrap_exporter.ledger.state.counters import Counts
from optwrap_exporter.ledger.state.incarnation import IncarnationState
from optwrap_exporter.ledger.state.incident import LATCHED, IncidentRecord
from optwrap_exporter.ledger.state.process import LEAST_STALLED_AFTER, ProcessState
from optwrap_exporter.ledger.state.run import RunState
from optwrap_exporter.wire.vocabulary import HEALTHS, INCIDENT_OF, Health, Scope

_LATCHED: Final[tuple[Health, ...]] = ("diverged", "gave_up")
_QUIET: Final[frozenset[Health]] = frozenset({"starting", "ok"})
"""What a launch of a crash loop is, looked at alone."""


class HealthSince(NamedTuple):
    """A health and when it began."""

    health: Health
    since: float


class Judged(NamedTuple):
    """A process and its health."""

    process: ProcessState
    health: HealthSince
    acknowledged: bool = False
    """Whether somebody knows of its trouble."""


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """What a report changed in a process."""

    incarnation: IncarnationState | None = None
    """The report's incarnation, if the report was in order."""
    rival: IncarnationState | None = None
    """Another incarnation that is in conflict with it."""
    gained: Counts | None = None
    """The counts that the report added. None if it is late or not from the current incarnation."""


def advance(
    run: RunState,
    before: ProcessState | None,
    after: ProcessState,
    change: Change | None,
    *,
    now: float,
    listening: float,
) -> ProcessState:
    """Set the conditions of a process.

    Args:
      run: the run before the change.
      before: the process before the change; None if it is new.
      after: the process after the change, with the conditions of `before`.
      change: what a report changed; None if only time has passed.
      now: the exporter's clock.
      listening: when this exporter began to accept reports.
    """
    old = after.conditions
    entered = before is None or before.current != after.current  # another incarnation is current now
    conditions = Conditions(
        ended=_ended(old, after, entered, now),
        stale=_stale(old, after, change, now, listening),
        stalled=_stalled(old, after, change, entered=entered, now=now, listening=listening),
        starved=_starved(old, after, entered, now),
        skipping=_skipping(old, after, change, entered, now),
        conflict=_conflict(old, after, change, entered, now),
        cleared=old.cleared,
    )
    advanced = evolved(after, conditions=conditions)
    if before is not None and _unhealthy(run, before, now, listening) and not _unhealthy(run, advanced, now, listening):
        conditions = dataclasses.replace(conditions, cleared=now)
        advanced = evolved(after, conditions=conditions)
    return advanced


def _ended(old: Conditions, after: ProcessState, entered: bool, now: float) -> float | None:
    """Since when the current incarnation has ended: it reported `finished`, `failed` or `stopped`."""
    if not after.incarnation.ended:
        return None
    return now if entered or old.ended is None else old.ended


def _stale(old: Conditions, after: ProcessState, change: Change | None, now: float, listening: float) -> float | None:
    """The last report, if that is too long ago."""
    if change is None:
        return stale_since(after, now, listening)
    return old.stale if change.gained is None else None


def _stalled(
    old: Conditions, after: ProcessState, change: Change | None, *, entered: bool, now: float, listening: float
) -> float | None:
    """The last step, if that is too long ago though the process reports. A process that does not report is stale."""
    if change is None:
        silent = stale_since(after, now, listening) is not None
        return old.stalled if silent else stalled_since(after, now, listening)
    moved = entered or (change.gained is not None and change.gained.steps > 0)
    return None if moved else old.stalled


def _starved(old: Conditions, after: ProcessState, entered: bool, now: float) -> float | None:
    """Since when the process has taken steps, but no gradient step for too long."""
    if after.steps_without_gradient_step < after.starved_after:
        return None
    return now if entered or old.starved is None else old.starved


def _skipping(old: Conditions, after: ProcessState, change: Change | None, entered: bool, now: float) -> float | None:
    """Since when every step has had non-finite gradients."""
    streak = after.gauges.not_finite_streak or 0
    if not streak:
        return None
    new_steps = change.gained.steps if change is not None and change.gained is not None else 0
    continued = not entered and streak > new_steps
    return old.skipping if continued and old.skipping is not None else now


def _conflict(
    old: Conditions, after: ProcessState, change: Change | None, entered: bool, now: float
) -> Conflict | None:
    """The conflict of two incarnations that report under one name at the same time."""
    known = None if entered else old.conflict
    if change is None or change.incarnation is None:
        return known
    one, other = change.incarnation, change.rival
    if one.ended:
        return None
    if other is None:
        return known
    if known is not None and known.holds(now, after.stale_after):
        return known._replace(last=now)
    older, newer = sorted((one, other), key=lambda state: state.first_report)
    return Conflict(now, now, *(Party(state.incarnation, state.attempt, state.host) for state in (older, newer)))


def stale_since(process: ProcessState, now: float, listening: float) -> float | None:
    """The last report of a process that is stale; None if it is not stale."""
    conditions = process.conditions
    if conditions.stale is not None or conditions.ended is not None:
        return conditions.stale
    silent = now >= max(process.last_report, listening) + process.stale_after
    return process.last_report if silent else None


def stalled_since(process: ProcessState, now: float, listening: float) -> float | None:
    """The last step, or the start, of a process that is stalled; None if it is not stalled."""
    conditions = process.conditions
    if conditions.stalled is not None or conditions.ended is not None:
        return conditions.stalled
    since = max(process.moved, listening)
    if now < since + LEAST_STALLED_AFTER:  # avoids the median in the usual case
        return None
    return process.moved if now >= since + process.stalled_after else None


def changes(process: ProcessState, now: float, listening: float) -> bool:
    """Whether time alone has made the process stale or stalled since its conditions were set."""
    conditions = process.conditions
    return conditions.ended is None and (
        stale_since(process, now, listening) != conditions.stale
        or (conditions.stale is None and stalled_since(process, now, listening) != conditions.stalled)
    )


def of_process(run: RunState, process: ProcessState, now: float, listening: float) -> HealthSince:
    """The health of a process of a run. The open incidents of the run are part of it."""
    if (found := next(_holding(run, process, now, listening), None)) is not None:
        return found
    conditions = process.conditions
    conflict = conditions.conflict.ends(process.stale_after) if conditions.conflict is not None else 0.0
    unlatched = _unlatched(run, process.process)
    return HealthSince("ok", max(conditions.cleared, conflict, unlatched, process.incarnation.first_report))


def _unhealthy(run: RunState, process: ProcessState, now: float, listening: float) -> bool:
    return next(_holding(run, process, now, listening), None) is not None


def _holding(run: RunState, process: ProcessState, now: float, listening: float) -> Iterator[HealthSince]:
    """Every health but ok that holds, worst first; one that has finished is nothing else but for incidents."""
    conditions = process.conditions
    if conditions.conflict is not None and conditions.conflict.holds(now, process.stale_after):
        if acknowledged(run, "conflict", process.process):  # it hides nothing that nobody knows of
            yield from _latched(run, process.process)
        yield HealthSince("conflict", conditions.conflict.since)
    yield from _latched(run, process.process)
    if conditions.ended is not None:
        yield HealthSince(cast(Health, process.incarnation.state), conditions.ended)
    if (stale := stale_since(process, now, listening)) is not None:
        yield HealthSince("stale", stale)
    if (stalled := stalled_since(process, now, listening)) is not None:
        yield HealthSince("stalled", stalled)
    if conditions.starved is not None:
        yield HealthSince("starved", conditions.starved)
    if conditions.skipping is not None:
        # Somebody knows that non-finite values are applied, and they still are.
        one = cause(run, "gave_up", process.process)
        yield (
            HealthSince("skipping", conditions.skipping) if one is None else HealthSince("gave_up", one.gave_up or 0.0)
        )
    if process.incarnation.share.steps == 0:
        yield HealthSince("starting", process.incarnation.first_report)


def _latched(run: RunState, process: int) -> Iterator[HealthSince]:
    """`diverged` and `gave_up`, which hold as long as an incident of the process is open."""
    if not run.incidents:  # the usual case
        return
    for kind in _LATCHED:
        if (one := cause(run, kind, process)) is not None and one.state == "open":
            yield HealthSince(kind, one.gave_up or one.opened)


def cause(run: RunState, health: Health, process: int | None = None) -> IncidentRecord | None:
    """The incident because of which a run, or one of its processes, is diverged or gave up: the first open one.

    Without one it is the acknowledged one whose cause still holds.
    """
    if health not in _LATCHED:
        return None
    same = [one for one in run.incidents if one.kind == health]
    mine = same if process is None else [one for one in same if ranges.contains(one.processes, process)]
    return next((one for one in mine if one.state == "open"), mine[0] if mine else None)


def acknowledged(run: RunState, health: Health, process: int | None = None) -> bool:
    """Whether the trouble of a run, or of one of its processes, is known to somebody.

    So it is if no incident of its health is open, and one that was acknowledged is the reason for it.
    """
    if not run.incidents:  # the usual case
        return False
    kind = INCIDENT_OF.get(health)
    found = [
        one.state
        for one in run.incidents
        if one.kind == kind and (process is None or ranges.contains(one.processes, process))
    ]
    return bool(found) and "open" not in found


def _unlatched(run: RunState, process: int) -> float:
    """When the last of those incidents was over or acknowledged; 0.0 if there was none."""
    found = 0.0
    for one in (*run.past_incidents, *run.incidents):
        if one.kind in LATCHED and one.state != "open" and ranges.contains(one.processes, process):
            found = max(found, min(one.acknowledged or math.inf, one.closed or math.inf))
    return found


def relevant(run: RunState, now: float) -> list[ProcessState]:
    """The processes that determine the health of the run, by index.

    These are the processes of the newest attempt, and all others that reported after it began or still report.
    Processes of a killed attempt are left out.
    """
    if len(run.processes) == 1:
        return list(run.processes.values())
    # The index breaks ties: processes are in the order of their arrival, and sorted after a restart.
    latest = max(run.processes.values(), key=lambda process: (process.incarnation.first_report, process.process))
    newest = latest.incarnation.attempt
    began = attempt_began(run, newest)
    return [
        process
        for _, process in sorted(run.processes.items())
        if process.incarnation.attempt == newest
        or process.last_report + process.stale_after > now
        or process.last_report > began + process.stale_after
    ]


def attempt_began(run: RunState, attempt: str) -> float:
    """When the first report of an attempt arrived."""
    left = [run.past.open[attempt].launch.since] if attempt in run.past.open else []
    parts = (part for process in run.processes.values() for part in process.parts)
    return min([*left, *(part.first_report for part in parts if part.attempt == attempt)])


def judged(run: RunState, now: float, listening: float) -> list[Judged]:
    """The processes that determine the health of the run, by index, each with its own."""
    found: list[Judged] = []
    for process in relevant(run, now):
        current = of_process(run, process, now, listening)
        found.append(Judged(process, current, acknowledged(run, current.health, process.process)))
    return found


def of_run(run: RunState, members: Sequence[Judged], scope: Scope) -> HealthSince:
    """The health of a run. Trouble that somebody acknowledged does not hide other trouble that nobody did.

    The next launch of a crash loop is `failed` until it is past the step at which the last one ended.

    Args:
      run: the run.
      members: its processes, from `judged`.
      scope: what the exporter hears. A process that it need not hear is not missing.
    """
    processes = [one.process for one in members]
    missing = scope == "job" and len(members) < process_count(processes)
    began = min(process.incarnation.first_report for process in processes)
    news = [one.health for one in members if not one.acknowledged]
    if news and len(news) < len(members):
        found = overall(news, missing=missing, began=began)
        if found.health in INCIDENT_OF or found.health == "degraded":
            return found
    found = overall([one.health for one in members], missing=missing, began=began)
    if found.health in _QUIET and (failed := failures.before(run, processes)) is not None and failed.loop:
        return HealthSince("failed", failed.since)
    return found


def process_count(members: Iterable[ProcessState]) -> int:
    """The number of processes of the job, from the process that started last."""
    return max(members, key=lambda process: process.incarnation.first_report).source.process_count


def overall(healths: Sequence[HealthSince], *, missing: bool, began: float) -> HealthSince:
    """The health of a run: that of its worst process, or degraded. It is finished only when all processes are.

    Args:
      healths: the health of each process.
      missing: whether a process of the job has not reported that should have.
      began: when the first of these processes reported.
    """
    found = {one.health for one in healths}
    if found != {"finished"}:
        found.discard("finished")
    worst = min(found, key=HEALTHS.index)
    if missing and HEALTHS.index(worst) > HEALTHS.index("degraded"):
        return HealthSince("degraded", began)
    times = [one.since for one in healths if one.health == worst]
    # A run is unhealthy since its first unhealthy process, and ok or finished since the last process became so.
    return HealthSince(worst, max(times) if worst in {"ok", "finished"} else min(times))
