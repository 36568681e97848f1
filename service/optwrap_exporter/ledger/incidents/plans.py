"""Plans with incidents: what a report, the time, or a person changes in the incidents of a run."""

from collections.abc import Sequence

from optwrap_exporter.ledger.change import events
from optwrap_exporter.ledger.evolve import evolved
from optwrap_exporter.ledger.incidents import report as incidents
from optwrap_exporter.ledger.incidents.changes import KEPT, ChangedIncidents
from optwrap_exporter.ledger.plan import Plan
from optwrap_exporter.ledger.state.incident import IncidentRecord
from optwrap_exporter.ledger.state.run import RunState


def _with(run: RunState, changed: ChangedIncidents) -> RunState:
    return evolved(run, incidents=changed.live, past_incidents=changed.over)


def of_report(plan: Plan, *, in_order: bool, now: float, next_id: int) -> Plan:
    """The plan of a report with the incidents that it changes, and the event of a new divergence.

    Args:
      plan: the plan without them.
      in_order: whether its report is in order.
      now: the exporter's clock.
      next_id: the id of the next new incident.
    """
    report = plan.report
    assert report is not None
    divergence = plan.compared.divergence if plan.compared is not None else None
    changed = incidents.of_report(
        plan.run,
        plan.process,
        report,
        plan.before,
        in_order=in_order,
        divergence=divergence,
        now=now,
        next_id=next_id,
    )
    if changed is None or not changed.to_store:
        return plan
    new = [one for one in changed.to_store if one.id >= next_id and one.kind == "diverged"]
    more = tuple(events.diverged(one, report, now) for one in new)
    return evolved(plan, run=_with(plan.run, changed), incidents=changed.to_store, events=(*plan.events, *more))


def of_time(run: RunState, plans: Sequence[Plan], now: float, age: float, next_id: int) -> list[Plan]:
    """Add what time alone changes in the incidents of a run to its plans.

    Args:
      run: the run before.
      plans: what time has changed beside them; each sees those before it.
      now: the exporter's clock.
      age: the clock that data ages by.
      next_id: the id of the next new incident.
    """
    after = plans[-1].run if plans else run
    if not plans and not incidents.time_may_change(after, now):
        return []
    changed = incidents.of_time(after, now, next_id)
    if not changed.to_store:
        return list(plans)
    after = _with(after, changed)
    if plans:
        return [*plans[:-1], evolved(plans[-1], run=after, incidents=changed.to_store)]
    return [evolved(of_run(after, age), incidents=changed.to_store)]


def of_run(run: RunState, age: float) -> Plan:
    """A plan that changes the run itself, and none of its processes."""
    return Plan(age, run, next(iter(run.processes.values())), ())


def acknowledge(run: RunState, incident: IncidentRecord, now: float, age: float) -> Plan:
    """The plan in which somebody acknowledges an incident of the run."""
    after = incidents.acknowledged(incident, now)
    known = [after if one.id == after.id else one for one in (*run.past_incidents, *run.incidents)]
    known.sort(key=lambda one: one.id)
    changed = ChangedIncidents(
        tuple(one for one in known if one.live), tuple(one for one in known if not one.live)[-KEPT:]
    )
    return evolved(of_run(_with(run, changed), age), incidents=(after,))
