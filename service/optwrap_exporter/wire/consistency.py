"""Whether a report can have been: what its parts, each within its own bounds, have to do with one another.

What is refused here no training can have counted; taken, it would spoil totals, streaks and events for good.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from optwrap_exporter.wire.requests import Counters, ReplicaSteps, Report

SATURATED: Final = 2**31 - 1
"""Where the library's counters stop, each by itself: from there on one says nothing about the others."""


def wrong(field: str, allowed: str, value: object) -> PydanticCustomError:
    """What to raise in a validator, below whose place in the report `field` is."""
    # What is allowed may quote a path with braces in it, which must not be read as a template's.
    return PydanticCustomError("inconsistent", "{allowed}", {"field": field, "allowed": allowed, "value": value})


def check(report: "Report") -> None:
    """Hold the parts of a report against one another.

    Raises:
      PydanticCustomError: the first contradiction, as `wrong` makes it.
    """
    if report.oldest_held > report.seq:
        raise wrong("oldest_held", f"at most seq, {report.seq}", report.oldest_held)
    _check_counters(report.totals, report.at_start)
    _check_records(report)
    _check_offenders(report)
    _check_replica_records(report)


def check_replicas(replicas: "Sequence[ReplicaSteps]") -> None:
    """Each replica is counted once.

    Raises:
      PydanticCustomError: one is there twice.
    """
    seen: set[tuple[object, ...]] = set()
    for place, one in enumerate(replicas):
        key = (one.replica, one.process, one.device)
        if key in seen:
            raise wrong(f"replicas[{place}]", "each replica once", f"{key} again")
        seen.add(key)


def _check_counters(now: "Counters", then: "Counters") -> None:
    """Nothing falls within an incarnation, and no parameter is not finite in more steps than there were such steps."""
    for name in ("steps", "gradient_steps", "not_finite_steps"):
        if getattr(now, name) < getattr(then, name):
            raise wrong(f"totals.{name}", f"at least at_start's, {getattr(then, name)}", getattr(now, name))
    for outcome, before in then.outcomes:
        if getattr(now.outcomes, outcome) < before:
            raise wrong(f"totals.outcomes.{outcome}", f"at least at_start's, {before}", getattr(now.outcomes, outcome))
    saturated = now.not_finite_steps >= SATURATED
    for path, before in then.parameters.items():
        if now.parameters.get(path, 0) < before:
            raise wrong(f"totals.parameters.{path}", f"at least at_start's, {before}", now.parameters.get(path, 0))
        if before > then.not_finite_steps and not saturated:
            raise wrong(f"at_start.parameters.{path}", f"at most not_finite_steps, {then.not_finite_steps}", before)
    # Of what was counted since, too: that is what is added up.
    not_finite, steps = now.not_finite_steps - then.not_finite_steps, now.steps - then.steps
    if not_finite > steps:
        most = then.not_finite_steps + steps
        raise wrong("totals.not_finite_steps", f"at most at_start's and the steps since, {most}", now.not_finite_steps)
    if saturated:
        return
    first = sum(one.steps for one in now.replicas) - sum(one.steps for one in then.replicas)
    if first > steps:
        raise wrong("totals.replicas", f"{steps} steps at most: one replica is the first in each since at_start", first)
    for path, count in now.parameters.items():
        most = then.parameters.get(path, 0) + not_finite
        if count > most:
            raise wrong(f"totals.parameters.{path}", f"at most at_start's and not_finite_steps since, {most}", count)


def _check_records(report: "Report") -> None:
    """Step records are of steps that the incarnation has counted, in order, each once."""
    now, then, records = report.totals, report.at_start, report.steps
    before = then.steps
    for place, step in enumerate(records.step):
        if not before < step <= now.steps:
            allowed = f"above the step before it, {before}, and at most totals.steps, {now.steps}"
            raise wrong(f"steps.step[{place}]", allowed, step)
        before = step
    for outcome, count in Counter(records.outcome).items():
        counted = getattr(now.outcomes, outcome) - getattr(then.outcomes, outcome)
        if count > counted:
            raise wrong("steps.outcome", f"{outcome} {counted} times at most: totals less at_start", f"{count} times")


def _check_offenders(report: "Report") -> None:
    """Offenders are of steps whose records are there, each parameter of a step once."""
    steps = set(report.steps.step)
    seen: set[tuple[int, str]] = set()
    for place, offender in enumerate(report.offenders):
        if offender.step not in steps:
            raise wrong(f"offenders[{place}].step", "a step of steps.step in the same report", offender.step)
        key = (offender.step, offender.parameter)
        if key in seen:
            raise wrong(f"offenders[{place}]", "each parameter of a step once", f"{offender.parameter} again")
        seen.add(key)


def _check_replica_records(report: "Report") -> None:
    """They are of steps whose records are there, each step once, and there are no fewer replicas than are told of."""
    steps, seen = set(report.steps.step), set[int]()
    for place, record in enumerate(report.replicas):
        if record.step not in steps or record.step in seen:
            raise wrong(f"replicas[{place}].step", "a step of steps.step in the same report, each once", record.step)
        seen.add(record.step)
        if record.of is not None and record.replica + record.count > record.of:
            allowed = f"at least replica + count, {record.replica + record.count}: replica is the first of them"
            raise wrong(f"replicas[{place}].of", allowed, record.of)
