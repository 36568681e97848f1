"""Makes incidents of the conditions of processes: of each kind and attempt one, with all processes that have it."""

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from optwrap_exporter.ledger import ranges
from optwrap_exporter.ledger.incidents.changes import IncidentChanges
from optwrap_exporter.ledger.state.incident import NEAR, IncidentRecord, in_order
from optwrap_exporter.ledger.state.process import ProcessState
from optwrap_exporter.wire.vocabulary import IncidentKind, to_json_number


class _Holds(NamedTuple):
    """A condition that holds."""

    since: float
    fields: dict[str, Any]
    """What an incident that begins with it says beside its kind."""


def _conflict(process: ProcessState, now: float) -> _Holds | None:
    conflict = process.conditions.conflict
    if conflict is None or not conflict.holds(now, process.stale_after):
        return None
    hosts = [conflict.older.host, conflict.newer.host]
    return _Holds(conflict.since, {"figures": {"hosts": hosts}})


def _ended(state: str) -> Callable[[ProcessState, float], _Holds | None]:
    def holds(process: ProcessState, now: float) -> _Holds | None:
        del now
        one, since = process.incarnation, process.conditions.ended
        if since is None or one.state != state:
            return None
        fields = {"reason": one.reason, "last_clean_step": one.last_clean_step}
        return _Holds(since, fields | {"first_step": one.totals.steps or None, "last_step": one.totals.steps or None})

    return holds


def _silent(process: ProcessState, now: float) -> _Holds | None:
    del now
    conditions, step = process.conditions, process.incarnation.totals.steps or None
    if conditions.stale is None or conditions.ended is not None:
        return None
    return _Holds(conditions.stale, {"first_step": step, "last_step": step})


def _stalled(process: ProcessState, now: float) -> _Holds | None:
    del now
    conditions, step = process.conditions, process.incarnation.totals.steps or None
    if conditions.stalled is None or conditions.ended is not None:
        return None
    return _Holds(conditions.stalled, {"first_step": step, "last_step": step})


def _starved(process: ProcessState, now: float) -> _Holds | None:
    del now
    conditions, last = process.conditions, process.incarnation.totals.steps
    if conditions.starved is None or conditions.ended is not None or process.gradient_step_at is None:
        return None
    gauges = process.gauges
    seen = process.gradient_norm
    norm, step = (None, None) if seen is None else seen[:2]
    if gauges.gradient_norm is not None:
        norm, step = gauges.gradient_norm, last
    shown = norm if norm is None else to_json_number(norm)
    figures = {"norm": shown, "step": step, "limit": gauges.gradient_norm_limit}
    first = process.gradient_step_at + 1
    return _Holds(
        conditions.starved, {"first_step": first, "last_step": last, "counted": last - first + 1, "figures": figures}
    )


_CONDITIONS: Final[dict[IncidentKind, Callable[[ProcessState, float], _Holds | None]]] = {
    "conflict": _conflict,
    "failed": _ended("failed"),
    "stopped": _ended("stopped"),
    "stale": _silent,
    "stalled": _stalled,
    "starved": _starved,
}
_ENDS: Final = frozenset({"failed", "stopped"})
OF_CONDITIONS: Final = frozenset(_CONDITIONS)
"""Kinds of incidents that last as long as a condition of a process."""


def any_holds(process: ProcessState) -> bool:
    """Whether a process may have one of the conditions. Cheap, for every report."""
    found = process.conditions
    return (
        found.conflict is not None
        or (found.ended is not None and process.incarnation.state != "finished")
        or found.stale is not None
        or found.stalled is not None
        or found.starved is not None
    )


def follow_conditions(changes: IncidentChanges, process: ProcessState) -> None:
    """Apply the conditions of one process as they are now."""
    for kind, of in _CONDITIONS.items():
        holds = of(process, changes.now)
        mine = [one for one in changes.live([kind]) if ranges.contains(one.active, process.process)]
        if holds is None:
            for one in mine:
                _leave(changes, one, {process.process})
        elif not mine or (kind in _ENDS and mine[0].attempt != process.incarnation.attempt):
            for one in mine:
                _leave(changes, one, {process.process})
            _enter(changes, kind, process, holds)
        elif kind == "starved" and (holds.fields["last_step"] or 0) > (mine[0].last_step or 0):
            changes.put(mine[0], updated=changes.now, **holds.fields)


def _enter(changes: IncidentChanges, kind: IncidentKind, process: ProcessState, holds: _Holds) -> None:
    attempt = process.incarnation.attempt
    # A conflict is between attempts, and not all processes need have the same one of them as the current one.
    same = (one for one in changes.live([kind]) if kind == "conflict" or one.attempt == attempt)
    one = next((one for one in same if one.state == "open"), None)
    if kind in _ENDS:
        holds = holds._replace(fields=holds.fields | {"figures": {"launch": changes.launches()}})
    if one is None and kind == "failed" and (again := _failed_like_this(changes, process, holds)) is not None:
        one = changes.put(
            again,
            state="open",
            lasts=True,
            closed=None,
            active=(),
            times=again.times + 1,
            **{name: holds.fields[name] for name in ("last_step", "figures")},
            attempt=attempt,
            generation=process.incarnation.generation,
        )
    if one is None:
        generation = process.incarnation.generation
        fields = {"host": process.source.host or None} | holds.fields
        one = changes.open(kind, attempt, generation, holds.since, **fields)
    if kind == "starved":
        one = _absorb_bad_steps(changes, one)
    changes.join(
        one,
        process.process,
        active=ranges.add(one.active, process.process),
        reason=one.reason or holds.fields.get("reason"),
        last_clean_step=one.last_clean_step if one.last_clean_step is not None else holds.fields.get("last_clean_step"),
        updated=changes.now,
    )


def _absorb_bad_steps(changes: IncidentChanges, starved: IncidentRecord) -> IncidentRecord:
    """End the open incidents of the bad steps because of which no step became a gradient step."""
    for one in list(changes.live(["skipped"])):
        same = (one.attempt, one.generation) == (starved.attempt, starved.generation)
        if same and (one.last_step or 0) >= (starved.first_step or 0):
            changes.end(one)
            starved = changes.put(starved, outcomes=in_order({*starved.outcomes, *one.outcomes}))
    return starved


def _failed_like_this(changes: IncidentChanges, process: ProcessState, holds: _Holds) -> IncidentRecord | None:
    """The failure of the launch before, if nobody has acknowledged it, and it was the same one at about this step."""
    last = next((one for one in changes.all() if one.kind == "failed"), None)
    if last is None or last.state == "acknowledged" or last.reason is None or last.reason != holds.fields["reason"]:
        return None
    launches = dict.fromkeys(part.attempt for part in process.parts)
    launches.pop(process.incarnation.attempt)
    before = next(reversed(launches), None)
    near = abs((holds.fields["last_step"] or 0) - (last.last_step or 0)) <= NEAR
    return last if near and last.attempt in {process.incarnation.attempt, before} else None


def _leave(changes: IncidentChanges, one: IncidentRecord, processes: Iterable[int]) -> None:
    active = one.active
    for process in processes:
        active = ranges.without(active, process)
    if active:
        changes.put(one, active=active)
    else:
        changes.end(one)


def end_conditions(changes: IncidentChanges, members: Iterable[ProcessState]) -> None:
    """End what time has ended: conflicts, and the conditions of processes that the run no longer shows.

    Args:
      changes: the incidents.
      members: the processes that determine the health of the run.
    """
    shown = {process.process: process for process in members}
    for one in list(changes.live(OF_CONDITIONS)):
        of = _CONDITIONS[one.kind]
        numbers = [number for first, last in one.active for number in range(first, last + 1)]
        gone = {n for n in numbers if n not in shown or of(shown[n], changes.now) is None}
        if gone:
            _leave(changes, one, gone)
