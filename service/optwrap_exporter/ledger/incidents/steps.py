"""Makes incidents of bad steps: `skipped`, and `gave_up` once the optimizer took a non-finite value.

Bad steps within NEAR steps of an incident's belong to it. Step numbers are kept as sets, so neither the split into
reports, nor repetition, nor the number of processes that report a step changes the result.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

from optwrap_exporter.ledger import ranges
from optwrap_exporter.ledger.evolve import evolved
from optwrap_exporter.ledger.incidents.changes import IncidentChanges
from optwrap_exporter.ledger.state.incarnation import IncarnationState
from optwrap_exporter.ledger.state.incident import NEAR, OF_BAD_STEPS, IncidentRecord, Replica, in_order
from optwrap_exporter.wire.requests import ReplicaRecord, Report
from optwrap_exporter.wire.vocabulary import Outcome, is_good

QUIET_SECONDS: Final = 60.0
"""Seconds after the last bad step after which an incident is over, unless the streak is still open."""


def add_bad_steps(
    changes: IncidentChanges,
    report: Report,
    incarnation: IncarnationState,
    *,
    applied_before: int,
    resumed: IncarnationState | None,
) -> None:
    """Add the bad steps of a report.

    Args:
      changes: the incidents.
      report: the report.
      incarnation: its incarnation, with the report merged.
      applied_before: steps with non-finite values that the optimizer had taken before the report.
      resumed: the incarnation with which the process went on, if it has started or rolled back since; else None.
    """
    details = _Details(report)
    group: _Group | None = None
    others: list[IncidentRecord] = []
    starved = _starved_since(changes, incarnation)
    for step, outcome in _bad_steps(report):
        applied = outcome == "accepted_not_finite"
        if step >= starved and not applied:  # the incident of a starved process is about these steps too
            continue
        if group is None or not group.takes(step, applied) or any(one.near(step) for one in others):
            if group is not None:
                _add(changes, group, report, details, resumed=resumed)
            found = _find(changes, incarnation, step, applied=applied) or _open(
                changes, report, incarnation, step, step, applied=applied, applied_before=applied_before
            )
            group = _Group(found)
            others = [one for one in changes.all() if one.id != found.id and one.kind in OF_BAD_STEPS]
        group.steps.append(step)
        group.outcomes.add(outcome)
        if applied:
            group.applied.append(step)
    if group is not None:
        _add(changes, group, report, details, resumed=resumed)


def _starved_since(changes: IncidentChanges, incarnation: IncarnationState) -> float:
    """The first step of the live incident of a launch that is starved."""
    key = (incarnation.attempt, incarnation.generation)
    steps = (one.first_step for one in changes.live(["starved"]) if (one.attempt, one.generation) == key)
    return min((step for step in steps if step is not None), default=math.inf)


class _Group:
    """Bad steps of one report, in order, that belong to one incident."""

    def __init__(self, incident: IncidentRecord) -> None:
        self.incident = incident
        self.steps: list[int] = []
        self.applied: list[int] = []
        self.outcomes: set[Outcome] = set()

    def takes(self, step: int, applied: bool) -> bool:
        """Whether the next bad step is of the same incident."""
        one = self.incident
        known = one.state == "acknowledged" and one.kind == "skipped"
        return step <= max(self.steps[-1], one.last_step or 0) + NEAR and not (known and applied)


def _bad_steps(report: Report) -> Iterator[tuple[int, Outcome]]:
    columns = report.steps
    for step, outcome, finite in zip(columns.step, columns.outcome, columns.finite, strict=True):
        if not is_good(outcome, finite):
            yield step, outcome


def _find(
    changes: IncidentChanges, incarnation: IncarnationState, step: int, *, applied: bool
) -> IncidentRecord | None:
    """The incident that a bad step belongs to; None if it begins one."""

    def fits(one: IncidentRecord) -> bool:
        if one.kind not in OF_BAD_STEPS or not one.near(step):
            return False
        if one.state == "acknowledged" and one.kind == "skipped" and applied and step > (one.last_step or 0):
            return False  # that the guard gave up is new trouble
        if (one.attempt, one.generation) == (incarnation.attempt, incarnation.generation):
            return one.lasts or one.state == "closed" or one.spans(step)
        return one.kind == "gave_up" and one.live and step >= (one.first_step or 0)

    found = [one for one in changes.all() if fits(one)]
    return max(found, key=lambda one: (one.spans(step), one.live, one.id), default=None)


def _open(
    changes: IncidentChanges,
    report: Report,
    incarnation: IncarnationState,
    first: int,
    last: int,
    *,
    applied: bool,
    applied_before: int,
) -> IncidentRecord:
    """A new incident of bad steps."""
    return changes.open(
        "gave_up" if applied else "skipped",
        incarnation.attempt,
        incarnation.generation,
        changes.now,
        opened_by=report.process,
        applied_before=applied_before,
        first_step=first,
        last_step=last,
    )


def _gave_up(one: IncidentRecord, now: float) -> dict[str, Any]:
    """The fields that change when the optimizer takes a non-finite value. An acknowledged incident keeps its kind."""
    kind = one.kind if one.state == "acknowledged" else "gave_up"
    return {"kind": kind, "gave_up": now if one.gave_up is None else one.gave_up}


def _add(
    changes: IncidentChanges, group: _Group, report: Report, details: "_Details", *, resumed: IncarnationState | None
) -> None:
    """Add bad steps to an incident."""
    one = group.incident
    more = one.with_steps(ranges.of(group.steps), ranges.of(group.applied))
    new = more.bad != one.bad or more.applied != one.applied
    gave_up = _gave_up(one, changes.now) if group.applied else {}
    kind = gave_up.get("kind", one.kind)
    reopened = one.state == "closed" and not one.rolled_back and (kind != one.kind or more.last_step != one.last_step)
    more = evolved(
        more,
        state="open" if reopened else one.state,
        closed=None if reopened else one.closed,
        lasts=one.lasts or reopened,
        updated=changes.now if new else one.updated,
        processes=ranges.add(one.processes, report.process),
        outcomes=one.outcomes if group.outcomes.issubset(one.outcomes) else in_order({*one.outcomes, *group.outcomes}),
        last_clean_step=_last_clean(more, report.gauges.every_k or 1),
        **gave_up,
        **details.earlier(one, group.steps),
    ).compact()
    changes.keep(more)
    if resumed is not None and more.live:
        clean = more.last_clean_step
        back = clean is not None and resumed.start_step <= clean
        if back or more.kind == "skipped":
            changes.end(more, at=resumed.first_report, rolled_back=back)


def _last_clean(one: IncidentRecord, window: int) -> int | None:
    """The step before the bad steps in a row of which the first was applied.

    With accumulation the first bad step of the window counts. The result never rises as more becomes known.
    """
    if not one.applied or one.settled_applied:
        return one.last_clean_step
    applied = one.applied[0][0]
    in_window = ranges.above(one.bad, max(0, applied - window))
    clean = ranges.start_of(one.bad, min(in_window[0][0], applied) if in_window else applied) - 1
    return clean if one.last_clean_step is None else min(clean, one.last_clean_step)


def add_unrecorded(
    changes: IncidentChanges, report: Report, incarnation: IncarnationState, *, steps_before: int, applied_before: int
) -> None:
    """Add steps with non-finite values that the totals count, but that have no record.

    Args:
      changes: the incidents.
      report: the report, in order and of the current incarnation.
      incarnation: its incarnation, with the report merged.
      steps_before: the steps in the totals before the report.
      applied_before: those with non-finite values that the optimizer took.
    """
    first, last = steps_before + 1, incarnation.totals.steps
    found = _find(changes, incarnation, last, applied=True) or _find(changes, incarnation, first, applied=True)
    if found is None:
        found = _open(changes, report, incarnation, first, last, applied=True, applied_before=applied_before)
    if found.opened_by != report.process:
        changes.join(found, report.process)
        return
    counted = max(found.counted, incarnation.totals.outcomes.accepted_not_finite - found.applied_before)
    acknowledged = found.state == "acknowledged"
    clean = found.last_clean_step if found.last_clean_step is not None else first - 1
    changes.join(
        found,
        report.process,
        state=found.state if acknowledged else "open",
        lasts=True,
        closed=None if not acknowledged else found.closed,
        counted=counted,
        last_step=max(found.last_step or last, last),
        last_clean_step=clean if acknowledged else min(clean, first - 1),
        updated=changes.now,
        **_gave_up(found, changes.now),
    )


def end_after_good_steps(changes: IncidentChanges, incarnation: IncarnationState) -> None:
    """After NEAR good steps a `skipped` incident is over. A `gave_up` one only lasts no longer."""
    for one in list(changes.live(OF_BAD_STEPS)):
        same = (one.attempt, one.generation) == (incarnation.attempt, incarnation.generation)
        if same and one.lasts and incarnation.totals.steps >= (one.last_step or 0) + NEAR:
            _over(changes, one)


def end_after_quiet(changes: IncidentChanges, streaks: frozenset[int]) -> None:
    """End what has had no bad step for QUIET_SECONDS.

    Args:
      changes: the incidents.
      streaks: the processes whose last step was non-finite.
    """
    for one in list(changes.live(OF_BAD_STEPS)):
        quiet = one.lasts and changes.now > one.updated + QUIET_SECONDS
        if quiet and not any(ranges.contains(one.processes, process) for process in streaks):
            _over(changes, one)


def _over(changes: IncidentChanges, one: IncidentRecord) -> None:
    if one.kind == "gave_up" and one.state == "open":
        changes.put(one, lasts=False)
    else:
        changes.end(one)


class _Details:
    """The first non-finite parameter and replica of a step, as a report names them."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._parameters: dict[int, str] | None = None
        self._replicas: dict[int, ReplicaRecord] | None = None

    def earlier(self, one: IncidentRecord, steps: Sequence[int]) -> dict[str, Any]:
        """The fields that change if the report names them for a step before the one that the incident has them of."""
        found: dict[str, Any] = {}
        named = self._named()
        step = next((step for step in steps if step in named), None)
        if step is not None and (one.parameter_step is None or step < one.parameter_step):
            found |= {"parameter": named[step], "parameter_step": step}
        if self._replicas is None:
            self._replicas = {record.step: record for record in self._report.replicas}
        first = next((self._replicas[step] for step in steps if step in self._replicas), None)
        if first is not None and (one.replica is None or first.step < one.replica.step):
            found["replica"] = Replica(first.step, first.replica, first.process, first.device)
        return found

    def _named(self) -> dict[int, str]:
        if self._parameters is None:
            named = [(one.step, one.parameter) for one in self._report.offenders if one.not_finite is not None]
            self._parameters = dict(reversed(named))
        return self._parameters
